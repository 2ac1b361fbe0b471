"""Labelled images: squared, scaled, and held in memory or, where they are many, in a temporary file."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prismfl.errors import DataError

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

LARGE = 2 * 2**30  # bytes: images that take more are kept in a temporary file
MOST_RATIO = 200  # of unpacked bytes to packed ones, beyond a megabyte: pictures do not pack so well
_BLOCK = 1024  # images scaled or moved at a time


@dataclass(frozen=True)
class Reading:
    """What a reader met on its way to an image set, for the line that says what was read.

    Attributes:
        sides: width and height of the smallest and of the largest image; none where nobody looked.
        oblong: images that were not square.
        turned: images that EXIF turned upright.
        transparent: images that were put on white.
        elsewhere: images behind links that lead out of the folder.
        left_out: images of splits that are neither trained on nor held back.
        skipped: files that are not read, and why.
        held_back: images kept for measuring; None where only the data set's other split tells.
    """

    sides: tuple[tuple[int, int], ...] = ()
    oblong: int = 0
    turned: int = 0
    transparent: int = 0
    elsewhere: int = 0
    left_out: int = 0
    skipped: tuple[tuple[str, str], ...] = ()
    held_back: int | None = None


@dataclass(frozen=True)
class ImageSet:
    """Labelled images, in memory or (as `numpy.memmap`) in a temporary file.

    images: uint8 `[N, C, H, W]`; labels: int64 `[N]` in `0 … len(classes) - 1`;
    owners: int64 `[N]`, the client that a folder-per-client data set names, else None;
    people: int64 `[N]`, a number for each person where it is known whose image each is, else None;
    reading: how the set was read that they are of.
    """

    images: Images
    labels: Labels
    classes: tuple[str, ...]
    owners: Labels | None = None
    people: Labels | None = None
    reading: Reading = Reading()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def units(self) -> int:
        """How many there are of what epsilon protects one of: persons where they are known, and else images."""
        return len(self.images) if self.people is None else len(np.unique(self.people))

    def part(self, rows: NDArray[np.int64], images: Images | None = None) -> "ImageSet":
        """The images of some rows, int64 `[n]`, with what is known of them; all stay numbered as they are.

        images: a copy of these images, uint8 `[n, C, H, W]`, to be taken in their place.
        """
        owners, people = (None if one is None else one[rows] for one in (self.owners, self.people))
        mine = self.images[rows] if images is None else images
        return ImageSet(mine, self.labels[rows], self.classes, owners, people, self.reading)


def deal(whole: ImageSet, parts: Sequence[NDArray[np.int64]], scratch: Path | None = None) -> list[ImageSet]:
    """One image set for each array of rows, int64 `[n_k]`.

    Images in a temporary file are written anew, part after part, into another: the parts are
    views of that, so that nothing large is ever in memory.  Raises DataError when it has no room.
    """
    if not isinstance(whole.images, np.memmap):
        return [whole.part(rows) for rows in parts]
    ends = np.cumsum([len(rows) for rows in parts]).tolist()
    moved, order = room((ends[-1], *whole.images.shape[1:]), scratch), np.concatenate(parts)
    for block in blocks(len(order)):
        moved[block] = whole.images[order[block]]
    return [whole.part(rows, moved[end - len(rows) : end]) for rows, end in zip(parts, ends, strict=True)]


def blocks(count: int) -> Iterator[slice]:
    """Slices that cover `count` images, a block at a time."""
    return (slice(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK))


def room(shape: tuple[int, ...], scratch: Path | None = None) -> Images:
    """Uninitialised uint8 of a shape: in memory, or above LARGE bytes in a temporary file.

    scratch: folder of that file, else the system's.  Raises DataError when it has no room.
    """
    size = int(np.prod(shape, dtype=object))
    if size <= LARGE:
        return np.empty(shape, np.uint8)
    folder = Path(scratch or tempfile.gettempdir())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder).free < size:
            raise OSError("the disk is too full")
        # The map keeps the file, which has no name and vanishes with it.
        with tempfile.TemporaryFile(prefix="prismfl-images-", dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # a disk that fills up later would kill the process, without a word
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, np.uint8, "w+", shape=shape)
    except OSError as error:
        raise DataError(
            f"no room for {size} bytes of images in {folder} ({error.strerror or error})",
            "a folder with that much free space",
            "free some, or set running.cache_dir to another folder",
        ) from None


# ------------------------------------------------------------------------------------------- scale


def fit(images: Images, size: int, scratch: Path | None = None, how: str = "crop") -> Images:
    """Bring uint8 `[N, C, H, W]` to `[N, C, size, size]`.

    Square images up to an eighth smaller are padded with zeros (28 → 32 keeps MNIST's pixels as they are); all others
    are resampled, by area when they shrink and bicubically when they grow.  how: as `squared`.
    """
    if images.shape[2:] == (size, size):
        return images
    found = room((*images.shape[:2], size, size), scratch)
    for block in blocks(len(images)):
        found[block] = _fitted(images[block], size, how)
    return found


def _fitted(images: Images, size: int, how: str) -> Images:
    height, width = images.shape[2:]
    if is_nearly((width, height), size):
        return bordered(images, size)
    flat = (Image.fromarray(plane) for plane in images.reshape(-1, height, width))
    scaled = [np.asarray(scale(squared(plane, how), size)) for plane in flat]
    return np.stack(scaled).reshape(len(images), -1, size, size)


def is_nearly(sides: tuple[int, int], size: int) -> bool:
    """Whether an image of this width and height is a square which a border brings to `size`."""
    return sides[0] == sides[1] and size * 7 // 8 <= sides[0] < size


def bordered(images: Images, size: int) -> Images:
    """Square images uint8 `[..., H, W]` in the middle of zeros, `[..., size, size]`."""
    spare = size - images.shape[-1]
    border = (spare // 2, spare - spare // 2)
    return np.pad(images, (*((0, 0),) * (images.ndim - 2), border, border))


def squared(image: Image.Image, how: str) -> Image.Image:
    """A picture's square.

    how: `crop` takes the middle; `pad` adds black at both sides; `squash` leaves it as it is, to be scaled to one.
    """
    width, height = image.size
    if how == "squash" or width == height:
        return image
    side = min(width, height) if how == "crop" else max(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))  # what lies outside is black


def scale(image: Image.Image, size: int) -> Image.Image:
    """A picture resampled to `size` × `size`."""
    method = Image.Resampling.BOX if min(image.size) >= size else Image.Resampling.BICUBIC
    return image.resize((size, size), method)


def in_channels(images: Images, channels: int, scratch: Path | None = None) -> Images:
    """Bring uint8 `[N, C, H, W]` to so many channels: grey is repeated, colour becomes luma (ITU-R 601).

    channels: 1 or 3, or 0 for those that the images have.
    """
    if channels in (0, images.shape[1]):
        return images
    found = room((len(images), channels, *images.shape[2:]), scratch)
    for block in blocks(len(images)):
        found[block] = images[block] if channels == 3 else _luma(images[block])
    return found


def _luma(images: Images) -> Images:
    # As Pillow computes it: in 16-bit fixed point, rounded.
    weighed = images.astype(np.uint32) * np.array([19595, 38470, 7471], np.uint32)[:, None, None]
    return np.asarray((weighed.sum(1, keepdims=True) + 0x8000) >> 16, np.uint8)


# ------------------------------------------------------------------------------------------- files


def read_file(path: Path) -> bytes:
    """A file's bytes.  Raises DataError naming it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror})", "a readable file", "check the path") from None


def is_bomb(packed: int, unpacked: int) -> bool:
    """Whether so few bytes claim so many that they are no pictures."""
    return unpacked > MOST_RATIO * packed + 2**20
