"""Masks and integer keep-probabilities ↔ bytes."""

import numpy as np
from numpy.typing import NDArray

from prismfl.errors import MessageError


def pack_mask(mask: NDArray[np.bool_]) -> bytes:
    """One bit a parameter, lowest bit of a byte first, padded with zeros: ceil(N / 8) bytes."""
    return np.packbits(mask, bitorder="little").tobytes()


def unpack_mask(raw: bytes, count: int) -> NDArray[np.bool_]:
    """The mask, bool `[count]`.  Raises MessageError on a wrong length or padding."""
    _expect(raw, -(-count // 8), "packed mask")
    bits = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")
    if bits[count:].any():
        raise MessageError("set bits after the last parameter", "zeros", "have the sender send it again")
    return bits[:count].astype(np.bool_)


def pack_theta(q: NDArray[np.uint16]) -> bytes:
    """Keep-probabilities q / 65536, two bytes each, low byte first."""
    return q.astype("<u2").tobytes()


def unpack_theta(raw: bytes, count: int) -> NDArray[np.uint16]:
    """Keep-probabilities, uint16 `[count]`.  Raises MessageError on a wrong length."""
    _expect(raw, 2 * count, "keep-probabilities")
    return np.frombuffer(raw, "<u2").astype(np.uint16)


def _expect(raw: bytes, size: int, what: str) -> None:
    if len(raw) != size:
        raise MessageError(f"{len(raw)} bytes of {what}", f"{size} bytes", "have the sender send it again")
