"""Matching of feature maps as unit vectors, with the gradient in few passes: in torch; `fused.matched` is it in C."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from prismfl.kernels.replay import wait_for_device


class UnitMoments(torch.autograd.Function):
    """Sums of `φ / ‖φ‖` and `φ² / ‖φ²‖` (0/0 = 0) over groups, with the gradient in few passes.

    phi: `[B, d]`; groups: `[G, B]`, the weight of each row in each group's sum.
    """

    @staticmethod
    def forward(ctx, phi: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        square = phi * phi
        inverse1, inverse2 = _inverse(square.sum(1).sqrt_()), _inverse(square.norm(dim=1))
        ctx.save_for_backward(phi, square, inverse1, inverse2, groups)
        return (groups * inverse1) @ phi, (groups * inverse2) @ square

    @staticmethod
    def backward(ctx, first: Tensor, second: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        # A row's own d₁, d₂ are its groups' gradients, weighted.  With p = f·d₁ and r = g·d₂:
        # dφ = (d₁ - p f)/‖φ‖ + 2φ (d₂ - r g)/‖φ²‖.
        phi, square, inverse1, inverse2, groups = ctx.saved_tensors
        first, second = groups.T @ first, groups.T @ second
        along1 = torch.linalg.vecdot(phi, first) * inverse1**3
        along2 = torch.linalg.vecdot(square, second) * inverse2**3
        gradient = square * (-2 * along2)[:, None]
        gradient.addcmul_((2 * inverse2)[:, None], second)
        gradient.sub_(along1[:, None]).mul_(phi)
        gradient.addcmul_(inverse1[:, None], first)
        return gradient, None


class UnitDistance(torch.autograd.Function):
    """Squared distance of layers' weighted moments by label from a target: a scalar.

    What `UnitMoments` and `distance` do together, for all layers in the same passes and with the gradient: on a GPU
    most of a small pass is its beginning.

    labels: int64 `[B]`; scales: of f and g, or of f alone; targets: `[G, Σ d_j]` of each; maps: `[B, d_j]`, of any
    precision.  `fused.matched` is the same in C, for processors.
    """

    @staticmethod
    def forward(ctx: Any, labels: Tensor, scales: Sequence[float], targets: Sequence[Tensor], *maps: Tensor) -> Tensor:
        ctx.sizes = [one.shape[1] for one in maps]
        piece = math.gcd(*ctx.sizes)
        layers = _layers(tuple(size // piece for size in ctx.sizes), labels.device)
        joined = maps[0] if len(maps) == 1 else torch.cat(maps, 1)
        rows = joined.view(len(joined), -1, piece).float()
        total, gradient = _unit_distance(rows, labels, layers, scales[0], targets[0])
        if len(targets) > 1:
            more, by_square = _unit_distance(rows * rows, labels, layers, scales[1], targets[1])
            total, gradient = total + more, gradient + 2 * rows * by_square
        ctx.save_for_backward(gradient.view_as(joined).to(joined.dtype))
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        (inner,) = ctx.saved_tensors
        return None, None, None, *(inner * (2 * gradient).to(inner.dtype)).split(ctx.sizes, 1)


@lru_cache(maxsize=16)  # on their device, or every step would wait for the copy
def _layers(pieces: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Of layers that have so many pieces: each piece's layer, int64 `[C]`, and whether it is its, float32 `[C, L]`."""
    owners = torch.arange(len(pieces)).repeat_interleave(torch.tensor(pieces)).to(device)
    members = own_label(owners, len(pieces)).float()
    wait_for_device(device)
    return owners, members


def _unit_distance(
    phi: Tensor, labels: Tensor, layers: tuple[Tensor, Tensor], scale: float, target: Tensor
) -> tuple[Tensor, Tensor]:
    """Squared distance of `scale · Σ f` by label, `f = φ / ‖φ‖` layer by layer, and half the gradient by φ.

    phi: layers in pieces, `[B, C, p]`.  With `rest = Σ f - target` of its label, an image's gradient is
    `(rest - f ⟨f, rest⟩) / ‖φ‖`.  Of one group all is sums and products of entries, which a compiler makes few
    passes of.
    """
    owners, members = layers
    inverse = _inverse(_by_layer(phi.square().sum(2), members).sqrt()) * scale
    factors = inverse[..., owners, None]
    rest = _sums(phi * factors, labels, target)
    mine = rest if len(rest) == 1 else rest[labels]
    along = _by_layer((phi * mine).sum(2), members) * (inverse**3 / scale**2)
    return rest.square().sum(), mine * factors - phi * along[..., owners, None]


def _by_layer(numbers: Tensor, members: Tensor) -> Tensor:
    """Sums by layer of a number for each piece: `[…, C]` and `[C, L]` → `[…, L]`.  In full precision everywhere."""
    return (numbers[..., None] * members).sum(-2)


def _sums(rows: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """Sums of rows `[B, C, p]` by label, less the target `[G, C · p]`: `[G, C, p]`."""
    target = target.view(len(target), *rows.shape[1:])
    if len(target) == 1:
        return rows.sum(0, keepdim=True) - target
    return (own_label(labels, len(target)).float().T @ rows.flatten(1)).view_as(target) - target


def own_label(labels: Tensor, classes: int) -> Tensor:
    """Whether a label is an image's: int64 `[…]` → bool `[…, classes]`, without waiting as `F.one_hot` does."""
    return labels[..., None] == torch.arange(classes, device=labels.device)


def _inverse(norm: Tensor) -> Tensor:
    """1 / ‖·‖, and 0 for what is as good as 0: the gradient takes its cube in float32."""
    return torch.where(norm > 1e-12, norm.reciprocal(), 0.0)
