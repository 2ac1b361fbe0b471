"""Where the kernel of `depthwise.py` finds what it reads: worked out once for maps and a convolution of some sizes."""

from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Sides = tuple[int, int]
IntArray = NDArray[np.int64]


class _Turn(NamedTuple):
    """Results of an axis that the same taps make, where the first tap reads for each, the taps, and their steps."""

    results: IntArray
    starts: IntArray
    taps: IntArray
    steps: IntArray


class Route(NamedTuple):
    """What the kernel is told: addresses of the arrays, the number of phases and the area of an image's room.

    arrays: int64 each.  ends `[phases, 2]`, of the results and of the taps of each phase; taps and steps: the taps'
    numbers, and how far from a result's start they read; starts and places: of a result, in the room and in its map;
    spots: of what is read, in the rooms of images that are worked on together; cells: of the pixels of the map after
    the convolution, in the averaged one.
    """

    told: tuple[int, ...]
    arrays: tuple[IntArray, ...]


@lru_cache(maxsize=256)
def route(
    read: Sides, written: Sides, pads: Sides, factor: int, kernel: int, stride: int, together: int, back: bool
) -> Route:
    """The route of a convolution from maps of one height and width to maps of another, or of its gradient.

    pads: zeros above and at the left; factor: by how much what it writes is averaged; together: images that are
    worked on at a time.
    """
    axes = (_axis(*sides, kernel, stride, back) for sides in zip(read, written, pads, strict=True))
    (top, high, rows), (left, wide, columns) = axes
    sources, results = (written, read) if back else (read, written)
    parts = [
        (
            _grid(row.taps * kernel, column.taps),
            _grid(row.steps * wide, column.steps),
            _grid(row.starts * wide, column.starts),
            _grid(row.results * results[1], column.results),
        )
        for row, column in product(rows, columns)
    ]
    ends = np.cumsum([(len(starts), len(taps)) for taps, _, starts, _ in parts], 0)
    lines = _grid(np.arange(together) * high + top, np.arange(sources[0]))
    spots = _grid(lines * wide + left, np.arange(sources[1]))
    (height, width), images = written, together if back else 1
    lines = _grid(np.arange(images) * (height // factor), np.arange(height) // factor)
    cells = _grid(lines * (width // factor), np.arange(width) // factor)
    arrays = (ends, *(np.concatenate(some) for some in zip(*parts, strict=True)), spots, cells)
    return Route((*(one.ctypes.data for one in arrays), len(parts), high * wide), arrays)


def _axis(read: int, written: int, pad: int, kernel: int, stride: int, back: bool) -> tuple[int, int, list[_Turn]]:
    """Lines, or columns: zeros before what is read, the room for both and for zeros behind, and the turns.

    Forwards one turn is all; back a stride takes results apart by the taps that read them.
    """
    taps = np.arange(kernel)
    if back:
        sources, lead, where = written, (kernel - 1) // stride, np.arange(read)
        turns = []
        for phase in range(stride):
            mine, some = where[(where + pad) % stride == phase], taps[phase::stride]
            turns.append(_Turn(mine, lead + (mine + pad) // stride, some, -(some // stride)))
    else:
        sources, lead, where = read, pad, np.arange(written)
        turns = [_Turn(where, stride * where, taps, taps)]
    ends = [int(turn.starts[-1] + turn.steps.max()) + 1 for turn in turns if len(turn.starts)]
    return lead, max(lead + sources, *ends), [_reaching(turn, sources, lead) for turn in turns]


def _reaching(turn: _Turn, sources: int, lead: int) -> _Turn:
    """A turn without the taps that read zeros alone."""
    found = turn.starts + turn.steps[:, None] - lead
    some = ((found >= 0) & (found < sources)).any(1)
    return turn._replace(taps=turn.taps[some], steps=turn.steps[some])


def _grid(outer: IntArray, inner: IntArray) -> IntArray:
    """Each sum of an outer and an inner number, the inner ones one after another."""
    return (outer[:, None] + inner).reshape(-1)
