"""Masks, averages and keep-probabilities ↔ bytes, given what both ends know already.

Both ends know θ_t = q / 65536 and the uniforms u that masks are drawn with, hence the mask M0 = [u < θ_t] of a client
with no news.  Only flips against it are coded, as likely as u is near θ_t in log-odds, by θ_t and the layer.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from prismfl.errors import MessageError
from prismfl.wire.flags import FlagReader, FlagWriter
from prismfl.wire.uniforms import Baseline

Contexts = tuple[NDArray[np.uint16], tuple[int, ...]]  # a cell for each entry, and the shape of the cells

_PACKED, _CODED = 0, 1
_MASK = struct.Struct("<BBI")  # coding, which width of bins, number of flips beyond them
_UNIT = 2048  # steps of log-odds a nat
_BINS, _THETAS, _PHASES = 16, 16, 8
_WIDTHS = np.array([(4 + quarter) << octave for octave in range(10) for quarter in range(4)])[:39]  # of a bin
_MOST = _BINS * int(_WIDTHS[-1])  # beyond any difference of log-odds
_SAMPLE = 2**18  # entries by which a width is chosen
_LISTED = 5  # bits that a flip listed by itself takes beyond what its place is worth
_FEW = 16  # at most one entry in so many is listed by itself
_STRETCHES = 256  # of moments, each with probabilities of its own
_VALUES = 256  # of θ, that are told by their places
_CHUNK = 65536  # entries that are worked on at a time: what fits a cache


@dataclass(frozen=True)
class SharedKnowledge:
    """What both ends know of the entries that travel.

    Attributes:
        q: θ_t · 65536, uint16 `[n]`.
        layers: the number of each entry's layer, uint8 `[n]`, below `depth`.
        depth: number of layers.
    """

    q: NDArray[np.uint16]
    layers: NDArray[np.uint8]
    depth: int

    def of(self, chosen: "NDArray[np.intp] | slice") -> "SharedKnowledge":
        """Some of the entries."""
        return SharedKnowledge(self.q[chosen], self.layers[chosen], self.depth)


def pack_mask(mask: NDArray[np.bool_]) -> bytes:
    """A mask bool `[N]` in one bit a parameter, lowest bit of a byte first, padded with zeros: ceil(N / 8) bytes.

    Examples:
        >>> mask = np.array([1, 0, 0, 0, 0, 0, 0, 0, 1], np.bool_)
        >>> pack_mask(mask).hex(), bool((unpack_mask(pack_mask(mask), 9) == mask).all())
        ('0101', True)
    """
    return np.packbits(mask, bitorder="little").tobytes()


def unpack_mask(raw: bytes, count: int) -> NDArray[np.bool_]:
    """The mask, bool `[count]`.  Raises MessageError on a wrong length or padding."""
    _expect(raw, -(-count // 8), "packed mask")
    bits = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")
    if bits[count:].any():
        raise MessageError("set bits after the last parameter", "zeros")
    return bits[:count].astype(np.bool_)


def pack_theta(q: NDArray[np.uint16]) -> bytes:
    """Keep-probabilities q / 65536: which of up to 256 values each is, coded; or two bytes each."""
    return _packed_theta(q.astype("<u2").tobytes())


def unpack_theta(raw: bytes, count: int) -> NDArray[np.uint16]:
    """Keep-probabilities, uint16 `[count]`.  Raises MessageError for what cannot be so many."""
    return _unpacked_theta(raw, count).copy()


# A server packs one θ for all clients that need it, and a simulator's clients unpack the same.
@lru_cache(maxsize=2)
def _packed_theta(plain: bytes) -> bytes:
    q = np.frombuffer(plain, "<u2").astype(np.uint16)
    values = np.flatnonzero(np.bincount(q, minlength=65536))
    if 0 < len(values) <= _VALUES:
        place_of = np.zeros(65536, np.uint8)
        place_of[values] = np.arange(len(values))
        places = place_of.take(q)
        writer = FlagWriter()
        nodes, bits = np.ones(len(places), np.uint16), int(len(values) - 1).bit_length()
        for bit in reversed(range(bits)):
            flags = (places >> bit & 1).astype(np.bool_)
            writer.flags(nodes, (1 << bits,), flags)
            nodes = nodes + nodes + flags
        coded = bytes([_CODED, len(values) - 1]) + values.astype("<u2").tobytes() + writer.done()
        if len(coded) <= len(plain):
            return coded
    return bytes([_PACKED]) + plain


@lru_cache(maxsize=2)
def _unpacked_theta(raw: bytes, count: int) -> NDArray[np.uint16]:
    if raw[:1] == bytes([_PACKED]):
        _expect(raw[1:], 2 * count, "keep-probabilities")
        return np.frombuffer(raw[1:], "<u2").astype(np.uint16)
    size = raw[1] + 1 if len(raw) > 1 else 0
    if raw[:1] != bytes([_CODED]) or len(raw) < 2 + 2 * size:
        raise MessageError(f"keep-probabilities of {len(raw)} bytes, coding {raw[:1].hex()}", "packed or coded ones")
    values = np.frombuffer(raw[2 : 2 + 2 * size], "<u2").astype(np.uint16)
    nodes, bits = np.ones(count, np.uint16), int(size - 1).bit_length()
    reader = FlagReader(raw[2 + 2 * size :])
    for _ in range(bits):
        nodes = nodes + nodes + reader.flags(nodes, (1 << bits,))
    reader.finish()
    places = nodes - np.uint16(1 << bits)
    if (np.diff(values.astype(np.int64)) <= 0).any() or places.max(initial=0) >= size:
        raise MessageError("keep-probabilities that nobody codes", "values that ascend, and places among them")
    return values.take(places)


# ---------------------------------------------------------------------------------------- uplink


def encode_mask(mask: NDArray[np.bool_], u: NDArray[np.uint16], known: SharedKnowledge) -> bytes:
    """A client's mask as bytes: its flips against `[u < θ_t]`, or packed bits where these are fewer.

    Args:
        mask: bool `[n]`, drawn with `u`.
        u: public uniforms, uint16 `[n]`.
        known: θ_t and layers of the same entries.

    Returns:
        At most ceil(n / 8) + 1 bytes.

    Examples:
        A client that moved θ from 0.5 to 0.51 sends less than a tenth of a bit an entry:

        >>> u = np.random.default_rng(0).integers(0, 65536, 8000).astype(np.uint16)
        >>> known = SharedKnowledge(np.full(8000, 32768, np.uint16), np.zeros(8000, np.uint8), 1)
        >>> coded = encode_mask(u < 33423, u, known)
        >>> len(coded) < 100, bool((decode_mask(coded, u, known) == (u < 33423)).all())
        (True, True)
    """
    flips = mask ^ (u < known.q)
    index = _width_for(flips, u, known.q)
    near, contexts, shape = flip_contexts(u, known, index)
    far = np.flatnonzero(flips & ~near)
    if len(far) > len(mask) // _FEW:
        index, far = len(_WIDTHS) - 1, far[:0]
        near, contexts, shape = flip_contexts(u, known, index)
    writer = FlagWriter()
    writer.flags(contexts, shape, _picked(flips, near, len(contexts)))
    writer.positives(np.zeros(len(far), np.uint16), (1,), np.diff(far, prepend=-1))
    coded = writer.done()
    if len(coded) + _MASK.size > -(-len(mask) // 8) + 1:
        return bytes([_PACKED]) + pack_mask(mask)
    return _MASK.pack(_CODED, index, len(far)) + coded


def decode_mask(raw: bytes, u: NDArray[np.uint16], known: SharedKnowledge) -> NDArray[np.bool_]:
    """The mask bool `[n]` that `encode_mask` was given.  Raises MessageError for what cannot be one.

    Takes about eight bytes an entry while it works, whatever the message claims.
    """
    if raw[:1] == bytes([_PACKED]):
        return unpack_mask(raw[1:], len(u))
    if len(raw) < _MASK.size or raw[0] != _CODED:
        raise MessageError(f"a mask of {len(raw)} bytes, coding {raw[:1].hex()}", "a packed or coded mask")
    _, index, beyond = _MASK.unpack_from(raw)
    if index >= len(_WIDTHS) or beyond > len(u) // _FEW:
        raise MessageError(
            f"a mask of width {index} and {beyond} flips beyond", f"below {len(_WIDTHS)}, at most {len(u) // _FEW}"
        )
    near, contexts, shape = flip_contexts(u, known, index)
    reader = FlagReader(raw[_MASK.size :])
    mask = (u < known.q) ^ _spread(reader.flags(contexts, shape), near)
    far = np.cumsum(reader.positives(np.zeros(beyond, np.uint16), (1,))) - 1
    reader.finish()
    if beyond and (far[-1] >= len(u) or near[far].any()):
        raise MessageError("a flip beyond the last entry or listed twice", "each flip once")
    mask[far] ^= True
    return mask


@lru_cache(maxsize=1)
def levels() -> NDArray[np.int16]:
    """Log-odds of (i + 1/2) / 65536 in steps of 1 / 2048, rounded: int16 `[65536]`, odd-symmetric.

    None is near enough to half a step for a machine's logarithm to decide.
    """
    upper = [round(_UNIT * math.log((i + 0.5) / (65535.5 - i))) for i in range(32768, 65536)]
    found = np.concatenate((np.negative(upper[::-1]), upper)).astype(np.int16)
    found.setflags(write=False)
    return found


def _differences(u: NDArray[np.uint16], q: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """How far the log-odds of u are from those of θ, in steps."""
    found: NDArray[np.int32] = np.abs(levels().take(u).astype(np.int32) - levels().take(q))
    return found.astype(np.uint16)


def _width_for(flips: NDArray[np.bool_], u: NDArray[np.uint16], q: NDArray[np.uint16]) -> int:
    """Which width of bins lets the flips take the fewest bits, judged by a part of the entries."""
    some = slice(None, None, len(u) // _SAMPLE + 1)
    far = _differences(u[some], q[some]).astype(np.intp)
    edges = _WIDTHS[:, None] * np.arange(_BINS + 1)
    all_of, flipped = (_nearer(part)[edges] for part in (far, far[flips[some]]))
    beyond = np.count_nonzero(flips[some]) - flipped[:, -1]
    listed = beyond * (np.log2(max(1, len(far)) / np.maximum(beyond, 1)) + _LISTED)
    return int(np.argmin(_bits(np.diff(flipped), np.diff(all_of)).sum(1) + listed))


def _nearer(differences: NDArray[np.intp]) -> NDArray[np.int64]:
    """How many are below each of 0 … `_MOST`."""
    return np.bincount(differences + 1, minlength=_MOST + 1).cumsum()


def _bits(set_flags: NDArray[np.int64], flags: NDArray[np.int64]) -> NDArray[np.float64]:
    """What so many set ones among so many flags take at least, in bits."""
    total = np.zeros(flags.shape)
    for part in (set_flags, flags - set_flags):
        total -= part * np.log2(np.maximum(part, 1) / np.maximum(flags, 1))
    return total


def flip_contexts(
    u: NDArray[np.uint16], known: SharedKnowledge, index: int
) -> tuple[NDArray[np.bool_], NDArray[np.uint16], tuple[int, ...]]:
    """Which entries lie in the bins of a width, bool `[n]`, their cells, uint16, and the shape of the cells.

    A cell is what the probability of a flip depends on: how far it is from θ_t to u in log-odds, θ_t or, where u
    lies above it, 1 - θ_t, and the layer.  A search steps in log-odds, and does not tell kept from dropped.
    """
    near, cells, filled = np.empty(len(u), np.bool_), np.empty(len(u), np.uint16), 0
    shape, width = (_BINS, _THETAS, known.depth), int(_WIDTHS[index])
    for start in range(0, len(u), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        bins = _differences(u[chunk], known.q[chunk]) // np.uint16(width)
        here = np.less(bins, _BINS, out=near[chunk])
        # All cells and then some of them: picking out what cells are made of takes longer than cells.
        own = np.where(u[chunk] < known.q[chunk], known.q[chunk], np.negative(known.q[chunk]))
        found = _with_theta(bins, own, known.layers[chunk], known.depth).take(np.flatnonzero(here))
        cells[filled : filled + len(found)] = found
        filled += len(found)
    return near, cells[:filled], shape


def _picked(values: NDArray[np.bool_], chosen: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    """`values[chosen]`, `count` of them: by places of a chunk at a time, up to five times as fast."""
    found = np.empty(count, np.bool_)
    for chunk, places, part in _chosen(chosen):
        found[part] = values[chunk].take(places)
    return found


def _spread(values: NDArray[np.bool_], chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Values in the chosen places, bool `[n]`, unset elsewhere: the inverse of `_picked`."""
    found = np.zeros(len(chosen), np.bool_)
    for chunk, places, part in _chosen(chosen):
        found[chunk][places] = values[part]
    return found


def _chosen(chosen: NDArray[np.bool_]) -> Iterator[tuple[slice, NDArray[np.intp], slice]]:
    """Chunk by chunk: where it is, the places chosen in it, and where these are among all that are chosen."""
    filled = 0
    for start in range(0, len(chosen), _CHUNK):
        places = np.flatnonzero(chosen[start : start + _CHUNK])
        yield slice(start, start + _CHUNK), places, slice(filled, filled := filled + len(places))


def _with_theta(
    cells: NDArray[np.uint16], q: NDArray[np.uint16], layers: NDArray[np.uint8], depth: int
) -> NDArray[np.uint16]:
    cells <<= np.uint16(4)
    cells |= q >> np.uint16(12)
    cells *= np.uint16(depth)
    cells += layers
    return cells


# --------------------------------------------------------------------------------------- averages


def encode_step(net: NDArray[np.int64], alpha: NDArray[np.int64], base: Baseline, known: SharedKnowledge) -> bytes:
    """What a round changed, as bytes: the body of a step, see `frames.pack_step`.

    Args:
        net: net flips, int64 `[A]`.
        alpha: changes of the α layers in steps of `server.ALPHA_STEP`, int64 `[N - A]`.
        base: what is known of the masked entries before any news.
        known: θ_t and layers of all N entries.

    Examples:
        >>> none = np.zeros(4, np.uint16)
        >>> base = Baseline(none + np.uint16(2), none, none, none)
        >>> known = SharedKnowledge(np.full(5, 32768, np.uint16), np.zeros(5, np.uint8), 1)
        >>> coded = encode_step(np.array([0, 1, 0, 2]), np.array([-3]), base, known)
        >>> [part.tolist() for part in decode_step(coded, base, known)]
        [[0, 1, 0, 2], [-3]]
    """
    masked = len(net)
    changed = _change_contexts(known.of(slice(masked, None)))
    return _written((net, _net_contexts(base, known.of(slice(masked)))), (alpha, changed))


def decode_step(raw: bytes, base: Baseline, known: SharedKnowledge) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What `encode_step` was given.  Raises MessageError for what cannot be one."""
    masked = len(base.clients)
    changed = _change_contexts(known.of(slice(masked, None)))
    net, alpha = _read(raw, _net_contexts(base, known.of(slice(masked))), changed)
    return net, _limited(alpha)


def encode_changes(changes: NDArray[np.int64], known: SharedKnowledge) -> bytes:
    """A client's quantised changes of the α layers, int64 `[n]`; none take no byte."""
    return _written((changes, _change_contexts(known)))


def decode_changes(raw: bytes, known: SharedKnowledge) -> NDArray[np.int64]:
    """What `encode_changes` was given.  Raises MessageError for what cannot be one."""
    return _limited(*_read(raw, _change_contexts(known)))


def _written(*parts: tuple[NDArray[np.int64], Contexts]) -> bytes:
    writer = FlagWriter()
    for values, contexts in parts:
        writer.integers(*contexts, values)
    return writer.done()


def _read(raw: bytes, *parts: Contexts) -> list[NDArray[np.int64]]:
    reader = FlagReader(raw)
    found = [reader.integers(*contexts) for contexts in parts]
    reader.finish()
    return found


def _limited(changes: NDArray[np.int64]) -> NDArray[np.int64]:
    if np.abs(changes).max(initial=0) > 65536:
        raise MessageError("a change beyond what keep-probabilities can make", "at most 65536 steps")
    return changes


def _net_contexts(base: Baseline, known: SharedKnowledge) -> Contexts:
    shape = _PHASES, _THETAS, known.depth
    below = base.below.astype(np.uint32)
    phases = below * np.uint32(_PHASES) // (below + base.above + np.uint32(1))
    return _with_theta(phases.astype(np.uint16), known.q, known.layers, known.depth), shape


def _change_contexts(known: SharedKnowledge) -> Contexts:
    cells = np.zeros(len(known.q), np.uint16)
    return _with_theta(cells, known.q, known.layers, known.depth), (_THETAS, known.depth)


# ---------------------------------------------------------------------------------------- moments


def encode_moments(moments: NDArray[np.float32], steps: int) -> tuple[float, bytes]:
    """Moments float32 `[n]` as a step, `1 / steps` of their root mean square, and coded integers, the nearest.

    Rounding adds about `1 / (12 · steps²)` of their squared norm to their squared distance from anything.

    Examples:
        >>> moments = np.array([0.25, -0.5, 0.0], np.float32)
        >>> step, coded = encode_moments(moments, steps=64)
        >>> bool(np.abs(decode_moments(coded, step, 3) - moments).max() <= step / 2)
        True
    """
    step = float(np.float32(np.sqrt(np.mean(moments.astype(np.float64) ** 2)) / steps))
    whole = np.rint(moments.astype(np.float64) / (step or 1.0)).astype(np.int64)
    return step, _written((whole, _stretches(len(moments))))


def decode_moments(raw: bytes, step: float, count: int) -> NDArray[np.float32]:
    """The moments float32 `[count]`, on their grid.  Raises MessageError for what cannot be any."""
    (whole,) = _read(raw, _stretches(count))
    found = (whole * step).astype(np.float32)
    if not np.isfinite(found).all():
        raise MessageError("moments beyond float32", "finite ones")
    return found


def _stretches(count: int) -> Contexts:
    """Neighbours have like moments: a cell is one of so many equal stretches."""
    return (np.arange(count) * _STRETCHES // max(1, count)).astype(np.uint16), (_STRETCHES,)


def _expect(raw: bytes, size: int, what: str) -> None:
    if len(raw) != size:
        raise MessageError(f"{len(raw)} bytes of {what}", f"{size} bytes")
