"""A range coder of flags that are sorted by probability, eight at a time, and of plain bits.

Its models and its bytes are those of constriction.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prismfl.errors import MessageError

FINENESS = 8192  # probabilities of the ladder are multiples of 1 / 8192


@lru_cache(maxsize=1)
def ladder() -> NDArray[np.int64]:
    """Probabilities that are coded with, times 8192, ascending: odds 5/4 apart, in exact integers."""
    rungs = [(5**i, 4**i) if i >= 0 else (4**-i, 5**-i) for i in range(-40, 31)]
    return np.unique([max(1, (FINENESS * a + (a + b) // 2) // (a + b)) for a, b in rungs])


def _constriction() -> Any:
    from constriction import stream  # here, so that a model is read with NumPy alone

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


def _by_rung(rungs: NDArray[np.uint8], bits: NDArray[np.bool_]) -> Any:
    """A sparse matrix with a row a rung: `data` and `indices` are the bits and their places, ordered by rung.

    SciPy's change from columns to rows is a counting sort, three times as fast as NumPy's stable one.
    """
    from scipy.sparse import csc_array  # here, as above

    size = len(rungs)
    cells = (bits, rungs.astype(np.int32), np.arange(size + 1, dtype=np.int32))
    return csc_array(cells, shape=(len(ladder()), size)).tocsr()


def _groups(ends: NDArray[np.int32]) -> Iterator[tuple[int, slice]]:
    """Each rung that has flags, with its slice of the order."""
    found = ends.tolist()
    return ((rung, slice(a, b)) for rung, (a, b) in enumerate(pairwise(found)) if b > a)


class Writer:
    """Writes pieces of flags and plain bits, one call after another; calls give back what was written."""

    def __init__(self) -> None:
        self._coder = _constriction().queue.RangeEncoder()

    def flags(self, rungs: NDArray[np.uint8], bits: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Write a piece of flags, bool `[n]`, of probabilities on rungs uint8 `[n]`."""
        rows = _by_rung(rungs, np.ascontiguousarray(bits))
        for rung, span in _groups(rows.indptr):
            self._group(rows.data[span], rung)
        return bits

    def _group(self, bits: NDArray[np.bool_], rung: int) -> None:
        eight, one = _models(rung)
        whole = len(bits) // 8 * 8
        if whole:
            self._coder.encode(np.packbits(bits[:whole], bitorder="little").astype(np.int32), eight)
        if whole < len(bits):
            self._coder.encode(bits[whole:].astype(np.int32), one)

    def bits(self, bits: int, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Write the lowest `bits`, 1 … 8, of each value int64 `[n]`."""
        low = values & ((1 << bits) - 1)
        self._coder.encode(low.astype(np.int32), _uniform(bits))
        return low

    def done(self) -> bytes:
        """All that was written: whole 32-bit words, low byte first."""
        return bytes(self._coder.get_compressed().astype("<u4").tobytes())


class Reader:
    """Reads what a writer wrote, in the same calls.  Raises MessageError for what none can have written."""

    def __init__(self, words: NDArray[np.uint32]) -> None:
        self._coder = _constriction().queue.RangeDecoder(words)

    def flags(self, rungs: NDArray[np.uint8], bits: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Read a piece of flags into bool `[n]`, of probabilities on rungs uint8 `[n]`."""
        rows = _by_rung(rungs, bits)
        ordered = np.empty_like(bits)
        for rung, span in _groups(rows.indptr):
            ordered[span] = self._group(span.stop - span.start, rung)
        bits[rows.indices.astype(np.intp)] = ordered  # NumPy scatters by its own integers twice as fast
        return bits

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

    def bits(self, bits: int, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Read so many bits, 1 … 8, for each of int64 `[n]`."""
        return self._take(_uniform(bits), len(values)).astype(np.int64)

    def finished(self) -> bool:
        """Whether nothing is left that was written."""
        return bool(self._coder.maybe_exhausted())
