"""Published weights on disk: a torch state dict or safetensors, read without running anything in it."""

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from prismfl.errors import ModelFileError

State = dict[str, Tensor]

_COUNT = "num_batches_tracked"


def load_weights(
    net: nn.Module,
    path: Path,
    what: str,
    remedy: str,
    renamed: Callable[[State], Mapping[str, Tensor]] = dict,
    sha256: str = "",
) -> str:
    """Fill a network from a weights file as float32, and freeze it in evaluation mode.

    Args:
        net: whose names and shapes the file must have.
        path: a name that ends in `.safetensors` is read as such; any other as torch's own format, whose loader is
            told to take tensors only (`weights_only=True`).
        what: what was expected, for errors.
        remedy: what to do, for errors.
        renamed: takes the file's tensors by name, less a BatchNorm's counts of batches, and gives the network's.
        sha256: of the only file that will do, which is compared before anything is read; "" for any.

    Returns:
        The file's SHA-256.

    Raises:
        ModelFileError: the file is missing, damaged, holds anything but tensors or others than the network's, or a
            number that is not finite.
    """
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        raise ModelFileError(f"cannot read {path} ({error})", what, remedy) from None
    found = hashlib.sha256(raw).hexdigest()
    if sha256 not in ("", found):
        raise ModelFileError(f"{path} with SHA-256 {found}", f"{what}: {sha256}", remedy)
    try:
        stored = load_tensors(raw) if path.suffix == ".safetensors" else _unpickled(raw)
    except Exception as error:  # a damaged pickle can raise nearly anything, and torch advises to trust it
        raise ModelFileError(f"{path} does not load as tensors ({type(error).__name__})", what, remedy) from None
    if not isinstance(stored, Mapping) or not all(_is_weight(*item) for item in stored.items()):
        raise ModelFileError(f"{path} holds more than named tensors", what, remedy)
    try:
        kept = {name: tensor.float() for name, tensor in stored.items() if not name.endswith(_COUNT)}
        net.load_state_dict(renamed(kept))
    except (KeyError, RuntimeError, IndexError) as error:
        told = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ModelFileError(f"{path} does not fit ({told})", what, remedy) from None
    odd = next((name for name, tensor in net.state_dict().items() if not tensor.isfinite().all()), None)
    if odd is not None:
        raise ModelFileError(f"{path} has numbers in {odd} that are not finite", what, remedy)
    net.eval().requires_grad_(False)
    return found


def _unpickled(raw: bytes) -> Any:
    return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)


def _is_weight(name: Any, tensor: Any) -> bool:
    """A named dense tensor; a BatchNorm's count of batches is the only one that may be of integers."""
    if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
        return False
    return tensor.is_floating_point() or name.endswith(_COUNT)
