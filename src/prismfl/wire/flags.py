"""Flags and integers ↔ bytes: an adaptive range code that sends no tables.

Flags are coded in passes that double in size (every 2^j-th flag, then those half-way between, and
so on).  Before a pass, both ends estimate each context's probability from the passes before it, in
integers alone; where little was seen, a context leans on the coarser one that holds it.  Within a
pass, flags of like probability are sorted together and coded eight at a time by constriction's
range coder, which is what makes this fast.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prismfl.errors import DependencyError, MessageError

Shape = tuple[int, ...]

ONE = 65536
_FINENESS = 8192  # probabilities of the ladder are multiples of 1 / 8192
_STRENGTH = 24  # flags' worth of belief in the coarser context
_FIRST_PASS = 64  # about as many flags
_PIECE = 262144  # flags that are sorted at a time: what fits a cache
MOST_BITS = 31  # of an integer's magnitude


@lru_cache(maxsize=1)
def _ladder() -> NDArray[np.int64]:
    """Probabilities that are coded with, times 8192, ascending: odds 5/4 apart, in exact integers."""
    rungs = [(5**i, 4**i) if i >= 0 else (4**-i, 5**-i) for i in range(-40, 31)]
    return np.unique([max(1, (_FINENESS * a + (a + b) // 2) // (a + b)) for a, b in rungs])


@lru_cache(maxsize=1)
def _rung_of() -> NDArray[np.uint8]:
    """The rung of each probability, times 65536: uint8 `[65537]`.  A rung ends half-way to the next."""
    rungs = _ladder()
    ends = (rungs[1:] + rungs[:-1]) * (ONE // (2 * _FINENESS))
    return np.searchsorted(ends, np.arange(ONE + 1)).astype(np.uint8)


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
    share = int(_ladder()[rung]) / _FINENESS
    eight = np.ones(256)
    for bit in range(8):
        eight *= np.where(np.arange(256) >> bit & 1, share, 1 - share)
    model = _constriction().model
    return model.Categorical(eight, perfect=False), model.Bernoulli(share, perfect=False)


@lru_cache(maxsize=16)
def _uniform(bits: int) -> Any:
    return _constriction().model.Uniform(1 << bits)


def _even(bits: int) -> Iterator[tuple[int, int]]:
    """The low bits of an integer that are as good as random, eight at a time: (how many, above how many)."""
    while bits > 0:
        taken = min(bits, 8)
        bits -= taken
        yield taken, bits


def _passes(count: int) -> Iterator[slice]:
    """Slices that take each of `count` flags once, in passes that double."""
    stride = 1 << max(0, (count // _FIRST_PASS).bit_length() - 1)
    if count:
        yield slice(0, count, stride)
    while stride > 1:
        stride //= 2
        yield slice(stride, count, 2 * stride)


def _is_last(part: slice) -> bool:
    return bool(part.step <= 2 and part.start == part.step // 2)


def _pieces(part: slice) -> Iterator[slice]:
    """A pass, cut into slices of at most `_PIECE` flags."""
    step = part.step * _PIECE
    return (slice(start, min(start + step, part.stop), part.step) for start in range(part.start, part.stop, step))


class _Counts:
    """What was seen of each context so far, and the rungs that follow from it."""

    def __init__(self, shape: Shape) -> None:
        self.shape, self.cells = shape, int(np.prod(shape, dtype=np.int64))
        self.seen = np.zeros(2 * self.cells, np.int64)  # unset and set flags of each cell in turn

    def rungs(self) -> NDArray[np.uint8]:
        """The rung of each context, uint8 `[cells]`, from counts alone."""
        levels = [np.ascontiguousarray(self.seen.reshape(-1, 2).T).reshape(2, *self.shape)]
        for _ in self.shape:
            levels.append(levels[-1].sum(axis=-1))
        guess = np.array(ONE // 2, np.int64)
        for depth, (unset, is_set) in enumerate(reversed(levels)):
            believed = _STRENGTH if depth > 1 else 2
            found = (is_set * ONE + believed * guess) // (unset + is_set + believed)
            guess = np.expand_dims(found, -1)
        return _rung_of().take(guess.reshape(-1))

    def add(self, contexts: NDArray[np.uint16], flags: NDArray[np.bool_]) -> None:
        """Count flags."""
        places = contexts.astype(np.intp)
        places += places
        places += flags
        self.seen += np.bincount(places, minlength=2 * self.cells)


@lru_cache(maxsize=1)
def _columns() -> NDArray[np.int32]:
    return np.arange(_PIECE + 1, dtype=np.int32)


def _by_rung(rungs: NDArray[np.uint8], bits: NDArray[np.bool_]) -> Any:
    """A sparse matrix with a row a rung: `data` and `indices` are the bits and their places, ordered by rung.

    SciPy's change from columns to rows is a counting sort, three times as fast as NumPy's stable one.
    """
    from scipy.sparse import csc_array  # here, so that a model is read with NumPy alone

    size = len(rungs)
    cells = (bits, rungs.astype(np.int32), _columns()[: size + 1])
    return csc_array(cells, shape=(len(_ladder()), size)).tocsr()


def _groups(ends: NDArray[np.int32]) -> Iterator[tuple[int, slice]]:
    """Each rung that has flags, with its slice of the order."""
    found = ends.tolist()
    return ((rung, slice(a, b)) for rung, (a, b) in enumerate(pairwise(found)) if b > a)


class FlagWriter:
    """Writes flags and integers, one call after another, into one run of bytes."""

    def __init__(self) -> None:
        self._coder = _constriction().queue.RangeEncoder()

    def flags(self, flags: NDArray[np.bool_], contexts: NDArray[np.uint16], shape: Shape) -> None:
        """Write bool `[n]`; contexts: uint16 `[n]`, row-major cells of `shape`, coarsest axis first."""
        counts = _Counts(shape)
        for part in _passes(len(flags)):
            rungs = counts.rungs()
            for piece in _pieces(part):
                cells, bits = contexts[piece], np.ascontiguousarray(flags[piece])
                self._piece(bits, rungs.take(cells))
                if not _is_last(part):
                    counts.add(cells, bits)

    def _piece(self, bits: NDArray[np.bool_], rungs: NDArray[np.uint8]) -> None:
        rows = _by_rung(rungs, bits)
        for rung, span in _groups(rows.indptr):
            self._group(rows.data[span], rung)

    def _group(self, bits: NDArray[np.bool_], rung: int) -> None:
        eight, one = _models(rung)
        whole = len(bits) // 8 * 8
        if whole:
            self._coder.encode(np.packbits(bits[:whole], bitorder="little").astype(np.int32), eight)
        if whole < len(bits):
            self._coder.encode(bits[whole:].astype(np.int32), one)

    def integers(self, values: NDArray[np.int64], contexts: NDArray[np.uint16], shape: Shape) -> None:
        """Write int64 `[n]` of magnitude below 2^31: zero or not, sign, magnitude."""
        used = values != 0
        self.flags(used, contexts, shape)
        values, contexts = values[used], contexts[used]
        self.flags(values < 0, contexts, shape)
        self.positives(np.abs(values), contexts, shape)

    def positives(self, values: NDArray[np.int64], contexts: NDArray[np.uint16], shape: Shape) -> None:
        """Write int64 `[n]` in 1 … 2^31 - 1: the number of bits in unary, then the bits below the first."""
        longer, left, size = values >= 2, values, 1
        while len(left):
            self.flags(longer, contexts, shape)
            self._low_bits(left[~longer], size)
            left, contexts, size = left[longer], contexts[longer], size + 1
            longer = left >= 1 << size

    def _low_bits(self, values: NDArray[np.int64], size: int) -> None:
        if size > 1:
            self.flags((values >> (size - 2) & 1).astype(np.bool_), np.zeros(len(values), np.uint16), (1,))
        for bits, shift in _even(size - 2):
            self._coder.encode((values >> shift & ((1 << bits) - 1)).astype(np.int32), _uniform(bits))

    def done(self) -> bytes:
        """All that was written: whole 32-bit words, low byte first."""
        return bytes(self._coder.get_compressed().astype("<u4").tobytes())


class FlagReader:
    """Reads what `FlagWriter` wrote, in the same calls.  Raises MessageError for what none can have written."""

    def __init__(self, raw: bytes) -> None:
        if len(raw) % 4:
            raise _refuse(f"{len(raw)} bytes of coded flags", "whole 32-bit words")
        self._coder = _constriction().queue.RangeDecoder(np.frombuffer(raw, "<u4").astype(np.uint32))

    def flags(self, contexts: NDArray[np.uint16], shape: Shape) -> NDArray[np.bool_]:
        """Read bool `[n]` of contexts uint16 `[n]`."""
        found, counts = np.zeros(len(contexts), np.bool_), _Counts(shape)
        for part in _passes(len(contexts)):
            rungs = counts.rungs()
            for piece in _pieces(part):
                cells = contexts[piece]
                found[piece] = bits = self._piece(rungs.take(cells))
                if not _is_last(part):
                    counts.add(cells, bits)
        return found

    def _piece(self, rungs: NDArray[np.uint8]) -> NDArray[np.bool_]:
        ordered, bits = np.empty((2, len(rungs)), np.bool_)
        rows = _by_rung(rungs, bits)
        for rung, span in _groups(rows.indptr):
            ordered[span] = self._group(span.stop - span.start, rung)
        bits[rows.indices.astype(np.intp)] = ordered  # NumPy scatters by its own integers twice as fast
        return bits

    def _group(self, count: int, rung: int) -> NDArray[np.bool_]:
        eight, one = _models(rung)
        whole = count // 8
        bits = np.empty(count, np.bool_)
        if whole:
            bits[: 8 * whole] = np.unpackbits(self._take(eight, whole).astype(np.uint8), bitorder="little")
        if 8 * whole < count:
            bits[8 * whole :] = self._take(one, count - 8 * whole)
        return bits

    def _take(self, model: Any, count: int) -> NDArray[np.int32]:
        try:
            return np.asarray(self._coder.decode(model, count))
        except (AssertionError, ValueError) as error:
            raise _refuse(f"bytes that are no code of flags ({error})", "what the coder wrote") from None

    def integers(self, contexts: NDArray[np.uint16], shape: Shape) -> NDArray[np.int64]:
        """Read int64 `[n]`."""
        values = np.zeros(len(contexts), np.int64)
        used = self.flags(contexts, shape)
        contexts = contexts[used]
        signs = 1 - 2 * self.flags(contexts, shape).astype(np.int64)
        values[used] = signs * self.positives(contexts, shape)
        return values

    def positives(self, contexts: NDArray[np.uint16], shape: Shape) -> NDArray[np.int64]:
        """Read int64 `[n]` in 1 … 2^31 - 1."""
        values = np.zeros(len(contexts), np.int64)
        left, size = np.arange(len(contexts)), 1
        while len(left):
            if size > MOST_BITS:
                raise _refuse("a coded integer that never ends", f"at most {MOST_BITS} bits")
            longer = self.flags(contexts, shape)
            values[left[~longer]] = self._low_bits(len(left) - int(longer.sum()), size)
            left, contexts, size = left[longer], contexts[longer], size + 1
        return values

    def _low_bits(self, count: int, size: int) -> NDArray[np.int64]:
        values = np.full(count, 1, np.int64)
        if size > 1:
            values += values + self.flags(np.zeros(count, np.uint16), (1,))
        for bits, _ in _even(size - 2):
            values = (values << bits) | self._take(_uniform(bits), count)
        return values

    def finish(self) -> None:
        """Raises MessageError when there are bytes that nothing was read from."""
        if not self._coder.maybe_exhausted():
            raise _refuse("bytes after the last coded flag", "none")


def _refuse(got: str, expected: str) -> MessageError:
    return MessageError(got, expected, "the sender is left out of this round")
