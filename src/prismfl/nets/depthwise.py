"""Widen by a matrix product, convolve each channel alone, narrow: frozen blocks of EfficientNet-Lite in few passes.

Plain torch reads and writes a widened map a dozen times.  Here a few images at a time are widened, so that their maps
stay in a near cache; one kernel (`_depthwise.h`) adds the bias, clamps to 0 … 6 (ReLU6), convolves, clamps and
averages; and what is kept for the gradient is a bit for each number: whether the clamp let it pass.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prismfl.nets import fused

_NEAR = 2**19  # bytes of a widened map that are worked on at a time


@dataclass(frozen=True)
class Unit:
    """A block with frozen weights: `clamp(x widen + before)`, each channel's convolution, `clamp(… + after)`, narrow.

    widen: `[inputs, C]`, or None: x goes to the convolution as it is; before: float32 `[C]`, or None without the first
    clamp; each: float32 `[k², C]`; after: float32 `[C]`; narrow: `[C, outputs]`, or None: the map itself goes on;
    adds: whether x is added to that.
    """

    widen: Tensor | None
    before: Tensor | None
    each: Tensor
    after: Tensor
    narrow: Tensor | None
    stride: int = 1
    adds: bool = False

    @property
    def kernel(self) -> int:
        """The side of the convolution's kernel."""
        return int(len(self.each) ** 0.5)


def passed(x: Tensor, unit: Unit, most: int) -> tuple[Tensor, Tensor]:
    """The map φ after the convolution, averaged down to a side of at most `most` (0: any), and what goes on.

    x: `[B, inputs, H, W]`, of the dtype of the unit's products.
    """
    found: tuple[Tensor, Tensor] = _Passed.apply(x, unit, most)  # type: ignore[no-untyped-call]
    return found


def factor_of(side: int, most: int) -> int:
    """By how much maps are averaged that are to have sides of at most `most`."""
    return side // most if most and side > most else 1


def before_and_after(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's "same" padding of a side: the odd pixel lies at the end."""
    total = max(0, (-(-side // stride) - 1) * stride + kernel - side)
    return total // 2, total - total // 2


@dataclass(frozen=True)
class _Shape:
    """Sizes of a unit at work: lines and columns that its convolution reads and writes."""

    sources: tuple[int, int]
    results: tuple[int, int]
    channels: int
    factor: int

    @property
    def small(self) -> tuple[int, int]:
        return self.results[0] // self.factor, self.results[1] // self.factor


def _shape(x: Tensor, unit: Unit, most: int) -> _Shape:
    high, wide = x.shape[2:]
    results = -(-high // unit.stride), -(-wide // unit.stride)
    return _Shape((high, wide), results, len(unit.after), factor_of(results[1], most))


class _Passed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, unit: Unit, most: int) -> tuple[Tensor, Tensor]:
        x, shape, wants = fused._channels_last(x), _shape(x, unit, most), ctx.needs_input_grad[0]
        phi = fused._maps(len(x), shape.channels, *shape.small, x.dtype)
        narrow = unit.narrow
        out = None if narrow is None else fused._maps(len(x), narrow.shape[1], *shape.results, x.dtype)
        if out is None and shape.factor > 1:
            out = fused._maps(len(x), shape.channels, *shape.results, x.dtype)
        first, second = (_bits(len(x), shape.channels, side) if wants else None for side in (shape.sources, shape.results))
        first = None if unit.before is None else first
        for some in _chunks(x, shape):
            inner = x[some] if unit.widen is None else _product(x[some], unit.widen)
            full = phi[some] if shape.factor == 1 else _like(inner, shape) if narrow is not None else out[some]
            small = None if shape.factor == 1 else phi[some]
            _each(unit, shape, (inner, full, small), _of(first, some), _of(second, some), back=False)
            if narrow is not None:
                _product(full, narrow, x[some] if unit.adds else None, out[some])
        ctx.unit, ctx.shape, ctx.like = unit, shape, x.shape
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(first, second)
        return phi, phi if out is None else out

    @staticmethod
    def backward(ctx: Any, small: Tensor | None, given: Tensor | None) -> tuple[Tensor | None, None, None]:
        if small is None and given is None:
            return None, None, None
        (first, second), unit, shape = ctx.saved_tensors, ctx.unit, ctx.shape
        small, given = (None if one is None else fused._channels_last(one) for one in (small, given))
        dtype = (small if given is None else given).dtype
        found = fused._maps(*ctx.like, dtype)
        for some in _chunks(found, shape):
            full = _of(given, some)
            if full is not None and unit.narrow is not None:
                full = _product(full, unit.narrow.T)
            inner = found[some] if unit.widen is None else fused._maps(len(found[some]), shape.channels, *shape.sources, dtype)
            _each(unit, shape, (full, inner, _of(small, some)), _of(first, some), _of(second, some), back=True)
            if unit.widen is not None:
                _product(inner, unit.widen.T, _of(given, some) if unit.adds else None, found[some])
        return found, None, None


def _like(x: Tensor, shape: _Shape) -> Tensor:
    return fused._maps(len(x), shape.channels, *shape.results, x.dtype)


def _of(x: Tensor | None, some: slice) -> Tensor | None:
    return None if x is None else x[some]


def _bits(images: int, channels: int, sides: tuple[int, int]) -> Tensor:
    return torch.empty((images, channels // 16, sides[0] * sides[1]), dtype=torch.int16)


def _chunks(x: Tensor, shape: _Shape) -> Iterator[slice]:
    """Some images at a time, whose widened maps stay near."""
    each = shape.channels * shape.sources[0] * shape.sources[1] * x.element_size()
    step = max(1, _NEAR // each)
    return (slice(start, min(start + step, len(x))) for start in range(0, len(x), step))


def _product(x: Tensor, matrix: Tensor, plus: Tensor | None = None, into: Tensor | None = None) -> Tensor:
    """Each pixel of `[B, C, H, W]` times a matrix `[C, D]`, and something added: `[B, D, H, W]`."""
    into = fused._maps(len(x), matrix.shape[1], *x.shape[2:], x.dtype) if into is None else into
    if plus is None:
        torch.mm(_rows(x), matrix, out=_rows(into))
    else:
        torch.addmm(_rows(plus), _rows(x), matrix, out=_rows(into))
    return into


def _rows(x: Tensor) -> Tensor:
    """`[B, C, H, W]`, channels last → `[B · H · W, C]`, the same numbers."""
    images, channels, high, wide = x.shape
    return x.permute(0, 2, 3, 1).view(images * high * wide, channels)


def _each(
    unit: Unit,
    shape: _Shape,
    maps: tuple[Tensor | None, Tensor, Tensor | None],
    first: Tensor | None,
    second: Tensor | None,
    *,
    back: bool,
) -> None:
    weights = (unit.each.data_ptr(), fused._place(unit.before), unit.after.data_ptr())
    places = (*(fused._place(one) for one in maps), *weights, fused._place(first), fused._place(second))
    sizes = (*shape.results, *shape.sources) if back else (*shape.sources, *shape.results)
    pads = [before_and_after(side, unit.kernel, unit.stride)[0] for side in shape.sources]
    kernel, images = (unit.kernel, unit.stride, *pads), len(maps[1])
    threads = fused._threads(maps[1].numel())
    fused._fast.each(places, images, sizes, shape.channels, kernel, shape.factor, fused._half(maps[1]), back, threads)
