"""Draws of a search: a public stream read on and on, the same numbers on every device."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from prismfl.seeding.philox import Stream, normal_table, torch_philox

_ONE = 65536
_LEAST = 4096  # words, of a draw by torch


class Tape:
    """A stream's numbers, one draw after another, where they are needed.

    Each draw begins with a new block of the stream.  On a processor NumPy or the compiled loop makes the words,
    elsewhere torch does, without waiting for the device; they are equal.  What was read is a number on the device,
    so that a recorded step reads on each time it is replayed.

    Args:
        stream: whose numbers are read.
        device: where they are needed.
        plain: as single operations, for a step that is compiled as a whole.
        common: draws for masks are those of the round's client 0, whoever reads.

    Examples:
        >>> from prismfl.seeding.philox import Purpose
        >>> tape, stream = Tape(Stream(0, Purpose.SEARCH)), Stream(0, Purpose.SEARCH)
        >>> (tape.uniforms(4) * 65536).int().tolist() == stream.halves(4).tolist()
        True
        >>> tape.normals(2, 3).shape
        torch.Size([2, 3])
    """

    def __init__(
        self, stream: Stream, device: torch.device | str = "cpu", *, plain: bool = False, common: bool = False
    ) -> None:
        self.stream, self.device, self.plain, self.common = stream, torch.device(device), plain, common
        self.by_torch = self.device.type != "cpu"
        self.block = torch.zeros((), dtype=torch.int64, device=self.device)
        self.place = torch.tensor((stream.round, stream.client), device=self.device)

    @property
    def tensors(self) -> list[Tensor]:
        """What says where it is."""
        return [self.block, self.place]

    def follow(self, other: "Tape") -> None:
        """Read on where another tape of the same seed and purpose is."""
        self.stream = other.stream
        self.block.copy_(other.block)
        self.place.copy_(other.place)

    def uniforms(self, count: int, *, common: bool = False) -> Tensor:
        """Uniform numbers i / 65536: float32 `[count]`."""
        if self.by_torch:
            return self._halves(count, common) * (1 / _ONE)
        stream = replace(self.stream, client=0) if common else self.stream
        halves = stream.halves(count, int(self._next(-(-count // 2))))
        return torch.from_numpy(np.multiply(halves, np.float32(1 / _ONE), dtype=np.float32))

    def masks(self, count: int) -> Tensor:
        """The uniform numbers that a mask is drawn with: float32 `[count]`."""
        return self.uniforms(count, common=self.common)

    def normals(self, *shape: int) -> Tensor:
        """Standard normals at mid-quantiles (see `Stream.normals`): float32 of a shape."""
        return _normals(self.device)[self._halves(int(np.prod(shape)))].view(shape)

    def order(self, count: int) -> Tensor:
        """A permutation of 0 … count - 1, in the order of 32-bit words: int64 `[count]`."""
        return torch.argsort(self._words(count), stable=True)

    def _halves(self, count: int, common: bool = False) -> Tensor:
        words = self._words(-(-count // 2), common)
        return torch.stack((words & 0xFFFF, words >> 16), 1).flatten()[:count]

    def _words(self, count: int, common: bool = False) -> Tensor:
        """int64 `[count]`."""
        block = self._next(count)
        if self.by_torch:
            # Small draws are all of one size: each size is compiled anew.
            generator = torch_philox if self.plain else philox_on(self.device)
            turn, client = self.place.unbind()
            place = turn, client * (not common)
            words = self.stream.torch_words(max(count, _LEAST), self.device, block, generator, place)
            return words[:count]
        return torch.from_numpy(self.stream.words(count, int(block)).astype(np.int64))

    def _next(self, words: int) -> Tensor:
        """The block at which so many words begin."""
        begin = self.block.clone()
        self.block += -(-words // 4)
        return begin


@lru_cache(maxsize=4)
def philox_on(device: torch.device) -> Callable[[tuple[Tensor, ...], tuple[int, int]], Tensor]:
    """`torch_philox`, on a GPU as one kernel where torch can compile that: by itself it is some hundred."""
    if device.type != "cuda":
        return torch_philox
    trial = tuple(torch.arange(_LEAST, device=device).view(4, -1))
    compiled = torch.compile(torch_philox, dynamic=False)
    # Compilers fail in ways of their own; without one the words are the same.
    with suppress(Exception):
        if torch.equal(compiled(trial, (1, 2)), torch_philox(trial, (1, 2))):
            return compiled
    return torch_philox


@lru_cache(maxsize=4)
def _normals(device: torch.device) -> Tensor:
    return torch.from_numpy(normal_table().copy()).to(device)
