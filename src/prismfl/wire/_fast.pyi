"""Compiled loops.  Arrays are C-contiguous; what does not fit raises TypeError, ValueError or IndexError."""

import numpy as np
from numpy.typing import NDArray

State = NDArray[np.uint64]  # [4]: of a writer (lower, range, words held back, the first of them), of a reader
# (lower, range, point, place of the next word)

def write_flags(
    state: State,
    flags: NDArray[np.bool_],
    contexts: NDArray[np.uint16],
    start: int,
    stop: int,
    step: int,
    rungs: NDArray[np.uint8],
    seen: NDArray[np.int64] | None,
    cuts: NDArray[np.uint32],
    ones: NDArray[np.uint32],
    starts: NDArray[np.uint8],
    /,
) -> bytes:
    """Code a piece of flags, sorted by the rung of their cells, and count them in `seen`."""

def read_flags(
    state: State,
    words: NDArray[np.uint32],
    flags: NDArray[np.bool_],
    contexts: NDArray[np.uint16],
    start: int,
    stop: int,
    step: int,
    rungs: NDArray[np.uint8],
    seen: NDArray[np.int64] | None,
    cuts: NDArray[np.uint32],
    ones: NDArray[np.uint32],
    starts: NDArray[np.uint8],
    /,
) -> bool:
    """Its inverse, into `flags`; False for words that nobody wrote."""

def write_bits(state: State, values: NDArray[np.int64], shift: int, bits: int, /) -> bytes:
    """Code so many bits of each value, those above the lowest `shift`."""

def read_bits(state: State, words: NDArray[np.uint32], values: NDArray[np.int64], bits: int, /) -> bool:
    """Append so many bits to each value; False for words that nobody wrote."""

def flip_cells(
    u: NDArray[np.uint16],
    q: NDArray[np.uint16],
    layers: NDArray[np.uint8],
    depth: int,
    levels: NDArray[np.int16],
    width: int,
    near: NDArray[np.bool_],
    cells: NDArray[np.uint16],
    /,
) -> int:
    """Which entries lie in the bins, and in front their cells: how many.  All `[n]`, levels `[65536]`."""

def pick(values: NDArray[np.bool_], chosen: NDArray[np.bool_], found: NDArray[np.bool_], /) -> int:
    """The chosen values, in front of `found`: how many.  All `[n]`."""

def spread(chosen: NDArray[np.bool_], found: NDArray[np.bool_], values: NDArray[np.bool_], /) -> None:
    """The inverse: `found[chosen] = values`, unset elsewhere and when there are no more values."""

def phase_cells(
    below: NDArray[np.uint16],
    above: NDArray[np.uint16],
    q: NDArray[np.uint16],
    layers: NDArray[np.uint8],
    depth: int,
    cells: NDArray[np.uint16],
    /,
) -> None:
    """The cells of net flips.  All `[n]`."""

def meet(
    u: NDArray[np.uint16],
    q: NDArray[np.uint16],
    dealt: NDArray[np.uint16],
    part: int,
    clients: NDArray[np.uint16],
    kept: NDArray[np.uint16],
    below: NDArray[np.uint16],
    above: NDArray[np.uint16],
    /,
) -> None:
    """Take one more client, of part `part`, into a baseline.  All `[n]`."""

def surprise(mask: NDArray[np.bool_], u: NDArray[np.uint16], q: NDArray[np.uint16], /) -> int:
    """Sum of |u - q| where the mask differs from `[u < q]`.  All `[n]`."""

def vote(mask: NDArray[np.bool_], votes: NDArray[np.int64], weight: int, /) -> None:
    """`votes += mask * weight`.  Both `[n]`."""
