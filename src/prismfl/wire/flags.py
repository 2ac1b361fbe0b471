"""Flags and integers ↔ bytes: an adaptive range code that sends no tables.

Flags are coded in passes that double in size (every 2^j-th flag, then those half-way between, and
so on).  Before a pass, both ends estimate each context's probability from the passes before it, in
integers alone; where little was seen, a context leans on the coarser one that holds it.  Within a
pass, flags of like probability are sorted together and coded eight at a time by constriction's
range coder, which is what makes this fast.
"""

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from prismfl.errors import MessageError
from prismfl.wire.range_coder import FINENESS, Piece, Reader, Writer, ladder

Shape = tuple[int, ...]

ONE = 65536
_STRENGTHS = 2, 4, 8, 64  # flags' worth of belief in the coarser context, by the number of axes told
_FIRST_PASS = 64  # about as many flags
_PIECE = 262144  # flags that are sorted at a time: what fits a cache
MOST_BITS = 31  # of an integer's magnitude


@lru_cache(maxsize=1)
def _rung_of() -> NDArray[np.uint8]:
    """The rung of each probability, times 65536: uint8 `[65537]`.  A rung ends half-way to the next."""
    rungs = ladder()
    ends = (rungs[1:] + rungs[:-1]) * (ONE // (2 * FINENESS))
    return np.searchsorted(ends, np.arange(ONE + 1)).astype(np.uint8)


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


def _signed(
    negative: NDArray[np.bool_], contexts: NDArray[np.uint16], shape: Shape
) -> tuple[NDArray[np.uint16], Shape]:
    """Contexts and shape with the sign as well, coarsest axis of all together with what was the first."""
    return contexts + np.uint16(math.prod(shape)) * negative, (2 * shape[0], *shape[1:])


class _Counts:
    """What was seen of each context so far, and the rungs that follow from it."""

    def __init__(self, shape: Shape) -> None:
        self.shape, self.cells = shape, math.prod(shape)
        self.seen = np.zeros(2 * self.cells, np.int64)  # unset and set flags of each cell in turn

    def rungs(self) -> NDArray[np.uint8]:
        """The rung of each context, uint8 `[cells]`, from counts alone."""
        levels = [np.ascontiguousarray(self.seen.reshape(-1, 2).T).reshape(2, *self.shape)]
        for _ in self.shape:
            levels.append(levels[-1].sum(axis=-1))
        guess = np.array(ONE // 2, np.int64)
        for depth, (unset, is_set) in enumerate(reversed(levels)):
            believed = _STRENGTHS[depth]
            found = (is_set * ONE + believed * guess) // (unset + is_set + believed)
            guess = np.expand_dims(found, -1)
        return _rung_of().take(guess.reshape(-1))


class FlagWriter:
    """Writes flags and integers, one call after another, into one run of bytes."""

    def __init__(self) -> None:
        self._coder = Writer()

    def flags(self, flags: NDArray[np.bool_], contexts: NDArray[np.uint16], shape: Shape) -> None:
        """Write bool `[n]`; contexts: uint16 `[n]`, row-major cells of `shape`, coarsest axis first."""
        counts = _Counts(shape)
        flags, contexts = np.ascontiguousarray(flags), np.ascontiguousarray(contexts)
        for part in _passes(len(flags)):
            rungs, seen = counts.rungs(), None if _is_last(part) else counts.seen
            for piece in _pieces(part):
                self._coder.flags(flags, Piece(contexts, piece, rungs, seen))

    def integers(self, values: NDArray[np.int64], contexts: NDArray[np.uint16], shape: Shape) -> None:
        """Write int64 `[n]` of magnitude below 2^31: zero or not, sign, magnitude."""
        self.flags(values != 0, contexts, shape)
        places = np.flatnonzero(values)  # NumPy indexes by places four times as fast as by a mask
        values, contexts = values.take(places), contexts.take(places)
        negative = values < 0
        self.flags(negative, contexts, shape)
        self.positives(np.abs(values), *_signed(negative, contexts, shape))

    def positives(self, values: NDArray[np.int64], contexts: NDArray[np.uint16], shape: Shape) -> None:
        """Write int64 `[n]` in 1 … 2^31 - 1: the number of bits in unary, then the bits below the first."""
        longer, left, size = values >= 2, values, 1
        while len(left):
            self.flags(longer, contexts, shape)
            self._low_bits(left.take(np.flatnonzero(~longer)), size)
            more = np.flatnonzero(longer)
            left, contexts, size = left.take(more), contexts.take(more), size + 1
            longer = left >= 1 << size

    def _low_bits(self, values: NDArray[np.int64], size: int) -> None:
        if size > 1:
            self.flags((values >> (size - 2) & 1).astype(np.bool_), np.zeros(len(values), np.uint16), (1,))
        for bits, shift in _even(size - 2):
            self._coder.bits(values, shift, bits)

    def done(self) -> bytes:
        """All that was written: whole 32-bit words, low byte first."""
        return self._coder.done()


class FlagReader:
    """Reads what `FlagWriter` wrote, in the same calls.  Raises MessageError for what none can have written."""

    def __init__(self, raw: bytes) -> None:
        if len(raw) % 4:
            raise MessageError(f"{len(raw)} bytes of coded flags", "whole 32-bit words")
        self._coder = Reader(np.frombuffer(raw, "<u4").astype(np.uint32))

    def flags(self, contexts: NDArray[np.uint16], shape: Shape) -> NDArray[np.bool_]:
        """Read bool `[n]` of contexts uint16 `[n]`."""
        found, counts = np.zeros(len(contexts), np.bool_), _Counts(shape)
        contexts = np.ascontiguousarray(contexts)
        for part in _passes(len(contexts)):
            rungs, seen = counts.rungs(), None if _is_last(part) else counts.seen
            for piece in _pieces(part):
                self._coder.flags(found, Piece(contexts, piece, rungs, seen))
        return found

    def integers(self, contexts: NDArray[np.uint16], shape: Shape) -> NDArray[np.int64]:
        """Read int64 `[n]`."""
        values = np.zeros(len(contexts), np.int64)
        used = np.flatnonzero(self.flags(contexts, shape))
        contexts = contexts.take(used)
        negative = self.flags(contexts, shape)
        sizes = self.positives(*_signed(negative, contexts, shape))
        values[used] = np.where(negative, -sizes, sizes)
        return values

    def positives(self, contexts: NDArray[np.uint16], shape: Shape) -> NDArray[np.int64]:
        """Read int64 `[n]` in 1 … 2^31 - 1."""
        values = np.zeros(len(contexts), np.int64)
        left, size = np.arange(len(contexts)), 1
        while len(left):
            if size > MOST_BITS:
                raise MessageError("a coded integer that never ends", f"at most {MOST_BITS} bits")
            longer = self.flags(contexts, shape)
            done, more = left.take(np.flatnonzero(~longer)), np.flatnonzero(longer)
            values[done] = self._low_bits(len(done), size)
            left, contexts, size = left.take(more), contexts.take(more), size + 1
        return values

    def _low_bits(self, count: int, size: int) -> NDArray[np.int64]:
        values = np.full(count, 1, np.int64)
        if size > 1:
            values += values + self.flags(np.zeros(count, np.uint16), (1,))
        for bits, _ in _even(size - 2):
            self._coder.bits(values, bits)
        return values

    def finish(self) -> None:
        """Raises MessageError when there are bytes that nothing was read from."""
        if not self._coder.finished():
            raise MessageError("bytes after the last coded flag", "none")
