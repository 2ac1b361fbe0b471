"""IDX files of unsigned bytes, as MNIST and its family are published in."""

import gzip
import io
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prismfl.data.images import ImageSet, is_bomb, read_file
from prismfl.errors import DataError

IDX_FAMILIES = {"mnist": "MNIST", "fmnist": "Fashion-MNIST", "kmnist": "KMNIST"}
_CLASSES = 10  # of each


def load_idx(folder: Path, name: str, split: str, *, private: bool = False) -> ImageSet:
    """One split of the four IDX files of a data set of `IDX_FAMILIES`: uint8 images `[N, 1, H, W]`.

    Classes are named by their labels, the families' ten at least.  private: no others, for one label must not make a
    class.  Raises DataError naming the file that is missing or damaged.
    """
    prefix = "train" if split == "train" else "t10k"
    pixels = read_idx(_find_idx(folder, f"{prefix}-images-idx3-ubyte", name), rank=3)
    labels = read_idx(_find_idx(folder, f"{prefix}-labels-idx1-ubyte", name), rank=1)
    if len(pixels) != len(labels):
        raise DataError(
            f"{len(pixels)} images and {len(labels)} labels in {folder} ({prefix})",
            "one label an image",
            "fetch both files anew from one source",
        )
    count = max(_CLASSES, int(labels.max()) + 1)
    if private and count > _CLASSES:
        raise DataError(
            f"labels up to {count - 1} in {folder} with epsilon",
            f"0 … {_CLASSES - 1}, the classes that IDX files have for all to know",
            "write the images into class folders: their names are public",
        )
    return ImageSet(pixels[:, None], labels.astype(np.int64), tuple(str(c) for c in range(count)))


def _find_idx(folder: Path, stem: str, name: str) -> Path:
    dotted = stem.replace("-idx", ".idx")
    for candidate in (stem, f"{stem}.gz", dotted, f"{dotted}.gz"):
        if (folder / candidate).is_file():
            return folder / candidate
    raise DataError(
        f"no {stem} or {stem}.gz in {folder}",
        f"{IDX_FAMILIES[name]}'s IDX files",
        f"point --data-dir at the folder that holds them, or run `prismfl fetch {name}`",
    )


def _unpacked(path: Path, raw: bytes, rank: int) -> bytes:
    """A gzip file's bytes: no more of them than its header claims, and one."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
            head = file.read(4 + 4 * rank)
            shape = struct.unpack(f">{rank}I", head[4:]) if len(head) == 4 + 4 * rank else (0,)
            claimed = int(np.prod(shape, dtype=object))
            if is_bomb(len(raw), claimed):
                raise ValueError(f"{len(raw)} bytes that claim to be {claimed}")
            return head + file.read(claimed + 1)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{path} does not decompress ({error})", "a whole gzip file", "fetch it anew") from None


def read_idx(path: Path, rank: int) -> NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes, plain or gzipped: uint8 with `rank` axes.

    The header is checked against the bytes present before anything is interpreted, and the
    array is a view of those bytes.  Raises DataError naming the file.
    """
    raw = read_file(path)
    if raw[:2] == b"\x1f\x8b":
        raw = _unpacked(path, raw, rank)
    header = 4 + 4 * rank
    if len(raw) < header or raw[:4] != bytes((0, 0, 8, rank)):
        raise DataError(
            f"{path} begins with {raw[:4].hex() or 'nothing'}",
            f"an IDX header of unsigned bytes with {rank} axes",
            "check that the file is what its name says",
        )
    shape = struct.unpack(f">{rank}I", raw[4:header])
    want = int(np.prod(shape, dtype=object))
    if want != len(raw) - header or want == 0:
        raise DataError(
            f"{path} claims shape {shape} and holds {len(raw) - header} bytes",
            f"{want} bytes, more than none",
            "fetch the file anew; it is cut short or damaged",
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)
