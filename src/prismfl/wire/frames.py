"""Versioned frames: a fixed header with identity, length and checksum, then the payload.

Nothing is interpreted before the header's every field has been checked against what the
receiver expects and against the bytes that are there.
"""

import hashlib
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from prismfl.errors import MessageError
from prismfl.wire.masks import pack_mask, pack_theta, unpack_mask, unpack_theta

MAGIC = b"PRSM"
VERSION = 4
# magic, version, kind, reserved, run id, round, client, payload length, CRC-32 of all before and after it
_HEADER = struct.Struct("<4sHBB16sIIII")
_BROADCAST = struct.Struct("<8sIIIH")  # digest of θ_t, rank, cohort, round that the steps start from, their number
_UPDATE = struct.Struct("<8sIfI")  # digest of θ_t, weight, loss, bytes of the mask
_MOMENTS = struct.Struct("<If")  # weight, step
_LENGTH = struct.Struct("<I")
HEADER_BYTES = _HEADER.size
KIND_AT = 6  # byte of a frame that says its kind
_SNAPSHOT = 2**32 - 1  # in place of a round: θ_t itself follows
MOST_STEPS = 2**16 - 1


class Kind(IntEnum):
    """What a frame carries; the numbers are part of the format."""

    BROADCAST = 1
    UPDATE = 2
    CANDIDATES = 3
    DISTANCES = 4
    LOST = 5
    REQUEST = 6
    MOMENTS = 7
    TARGET = 8
    WANTED = 9


@dataclass(frozen=True)
class Place:
    """Where a frame belongs.

    Attributes:
        run: sixteen bytes that name the run, see `run_id`.
        round: 0 … 2^32 - 1.
        client: 0 … 2^32 - 1.
    """

    run: bytes
    round: int
    client: int


@dataclass(frozen=True)
class Broadcast:
    """Server → client: how to come to θ_t, the client's rank in the cohort, and its size.

    Attributes:
        digest: eight bytes that name θ_t.
        rank: of the client in the round's cohort, from 0.
        cohort: clients of the round, 32767 at most.
        first: the round whose θ the coded steps start from; None where a snapshot comes in their place.
        steps: the coded steps that lead to θ_t, see `pack_step`.
        snapshot: θ_t itself, uint16 `[N]`, for a client that cannot take the steps.

    Examples:
        >>> place = Place(run_id("seed = 0"), round=0, client=1)
        >>> q = np.full(3, 32768, np.uint16)
        >>> frame = seal_broadcast(Broadcast(digest_of(q), rank=1, cohort=2, first=None, snapshot=q), place)
        >>> open_broadcast(frame, place, count=3).snapshot
        array([32768, 32768, 32768], dtype=uint16)
    """

    digest: bytes
    rank: int
    cohort: int
    first: int | None
    steps: tuple[bytes, ...] = ()
    snapshot: NDArray[np.uint16] | None = None


@dataclass(frozen=True)
class Update:
    """Client → server: what a client makes of θ_t.

    Attributes:
        digest: of the θ_t that was searched from.
        weight: of the client in the mean, 1 … 2^31 - 1.
        loss: mean squared distance over the search's steps.
        mask: the coded mask, see `wire.masks.encode_mask`.
        alpha: coded changes of the α layers, see `wire.masks.encode_changes`.

    Examples:
        >>> place = Place(run_id("seed = 0"), round=0, client=1)
        >>> frame = seal_update(Update(b"8 bytes!", 1, 0.25, b"mask", b""), place)
        >>> len(frame) - HEADER_BYTES, open_update(frame, place, most_mask=9, most_alpha=0).mask
        (24, b'mask')
        >>> open_update(frame[:-1] + b"x", place, most_mask=9, most_alpha=0)
        Traceback (most recent call last):
        prismfl.errors.MessageError: a frame whose checksum differs; expected the bytes that were sent; ...
    """

    digest: bytes
    weight: int
    loss: float
    mask: bytes
    alpha: bytes


def run_id(public_settings: str) -> bytes:
    """Sixteen bytes naming a run, from its public settings, as text that is equal at all parties; no data enters."""
    return hashlib.sha256(public_settings.encode()).digest()[:16]


def digest_of(q: NDArray[np.uint16]) -> bytes:
    """Eight bytes naming a θ = q / 65536, uint16 `[N]`: the first of SHA-256."""
    return hashlib.sha256(np.ascontiguousarray(q, "<u2").data).digest()[:8]


def seal(kind: IntEnum, place: Place, payload: bytes) -> bytes:
    """A whole frame: a header of 40 bytes with identity, length and CRC-32, then the payload.

    Args:
        kind: what it carries.
        place: where it belongs.
        payload: any bytes.

    Returns:
        The frame.

    Examples:
        >>> place = Place(run_id("seed = 0"), round=0, client=1)
        >>> frame = seal(Kind.UPDATE, place, b"payload")
        >>> len(frame) - HEADER_BYTES, open_frame(frame, Kind.UPDATE, place)
        (7, b'payload')
    """
    head = _HEADER.pack(MAGIC, VERSION, kind, 0, place.run, place.round, place.client, len(payload), 0)
    check = zlib.crc32(payload, zlib.crc32(head))
    return head[:-4] + check.to_bytes(4, "little") + payload


def open_frame(frame: bytes, kind: IntEnum, place: Place) -> bytes:
    """The payload of a frame that is whole, of this kind, and from this place.

    Args:
        frame: bytes as they came.
        kind: that is expected.
        place: that is expected.

    Returns:
        The payload, not yet interpreted.

    Raises:
        MessageError: naming the first thing that differs.
    """
    if len(frame) < HEADER_BYTES:
        raise MessageError(f"a frame of {len(frame)} bytes", f"at least {HEADER_BYTES}")
    magic, version, got_kind, reserved, run, round_index, client, length, check = _HEADER.unpack_from(frame)
    if magic != MAGIC or version != VERSION or reserved:
        raise MessageError(
            f"a frame of format {magic!r} version {version}.{reserved}", f"{MAGIC!r} version {VERSION}.0"
        )
    if length != len(frame) - HEADER_BYTES:
        raise MessageError(
            f"a frame claiming {length} payload bytes and holding {len(frame) - HEADER_BYTES}", "equal numbers"
        )
    payload = frame[HEADER_BYTES:]
    blank = frame[: HEADER_BYTES - 4] + bytes(4)
    if zlib.crc32(payload, zlib.crc32(blank)) != check:
        raise MessageError("a frame whose checksum differs", "the bytes that were sent")
    got = (got_kind, run, round_index, client)
    if got != (kind, place.run, place.round, place.client):
        raise MessageError(
            f"a frame of kind {got_kind}, run {run.hex()}, round {round_index}, client {client}",
            f"kind {int(kind)}, run {place.run.hex()}, round {place.round}, client {place.client}",
        )
    return payload


def seal_broadcast(message: Broadcast, place: Place, kind: Kind = Kind.BROADCAST) -> bytes:
    """Frame of a broadcast; of kind CANDIDATES it asks for distances instead of an update."""
    first = _SNAPSHOT if message.first is None else message.first
    head = _BROADCAST.pack(message.digest, message.rank, message.cohort, first, len(message.steps))
    if message.snapshot is not None:
        return seal(kind, place, head + pack_theta(message.snapshot))
    parts = [_LENGTH.pack(len(step)) + step for step in message.steps]
    return seal(kind, place, head + b"".join(parts))


def open_broadcast(frame: bytes, place: Place, count: int, kind: Kind = Kind.BROADCAST) -> Broadcast:
    """What a frame's broadcast of `count` parameters says.

    Raises:
        MessageError: when it is not of this place and kind, or cannot be a broadcast.
    """
    payload = _at_least(open_frame(frame, kind, place), _BROADCAST.size)
    digest, rank, cohort, first, steps = _BROADCAST.unpack_from(payload)
    if not 0 <= rank < cohort <= 32767:
        raise MessageError(f"rank {rank} in a cohort of {cohort}", "rank < cohort ≤ 32767")
    body = payload[_BROADCAST.size :]
    if first == _SNAPSHOT and not steps:
        return Broadcast(digest, rank, cohort, None, (), unpack_theta(body, count))
    if first + steps != place.round:
        raise MessageError(f"{steps} steps from round {first}", f"steps that lead to round {place.round}")
    return Broadcast(digest, rank, cohort, first, _split(body, steps))


def _split(body: bytes, count: int) -> tuple[bytes, ...]:
    """`count` stretches of bytes with their lengths before them, and nothing else."""
    found, at = [], 0
    for _ in range(count):
        at += _LENGTH.size
        length = int.from_bytes(_at_least(body, at)[at - _LENGTH.size : at], "little")
        found.append(_at_least(body, at + length)[at : at + length])
        at += length
    _sized(body, at)
    return tuple(found)


def pack_step(cohort: int, replied: Sequence[int], body: bytes) -> bytes:
    """A step of θ as it travels: which ranks replied, and what changed.

    Args:
        cohort: clients that the round asked.
        replied: ranks of those that replied.
        body: what `wire.masks.encode_step` gives.

    Returns:
        Two bytes of cohort, a bit a rank, and the body.

    Examples:
        >>> unpack_step(pack_step(3, [0, 2], b"body"))
        (3, [0, 2], b'body')
    """
    bits = np.zeros(cohort, np.bool_)
    bits[list(replied)] = True
    return cohort.to_bytes(2, "little") + pack_mask(bits) + body


def unpack_step(raw: bytes) -> tuple[int, list[int], bytes]:
    """Cohort, the ranks that replied (ascending), and the body of a step.

    Raises:
        MessageError: when it is cut short, or nobody replied.
    """
    cohort = int.from_bytes(_at_least(raw, 2)[:2], "little")
    end = 2 + -(-cohort // 8)
    replied = np.flatnonzero(unpack_mask(_at_least(raw, end)[2:end], cohort)).tolist()
    if not replied:
        raise MessageError("a step that nobody took", "at least one reply")
    return cohort, replied, raw[end:]


def seal_update(message: Update, place: Place) -> bytes:
    """Frame of an update."""
    head = _UPDATE.pack(message.digest, message.weight, message.loss, len(message.mask))
    return seal(Kind.UPDATE, place, head + message.mask + message.alpha)


def open_update(frame: bytes, place: Place, most_mask: int, most_alpha: int) -> Update:
    """What a frame's update says; its mask and α layers, of at most so many bytes, are still coded.

    Raises:
        MessageError: when it is not of this place, too large, or its numbers are impossible.
    """
    payload = _at_least(open_frame(frame, Kind.UPDATE, place), _UPDATE.size)
    digest, weight, loss, length = _UPDATE.unpack_from(payload)
    if not 1 <= weight < 2**31 or not math.isfinite(loss):
        raise MessageError(f"an update of weight {weight}, loss {loss}", "weight 1 … 2^31 - 1 and a finite loss")
    body = payload[_UPDATE.size :]
    if length > min(len(body), most_mask) or len(body) - length > most_alpha:
        raise MessageError(
            f"an update of {len(body)} bytes, {length} of them mask", f"at most {most_mask} and {most_alpha} beside"
        )
    return Update(digest, weight, loss, body[:length], body[length:])


def seal_lost(place: Place) -> bytes:
    """Frame of a client that cannot come to θ_t from what it holds, and asks for a snapshot."""
    return seal(Kind.LOST, place, b"")


def is_lost(frame: bytes, place: Place) -> bool:
    """Whether a frame is a whole one that asks for a snapshot, from this place."""
    try:
        return open_frame(frame, Kind.LOST, place) == b""
    except MessageError:
        return False


def seal_distances(distances: NDArray[np.float64], weight: int, place: Place) -> bytes:
    """Frame of a client's squared distances from candidate masks.

    Args:
        distances: float64 `[candidates]`, eight bytes each.
        weight: of the client in the mean, four bytes.
        place: round and client that it is from.

    Returns:
        The frame.

    Examples:
        >>> place = Place(run_id("seed = 0"), round=20, client=1)
        >>> open_distances(seal_distances(np.array([0.5, 0.25]), 1, place), place, count=2)
        (array([0.5 , 0.25]), 1)
    """
    return seal(Kind.DISTANCES, place, weight.to_bytes(4, "little") + distances.astype("<f8").tobytes())


def open_distances(frame: bytes, place: Place, count: int) -> tuple[NDArray[np.float64], int]:
    """Squared distances float64 `[count]` and the client's weight.

    Raises:
        MessageError: when it is not of this place, or a number is not finite.
    """
    payload = _sized(open_frame(frame, Kind.DISTANCES, place), 4 + 8 * count)
    distances, weight = np.frombuffer(payload, "<f8", offset=4), int.from_bytes(payload[:4], "little")
    if not np.isfinite(distances).all() or not 1 <= weight < 2**31:
        raise MessageError("distances that are not finite, or no weight", "finite numbers and a weight ≥ 1")
    return distances.astype(np.float64), weight


@dataclass(frozen=True)
class Moments:
    """Client → server, in a one-shot run: moments of its images.

    Attributes:
        weight: of the client in the mean.
        step: what 1 of the coded integers stands for; 0 where all moments are 0.
        shares: each label's share of the images, float64 `[G]` of sum 1.
        coded: what `wire.masks.encode_moments` gives.

    Examples:
        >>> place = Place(run_id("seed = 0"), round=0, client=1)
        >>> frame = seal_moments(Moments(1, 0.5, np.array([0.75, 0.25]), b"coded"), place)
        >>> open_moments(frame, place, groups=2, most=100).shares.tolist()
        [0.75, 0.25]
    """

    weight: int
    step: float
    shares: NDArray[np.float64]
    coded: bytes


def seal_request(place: Place) -> bytes:
    """Frame that asks a client for its moments."""
    return seal(Kind.REQUEST, place, b"")


def open_request(frame: bytes, place: Place) -> None:
    """Raises MessageError when a frame does not ask for moments."""
    _sized(open_frame(frame, Kind.REQUEST, place), 0)


def seal_moments(message: Moments, place: Place, kind: Kind = Kind.MOMENTS) -> bytes:
    """Frame of a client's moments; of kind TARGET those that a server hands out."""
    head = _MOMENTS.pack(message.weight, message.step) + message.shares.astype("<f8").tobytes()
    return seal(kind, place, head + message.coded)


def open_moments(frame: bytes, place: Place, groups: int, most: int, kind: Kind = Kind.MOMENTS) -> Moments:
    """Moments of `groups` labels (1 without labels), still coded, in at most so many bytes.

    Raises:
        MessageError: when it is not of this place, too large, or its shares are none.
    """
    start = _MOMENTS.size + 8 * groups
    payload = _at_least(open_frame(frame, kind, place), start)
    weight, step = _MOMENTS.unpack_from(payload)
    shares = np.frombuffer(payload[_MOMENTS.size : start], "<f8").astype(np.float64)
    if not 1 <= weight < 2**31 or not (math.isfinite(step) and step >= 0):
        raise MessageError(f"moments of weight {weight}, step {step}", "weight 1 … 2^31 - 1 and a finite step ≥ 0")
    if not (np.isfinite(shares).all() and shares.min() >= 0 and abs(shares.sum() - 1) < 1e-6):
        raise MessageError("label shares that are no shares", "numbers from 0 that sum to 1")
    if len(payload) - start > most:
        raise MessageError(f"{len(payload) - start} bytes of moments", f"at most {most}")
    return Moments(weight, step, shares, payload[start:])


def _at_least(payload: bytes, size: int) -> bytes:
    if len(payload) < size:
        raise MessageError(f"a payload of {len(payload)} bytes", f"at least {size}")
    return payload


def _sized(payload: bytes, size: int) -> bytes:
    if len(payload) != size:
        raise MessageError(f"a payload of {len(payload)} bytes", f"{size}")
    return payload
