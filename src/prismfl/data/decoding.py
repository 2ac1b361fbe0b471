"""Image files: which there are, and how each becomes the square that a generator learns from."""

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from itertools import chain
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, UnidentifiedImageError

from prismfl.data.images import Images, Reading, bordered, is_nearly, room, scale, squared
from prismfl.errors import DataError

MOST_PIXELS = 2**26  # of an image file: a few bytes may claim any number
_PHOTOGRAPH = 2**20  # pixels beyond which a JPEG is decoded at a fraction of its sides
_MARGIN = 4  # times the wanted side that such a fraction has at least
_MOST_THREADS = 8  # each holds an image of up to MOST_PIXELS
_AT_A_TIME, _TO_A_THREAD = 2048, 16  # images

_ORIENTATION = 0x0112  # of EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = [_TURNS[value] for value in (5, 6, 7, 8)]

# What Pillow opens and no picture comes of here: it runs programs, knows a file's head alone, or opens files in files.
_NO_PICTURES = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "ICO", "ICNS", "CUR", "BLP", "FPX", "MIC"}
_FIRST = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # looked for in this order, and the others after them
_PLUGINS = {"pillow_heif": "register_heif_opener", "pillow_avif": "", "pillow_jxl": ""}
_WANTING = {  # pictures for certain, which not every installation reads
    **dict.fromkeys((".heic", ".heif", ".hif"), "pip install pillow-heif"),
    **dict.fromkeys((".avif", ".avifs"), "pip install 'pillow>=11.3'"),
    ".jxl": "pip install pillow-jxl-plugin",
}
_DICOM = {".dcm", ".dicom", ".dic", ".ima"}


@dataclass(frozen=True)
class Picture:
    """An image as a data set keeps it, and what was done to it.

    pixels: uint8 `[3, size, size]`; sides: its own width and height, upright; grey: whether all its pixels are;
    turned: whether EXIF turned it; transparent: whether it was put on white.
    """

    pixels: Images
    sides: tuple[int, int]
    grey: bool
    turned: bool
    transparent: bool


# ---------------------------------------------------------------------------------------- one file


@lru_cache(maxsize=1)
def _formats() -> dict[str, str]:
    """Pillow's name of the format of each suffix that pictures are read from, with the plugins that are installed."""
    for module, opener in _PLUGINS.items():
        with suppress(ImportError):
            plugin = import_module(module)
            if opener:
                getattr(plugin, opener)()
    known = Image.registered_extensions()  # brings in all of Pillow's own
    return {suffix: kind for suffix, kind in known.items() if kind in Image.OPEN and kind not in _NO_PICTURES}


@lru_cache(maxsize=1)
def _kinds() -> tuple[str, ...]:
    known = set(_formats().values())
    return (*_FIRST, *(kind for kind in Image.ID if kind in known and kind not in _FIRST))


def is_picture(suffix: str) -> bool:
    """Whether a file of this suffix is taken for a picture; one that does not decode is an error then."""
    return suffix.lower() in _WANTING or suffix.lower() in _formats()


def is_nifti(name: str) -> bool:
    """Whether a file of this name is a NIfTI volume."""
    return name.lower().endswith((".nii", ".nii.gz"))


def is_dicom(name: str) -> bool:
    """Whether a file's name says that it is DICOM; files without a suffix may be as well, by what is in them."""
    return PurePosixPath(name).suffix.lower() in _DICOM


def read_picture(raw: bytes, name: str, size: int, how: str = "crop", *, middle: int = 0, look: bool = True) -> Picture:
    """A file's bytes as `picture_of` makes them.  Raises DataError by `name`.

    A large photograph may be decoded at a fraction of its sides, though not below four times `size`.
    """
    try:
        with Image.open(io.BytesIO(raw), formats=_kinds()) as image:
            _check_pixels(image)  # before one of them is decoded
            sides = image.size
            if sides[0] * sides[1] > _PHOTOGRAPH and not middle:
                image.draft(None, (_MARGIN * size, _MARGIN * size))
            return picture_of(image, size, how, sides, middle=middle, look=look)
    except Exception as error:  # whatever a decoder makes of damaged bytes
        raise _undecodable(name, error) from None


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"{image.width}×{image.height} pixels, more than {MOST_PIXELS}")


def _undecodable(name: str, error: Exception) -> DataError:
    suffix, unknown = PurePosixPath(name).suffix.lower(), isinstance(error, UnidentifiedImageError)
    if suffix in _WANTING and unknown:
        return DataError(f"{name} does not decode", f"a decoder of {suffix}", f"{_WANTING[suffix]}, or convert it")
    why = "it is empty, or of no format that is known" if unknown else error  # its words name an object of Python
    return DataError(f"{name} does not decode ({why})", "a whole image file", "replace or remove it")


def picture_of(
    image: Image.Image,
    size: int,
    how: str = "crop",
    sides: tuple[int, int] | None = None,
    *,
    middle: int = 0,
    look: bool = True,
) -> Picture:
    """A picture upright, on white where it is transparent, and in a square of `size` pixels.

    how: `crop`, `pad` or `squash`, as `images.squared`; sides: its own, where it comes at a fraction of them; middle:
    takes so many pixels of the middle first, 0 for all; look: whether anybody wants to know if it is grey.  Raises
    ValueError where the range of its pixels is unknown.
    """
    _check_pixels(image)
    image.load()
    sides, turn = sides or image.size, _turn(image)
    plain, transparent = _plain(image)
    if turn is not None:
        plain = plain.transpose(turn)
    grey = look and _is_grey(plain)
    plain = _middle(plain, middle) if middle else plain
    square = squared(plain, how)
    if is_nearly(plain.size, size):
        pixels = bordered(_planes(square), size)
    else:
        pixels = _planes(square if square.size == (size, size) else scale(square, size))
    return Picture(pixels, sides[::-1] if turn in _SIDEWAYS else sides, grey, turn is not None, transparent)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What turns a picture upright, by its EXIF orientation; damaged EXIF says nothing."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # the pixels are there all the same
        return None


def _plain(image: Image.Image) -> tuple[Image.Image, bool]:
    """A picture of mode L or RGB, and whether white shows through it.  Raises ValueError for an unknown range."""
    if image.mode == "I" and image.format == "PPM":  # sixteen bits, which Pillow hands over in thirty-two
        image = image.convert("I;16")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode}, whose range is unknown")
    if image.mode.startswith("I;16"):  # grey of sixteen bits, which Pillow alone would cut off at 255
        image = Image.fromarray((np.asarray(image, np.uint16) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        return _on_white(image.convert("RGBA"))
    return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB"), False


def _on_white(image: Image.Image) -> tuple[Image.Image, bool]:
    if image.getchannel("A").getextrema()[0] == 255:
        return image.convert("RGB"), False
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    return white.convert("RGB"), True


def _is_grey(image: Image.Image) -> bool:
    if image.mode == "L":
        return True
    pixels = np.asarray(image)
    return bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all())


def _middle(image: Image.Image, side: int) -> Image.Image:
    left, top = ((all_of_it - side) // 2 for all_of_it in image.size)
    return image.crop((left, top, left + side, top + side))


def _planes(image: Image.Image) -> Images:
    """Uint8 `[3, H, W]`."""
    pixels = np.asarray(image)
    return np.broadcast_to(pixels, (3, *pixels.shape)) if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


# --------------------------------------------------------------------------------------- many files

# What gives one image, told whether anybody still wants to know if it is grey.
Job = Callable[[bool], Picture]


def gather(
    jobs: Sequence[Job], size: int, scratch: Path | None = None, *, grey: bool = True, threads: int = 0
) -> tuple[Images, Reading]:
    """Images in the order of their jobs, uint8 `[N, 1 or 3, size, size]`, and what was done to them.

    grey: whether they have one channel where all are grey; threads: 0 for one a core.  Raises what the first job does
    that fails.
    """
    found, tally = room((len(jobs), 3, size, size), scratch), _Tally(grey=grey)

    def some(chunk: Sequence[Job]) -> list[Picture]:
        return [job(tally.grey) for job in chunk]

    with ThreadPoolExecutor(threads or min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        for start in range(0, len(jobs), _AT_A_TIME):
            now = jobs[start : start + _AT_A_TIME]
            chunks = [now[at : at + _TO_A_THREAD] for at in range(0, len(now), _TO_A_THREAD)]
            for row, picture in enumerate(chain.from_iterable(pool.map(some, chunks)), start):
                found[row] = picture.pixels
                tally.add(picture)
    return _channels(found, grey=tally.grey), tally.reading()


def _channels(found: Images, *, grey: bool) -> Images:
    if not grey:
        return found
    one = found[:, :1]
    return one if isinstance(one, np.memmap) else one.copy()  # a file's other channels harm nobody


@dataclass
class _Tally:
    """What was done to images so far."""

    grey: bool
    sides: list[tuple[int, int]] = field(default_factory=list)
    oblong: int = 0
    turned: int = 0
    transparent: int = 0

    def add(self, picture: Picture) -> None:
        self.grey = self.grey and picture.grey
        self.sides = sorted({*self.sides, picture.sides}, key=lambda sides: (sides[0] * sides[1], sides))
        self.sides = [self.sides[0], self.sides[-1]]
        self.oblong += picture.sides[0] != picture.sides[1]
        self.turned += picture.turned
        self.transparent += picture.transparent

    def reading(self) -> Reading:
        return Reading(tuple(self.sides), self.oblong, self.turned, self.transparent)
