"""Sample grids as they stand in the page: small enough, whatever their number and size."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from prismfl.errors import RunFolderError

MOST_GRIDS = 60  # of a run
Item = TypeVar("Item")
_COLUMN, _SCREEN = 700, 1100  # CSS pixels
_TEXT = 4 / 3  # bytes of base64 a byte


@dataclass(frozen=True)
class Grid:
    """A grid after so many rounds: a data URI, and its size on the page in CSS pixels."""

    rounds: int
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Grids:
    """A run's grids, the last one last; count: files there were; lossy: whether they were compressed with loss."""

    shown: Sequence[Grid]
    count: int
    lossy: bool


def read_grids(files: Mapping[int, Path], room: int) -> Grids:
    """Grids that together take at most `room` bytes of page, or the last one alone.

    Where they are too large they are compressed as WebP, and then left out evenly, first and last kept.  Raises
    RunFolderError for a file that is no picture.
    """
    pictures = [(rounds, _open(files[rounds])) for rounds in spread(list(files), MOST_GRIDS)]
    coded = [(*one, _coded(one[1], "PNG")) for one in pictures]
    if lossy := _size(coded) > room:
        coded = [(*one, _coded(one[1], "WEBP", quality=80)) for one in pictures]
    while len(coded) > 1 and _size(coded) > room:
        coded = spread(coded, len(coded) - 1)
    kind = "webp" if lossy else "png"
    shown = []
    for rounds, picture, raw in coded:
        # Enlarged by a whole number, as far as it fits a column and, of few columns, a screen.
        factor = max(1, min(4, _COLUMN // picture.width, _SCREEN // picture.height))
        shown.append(Grid(rounds, data_uri(raw, kind), factor * picture.width, factor * picture.height))
    return Grids(shown, len(files), lossy)


def read_real(path: Path | None, room: int) -> Grid | None:
    """The grid of real images as it stands in the page, where there is one.  Raises as `read_grids`."""
    return read_grids({0: path}, room).shown[0] if path else None


def data_uri(raw: bytes, kind: str = "png") -> str:
    """A picture as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(raw).decode()}"


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of the items, evenly, the first and the last among them; of one, the last."""
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[-1]]
    return [items[round(index)] for index in np.linspace(0, len(items) - 1, most)]


def _size(coded: Sequence[tuple[int, Image.Image, bytes]]) -> float:
    """Bytes of page that pictures take."""
    return sum(len(raw) for _, _, raw in coded) * _TEXT


def _open(path: Path) -> Image.Image:
    """A picture; one whose pixels were doubled is made small again, for the page enlarges it."""
    try:
        with Image.open(path) as found:
            picture = found.convert("L" if found.mode == "L" else "RGB")
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise RunFolderError(f"{path} is no picture ({error})", "a grid of samples", "restore or remove it") from None
    pixels = np.asarray(picture)
    small = pixels[::2, ::2]
    doubled = small.repeat(2, 0).repeat(2, 1)
    return Image.fromarray(small) if doubled.shape == pixels.shape and (doubled == pixels).all() else picture


def _coded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
