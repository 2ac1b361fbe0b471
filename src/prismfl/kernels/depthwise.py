"""Widen by a matrix product, convolve each channel alone, narrow: frozen blocks of EfficientNet-Lite in one pass.

Plain torch reads and writes a widened map a dozen times.  The kernel (`_depthwise.h`) makes 32 channels of a few images
by a product, adds the bias, clamps to 0 … 6 (ReLU6), convolves, clamps and averages them while they are in the nearest
cache, and narrows what came out: the widened map is never written.  What is kept for the gradient is a bit for each
number: whether the clamp let it pass.  In bfloat16 the products are the library's, which knows the matrix unit of the
processor, a few images at a time.  Weights are frozen: only the images get a gradient.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prismfl.kernels import fused
from prismfl.kernels.fused import _channels_last, _maps, _place
from prismfl.kernels.routes import route

_LEAST = 2**19  # bytes of a widened map that the library's products make at a time, where caches are not told
_SECOND_LEVEL = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
_ROWS = 96  # pixels that the kernel's products take at a time, where an image has fewer


@dataclass(frozen=True)
class Matrix:
    """A frozen matrix `[depth, width]`; panels: sixteen of its columns each, for the kernel, where it takes them."""

    plain: Tensor
    panels: Tensor | None

    @property
    def width(self) -> int:
        """Its columns."""
        return self.plain.shape[1]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Where its panels are, its lines and its columns."""
        return _place(self.panels), *self.plain.shape


def matrix(plain: Tensor) -> Matrix:
    """A matrix `[depth, width]`; its panels are float32 `[⌈width / 16⌉, depth, 16]`, the last filled up with zeros."""
    if plain.dtype != torch.float32:
        return Matrix(plain, None)
    whole = F.pad(plain, (0, -plain.shape[1] % 16))
    return Matrix(plain, whole.unflatten(1, (-1, 16)).transpose(0, 1).contiguous())


@dataclass(frozen=True)
class Unit:
    """A block with frozen weights: `clamp(x widen + before)`, each channel's convolution, `clamp(… + after)`, narrow.

    widen: `[inputs, C]` and its transpose, or None: x goes to the convolution as it is; before: float32 `[C]`, or None
    without the first clamp; each: float32 `[k², C]`; after: float32 `[C]`; narrow: `[C, outputs]` and its transpose, or
    None: the map itself goes on; adds: whether x is added to what goes on.  C is a multiple of sixteen.
    """

    widen: tuple[Matrix, Matrix] | None
    before: Tensor | None
    each: Tensor
    after: Tensor
    narrow: tuple[Matrix, Matrix] | None
    stride: int = 1
    adds: bool = False

    @property
    def kernel(self) -> int:
        """The side of the convolution's kernel."""
        return int(len(self.each) ** 0.5)

    @property
    def channels(self) -> int:
        """Of the widened map."""
        return len(self.after)


def passed(x: Tensor, unit: Unit, most: int) -> tuple[Tensor, Tensor]:
    """The map φ after the convolution, averaged down to a side of at most `most` (0: any), and what goes on.

    x: `[B, inputs, H, W]`, fusible, of the dtype of the unit's products.
    """
    found: tuple[Tensor, Tensor] = _Passed.apply(x, unit, most)  # type: ignore[no-untyped-call]
    return found


def before_and_after(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's "same" padding of a side: the odd pixel lies at the end."""
    total = max(0, (-(-side // stride) - 1) * stride + kernel - side)
    return total // 2, total - total // 2


@dataclass(frozen=True)
class _Sizes:
    """Lines and columns that a unit's convolution reads and writes, and by how much they are averaged."""

    read: tuple[int, int]
    written: tuple[int, int]
    factor: int

    @property
    def averaged(self) -> tuple[int, int]:
        return self.written[0] // self.factor, self.written[1] // self.factor


def _sizes(x: Tensor, unit: Unit, most: int) -> _Sizes:
    high, wide = x.shape[2:]
    written = -(-high // unit.stride), -(-wide // unit.stride)
    return _Sizes((high, wide), written, written[1] // most if most and written[1] > most else 1)


@dataclass(frozen=True)
class _Work:
    """What is done forwards, or back: a product, the convolution, another product.

    given: None for zeros; full: where the convolved map goes, None where nobody asks; small: the averaged one, or back
    what came for it; plus: what is added after the second product; out: where that goes; bits: see `_bits`.
    """

    given: Tensor | None
    made: Matrix | None
    full: Tensor | None
    small: Tensor | None
    goes: Matrix | None
    plus: Tensor | None
    out: Tensor
    bits: Sequence[Tensor | None]


class _Passed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, unit: Unit, most: int) -> tuple[Tensor, Tensor]:
        x, sizes = _channels_last(x), _sizes(x, unit, most)
        widen, narrow = (None if pair is None else pair[0] for pair in (unit.widen, unit.narrow))
        bits = _bits(x, unit, sizes) if ctx.needs_input_grad[0] else (None, None)
        phi = _maps(len(x), unit.channels, sizes.averaged, x.dtype)
        width = unit.channels if narrow is None else narrow.width
        whole = sizes.factor == 1
        out = phi if whole and narrow is None else _maps(len(x), width, sizes.written, x.dtype)
        full = phi if whole else out if narrow is None else None
        plus = x if unit.adds else None
        _run(unit, sizes, _Work(x, widen, full, None if whole else phi, narrow, plus, out, bits), back=False)
        ctx.unit, ctx.sizes, ctx.shape = unit, sizes, x.shape[:2]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*bits)
        return phi, out

    @staticmethod
    def backward(ctx: Any, small: Tensor | None, given: Tensor | None) -> tuple[Tensor | None, None, None]:
        small, given = (None if one is None else _channels_last(one) for one in (small, given))
        some, unit = small if given is None else given, ctx.unit
        if some is None:
            return None, None, None
        found = _maps(ctx.shape[0], ctx.shape[1], ctx.sizes.read, some.dtype)
        made = None if unit.narrow is None or given is None else unit.narrow[1]
        full, goes = (found, None) if unit.widen is None else (None, unit.widen[1])
        plus = given if unit.adds else None
        _run(unit, ctx.sizes, _Work(given, made, full, small, goes, plus, found, ctx.saved_tensors), back=True)
        if plus is not None and goes is None:  # no product that would add it
            found += plus
        return found, None, None


def _bits(x: Tensor, unit: Unit, sizes: _Sizes) -> tuple[Tensor | None, Tensor]:
    """Room for what the clamps let pass, sixteen bits in a number: `[B, pixels · C / 16]` each."""
    first, second = (
        torch.empty((len(x), high * wide * (unit.channels // 16)), dtype=torch.int16)
        for high, wide in (sizes.read, sizes.written)
    )
    return None if unit.before is None else first, second


def _run(unit: Unit, sizes: _Sizes, work: _Work, *, back: bool) -> None:
    if work.out.dtype == torch.float32:
        high, wide = sizes.written if back else sizes.read
        _each(unit, sizes, work, max(1, _ROWS // (high * wide)), back=back)
        return
    sides = sizes.read if back else sizes.written
    for some in _parts(unit, sizes, work):
        given = some.given if some.given is None or some.made is None else _product(some.given, some.made)
        full = _maps(len(some.out), unit.channels, sides, some.out.dtype) if some.full is None else some.full
        convolved = _Work(given, None, full, some.small, None, None, full, some.bits)
        _each(unit, sizes, convolved, 1, back=back)
        if some.goes is not None:
            _product(full, some.goes, some.plus, some.out)


def _parts(unit: Unit, sizes: _Sizes, work: _Work) -> Iterator[_Work]:
    """The work for a few images after the other, whose widened maps stay near."""
    step = max(1, _near() // (unit.channels * sizes.read[0] * sizes.read[1] * work.out.element_size()))
    for start in range(0, len(work.out), step):
        given, full, small, plus, first, second = (
            None if one is None else one[start : start + step]
            for one in (work.given, work.full, work.small, work.plus, *work.bits)
        )
        out = work.out[start : start + step]
        yield _Work(given, work.made, full, small, work.goes, plus, out, (first, second))


@cache
def _near() -> int:
    """Bytes of a core's second cache: so large a part stays near, and smaller ones are more calls."""
    try:
        return max(_LEAST, int(_SECOND_LEVEL.read_text().strip().removesuffix("K")) * 1024)
    except (OSError, ValueError):
        return _LEAST


def _product(x: Tensor, by: Matrix, plus: Tensor | None = None, into: Tensor | None = None) -> Tensor:
    """Each pixel of `[B, C, H, W]` times a matrix `[C, D]`, and something added: `[B, D, H, W]`."""
    into = _maps(len(x), by.width, (x.shape[2], x.shape[3]), x.dtype) if into is None else into
    if plus is None:
        torch.mm(_rows(x), by.plain, out=_rows(into))
    else:
        torch.addmm(_rows(plus), _rows(x), by.plain, out=_rows(into))
    return into


def _rows(x: Tensor) -> Tensor:
    """`[B, C, H, W]`, channels last → `[B · H · W, C]`, the same numbers."""
    images, channels, high, wide = x.shape
    return x.permute(0, 2, 3, 1).view(images * high * wide, channels)


def _each(unit: Unit, sizes: _Sizes, work: _Work, together: int, *, back: bool) -> None:
    """The kernel, `together` images at a time."""
    out, none = work.out, (0, 0, 0)
    maps = [_place(one) for one in (work.given, work.full, work.small)]
    weights = [_place(one) for one in (unit.each, unit.before, unit.after, *work.bits)]
    made, goes = (none if one is None else one.sizes for one in (work.made, work.goes))
    ends = (*made, *goes, _place(work.plus), _place(out))
    top, left = (before_and_after(side, unit.kernel, unit.stride)[0] for side in sizes.read)
    # Held to the end: of two threads that work out the same at once, the cache keeps one's arrays alone.
    way = route(sizes.read, sizes.written, (top, left), sizes.factor, unit.kernel, unit.stride, together, back)
    sources, results = (math.prod(sides) for sides in (sizes.read, sizes.written))
    if back:
        sources, results = results, sources
    counts = (len(out), together, sources, results, unit.channels, sizes.factor**2)
    half, threads = fused._half(out), fused._threads(len(out) * unit.channels * sources)
    fused._fast.each((*maps, *weights), ends, way.told, counts, half, back, threads)  # type: ignore[attr-defined]
