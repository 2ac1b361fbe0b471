"""CIFAR-10's binary batches, in a folder or still in their `.tar.gz`."""

import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from prismfl.data.images import Images, ImageSet, Labels, read_file
from prismfl.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_STEMS = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
_FOLDERS = (".", "cifar-10-batches-bin")
_ARCHIVE = "cifar-10-binary.tar.gz"
_PYTHON = ("cifar-10-batches-py", "cifar-10-python.tar.gz", "data_batch_1", "test_batch")
_PIXELS = 3 * 32 * 32
_MOST_BYTES = 2**28  # of a batch in an archive; the published ones have 31 MB


def load_cifar10(root: Path, split: str) -> ImageSet:
    """One split of CIFAR-10: uint8 images `[N, 3, 32, 32]`.

    root: the folder of the batches, the folder around it, or the archive as published.  Batches for
    Python hold the same images, pickled: they are not read.  Raises DataError naming what is missing
    or damaged.
    """
    stems, found = _STEMS[split], _files(root, _STEMS[split])
    missing = [stem for stem in stems if stem not in found]
    if missing:
        pickled = root.name in _PYTHON or any((root / name).exists() for name in _PYTHON)
        raise DataError(
            f"no {missing[0]}.bin in {root}" + ", but its batches for Python, which are pickled" * pickled,
            "CIFAR-10's binary batches, or their .tar.gz",
            "run `prismfl fetch cifar10`" if pickled else "check --data-dir, or run `prismfl fetch cifar10`",
        )
    images, labels = zip(*(_batch(found[stem], f"{root}:{stem}.bin") for stem in stems), strict=True)
    return ImageSet(np.concatenate(images), np.concatenate(labels), CLASSES)


def _files(root: Path, stems: tuple[str, ...]) -> dict[str, bytes]:
    """The batches that are there, by stem."""
    for folder in (root / name for name in _FOLDERS):
        if paths := [path for stem in stems if (path := folder / f"{stem}.bin").is_file()]:
            return {path.stem: read_file(path) for path in paths}
    archive = root if root.is_file() else root / _ARCHIVE
    return dict(_members(archive, stems)) if archive.is_file() else {}


def _members(path: Path, stems: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """Members are read where they lie and written nowhere, whatever their names claim."""
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                stem, _, suffix = member.name.rsplit("/", 1)[-1].partition(".")
                if suffix == "bin" and stem in stems and member.isfile() and (file := archive.extractfile(member)):
                    yield stem, file.read(_MOST_BYTES)
    except (tarfile.TarError, zlib.error, OSError, EOFError, ValueError) as error:
        raise DataError(
            f"{path} does not unpack ({error})", "CIFAR-10's whole .tar.gz", "fetch it anew, or unpack it"
        ) from None


def _batch(raw: bytes, name: str) -> tuple[Images, Labels]:
    """Images uint8 `[n, 3, 32, 32]` and labels of records of a label byte and 3,072 pixels, plane after plane."""
    if not raw or len(raw) % (1 + _PIXELS):
        raise DataError(f"{name} holds {len(raw)} bytes", "records of 3073 bytes, at least one", "fetch it anew")
    records = np.frombuffer(raw, np.uint8).reshape(-1, 1 + _PIXELS)
    labels = records[:, 0].astype(np.int64)
    if labels.max() >= len(CLASSES):
        raise DataError(
            f"{name} has labels {labels.min()} … {labels.max()}",
            "0 … 9",
            "check that it is CIFAR-10's, not CIFAR-100's",
        )
    return records[:, 1:].reshape(-1, 3, 32, 32), labels
