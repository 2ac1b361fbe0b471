"""A range coder of flags that are sorted by probability, eight at a time, and of plain bits.

Its models and its bytes are those of constriction.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prismfl.errors import DependencyError, MessageError

FINENESS = 8192  # probabilities of the ladder are multiples of 1 / 8192


class Piece(NamedTuple):
    """Which flags are coded together, and what both ends know of them.

    contexts: uint16 `[n]`, the cell of each of all flags; place: which of them; rungs: uint8 `[cells]`; seen: int64
    `[2 · cells]`, where unset and set flags of each cell are counted in turn, or None.
    """

    contexts: NDArray[np.uint16]
    place: slice
    rungs: NDArray[np.uint8]
    seen: NDArray[np.int64] | None


@lru_cache(maxsize=1)
def ladder() -> NDArray[np.int64]:
    """Probabilities that are coded with, times 8192, ascending: odds 5/4 apart, in exact integers."""
    rungs = [(5**i, 4**i) if i >= 0 else (4**-i, 5**-i) for i in range(-40, 31)]
    return np.unique([max(1, (FINENESS * a + (a + b) // 2) // (a + b)) for a, b in rungs])


@lru_cache(maxsize=1)
def _constriction() -> Any:
    try:
        from constriction import stream
    except ImportError as error:
        raise DependencyError(
            f"cannot import constriction ({error})", "it to be there", "pip install constriction"
        ) from None
    return stream


@lru_cache(maxsize=256)
def _models(rung: int) -> tuple[Any, Any]:
    """Models of eight flags and of one flag.  Products are taken one by one: a library's power may differ."""
    share = int(ladder()[rung]) / FINENESS
    eight = np.ones(256)
    for bit in range(8):
        eight *= np.where(np.arange(256) >> bit & 1, share, 1 - share)
    model = _constriction().model
    return model.Categorical(eight, perfect=False), model.Bernoulli(share, perfect=False)


@lru_cache(maxsize=16)
def _uniform(bits: int) -> Any:
    return _constriction().model.Uniform(1 << bits)


def count(seen: NDArray[np.int64], cells: NDArray[np.uint16], bits: NDArray[np.bool_]) -> None:
    """Add to `seen`, int64 `[2 · cells]`, the unset and set flags of each cell in turn: uint16 and bool `[n]`."""
    places = cells.astype(np.intp)
    places += places
    places += bits
    seen += np.bincount(places, minlength=len(seen))


def _by_rung(rungs: NDArray[np.uint8], bits: NDArray[np.bool_]) -> Any:
    """A sparse matrix with a row a rung: `data` and `indices` are the bits and their places, ordered by rung.

    SciPy's change from columns to rows is a counting sort, three times as fast as NumPy's stable one.
    """
    from scipy.sparse import csc_array  # here, so that a model is read with NumPy alone

    size = len(rungs)
    cells = (bits, rungs.astype(np.int32), np.arange(size + 1, dtype=np.int32))
    return csc_array(cells, shape=(len(ladder()), size)).tocsr()


def _groups(ends: NDArray[np.int32]) -> Iterator[tuple[int, slice]]:
    """Each rung that has flags, with its slice of the order."""
    found = ends.tolist()
    return ((rung, slice(a, b)) for rung, (a, b) in enumerate(pairwise(found)) if b > a)


class Writer:
    """Writes pieces of flags and plain bits, one call after another."""

    def __init__(self) -> None:
        self._coder = _constriction().queue.RangeEncoder()

    def flags(self, flags: NDArray[np.bool_], piece: Piece) -> None:
        """Write a piece of flags, bool `[n]`."""
        cells, bits = piece.contexts[piece.place], np.ascontiguousarray(flags[piece.place])
        rows = _by_rung(piece.rungs.take(cells), bits)
        for rung, span in _groups(rows.indptr):
            self._group(rows.data[span], rung)
        if piece.seen is not None:
            count(piece.seen, cells, bits)

    def _group(self, bits: NDArray[np.bool_], rung: int) -> None:
        eight, one = _models(rung)
        whole = len(bits) // 8 * 8
        if whole:
            self._coder.encode(np.packbits(bits[:whole], bitorder="little").astype(np.int32), eight)
        if whole < len(bits):
            self._coder.encode(bits[whole:].astype(np.int32), one)

    def bits(self, values: NDArray[np.int64], shift: int, bits: int) -> None:
        """Write so many bits, 1 … 8, of each value int64 `[n]`: those above the lowest `shift`."""
        self._coder.encode((values >> shift & ((1 << bits) - 1)).astype(np.int32), _uniform(bits))

    def done(self) -> bytes:
        """All that was written: whole 32-bit words, low byte first."""
        return bytes(self._coder.get_compressed().astype("<u4").tobytes())


class Reader:
    """Reads what a writer wrote, in the same calls.  Raises MessageError for what none can have written."""

    def __init__(self, words: NDArray[np.uint32]) -> None:
        self._coder = _constriction().queue.RangeDecoder(words)

    def flags(self, found: NDArray[np.bool_], piece: Piece) -> None:
        """Read a piece into `found`, bool `[n]`."""
        cells = piece.contexts[piece.place]
        ordered, bits = np.empty((2, len(cells)), np.bool_)
        rows = _by_rung(piece.rungs.take(cells), bits)
        for rung, span in _groups(rows.indptr):
            ordered[span] = self._group(span.stop - span.start, rung)
        bits[rows.indices.astype(np.intp)] = ordered  # NumPy scatters by its own integers twice as fast
        found[piece.place] = bits
        if piece.seen is not None:
            count(piece.seen, cells, bits)

    def _group(self, size: int, rung: int) -> NDArray[np.bool_]:
        eight, one = _models(rung)
        whole = size // 8
        bits = np.empty(size, np.bool_)
        if whole:
            bits[: 8 * whole] = np.unpackbits(self._take(eight, whole).astype(np.uint8), bitorder="little")
        if 8 * whole < size:
            bits[8 * whole :] = self._take(one, size - 8 * whole)
        return bits

    def _take(self, model: Any, size: int) -> NDArray[np.int32]:
        try:
            return np.asarray(self._coder.decode(model, size))
        except (AssertionError, ValueError):
            raise MessageError("bytes that are no code of flags", "what the coder wrote") from None

    def bits(self, values: NDArray[np.int64], bits: int) -> None:
        """Append so many bits, 1 … 8, to each value int64 `[n]`."""
        values <<= bits
        values |= self._take(_uniform(bits), len(values))

    def finished(self) -> bool:
        """Whether nothing is left that was written."""
        return bool(self._coder.maybe_exhausted())
