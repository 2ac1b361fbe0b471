"""One self-describing file for a finished model: seed, layout, packed mask, BatchNorm statistics.

safetensors with three tensors: `mask` uint8 `[ceil(N / 8)]`, or of soft masks `soft` uint8 `[ceil(N / 2)]`, two
weights a byte, the first one in its low bits; `norm_mean` and `norm_var` float32 `[sum(norms)]`.  Of an ensemble
the second mask has `mask.1` and so on.  Everything else is JSON in its metadata under `prismfl`.  Needs NumPy alone.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from prismfl.data.files import write_atomic
from prismfl.errors import ModelFileError, PrismError
from prismfl.generator.layout import SOFT_ONE, Layout, Mask, frozen_signs
from prismfl.wire.masks import pack_mask, unpack_mask

FORMAT = "prismfl-model-2"
ENSEMBLE = "prismfl-model-3"  # of several masks, which readers of the other would not see
MOST_MASKS = 64  # as many as `search.ensemble` may be: bounds what a foreign file makes us read
# What reading a file that is none of ours may raise.
_FOREIGN = SafetensorError, PrismError, KeyError, TypeError, ValueError, ArithmeticError, RecursionError, MemoryError


@dataclass(frozen=True)
class Part:
    """One mask of a model, and the BatchNorm statistics of the network that it makes; see `Model`."""

    mask: Mask
    norm_mean: NDArray[np.float32]
    norm_var: NDArray[np.float32]


@dataclass(frozen=True)
class Model:
    """A finished generator: one bit a weight, of soft masks four, and what is needed to run and judge it.

    Attributes:
        layout: the generator's shape.
        seed: of the frozen weights.
        mask: bool `[N]`, or soft uint8 `[N]` of 0 … 15 (see `layout.Mask`).
        norm_mean: BatchNorm means, float32 `[sum(norms)]`.
        norm_var: BatchNorm variances, float32 `[sum(norms)]`.
        settings: TOML text of the run.
        ledger: releases of private data; empty: there is no privacy guarantee.
        labels: names of the labels that images are made by; empty: it takes none.
        more: further masks of the same frozen weights, of an ensemble: images take turns among all of them.
    """

    layout: Layout
    seed: int
    mask: Mask
    norm_mean: NDArray[np.float32]
    norm_var: NDArray[np.float32]
    settings: str
    ledger: tuple[Any, ...] = ()
    labels: tuple[str, ...] = ()
    more: tuple[Part, ...] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        """All masks with their statistics, the first one as well."""
        return Part(self.mask, self.norm_mean, self.norm_var), *self.more

    def of_parts(self, parts: tuple[Part, ...]) -> "Model":
        """The same model with these masks, one at least, in place of its own."""
        first, *more = parts
        changed = {"mask": first.mask, "norm_mean": first.norm_mean, "norm_var": first.norm_var}
        return replace(self, **changed, more=tuple(more))  # type: ignore[arg-type]


def save_model(model: Model, path: Path) -> int:
    """Write a model file whole.

    Args:
        model: what it is to hold.
        path: the file.

    Returns:
        Its size in bytes.
    """
    about = {
        "format": ENSEMBLE if model.more else FORMAT,
        "seed": model.seed,
        "layout": asdict(model.layout),
        "labels": list(model.labels),
        "signs_sha256": _signs_hash(model.layout, model.seed),
        "settings": model.settings,
        "ledger": list(model.ledger),
    }
    if model.more:
        about["masks"] = len(model.parts)
    tensors: dict[str, NDArray[Any]] = {}
    for index, part in enumerate(model.parts):
        named: dict[str, NDArray[Any]] = {**_packed(part.mask), "norm_mean": part.norm_mean, "norm_var": part.norm_var}
        tensors |= {name + _suffix(index): values for name, values in named.items()}
    about["sha256"] = _content_hash(about, tensors)
    raw = save_tensors(tensors, {"prismfl": json.dumps(about)})
    write_atomic(path, raw)
    return len(raw)


def model_file(path: str | Path) -> Path:
    """A model's file: the path itself, or in the folder of a run its finished model.

    Raises:
        ModelFileError: for a folder without one.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    found = path / "model.safetensors"
    if not found.is_file():
        got = f"{path} is a folder without model.safetensors"
        raise ModelFileError(got, "a model file, or a finished run", "name one, or finish the run with --resume")
    return found


def load_model(path: str | Path) -> Model:
    """Read a model file.

    Args:
        path: the file, or the folder of a finished run.

    Returns:
        What it holds, all checked.

    Raises:
        ModelFileError: when it is missing, damaged or foreign.
    """
    path = model_file(path)
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        raise _refuse(path, f"cannot be read ({error})") from None
    try:
        return _parse(path, raw)
    except ModelFileError:
        raise
    except _FOREIGN as error:
        raise _refuse(path, f"is damaged or foreign ({type(error).__name__}: {error})") from None


def _parse(path: str | Path, raw: bytes) -> Model:
    tensors = load_tensors(raw)
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    about = json.loads(header["__metadata__"]["prismfl"])
    if about["format"] not in (FORMAT, ENSEMBLE):
        raise _refuse(path, f"has format {about['format']!r}")
    if about.pop("sha256") != _content_hash(about, tensors):
        raise _refuse(path, "holds other bytes than were saved")
    layout = Layout(**about["layout"])
    masks = about["masks"] if about["format"] == ENSEMBLE else 1
    if not isinstance(masks, int) or not 1 <= masks <= MOST_MASKS:
        raise _refuse(path, f"holds {masks!r} masks")
    parts = [_part(path, layout, tensors, _suffix(index)) for index in range(masks)]
    if not isinstance(about["settings"], str) or not isinstance(about["ledger"], list):
        raise _refuse(path, "holds unusable settings or ledger")
    names = about["labels"]
    if not isinstance(names, list) or not all(isinstance(name, str) and name.isprintable() for name in names):
        raise _refuse(path, "holds labels that are no text")
    if len(names) != layout.classes or len(set(names)) != len(names):
        raise _refuse(path, f"holds {len(set(names))} different labels for {layout.classes}")
    if about["signs_sha256"] != _signs_hash(layout, about["seed"]):
        raise _refuse(path, "was made with other frozen weights than its seed gives here")
    first, *more = parts
    return Model(
        layout,
        about["seed"],
        first.mask,
        first.norm_mean,
        first.norm_var,
        about["settings"],
        tuple(about["ledger"]),
        tuple(about["labels"]),
        tuple(more),
    )


def _suffix(index: int) -> str:
    """What the names of a mask's tensors end in."""
    return f".{index}" if index else ""


def _part(path: str | Path, layout: Layout, tensors: dict[str, NDArray[Any]], suffix: str) -> Part:
    name, each = ("soft", 2) if f"soft{suffix}" in tensors else ("mask", 8)
    stored = tensors[name + suffix]
    # The mask's length bounds N before anything of size N is made.
    if layout.count > each * stored.size:
        raise _refuse(path, f"holds {stored.size} mask bytes for {layout.count} weights")
    mask = _unpacked(stored, layout.count) if each == 2 else unpack_mask(stored.tobytes(), layout.count)
    mean, var = tensors[f"norm_mean{suffix}"], tensors[f"norm_var{suffix}"]
    if not (_usable(mean, layout) and _usable(var, layout)) or var.min() < 0:
        raise _refuse(path, "holds unusable BatchNorm statistics")
    return Part(mask, mean, var)


def _packed(mask: Mask) -> dict[str, NDArray[np.uint8]]:
    """A mask as the tensor that is stored."""
    if mask.dtype == np.bool_:
        return {"mask": np.frombuffer(pack_mask(mask.astype(np.bool_)), np.uint8)}
    pairs = np.append(mask, np.zeros(len(mask) % 2, np.uint8)).reshape(-1, 2).astype(np.uint8)
    return {"soft": pairs[:, 0] + 16 * pairs[:, 1]}


def _unpacked(soft: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """A stored soft mask, uint8 `[count]`.  Raises ValueError for another length, type, or what comes after it."""
    if soft.dtype != np.uint8 or soft.shape != (-(-count // 2),) or (count % 2 and soft[-1] >> 4):
        raise ValueError(f"a soft mask {soft.dtype} {list(soft.shape)} of {count} weights")
    return np.stack((soft & SOFT_ONE, soft >> 4), 1).reshape(-1)[:count]


def _usable(values: NDArray[Any], layout: Layout) -> bool:
    return values.shape == (sum(layout.norms),) and values.dtype == np.float32 and bool(np.isfinite(values).all())


def _signs_hash(layout: Layout, seed: int) -> str:
    return hashlib.sha256(np.packbits(frozen_signs(layout, seed) > 0).tobytes()).hexdigest()[:32]


def _content_hash(about: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> str:
    """Of everything the file says: a ledger or a setting cannot change unseen."""
    joined = b"".join(np.ascontiguousarray(tensors[name]).tobytes() for name in sorted(tensors))
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode() + joined).hexdigest()


def _refuse(path: str | Path, what: str) -> ModelFileError:
    return ModelFileError(f"model file {path} {what}", f"a whole {FORMAT} file", "make or fetch it anew")
