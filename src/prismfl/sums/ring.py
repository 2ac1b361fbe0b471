"""Vectors of whole numbers modulo powers of two, as they are summed under masks.

Counts that stay below some bound are packed as digits of a common base, many to a word: a word of w bytes is summed
modulo 2^(8w), and no digit ever carries, so that the bits sent are nearly log2(bound + 1) a count.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from prismfl.errors import MessageError

Words = list[NDArray[np.uint64]]


@dataclass(frozen=True)
class Ring:
    """Where a vector lives: stretches of words, those of w bytes modulo 2^(8w).

    Attributes:
        stretches: (words, bytes a word), 1 … 8 bytes.

    Examples:
        >>> ring = Ring(((2, 1), (1, 8)))
        >>> one = [np.array([200, 3], np.uint64), np.array([7], np.uint64)]
        >>> [part.tolist() for part in ring.unpack(ring.pack(ring.sum([one, one])))]
        [[144, 6], [14]]
    """

    stretches: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """Bytes of a packed vector."""
        return sum(words * width for words, width in self.stretches)

    def pack(self, vector: Words) -> bytes:
        """The low bytes of each word, which are what it is modulo its power of two."""
        rows = zip(vector, self.stretches, strict=True)
        return b"".join(
            np.ascontiguousarray(part, "<u8").view(np.uint8).reshape(-1, 8)[:, :width].tobytes()
            for part, (_, width) in rows
        )

    def unpack(self, raw: bytes) -> Words:
        """A packed vector.  Raises MessageError for another number of bytes."""
        if len(raw) != self.size:
            raise MessageError(f"a vector of {len(raw)} bytes", f"{self.size}")
        found, at = [], 0
        for words, width in self.stretches:
            part = np.zeros((words, 8), np.uint8)
            part[:, :width] = np.frombuffer(raw, np.uint8, words * width, at).reshape(words, width)
            found.append(part.view("<u8").astype(np.uint64).ravel())
            at += words * width
        return found

    def stream(self, key: bytes) -> Words:
        """A vector that nobody tells from a uniform one without the key of 32 bytes: AES-256 in counter mode.

        A key makes one vector only, so that the counter begins at 0.
        """
        stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        return self.unpack(stream.update(bytes(self.size)))

    def sum(self, vectors: Iterable[Words]) -> Words:
        """The sum of vectors; words may exceed their power of two until they are packed."""
        total = [np.zeros(words, np.uint64) for words, _ in self.stretches]
        for vector in vectors:
            add(total, vector)
        return total


def add(total: Words, vector: Words, sign: int = 1) -> None:
    """Add a vector to a total in place, or take it away."""
    for into, part in zip(total, vector, strict=True):
        if sign > 0:
            into += part
        else:
            into -= part


def signed(words: NDArray[np.uint64], width: int) -> NDArray[np.int64]:
    """Words modulo 2^(8 · width) as the numbers from -2^(8 · width - 1) that they stand for: int64."""
    shift = np.int64(64 - 8 * width)
    return (words << np.uint64(shift)).view(np.int64) >> shift


@dataclass(frozen=True)
class Digits:
    """How counts of 0 … `most` are packed.

    Attributes:
        most: the largest sum of a digit.

    Examples:
        >>> digits = Digits(most=5)
        >>> digits.width, digits.each  # three digits of base 6 in a byte: 2.67 bits each, and log2(6) is 2.58
        (1, 3)
        >>> words = digits.pack(np.array([True, False, True]))
        >>> digits.unpack(words + words, count=3).tolist()
        [2, 0, 2]
    """

    most: int

    @cached_property
    def _best(self) -> tuple[int, int]:
        base = self.most + 1
        found = []
        for width in range(1, 9):
            each = 0
            while base ** (each + 1) <= 2 ** (8 * width):
                each += 1
            found.append((width / each if each else 99.0, width, each))
        _, width, each = min(found)
        return width, each

    @property
    def width(self) -> int:
        """Bytes a word."""
        return self._best[0]

    @property
    def each(self) -> int:
        """Digits a word."""
        return self._best[1]

    def words(self, count: int) -> int:
        """Words that so many digits take."""
        return -(-count // self.each)

    def pack(self, bits: NDArray[np.bool_]) -> NDArray[np.uint64]:
        """Bits as digits: bool `[n]` → uint64 `[words(n)]`."""
        padded = np.zeros(self.words(len(bits)) * self.each, np.uint64)
        padded[: len(bits)] = bits
        rows, total = padded.reshape(-1, self.each), np.zeros(len(padded) // self.each, np.uint64)
        for place, power in enumerate(self._powers()):
            total += rows[:, place] * power
        return total

    def unpack(self, words: NDArray[np.uint64], count: int) -> NDArray[np.int64]:
        """Sums of digits: uint64 `[words(count)]` → int64 `[count]`.  Raises MessageError for what is no such sum."""
        base, left = np.uint64(self.most + 1), words.copy()
        rows = np.empty((len(words), self.each), np.int64)
        for place in range(self.each):
            left, digit = np.divmod(left, base)
            rows[:, place] = digit.astype(np.int64)
        if left.any() or rows.reshape(-1)[count:].any():
            raise MessageError("a sum of masks that cannot be one", "sums of bits")
        return rows.reshape(-1)[:count]

    def _powers(self) -> Sequence[np.uint64]:
        return [np.uint64((self.most + 1) ** place) for place in range(self.each)]
