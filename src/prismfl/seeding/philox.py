"""One counter-based generator, Philox4x32-10, keyed by (seed, round, client, purpose).

Every public random number of a run comes from here, so that any party can compute it again:
frozen weights, shared mask draws, roundings, latent normals.  Importing this needs no torch.
Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prismfl.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from prismfl.seeding import _philox

    TorchPhilox = Callable[[tuple[torch.Tensor, ...], tuple[int, int]], torch.Tensor]
else:
    try:
        from prismfl.seeding import _philox
    except ImportError:  # no compiler was there at installation
        _philox = None

_MULTIPLY = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF
_ROUNDS = 10


class Purpose(IntEnum):
    """What a stream is for.  Numbers are for ever: a new purpose takes a new one."""

    WEIGHTS = 0
    MASK = 1
    RANKS = 2
    ROUNDING = 3
    LATENT = 4
    COHORT = 5
    SEARCH = 6
    PARTITION = 7
    STATISTICS = 8
    SHIPPED = 9
    CLASSIFIER = 10  # 11 was of features that are gone
    FEATURES = 12
    SUBSETS = 13
    PARTS = 14
    TALLY = 15
    ALPHA = 16
    PATCH = 17
    START = 18
    TURNS = 19
    SUMMARY = 20


@dataclass(frozen=True)
class Stream:
    """An endless sequence of random 32-bit words, addressed by position.

    Word `i` is output `i mod 4` of block `i div 4`, whose counter is (block, round, client, purpose) and
    whose key is the seed.

    Attributes:
        seed: 0 … 2^64 - 1.
        purpose: what the numbers are for; streams of different purposes are independent.
        round: 0 … 2^32 - 1.
        client: 0 … 2^32 - 1.

    Raises:
        SettingError: when a number does not fit.

    Examples:
        >>> stream = Stream(7, Purpose.MASK, round=2, client=1)
        >>> stream.words(3).tolist() == stream.words(7)[:3].tolist()
        True
        >>> Stream(0, Purpose.LATENT).normals(4).astype(float).round(2).tolist()
        [-0.57, -1.22, 1.52, 1.61]
        >>> Stream(0, Purpose.COHORT).permutation(5).tolist()
        [1, 2, 3, 4, 0]
    """

    seed: int
    purpose: Purpose
    round: int = 0
    client: int = 0

    def __post_init__(self) -> None:
        for name, value, bits in (("seed", self.seed, 64), ("round", self.round, 32), ("client", self.client, 32)):
            if not 0 <= value < 2**bits:
                raise SettingError(f"{name} = {value}", f"a whole number ≥ 0 and < 2^{bits}", f"change {name}")

    @property
    def key(self) -> tuple[int, int]:
        """The seed as two 32-bit words, low word first."""
        return self.seed & _LOW, self.seed >> 32

    def words(self, count: int, block: int = 0) -> NDArray[np.uint32]:
        """Random words from the first of a block on.

        Args:
            count: how many.
            block: number of the block, four words each.

        Returns:
            uint32 `[count]`, uniform.
        """
        if _philox is not None:
            found = np.empty(count, np.uint32)
            _philox.words(found, block, self.round, self.client, self.purpose, *self.key)
            return found
        blocks = np.arange(block, block - (-count // 4), dtype=np.uint64)
        fixed = (np.uint64(self.round), np.uint64(self.client), np.uint64(self.purpose))
        counter = (blocks, *(np.full_like(blocks, word) for word in fixed))
        return philox(counter, self.key).reshape(-1)[:count]

    def halves(self, count: int, block: int = 0) -> NDArray[np.uint16]:
        """Uniform 16-bit integers, two a word, the low half first.

        Args:
            count: how many.
            block: number of the first block, eight integers each.

        Returns:
            uint16 `[count]`.
        """
        words = self.words(-(-count // 2), block).astype("<u4", copy=False)
        return words.view("<u2")[:count].astype(np.uint16, copy=False)

    def bits(self, count: int) -> NDArray[np.uint8]:
        """Fair bits, the lowest bit of each word first.

        Args:
            count: how many.

        Returns:
            uint8 `[count]` of 0 and 1.
        """
        words = self.words(-(-count // 32)).astype("<u4", copy=False)
        return np.unpackbits(words.view(np.uint8), count=count, bitorder="little")

    def normals(self, count: int) -> NDArray[np.float32]:
        """Standard normals at the 65,536 mid-quantiles, equal on every machine.

        Args:
            count: how many.

        Returns:
            float32 `[count]`.
        """
        return normal_table()[self.halves(count)]

    def permutation(self, count: int) -> NDArray[np.int64]:
        """A uniformly random permutation: the order of as many 64-bit keys.

        Args:
            count: how many numbers are permuted.

        Returns:
            int64 `[count]`, each of `0 … count - 1` once.
        """
        keys = self.words(2 * count).astype("<u4", copy=False).view("<u8")
        return np.argsort(keys, kind="stable").astype(np.int64)

    def torch_words(
        self,
        count: int,
        device: "torch.device | str" = "cpu",
        block: "int | torch.Tensor" = 0,
        generator: "TorchPhilox | None" = None,
        place: "Sequence[int | torch.Tensor] | None" = None,
    ) -> "torch.Tensor":
        """The same words as `words`, computed by torch on a device.

        Args:
            count: how many.
            device: where they are made.
            block: number of the first block; as a tensor it stays on the device.
            generator: `torch_philox`, or its equal.
            place: round and client, where the device is to know them.

        Returns:
            int64 `[count]`, each below 2^32.
        """
        import torch

        blocks = torch.arange(-(-count // 4), dtype=torch.int64, device=device) + block
        fixed = (*(place or (self.round, self.client)), int(self.purpose))
        counter = (blocks, *(torch.zeros_like(blocks) + word for word in fixed))
        return (generator or torch_philox)(counter, self.key).reshape(-1)[:count]

    def torch_generator(self) -> "torch.Generator":
        """A torch generator on the processor, seeded from this stream, for draws that nobody else repeats."""
        import torch

        return torch.Generator().manual_seed(int(self.words(2).astype("<u4").view("<u8")[0]) >> 1)


def philox(counter: tuple[NDArray[np.uint64], ...], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Philox4x32-10 (Salmon et al. 2011) in NumPy.

    Args:
        counter: four uint64 `[n]` below 2^32.
        key: two 32-bit words, the low one first.

    Returns:
        uint32 `[n, 4]`.

    Examples:
        The authors' known answer for counter and key 0:

        >>> zeros = np.zeros(1, np.uint64)
        >>> [f"{word:08x}" for word in philox((zeros, zeros, zeros, zeros), (0, 0))[0]]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    c0, c1, c2, c3 = counter
    low, half = np.uint64(_LOW), np.uint64(32)
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * np.uint64(_MULTIPLY[0]), c2 * np.uint64(_MULTIPLY[1])
        c0, c1 = (p1 >> half) ^ c1 ^ np.uint64(k0), p1 & low
        c2, c3 = (p0 >> half) ^ c3 ^ np.uint64(k1), p0 & low
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return np.stack((c0, c1, c2, c3), axis=1).astype(np.uint32)


def torch_philox(counter: "tuple[torch.Tensor, ...]", key: tuple[int, int]) -> "torch.Tensor":
    """Philox4x32-10 in torch, on the device of its counters.

    Products wrap modulo 2^64, and the mask after the arithmetic shift restores their high word.

    Args:
        counter: four int64 `[n]` below 2^32.
        key: two 32-bit words, the low one first.

    Returns:
        int64 `[n, 4]`, each below 2^32: what `philox` gives.
    """
    import torch

    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLY[0], c2 * _MULTIPLY[1]
        c0, c1 = ((p1 >> 32) & _LOW) ^ c1 ^ k0, p1 & _LOW
        c2, c3 = ((p0 >> 32) & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return torch.stack((c0, c1, c2, c3), 1)


@lru_cache(maxsize=1)
def normal_table() -> NDArray[np.float32]:
    """Quantiles of the standard normal at (i + 1/2) / 65536, odd-symmetric to the bit.

    Returns:
        float32 `[65536]`, ascending, not to be written to.

    Examples:
        >>> table = normal_table()
        >>> round(float(table[-1]), 2), bool(table[0] == -table[-1])
        (4.32, True)
    """
    inverse = NormalDist().inv_cdf
    upper = np.array([inverse((i + 0.5) / 65536) for i in range(32768, 65536)], np.float32)
    table = np.concatenate((-upper[::-1], upper))
    table.setflags(write=False)
    return table
