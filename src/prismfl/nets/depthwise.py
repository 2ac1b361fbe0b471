"""Widen by a matrix product, convolve each channel alone, narrow: frozen blocks of EfficientNet-Lite in few passes.

Plain torch reads and writes a widened map a dozen times.  Here a few images at a time are widened, so that their maps
stay in a near cache; one kernel (`_depthwise.h`) adds the bias, clamps to 0 … 6 (ReLU6), convolves, clamps and
averages; and what is kept for the gradient is a bit for each number: whether the clamp let it pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prismfl.nets import fused

_NEAR = 2**19  # bytes of a widened map that are worked on at a time
_ROWS = 96  # pixels that a product takes at least, where there are as many


@dataclass(frozen=True)
class Matrix:
    """A frozen matrix `[depth, width]`, the same in panels of sixteen columns, float32, and transposed."""

    plain: Tensor
    panels: Tensor
    back: "Matrix"

    @property
    def width(self) -> int:
        """Its columns."""
        return self.plain.shape[1]

    @staticmethod
    def of(plain: Tensor) -> "Matrix":
        """A matrix for both directions."""
        back = Matrix(plain.T, _panels(plain.T), None)  # type: ignore[arg-type]
        return Matrix(plain, _panels(plain), back)


def _panels(matrix: Tensor) -> Tensor:
    """`[depth, width]` → `[⌈width / 16⌉, depth, 16]`, the last with zeros."""
    padded = F.pad(matrix.float(), (0, -matrix.shape[1] % 16))
    return padded.unflatten(1, (-1, 16)).transpose(0, 1).contiguous()


@dataclass(frozen=True)
class Unit:
    """A block with frozen weights: `clamp(x widen + before)`, each channel's convolution, `clamp(… + after)`, narrow.

    widen: `[inputs, C]`, or None: x goes to the convolution as it is; before: float32 `[C]`, or None without the first
    clamp; each: float32 `[k², C]`; after: float32 `[C]`; narrow: `[C, outputs]`, or None: the map itself goes on;
    adds: whether x is added to that.
    """

    widen: Matrix | None
    before: Tensor | None
    each: Tensor
    after: Tensor
    narrow: Matrix | None
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
        x, shape, narrow = fused._channels_last(x), _shape(x, unit, most), unit.narrow
        bits = _all_bits(x, unit, shape) if ctx.needs_input_grad[0] else (None, None)
        phi = fused._maps(len(x), shape.channels, *shape.small, x.dtype)
        width = shape.channels if narrow is None else narrow.width
        out = phi if narrow is None and shape.factor == 1 else fused._maps(len(x), width, *shape.results, x.dtype)
        small, full = (None, phi) if shape.factor == 1 else (phi, out if narrow is None else None)
        plus = x if unit.adds else None
        _run(unit, shape, (x, unit.widen, full, small), (narrow, plus, out), bits, back=False)
        ctx.unit, ctx.shape, ctx.like = unit, shape, x.shape
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*bits)
        return phi, out

    @staticmethod
    def backward(ctx: Any, small: Tensor | None, given: Tensor | None) -> tuple[Tensor | None, None, None]:
        small, given = (None if one is None else fused._channels_last(one) for one in (small, given))
        some = small if given is None else given
        if some is None:
            return None, None, None
        unit, widen = ctx.unit, ctx.unit.widen
        found = fused._maps(*ctx.like, some.dtype)
        narrow = None if unit.narrow is None or given is None else unit.narrow.back
        full, plus = (found if widen is None else None), (given if unit.adds else None)
        ends = None if widen is None else widen.back, plus, found
        _run(unit, ctx.shape, (given, narrow, full, small), ends, ctx.saved_tensors, back=True)
        return found, None, None


def _all_bits(x: Tensor, unit: Unit, shape: _Shape) -> tuple[Tensor | None, Tensor]:
    """Room for what the clamps let pass, a bit a number: `[C / 16, B · pixels]` each."""
    first, second = (
        torch.empty((shape.channels // 16, len(x) * high * wide), dtype=torch.int16)
        for high, wide in (shape.sources, shape.results)
    )
    return None if unit.before is None else first, second


def _run(
    unit: Unit,
    shape: _Shape,
    maps: tuple[Tensor | None, Matrix | None, Tensor | None, Tensor | None],
    ends: tuple[Matrix | None, Tensor | None, Tensor],
    bits: Sequence[Tensor | None],
    *,
    back: bool,
) -> None:
    """A unit forwards, or its gradient: a product, the convolution and another product.

    maps: what comes, the product that it goes through, where the convolved map goes (None: nobody asks), and the
    averaged one; ends: the product after it, what is added, and where that goes.
    """
    read, write = (shape.results, shape.sources) if back else (shape.sources, shape.results)
    like = ends[2]
    if like.dtype == torch.float32:
        together = max(1, _ROWS // (read[0] * read[1]))
        _each(unit, shape, (maps[0], *maps[2:]), bits, (maps[1], *ends), together, back=back)
        return
    step = max(1, _NEAR // (shape.channels * shape.sources[0] * shape.sources[1] * like.element_size()))
    for start in range(0, len(like), step):
        given, full, small, plus, out = (
            None if one is None else one[start : start + step] for one in (maps[0], *maps[2:], *ends[1:])
        )
        if given is not None and maps[1] is not None:
            given = _product(given, maps[1])
        if full is None:
            full = fused._maps(len(out), shape.channels, *write, like.dtype)
        parts = [None if one is None else one.view(len(one), len(like), -1)[:, start : start + step].contiguous() for one in bits]
        _each(unit, shape, (given, full, small), parts, (None, None, None, None), 1, back=back)
        if not back:
            for one, part in zip(bits, parts):
                if one is not None:
                    one.view(len(one), len(like), -1)[:, start : start + step] = part
        if ends[0] is not None:
            _product(full, ends[0], plus, out)


def _product(x: Tensor, matrix: Matrix, plus: Tensor | None = None, into: Tensor | None = None) -> Tensor:
    """Each pixel of `[B, C, H, W]` times a matrix `[C, D]`, and something added: `[B, D, H, W]`."""
    into = fused._maps(len(x), matrix.width, *x.shape[2:], x.dtype) if into is None else into
    if plus is None:
        torch.mm(_rows(x), matrix.plain, out=_rows(into))
    else:
        torch.addmm(_rows(plus), _rows(x), matrix.plain, out=_rows(into))
    return into


def _rows(x: Tensor) -> Tensor:
    """`[B, C, H, W]`, channels last → `[B · H · W, C]`, the same numbers."""
    images, channels, high, wide = x.shape
    return x.permute(0, 2, 3, 1).view(images * high * wide, channels)


def _each(
    unit: Unit,
    shape: _Shape,
    maps: tuple[Tensor | None, Tensor | None, Tensor | None],
    bits: Sequence[Tensor | None],
    products: tuple[Matrix | None, Matrix | None, Tensor | None, Tensor | None],
    together: int,
    *,
    back: bool,
) -> None:
    made, goes, plus, out = products
    weights = (unit.each.data_ptr(), fused._place(unit.before), unit.after.data_ptr())
    places = (*(fused._place(one) for one in maps), *weights, *(fused._place(one) for one in bits))
    ends = (*_sizes(made), *_sizes(goes), fused._place(plus), fused._place(out))
    sizes = (*shape.results, *shape.sources) if back else (*shape.sources, *shape.results)
    pads = [before_and_after(side, unit.kernel, unit.stride)[0] for side in shape.sources]
    some = next(one for one in (out, *maps) if one is not None)
    kernel, threads = (unit.kernel, unit.stride, *pads), fused._threads(len(some) * shape.channels * sizes[0] * sizes[1])
    fused._fast.each(
        places, ends, len(some), together, sizes, shape.channels, kernel, shape.factor, fused._half(some), back, threads
    )


def _sizes(matrix: Matrix | None) -> tuple[int, int, int]:
    return (0, 0, 0) if matrix is None else (matrix.panels.data_ptr(), *matrix.plain.shape)
