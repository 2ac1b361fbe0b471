"""Labelled images: decoded, scaled, and held in memory or, where they are many, in a temporary file."""

import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from prismfl.errors import DataError

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

LARGE = 2 * 2**30  # bytes: images that take more are kept in a temporary file
MOST_PIXELS = 2**26  # of an image file: a few bytes may claim any number
MOST_RATIO = 200  # of unpacked bytes to packed ones, beyond a megabyte: pictures do not pack so well
_BLOCK = 1024  # images scaled or moved at a time


@dataclass(frozen=True)
class ImageSet:
    """Labelled images, in memory or (as `numpy.memmap`) in a temporary file.

    images: uint8 `[N, C, H, W]`; labels: int64 `[N]` in `0 … len(classes) - 1`;
    owners: int64 `[N]`, the client that a folder-per-client data set names, else None;
    people: int64 `[N]`, a number for each person where it is known whose image each is, else None.
    """

    images: Images
    labels: Labels
    classes: tuple[str, ...]
    owners: Labels | None = None
    people: Labels | None = None

    def __len__(self) -> int:
        return len(self.images)

    def part(self, rows: NDArray[np.int64], images: Images | None = None) -> "ImageSet":
        """The images of some rows, int64 `[n]`, with what is known of them; all stay numbered as they are.

        images: a copy of these images, uint8 `[n, C, H, W]`, to be taken in their place.
        """
        owners, people = (None if one is None else one[rows] for one in (self.owners, self.people))
        mine = self.images[rows] if images is None else images
        return ImageSet(mine, self.labels[rows], self.classes, owners, people)


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


def fit(images: Images, size: int, scratch: Path | None = None) -> Images:
    """Bring uint8 `[N, C, H, W]` to `[N, C, size, size]`.

    Images up to an eighth smaller are padded with zeros (28 → 32 keeps MNIST's pixels as they
    are); all others are resampled, by area when they shrink and bicubically when they grow.
    """
    if images.shape[2:] == (size, size):
        return images
    found = room((*images.shape[:2], size, size), scratch)
    for block in blocks(len(images)):
        found[block] = _fitted(images[block], size)
    return found


def _fitted(images: Images, size: int) -> Images:
    height, width = images.shape[2:]
    if height == width and size * 7 // 8 <= height < size:
        low = (size - height) // 2
        return np.pad(images, ((0, 0), (0, 0), (low, size - height - low), (low, size - height - low)))
    method = Image.Resampling.BOX if min(height, width) >= size else Image.Resampling.BICUBIC
    flat = images.reshape(-1, height, width)
    scaled = [np.asarray(Image.fromarray(plane).resize((size, size), method)) for plane in flat]
    return np.stack(scaled).reshape(len(images), -1, size, size)


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


def centre(image: Images, pixels: int) -> Images:
    """The middle `pixels` × `pixels` of uint8 `[C, H, W]`, which must be as large."""
    top, left = ((side - pixels) // 2 for side in image.shape[1:])
    return image[:, top : top + pixels, left : left + pixels]


# ------------------------------------------------------------------------------------------ decode


def read_file(path: Path) -> bytes:
    """A file's bytes.  Raises DataError naming it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror})", "a readable file", "check the path") from None


def is_bomb(packed: int, unpacked: int) -> bool:
    """Whether so few bytes claim so many that they are no pictures."""
    return unpacked > MOST_RATIO * packed + 2**20


def decode(raw: bytes, name: str) -> Images:
    """The pixels of an image file's bytes: uint8 `[3, H, W]`.  Raises DataError by `name`."""
    try:
        with Image.open(io.BytesIO(raw)) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width}×{image.height} pixels, more than {MOST_PIXELS}")
            return planes(image)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{name} does not decode ({error})", "a whole image file", "replace or remove it") from None


def planes(image: Image.Image) -> Images:
    """The pixels of a picture: uint8 `[3, H, W]`.  Raises ValueError where their range is unknown."""
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode}, whose range is unknown")
    if image.mode.startswith("I;16"):  # grey of sixteen bits, which Pillow alone would cut off at 255
        image = Image.fromarray((np.asarray(image, np.uint16) / 257).round().astype(np.uint8))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB")).transpose(2, 0, 1)


class Gallery:
    """Images of one size, scaled one by one as they are decoded; grey where all of them are and it may be."""

    def __init__(self, count: int, size: int, scratch: Path | None = None, *, grey: bool = True) -> None:
        self._found, self._size = room((count, 3, size, size), scratch), size
        self._filled, self._grey = 0, grey
        self._first: tuple[str, tuple[int, ...]] | None = None

    def add(self, image: Images, name: str) -> None:
        """Take uint8 `[3, H, W]`.  Raises DataError by `name` for another size than the first's."""
        first, shape = self._first or (name, image.shape)
        self._first = first, shape
        if image.shape != shape:
            raise DataError(
                f"{name} has {image.shape[2]}×{image.shape[1]} pixels, {first} has {shape[2]}×{shape[1]}",
                "images of one size",
                "scale or crop them to one size first",
            )
        self._grey = self._grey and bool((image[0] == image[1]).all() and (image[0] == image[2]).all())
        self._found[self._filled] = fit(image[None], self._size)[0]
        self._filled += 1

    def images(self) -> Images:
        """What was taken: uint8 `[N, 1 or 3, size, size]`."""
        if not self._grey:
            return self._found
        one = self._found[:, :1]
        return one if isinstance(one, np.memmap) else one.copy()  # a file's other channels harm nobody
