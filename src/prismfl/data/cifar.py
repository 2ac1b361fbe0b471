"""CIFAR-10's binary batches, in a folder or still in their `.tar.gz`."""

import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from prismfl.data.images import Images, ImageSet, Labels, joined, read_file
from prismfl.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_STEMS = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
_FOLDERS = (".", "cifar-10-batches-bin")
_ARCHIVE = "cifar-10-binary.tar.gz"
_PYTHON = ("cifar-10-batches-py", "cifar-10-python.tar.gz", "data_batch_1", "test_batch")
_PIXELS = 3 * 32 * 32
_MOST_BYTES = 2**28  # of a batch in an archive; the published ones have 31 MB

_TAR_DAMAGE = (tarfile.TarError, zlib.error, OSError, EOFError, ValueError)

# Images uint8 `[n, 3, 32, 32]` and labels int64 `[n]` of one file.
_Batch = tuple[Images, Labels]


def load_cifar10(root: Path, split: str) -> ImageSet:
    """One split of CIFAR-10: uint8 images `[N, 3, 32, 32]`.

    root: the folder of the batches, the folder around it, or the archive as published.  Batches for
    Python hold the same images, pickled: they are not read.  Raises DataError naming what is missing
    or damaged.
    """
    stems, found = _STEMS[split], dict(_batches(root, _STEMS[split]))
    missing = [stem for stem in stems if stem not in found]
    if missing:
        pickled = root.name in _PYTHON or any((root / name).exists() for name in _PYTHON)
        raise DataError(
            f"no {missing[0]}.bin in {root}" + ", but its batches for Python, which are pickled" * pickled,
            "CIFAR-10's binary batches, or their .tar.gz",
            "run `prismfl fetch cifar10`" if pickled else "check --data-dir, or run `prismfl fetch cifar10`",
        )
    labels = np.concatenate([found[stem][1] for stem in stems])
    return ImageSet(joined([found.pop(stem)[0] for stem in stems]), labels, CLASSES)


def _batches(root: Path, stems: tuple[str, ...]) -> Iterator[tuple[str, _Batch]]:
    """The batches that are there, by stem, in any order."""
    if root.is_file():
        yield from _from_archive(root, stems)
        return
    for folder in (root / name for name in _FOLDERS):
        if (folder / f"{stems[0]}.bin").is_file():
            yield from _from_folder(folder, stems)
            return
    if (root / _ARCHIVE).is_file():
        yield from _from_archive(root / _ARCHIVE, stems)


def _from_folder(folder: Path, stems: tuple[str, ...]) -> Iterator[tuple[str, _Batch]]:
    for stem in stems:
        path = folder / f"{stem}.bin"
        if path.is_file():
            yield stem, _batch(read_file(path), str(path))


def _from_archive(path: Path, stems: tuple[str, ...]) -> Iterator[tuple[str, _Batch]]:
    """Members are read where they lie and written nowhere, whatever their names claim."""
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                if member.isfile() and name.endswith(".bin") and name.removesuffix(".bin") in stems:
                    yield name.removesuffix(".bin"), _batch(_member(archive, member), f"{path}:{member.name}")
    except _TAR_DAMAGE as error:
        raise DataError(
            f"{path} does not unpack ({error})", "CIFAR-10's whole .tar.gz", "fetch it anew, or unpack it"
        ) from None


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    if file is None or member.size > _MOST_BYTES:
        raise ValueError(f"{member.name} claims {member.size} bytes")
    return file.read()


def _batch(raw: bytes, name: str) -> _Batch:
    images, labels = _binary(raw, name)
    if labels.min() < 0 or labels.max() >= len(CLASSES):
        raise DataError(
            f"{name} has labels {labels.min()} … {labels.max()}",
            "0 … 9",
            "check that it is CIFAR-10's, not CIFAR-100's",
        )
    return images, labels


def _binary(raw: bytes, name: str) -> _Batch:
    """Records of a label byte and 3,072 pixels, plane after plane."""
    if not raw or len(raw) % (1 + _PIXELS):
        raise DataError(f"{name} holds {len(raw)} bytes", "records of 3073 bytes, at least one", "fetch it anew")
    records = np.frombuffer(raw, np.uint8).reshape(-1, 1 + _PIXELS)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)
