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


def _places(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(one.data_ptr() for one in tensors)


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
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        x, figures = ctx.saved_tensors
        given, found = _channels_last(gradient), torch.empty_like(x)
        _norm(x, given.data_ptr(), found, figures, 0.0, back=True)
        return found, None


def _norm(x: Tensor, given: int, into: Tensor, figures: Tensor, epsilon: float, *, back: bool) -> None:
    channels = x.shape[1]
    places = (x.data_ptr(), given, into.data_ptr(), figures.data_ptr())
    _fast.norm(places, x.numel() // channels, channels, epsilon, _half(x), back)


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
    def backward(_ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gradient = _channels_last(gradient)
        images, channels, height, width = gradient.shape
        small = torch.empty(
            (images, channels, height // 2, width // 2), dtype=gradient.dtype, memory_format=torch.channels_last
        )
        _doubled(small, gradient, back=True)
        return gradient, small


def _doubled(small: Tensor, whole: Tensor, *, back: bool) -> None:
    images, channels, height, width = small.shape
    _fast.doubled(_places(small, whole), images * height, width, channels, _half(small), back)


# ------------------------------------------------------------------ largest of four pixels


def pooled(x: Tensor) -> Tensor:
    """The largest of each 2×2 pixels: `[B, C, H, W]` → `[B, C, H / 2, W / 2]`."""
    if fusible(x) and x.shape[1] % _LANES == 0 and not (x.shape[2] % 2 or x.shape[3] % 2):
        found: Tensor = _Pooled.apply(x)  # type: ignore[no-untyped-call]
        return found
    return F.max_pool2d(x, 2)


class _Pooled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = _channels_last(x)
        ctx.save_for_backward(x)
        images, channels, height, width = x.shape
        shape = (images, channels, height // 2, width // 2)
        found = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
        _pool(x, 0, found, back=False)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        given, found = _channels_last(gradient), torch.empty_like(x)
        _pool(x, given.data_ptr(), found, back=True)
        return found


def _pool(x: Tensor, given: int, into: Tensor, *, back: bool) -> None:
    images, channels, height, width = x.shape
    places = (x.data_ptr(), given, into.data_ptr())
    _fast.pooled(places, images * height // 2, width // 2, channels, _half(x), back)


# ------------------------------------------------------------------ scores


def kept(weights: Tensor, theta: Tensor, uniform: Tensor, dtype: torch.dtype) -> Tensor:
    """`W [u < θ]`, float32 `[N]` each → `[N]` of a dtype."""
    if not flat_floats(weights, theta, uniform) or dtype not in (torch.float32, torch.bfloat16):
        return (weights * (uniform < theta)).to(dtype)
    found = torch.empty_like(weights, dtype=dtype)
    _fast.kept(_places(weights, theta, uniform, found), len(weights), _half(found))
    return found


def by_scores(gradient: Tensor, weights: Tensor, theta: Tensor, *, identity: bool) -> Tensor:
    """`g W θ (1 - θ)`, or `g W`: the gradient by the scores of one by the weights; all `[N]`, g of any dtype."""
    if not flat_floats(weights, theta) or gradient.dtype not in (torch.float32, torch.bfloat16):
        found = gradient.to(weights.dtype) * weights
        return found if identity else found * theta * (1 - theta)
    found, gradient = torch.empty_like(weights), gradient.contiguous()
    _fast.scored(_places(gradient, weights, theta, found), len(weights), _half(gradient), identity)
    return found


def adam_step(
    scores: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    betas: tuple[float, float],
    rate: float,
    correction: float,
    tiny: float,
) -> bool:
    """One step of Adam in place, all float32 `[N]`; False, and nothing done, where the kernels do not take them.

    rate: of the step, over `1 - β₁^t`; correction: `1 - β₂^t`.
    """
    if not flat_floats(scores, gradient, first, second):
        return False
    _fast.adam(_places(scores, gradient, first, second), len(scores), *betas, rate, correction, tiny)
    return True


def flat_floats(*vectors: Tensor) -> bool:
    """Whether the kernels take vectors: on the processor, float32, one number after another."""
    return _fast is not None and all(
        one.device.type == "cpu" and one.dtype == torch.float32 and one.dim() == 1 and one.is_contiguous()
        for one in vectors
    )


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
    x = x.clone() if rectify and x._is_view() else x  # autograd lets no function change a view in place
    goals = [goal.contiguous() for goal in goals]
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
        _match((phi, starts, figures), goals, rests, scales, (totals.data_ptr(), 0, 0), rectify, back=False)
        ctx.save_for_backward(phi, starts, figures, *goals, *rests)
        return phi, totals

    @staticmethod
    def backward(ctx: Any, later: Tensor | None, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        phi, starts, figures, *left = ctx.saved_tensors
        goals, rests = left[: len(left) // 2], left[len(left) // 2 :]
        later, found = None if later is None else _channels_last(later), torch.empty_like(phi)
        factors = torch.zeros(len(starts) - 1) if gradient is None else gradient.contiguous()
        ends = (factors.data_ptr(), 0 if later is None else later.data_ptr(), found.data_ptr())
        _match((phi, starts, figures), goals, rests, ctx.scales, ends, ctx.rectify, back=True)
        return found, None, None, None, *[None] * len(goals)


def _match(
    maps: tuple[Tensor, Tensor, Tensor],
    goals: Sequence[Tensor],
    rests: Sequence[Tensor],
    scales: Sequence[float],
    ends: tuple[int, int, int],
    rectify: bool,
    *,
    back: bool,
) -> None:
    phi, starts, figures = maps
    first, second = ((*_places(*parts), 0)[:2] for parts in (goals, rests))
    places, sizes = (*_places(phi, starts), *first, *second, figures.data_ptr()), (len(starts) - 1, phi[0].numel())
    _fast.match(places, *sizes, scales[0], (*scales, 1.0)[1], ends, _half(phi), rectify, back)
