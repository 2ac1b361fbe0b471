"""What a local step does between its convolutions, fused: one or two passes over a map instead of a dozen.

Written in C (`_fast.c`), and in torch where that was not compiled, on other devices, and in other precisions.  Both
compute the same up to rounding.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    from prismfl.nets import _fast
except ImportError:  # no compiler was there at installation
    _fast = None  # type: ignore[assignment]

_LANES = 16  # numbers that the kernels work on at a time


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


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


# ------------------------------------------------------------------ batch normalisation and ReLU


def norm_relu(x: Tensor, epsilon: float) -> Tensor:
    """`relu((x - mean) / sqrt(var + ε))` by the batch's own statistics: `[B, C, H, W]` → the same."""
    if fusible(x):
        found: Tensor = _NormRelu.apply(x, epsilon)  # type: ignore[no-untyped-call]
        return found
    return F.relu(F.batch_norm(x, None, None, training=True, eps=epsilon))


class _NormRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, epsilon: float) -> Tensor:
        x = _channels_last(x)
        figures = torch.empty(2, _fast.tile(x.shape[1]))  # mean and 1 / deviation
        found = torch.empty_like(x)
        _norm(x, 0, found, figures, epsilon, back=False)
        ctx.save_for_backward(x, figures)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        x, figures = ctx.saved_tensors
        given, found = _channels_last(gradient), torch.empty_like(x)
        _norm(x, given.data_ptr(), found, figures, 0.0, back=True)
        return found, None


def _norm(x: Tensor, given: int, into: Tensor, figures: Tensor, epsilon: float, *, back: bool) -> None:
    channels = x.shape[1]
    rows = x.numel() // channels
    _fast.norm(
        x.data_ptr(), given, into.data_ptr(), figures.data_ptr(), rows, channels, epsilon, _half(x), back
    )


# ------------------------------------------------------------------ a doubled map


def plus_doubled(x: Tensor, small: Tensor) -> Tensor:
    """`x + doubled(small)`, each pixel of `[B, C, H, W]` four times: `[B, C, 2H, 2W]`.

    x: what a convolution just made, and nobody else looks at: it may be overwritten.
    """
    if fusible(x) and x.shape[1] % _LANES == 0:
        found: Tensor = _PlusDoubled.apply(x, small)  # type: ignore[no-untyped-call]
        return found
    return F.interpolate(small, scale_factor=2) + x


class _PlusDoubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, small: Tensor) -> Tensor:
        whole, small = _channels_last(x), _channels_last(small)
        if whole is x:
            ctx.mark_dirty(x)
        _doubled(small, whole, back=False)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        gradient = _channels_last(gradient)
        images, channels, height, width = gradient.shape
        small = torch.empty(
            (images, channels, height // 2, width // 2), dtype=gradient.dtype, memory_format=torch.channels_last
        )
        _doubled(small, gradient, back=True)
        return gradient, small


def _doubled(small: Tensor, whole: Tensor, *, back: bool) -> None:
    images, channels, height, width = small.shape
    _fast.doubled(small.data_ptr(), whole.data_ptr(), images * height, width, channels, _half(small), back)


# ------------------------------------------------------------------ squared distance of moments


def matched(
    x: Tensor, starts: Tensor, goals: Sequence[Tensor], scales: Sequence[float], *, rectify: bool
) -> tuple[Tensor, Tensor]:
    """A map with ReLU applied (rectify; in place), and its groups' squared distances from their goals, `[G]`.

    The moments of a group of images are the sums of their unit maps `φ / ‖φ‖`, times scales[0], and of their unit
    squares `φ² / ‖φ²‖`, times scales[1], where a second goal is given (0/0 = 0).

    x: `[B, C, H, W]`, fusible, images of a group one after the other; starts: int64 `[G + 1]`, the first image of each
    group, and B; goals: float32 `[G, H · W · C]` each.
    """
    phi, totals = _Matched.apply(x, starts, tuple(scales), rectify, *goals)  # type: ignore[no-untyped-call]
    return phi, totals


class _Matched(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, starts: Tensor, scales: tuple[float, ...], rectify: bool, *goals: Tensor
    ) -> tuple[Tensor, Tensor]:
        phi = _channels_last(x)
        if rectify and phi is x:
            ctx.mark_dirty(x)
        ctx.set_materialize_grads(False)
        ctx.scales, ctx.rectify = scales, rectify
        rests, figures = [torch.empty_like(goal) for goal in goals], torch.empty(len(phi), 4)
        totals = torch.empty(len(starts) - 1)
        places = _places(phi, starts, goals, rests, figures, scales)
        _fast.match(*places, totals.data_ptr(), 0, 0, _half(phi), rectify)
        ctx.save_for_backward(phi, starts, figures, *goals, *rests)
        return phi, totals

    @staticmethod
    def backward(ctx: Any, later: Tensor | None, gradient: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        phi, starts, figures, *left = ctx.saved_tensors
        goals, rests = left[: len(left) // 2], left[len(left) // 2 :]
        later, found = None if later is None else _channels_last(later), torch.empty_like(phi)
        factors = torch.zeros(len(starts) - 1) if gradient is None else gradient.contiguous()
        places = _places(phi, starts, goals, rests, figures, ctx.scales)
        after = 0 if later is None else later.data_ptr()
        _fast.unmatch(*places, factors.data_ptr(), after, found.data_ptr(), _half(phi), ctx.rectify)
        return found, None, None, None, *[None] * len(goals)


def _places(
    phi: Tensor,
    starts: Tensor,
    goals: Sequence[Tensor],
    rests: Sequence[Tensor],
    figures: Tensor,
    scales: Sequence[float],
) -> tuple[Any, ...]:
    first, second = ([part.data_ptr() for part in parts] + [0] for parts in (goals, rests))
    places = (phi.data_ptr(), starts.data_ptr(), *first[:2], *second[:2], figures.data_ptr())
    return (*places, len(starts) - 1, phi[0].numel(), scales[0], (*scales, 1.0)[1])
