"""What a local step does between its convolutions, fused: one or two passes over a map instead of a dozen.

Written in C (`_fast.c`), and in torch where that was not compiled, on other devices, and in other precisions.  Both
compute the same up to rounding.
"""

import contextlib
import ctypes
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    from prismfl.kernels import _fast
except ImportError:  # no compiler was there at installation
    _fast = None  # type: ignore[assignment]

_LANES = 16  # numbers that the kernels work on at a time
_MANY = 2**15  # numbers from which on other threads help


def _use_torchs_threads() -> None:
    """Have the kernels ask the threads that torch's own loops run on, where they can be asked (OpenMP)."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        _fast.use(ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value or 0)


if _fast is not None:
    _use_torchs_threads()


def fusible(x: Tensor) -> bool:
    """Whether the kernels take maps `[B, C, H, W]`: on the processor, float32 or bfloat16, of whole sixteens."""
    return (
        _fast is not None
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and x[0].numel() % _LANES == 0
    )


def _half(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16


def _threads(numbers: int) -> int:
    return torch.get_num_threads() if numbers >= _MANY else 1


def _places(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(one.data_ptr() for one in tensors)


def _place(tensor: Tensor | None) -> int:
    """Its address, or 0 of none."""
    return 0 if tensor is None else tensor.data_ptr()


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _maps(images: int, channels: int, sides: tuple[int, int], dtype: torch.dtype) -> Tensor:
    return torch.empty((images, channels, *sides), dtype=dtype, memory_format=torch.channels_last)


# ------------------------------------------------------------------ batch normalisation and ReLU


def norm_relu(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """`relu((x - mean) / sqrt(var + ε))` by the batch's own statistics, and x: `[B, C, H, W]` each.

    Whoever else needs x should take the second: its gradient is then added in the same pass.
    """
    if fusible(x) and x.numel() % _tile(x) == 0:
        found: tuple[Tensor, Tensor] = _NormRelu.apply(x, epsilon)  # type: ignore[no-untyped-call]
        return found
    return F.relu(F.batch_norm(x, None, None, training=True, eps=epsilon)), x


def _tile(x: Tensor) -> int:
    """So many numbers are whole rows of channels, whole vectors, and not short."""
    tile = math.lcm(x.shape[1], _LANES)
    return tile * -(-4 * _LANES // tile) if tile < 4 * _LANES else tile


class _NormRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        x = _channels_last(x)
        figures = torch.empty(2, _tile(x))  # mean and 1 / deviation
        found = torch.empty_like(x)
        _norm((x.data_ptr(), 0, 0, found.data_ptr(), figures.data_ptr()), x, epsilon, back=False)
        ctx.save_for_backward(x, figures)
        ctx.set_materialize_grads(False)
        return found, x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, beside: Tensor | None) -> tuple[Tensor | None, None]:
        if gradient is None:
            return beside, None
        x, figures = ctx.saved_tensors
        given, found = _channels_last(gradient), torch.empty_like(x)
        beside = None if beside is None else _channels_last(beside)
        places = (x.data_ptr(), given.data_ptr(), _place(beside), found.data_ptr(), figures.data_ptr())
        _norm(places, x, 0.0, back=True)
        return found, None


def _norm(places: tuple[int, ...], x: Tensor, epsilon: float, *, back: bool) -> None:
    channels = x.shape[1]
    _fast.norm(places, x.numel() // channels, channels, _tile(x), epsilon, _half(x), back, _threads(x.numel()))


# ------------------------------------------------------------------ a doubled map


def plus_doubled(x: Tensor, small: Tensor, shift: Tensor | None = None) -> Tensor:
    """`x + doubled(small + shift)`, each pixel of `[B, C, H, W]` four times: `[B, C, 2H, 2W]`.

    x: what a convolution just made, and nobody else looks at: it may be overwritten; shift: `[B, C]` of the same dtype.
    """
    if fusible(x) and x.shape[1] % _LANES == 0:
        found: Tensor = _PlusDoubled.apply(x, small, shift)  # type: ignore[no-untyped-call]
        return found
    return F.interpolate(small if shift is None else small + shift[:, :, None, None], scale_factor=2) + x


class _PlusDoubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, small: Tensor, shift: Tensor | None) -> Tensor:
        whole, small = _channels_last(x), _channels_last(small)
        shift = None if shift is None else shift.contiguous()
        if whole is x:
            ctx.mark_dirty(x)
        ctx.shifted = shift is not None
        _doubled(small, shift, whole, back=False)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        gradient = _channels_last(gradient)
        images, channels, height, width = gradient.shape
        small = _maps(images, channels, (height // 2, width // 2), gradient.dtype)
        _doubled(small, None, gradient, back=True)
        return gradient, small, small.sum((2, 3)) if ctx.shifted else None


def _doubled(small: Tensor, shift: Tensor | None, whole: Tensor, *, back: bool) -> None:
    images, channels, height, width = small.shape
    places, sizes = (small.data_ptr(), whole.data_ptr(), _place(shift)), (height, width, channels)
    _fast.doubled(places, images * height, *sizes, _half(small), back, _threads(whole.numel()))


def tripled(x: Tensor) -> Tensor:
    """One channel as three equal ones: `[B, 1, H, W]` → `[B, 3, H, W]`, channels last."""
    return _channels_last(x.expand(-1, 3, -1, -1))


# ------------------------------------------------------------------ scores


def adam_step(
    scores: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    betas: tuple[float, float],
    rate: float,
    correction: float,
    tiny: float,
) -> None:
    """One step of Adam in place, of vectors `[N]` that the kernels take (see `flat_floats`).

    rate: of the step, over `1 - β₁^t`; correction: `1 - β₂^t`.
    """
    places, threads = _places(scores, gradient, first, second), _threads(len(scores))
    _fast.adam(places, len(scores), *betas, rate, correction, tiny, threads)


def flat_floats(*vectors: Tensor) -> bool:
    """Whether the kernels take vectors: on the processor, float32, one number after another."""
    return _fast is not None and all(
        one.device.type == "cpu" and one.dtype == torch.float32 and one.dim() == 1 and one.is_contiguous()
        for one in vectors
    )


# ------------------------------------------------------------------ squared distance of moments


def matched(
    x: Tensor, starts: Tensor, goals: Sequence[Tensor], scales: Sequence[float], *, rectify: bool, pool: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """A map with ReLU applied (rectify; in place), its groups' squared distances from their goals, `[G]`, what goes on.

    The moments of a group of images are the sums of their unit maps `φ / ‖φ‖`, times scales[0], and of their unit
    squares `φ² / ‖φ²‖`, times scales[1], where a second goal is given (0/0 = 0).  What goes on is the map, or with
    `pool` the largest of each 2×2 of its pixels.

    x: `[B, C, H, W]`, fusible, images of a group one after the other; starts: int64 `[G + 1]`, the first image of each
    group, and B; goals: float32 `[G, H · W · C]` each.
    """
    x = x.clone() if rectify and x._is_view() else x  # autograd lets no function change a view in place
    goals = [goal.contiguous() for goal in goals]
    passing = pool and not (x.shape[1] % _LANES or x.shape[2] % 2 or x.shape[3] % 2)
    phi, totals, *small = _Matched.apply(x, starts, tuple(scales), rectify, passing, *goals)  # type: ignore[no-untyped-call]
    return phi, totals, small[0] if small else F.max_pool2d(phi, 2) if pool else phi


class _Matched(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, starts: Tensor, scales: tuple[float, ...], rectify: bool, pool: bool, *goals: Tensor
    ) -> tuple[Tensor, ...]:
        phi = _channels_last(x)
        if rectify and phi is x:
            ctx.mark_dirty(x)
        ctx.set_materialize_grads(False)
        ctx.scales, ctx.rectify = scales, rectify
        rests, figures = [torch.empty_like(goal) for goal in goals], torch.empty(len(phi), 4)
        totals, (images, channels, height, width) = torch.empty(len(starts) - 1), phi.shape
        small = _maps(images, channels, (height // 2, width // 2), phi.dtype) if pool else None
        ends = (totals.data_ptr(), 0, 0)
        _match((phi, starts, figures), goals, rests, scales, small, ends, rectify, back=False)
        ctx.save_for_backward(phi, starts, figures, *goals, *rests)
        return (phi, totals) if small is None else (phi, totals, small)

    @staticmethod
    def backward(
        ctx: Any, later: Tensor | None, gradient: Tensor | None, small: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        phi, starts, figures, *left = ctx.saved_tensors
        goals, rests = left[: len(left) // 2], left[len(left) // 2 :]
        later, small = (None if one is None else _channels_last(one) for one in (later, small))
        if later is not None and small is not None:
            with torch.enable_grad():
                leaf = phi.detach().requires_grad_()
                (passed_on,) = torch.autograd.grad(F.max_pool2d(leaf, 2), leaf, small)
            later, small = _channels_last(later + passed_on), None
        factors, found = (
            torch.zeros(len(starts) - 1) if gradient is None else gradient.contiguous(),
            torch.empty_like(phi),
        )
        ends = (factors.data_ptr(), _place(later), found.data_ptr())
        _match((phi, starts, figures), goals, rests, ctx.scales, small, ends, ctx.rectify, back=True)
        return found, *[None] * (4 + len(goals))


def _match(
    maps: tuple[Tensor, Tensor, Tensor],
    goals: Sequence[Tensor],
    rests: Sequence[Tensor],
    scales: Sequence[float],
    small: Tensor | None,
    ends: tuple[int, int, int],
    rectify: bool,
    *,
    back: bool,
) -> None:
    phi, starts, figures = maps
    first, second = ((*_places(*parts), 0)[:2] for parts in (goals, rests))
    places, sizes = (*_places(phi, starts), *first, *second, figures.data_ptr()), (len(starts) - 1, phi[0].numel())
    pool = (_place(small), phi.shape[2] // 2, phi.shape[3] // 2, phi.shape[1])
    half, threads = _half(phi), _threads(phi.numel())
    _fast.match(places, *sizes, scales[0], (*scales, 1.0)[1], pool, ends, half, rectify, back, threads)
