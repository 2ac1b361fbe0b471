"""Messages of a secure sum: frames of `wire.frames` whose payload is a sum's name, rows by site, and a rest.

Every message is rows of one fixed width, a site each, in ascending order of the sites; what else it carries stands
after them.  The numbers of the kinds are part of the format.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from prismfl.errors import MessageError
from prismfl.sums.secrets import SEALED, SECRET, SIGNATURE
from prismfl.wire.frames import KIND_AT, Place, open_frame, seal

_HEAD = struct.Struct("<B16sH")  # what is summed, the sum's name, number of rows
_SITE = struct.Struct("<I")
_ADVERT = struct.Struct("<HHHI32s32s32s32s96s")
NAME = 16  # bytes of a sum's name
TAG = 16  # bytes that name a share
MOST_SITES = 256  # of a sum: shares are dealt from each to each


class Step(IntEnum):
    """What a message of a sum is, in the order in which they go; each answers the one before it."""

    OPEN = 16
    KEYS = 17
    LIST = 18
    SHARES = 19
    INBOX = 20
    MASKED = 21
    SURVIVORS = 22
    SIGNED = 23
    SIGNATURES = 24
    UNMASK = 25


class Purpose(IntEnum):
    """What is summed."""

    RELEASE = 1
    MASKS = 2
    DISTANCES = 3


# Bytes of a row.
WIDTHS = {
    Step.OPEN: 0,
    Step.KEYS: _ADVERT.size,
    Step.LIST: _ADVERT.size,
    Step.SHARES: 2 * SECRET + SEALED + 2 * TAG,
    Step.INBOX: 2 * SECRET + SEALED,
    Step.MASKED: 0,
    Step.SURVIVORS: 0,
    Step.SIGNED: SIGNATURE,
    Step.SIGNATURES: SIGNATURE,
    Step.UNMASK: SECRET,
}


@dataclass(frozen=True)
class Sum:
    """Which sum a message belongs to.

    Attributes:
        place: run, round and the client that the message is from or to.
        purpose: what is summed.
        name: sixteen bytes that the server chose for this attempt at it.
    """

    place: Place
    purpose: Purpose
    name: bytes

    @property
    def context(self) -> bytes:
        """What every key and signature of the sum is bound to: 37 bytes, the same for all its sites."""
        return self.place.run + struct.pack("<IB", self.place.round, self.purpose) + self.name

    def of(self, client: int) -> "Sum":
        """The same sum, in a message of another client."""
        return Sum(Place(self.place.run, self.place.round, client), self.purpose, self.name)


def seal_step(step: Step, of: Sum, rows: Mapping[int, bytes], rest: bytes = b"") -> bytes:
    """A whole frame.

    Args:
        step: what the message is.
        of: the sum, and the client that the message is from or to.
        rows: bytes of the step's width, by client.
        rest: what follows.

    Examples:
        >>> of = Sum(Place(bytes(16), round=0, client=1), Purpose.MASKS, bytes(16))
        >>> frame = seal_step(Step.SURVIVORS, of, {0: b"", 2: b""})
        >>> open_step(frame, Step.SURVIVORS, of)
        ({0: b'', 2: b''}, b'')
    """
    body = b"".join(_SITE.pack(client) + rows[client] for client in sorted(rows))
    return seal(step, of.place, _HEAD.pack(of.purpose, of.name, len(rows)) + body + rest)


def open_step(frame: bytes, step: Step, of: Sum, most: int = 0) -> tuple[dict[int, bytes], bytes]:
    """Rows by client, and what follows them, `most` bytes of it at most.

    Raises:
        MessageError: for a frame that is not of this sum, client and step, or does not read.
    """
    payload = open_frame(frame, step, of.place)
    purpose, name, count = _head(payload)
    if (purpose, name) != (of.purpose, of.name):
        raise MessageError(f"a message of sum {name.hex()}, {purpose}", f"sum {of.name.hex()}, {of.purpose}")
    if count > MOST_SITES:
        raise MessageError(f"{count} sites", f"at most {MOST_SITES}")
    width, at, rows = WIDTHS[step], _HEAD.size, dict[int, bytes]()
    for _ in range(count):
        row = payload[at : at + _SITE.size + width]
        if len(row) < _SITE.size + width:
            raise MessageError("rows that are cut short", f"{count} of them")
        (client,) = _SITE.unpack_from(row)
        if rows and client <= max(rows):
            raise MessageError(f"site {client} out of order", "ascending numbers, each once")
        rows[client] = row[_SITE.size :]
        at += len(row)
    if len(payload) - at > most:
        raise MessageError(f"{len(payload) - at} bytes behind the rows", f"at most {most}")
    return rows, payload[at:]


def sum_of(frame: bytes, step: Step, place: Place) -> Sum:
    """The sum that a frame of this place belongs to.  Raises MessageError."""
    purpose, name, _ = _head(open_frame(frame, step, place))
    try:
        return Sum(place, Purpose(purpose), name)
    except ValueError:
        raise MessageError(f"a sum of kind {purpose}", "one that this version knows") from None


def _head(payload: bytes) -> tuple[int, bytes, int]:
    if len(payload) < _HEAD.size:
        raise MessageError(f"{len(payload)} bytes of a sum", f"at least {_HEAD.size}")
    purpose, name, count = _HEAD.unpack_from(payload)
    return purpose, name, count


@dataclass(frozen=True)
class Advert:
    """What a site says of itself before a sum, signed by its identity.

    Attributes:
        sites, colluders, dropouts: N, t and d of its own policy.
        images: that it has, which is public; 0 where nothing depends on it.
        roster: SHA-256 of the public keys that it pins, in order.
        sealing, masking: X25519 keys for shares and for masks.
        own: names the secret behind its own mask.
        signature: 96 bytes over all of it.
    """

    sites: int
    colluders: int
    dropouts: int
    images: int
    roster: bytes
    sealing: bytes
    masking: bytes
    own: bytes
    signature: bytes = bytes(SIGNATURE)

    def to_bytes(self) -> bytes:
        """A row of KEYS and LIST."""
        rules = (self.sites, self.colluders, self.dropouts, self.images)
        return _ADVERT.pack(*rules, self.roster, self.sealing, self.masking, self.own, self.signature)

    @classmethod
    def from_bytes(cls, row: bytes) -> "Advert":
        """Of a row, whose width was checked."""
        return cls(*_ADVERT.unpack(row))

    def signed_text(self, of: Sum) -> bytes:
        """What the signature is over: the sum, the site, and all but the signature."""
        return b"prismfl keys" + of.context + _SITE.pack(of.place.client) + self.to_bytes()[:-SIGNATURE]

    @property
    def rules(self) -> tuple[int, int, int, bytes]:
        """What all sites of a sum must say alike."""
        return self.sites, self.colluders, self.dropouts, self.roster


def survivors_text(of: Sum, survivors: tuple[int, ...]) -> bytes:
    """What each site signs before it unmasks."""
    return b"prismfl survivors" + of.context + b"".join(map(_SITE.pack, survivors))


def site_bytes(*clients: int) -> bytes:
    """Numbers of sites, four bytes each, for what a key or a tag is bound to."""
    return b"".join(map(_SITE.pack, clients))


def step_of(frame: bytes) -> Step | None:
    """What a frame says that it is, by its header alone; None for what is no message of a sum."""
    kind = frame[KIND_AT] if len(frame) > KIND_AT else 0
    return Step(kind) if kind in Step.__members__.values() else None
