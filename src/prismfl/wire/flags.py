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
from prismfl.wire.range_coder import FINENESS, Reader, Writer, ladder

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

    def add(self, cells: NDArray[np.uint16], flags: NDArray[np.bool_]) -> None:
        """Count flags bool `[n]` of cells uint16 `[n]`."""
        places = cells.astype(np.intp)
        places += places
        places += flags
        self.seen += np.bincount(places, minlength=len(self.seen))

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


class _FlagCoder:
    """What writing and reading have in common: a reader takes the same steps, with values that nobody looks at."""

    def __init__(self, coder: Writer | Reader) -> None:
        self._coder = coder

    def flags(
        self, contexts: NDArray[np.uint16], shape: Shape, values: NDArray[np.bool_] | None = None
    ) -> NDArray[np.bool_]:
        """Code bool `[n]`; contexts: uint16 `[n]`, row-major cells of `shape`, coarsest axis first."""
        found, counts = np.empty(len(contexts), np.bool_), _Counts(shape)
        given, contexts = found if values is None else values, np.ascontiguousarray(contexts)
        for part in _passes(len(contexts)):
            rungs = counts.rungs()
            for piece in _pieces(part):
                cells = contexts[piece]
                found[piece] = bits = self._coder.flags(rungs.take(cells), np.ascontiguousarray(given[piece]))
                if not _is_last(part):
                    counts.add(cells, bits)
        return found

    def integers(
        self, contexts: NDArray[np.uint16], shape: Shape, values: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """Code int64 `[n]` of magnitude below 2^31: zero or not, sign, magnitude."""
        values = np.zeros(len(contexts), np.int64) if values is None else values
        used = np.flatnonzero(self.flags(contexts, shape, values != 0))
        contexts, some = contexts.take(used), values.take(used)  # by places: four times as fast as by a mask
        negative = self.flags(contexts, shape, some < 0)
        sizes = self.positives(*_signed(negative, contexts, shape), np.abs(some))
        found = np.zeros(len(values), np.int64)
        found[used] = np.where(negative, -sizes, sizes)
        return found

    def positives(
        self, contexts: NDArray[np.uint16], shape: Shape, values: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """Code int64 `[n]` in 1 … 2^31 - 1: the number of bits in unary, then the bits below the first."""
        values = np.zeros(len(contexts), np.int64) if values is None else values
        found, left, size = np.zeros(len(values), np.int64), np.arange(len(values)), 1
        while len(left):
            if size > MOST_BITS:
                raise MessageError("a coded integer that never ends", f"at most {MOST_BITS} bits")
            longer = self.flags(contexts, shape, values.take(left) >= 1 << size)
            done, more = left.take(np.flatnonzero(~longer)), np.flatnonzero(longer)
            found[done] = self._low_bits(values.take(done), size)
            left, contexts, size = left.take(more), contexts.take(more), size + 1
        return found

    def _low_bits(self, values: NDArray[np.int64], size: int) -> NDArray[np.int64]:
        found = np.ones(len(values), np.int64)
        if size > 1:
            second = (values >> (size - 2) & 1).astype(np.bool_)
            found += found + self.flags(np.zeros(len(values), np.uint16), (1,), second)
        for bits, shift in _even(size - 2):
            found = found << bits | self._coder.bits(bits, values >> shift)
        return found


class FlagWriter(_FlagCoder):
    """Writes flags and integers, one call after another, into one run of bytes; calls give back what was written."""

    def __init__(self) -> None:
        self._writer = Writer()
        super().__init__(self._writer)

    def done(self) -> bytes:
        """All that was written: whole 32-bit words, low byte first."""
        return self._writer.done()


class FlagReader(_FlagCoder):
    """Reads what `FlagWriter` wrote, in the same calls.  Raises MessageError for what none can have written."""

    def __init__(self, raw: bytes) -> None:
        if len(raw) % 4:
            raise MessageError(f"{len(raw)} bytes of coded flags", "whole 32-bit words")
        self._reader = Reader(np.frombuffer(raw, "<u4").astype(np.uint32))
        super().__init__(self._reader)

    def finish(self) -> None:
        """Raises MessageError when there are bytes that nothing was read from."""
        if not self._reader.finished():
            raise MessageError("bytes after the last coded flag", "none")
