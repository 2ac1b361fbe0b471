"""Draws of a search: a public stream read on and on, the same numbers on every device."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from prismfl.seeding import Stream, normal_table

_ONE = 65536


class Tape:
    """A stream's numbers, one draw after another, where they are needed.

    Each draw begins with a new block of the stream.  On a processor NumPy or the compiled loop makes the words,
    elsewhere torch does, without waiting for the device; they are equal.
    """

    def __init__(self, stream: Stream, device: torch.device | str = "cpu") -> None:
        self.stream, self.device, self.block = stream, torch.device(device), 0
        self.by_torch = self.device.type != "cpu"

    def uniforms(self, count: int) -> Tensor:
        """Uniform numbers i / 65536: float32 `[count]`."""
        if self.by_torch:
            return self._halves(count) * (1 / _ONE)
        halves = self.stream.halves(count, self._next(-(-count // 2)))
        return torch.from_numpy(np.multiply(halves, np.float32(1 / _ONE), dtype=np.float32))

    def normals(self, *shape: int) -> Tensor:
        """Standard normals at mid-quantiles (see `Stream.normals`): float32 of a shape."""
        return _normals(self.device)[self._halves(int(np.prod(shape)))].view(shape)

    def order(self, count: int) -> Tensor:
        """A permutation of 0 … count - 1, in the order of 32-bit words: int64 `[count]`."""
        return torch.argsort(self._words(count), stable=True)

    def _halves(self, count: int) -> Tensor:
        words = self._words(-(-count // 2))
        return torch.stack((words & 0xFFFF, words >> 16), 1).flatten()[:count]

    def _words(self, count: int) -> Tensor:
        """int64 `[count]`."""
        block = self._next(count)
        if self.by_torch:
            return self.stream.torch_words(count, self.device, block)
        return torch.from_numpy(self.stream.words(count, block).astype(np.int64))

    def _next(self, words: int) -> int:
        """The block at which so many words begin."""
        begin, self.block = self.block, self.block + -(-words // 4)
        return begin


@lru_cache(maxsize=4)
def _normals(device: torch.device) -> Tensor:
    return torch.from_numpy(normal_table().copy()).to(device)
