"""Versioned frames: a fixed header with identity, length and checksum, then the payload.

Nothing is interpreted before the header's every field has been checked against what the
receiver expects and against the bytes that are there.
"""

import hashlib
import math
import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from prismfl.errors import MessageError
from prismfl.wire.codec import pack_mask, pack_theta, unpack_mask, unpack_theta

MAGIC = b"PRSM"
VERSION = 1
# magic, version, kind, reserved, run id, round, client, payload length, CRC-32 of all before and after it
_HEADER = struct.Struct("<4sHBB16sIIII")
_BROADCAST = struct.Struct("<II")
_UPDATE = struct.Struct("<If")
HEADER_BYTES = _HEADER.size


class Kind(IntEnum):
    """What a frame carries."""

    BROADCAST = 1
    UPDATE = 2
    CANDIDATES = 3
    DISTANCES = 4


@dataclass(frozen=True)
class Place:
    """Where a frame belongs: run (16 bytes), round and client."""

    run: bytes
    round: int
    client: int


@dataclass(frozen=True)
class Broadcast:
    """Server → client: θ_t as uint16 `[N]`, the client's rank in the cohort, and its size K."""

    q: NDArray[np.uint16]
    rank: int
    cohort: int


@dataclass(frozen=True)
class Update:
    """Client → server: mask bool `[A]`, θ_k of the α layers uint16 `[N - A]`, weight, mean loss."""

    mask: NDArray[np.bool_]
    alpha: NDArray[np.uint16]
    weight: int
    loss: float


def run_id(public_settings: str) -> bytes:
    """Sixteen bytes naming a run, from its public settings; no data enters."""
    return hashlib.sha256(public_settings.encode()).digest()[:16]


def seal(kind: Kind, place: Place, payload: bytes) -> bytes:
    """A whole frame around a payload."""
    head = _HEADER.pack(MAGIC, VERSION, kind, 0, place.run, place.round, place.client, len(payload), 0)
    check = zlib.crc32(payload, zlib.crc32(head))
    return head[:-4] + check.to_bytes(4, "little") + payload


def open_frame(frame: bytes, kind: Kind, place: Place) -> bytes:
    """The payload of a frame that is whole, of this kind, and from this place.

    Raises MessageError naming the first thing that differs.
    """
    if len(frame) < HEADER_BYTES:
        raise _refuse(f"a frame of {len(frame)} bytes", f"at least {HEADER_BYTES}")
    magic, version, got_kind, _, run, round_index, client, length, check = _HEADER.unpack_from(frame)
    if magic != MAGIC or version != VERSION:
        raise _refuse(f"a frame of format {magic!r} version {version}", f"{MAGIC!r} version {VERSION}")
    if length != len(frame) - HEADER_BYTES:
        raise _refuse(
            f"a frame claiming {length} payload bytes and holding {len(frame) - HEADER_BYTES}", "equal numbers"
        )
    payload = frame[HEADER_BYTES:]
    blank = frame[: HEADER_BYTES - 4] + bytes(4)
    if zlib.crc32(payload, zlib.crc32(blank)) != check:
        raise _refuse("a frame whose checksum differs", "the bytes that were sent")
    got = (got_kind, run, round_index, client)
    if got != (kind, place.run, place.round, place.client):
        raise _refuse(
            f"a frame of kind {got_kind}, run {run.hex()}, round {round_index}, client {client}",
            f"kind {int(kind)}, run {place.run.hex()}, round {place.round}, client {place.client}",
        )
    return payload


def seal_broadcast(message: Broadcast, place: Place) -> bytes:
    """Frame of a broadcast: rank and cohort (4 bytes each), θ_t (2 bytes a parameter)."""
    payload = _BROADCAST.pack(message.rank, message.cohort) + pack_theta(message.q)
    return seal(Kind.BROADCAST, place, payload)


def open_broadcast(frame: bytes, place: Place, count: int) -> Broadcast:
    """A broadcast of `count` parameters.  Raises MessageError."""
    payload = _sized(open_frame(frame, Kind.BROADCAST, place), _BROADCAST.size + 2 * count)
    rank, cohort = _BROADCAST.unpack_from(payload)
    if not 0 <= rank < cohort <= 32767:
        raise _refuse(f"rank {rank} in a cohort of {cohort}", "rank < cohort ≤ 32767")
    return Broadcast(unpack_theta(payload[_BROADCAST.size :], count), rank, cohort)


def seal_update(message: Update, place: Place) -> bytes:
    """Frame of an update: weight, loss (4 bytes each), packed mask, θ_k of the α layers."""
    payload = _UPDATE.pack(message.weight, message.loss) + pack_mask(message.mask) + pack_theta(message.alpha)
    return seal(Kind.UPDATE, place, payload)


def open_update(frame: bytes, place: Place, masked: int, alpha: int) -> Update:
    """An update of `masked` mask bits and `alpha` keep-probabilities.  Raises MessageError."""
    packed = -(-masked // 8)
    payload = _sized(open_frame(frame, Kind.UPDATE, place), _UPDATE.size + packed + 2 * alpha)
    weight, loss = _UPDATE.unpack_from(payload)
    if not 1 <= weight < 2**31 or not math.isfinite(loss):
        raise _refuse(f"an update of weight {weight}, loss {loss}", "weight 1 … 2^31 - 1 and a finite loss")
    body = payload[_UPDATE.size :]
    return Update(unpack_mask(body[:packed], masked), unpack_theta(body[packed:], alpha), weight, loss)


def seal_candidates(q: NDArray[np.uint16], place: Place) -> bytes:
    """Frame of the final θ, uint16 `[N]`, whose candidate masks the client is to compare."""
    return seal(Kind.CANDIDATES, place, pack_theta(q))


def open_candidates(frame: bytes, place: Place, count: int) -> NDArray[np.uint16]:
    """The final θ: uint16 `[count]`.  Raises MessageError."""
    return unpack_theta(open_frame(frame, Kind.CANDIDATES, place), count)


def seal_distances(distances: NDArray[np.float64], weight: int, place: Place) -> bytes:
    """Frame of a client's weight (4 bytes) and squared distances, 8 bytes a candidate."""
    return seal(Kind.DISTANCES, place, weight.to_bytes(4, "little") + distances.astype("<f8").tobytes())


def open_distances(frame: bytes, place: Place, count: int) -> tuple[NDArray[np.float64], int]:
    """Squared distances float64 `[count]` and the client's weight.  Raises MessageError."""
    payload = _sized(open_frame(frame, Kind.DISTANCES, place), 4 + 8 * count)
    distances, weight = np.frombuffer(payload, "<f8", offset=4), int.from_bytes(payload[:4], "little")
    if not np.isfinite(distances).all() or not 1 <= weight < 2**31:
        raise _refuse("distances that are not finite, or no weight", "finite numbers and a weight ≥ 1")
    return distances.astype(np.float64), weight


def _sized(payload: bytes, size: int) -> bytes:
    if len(payload) != size:
        raise _refuse(f"a payload of {len(payload)} bytes", f"{size}")
    return payload


def _refuse(got: str, expected: str) -> MessageError:
    return MessageError(got, expected, "the sender is left out of this round")
