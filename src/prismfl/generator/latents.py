"""Latents of a batch: normals one by one, and in their directions spread evenly over the batch."""

import torch
from torch import Tensor

from prismfl.seeding.device import Tape

_STEPS = 5  # of an iteration that need not converge: what is not quite orthogonal is as normal as before
_SHARE = 4  # of the dimension: so many orthogonal directions are soon found


def spread_normals(draws: Tape, count: int, dimension: int) -> Tensor:
    """Latents that are each standard normal, and together spread evenly: float32 `[count, dimension]`.

    Each comes with its opposite beside it, and up to a quarter of `dimension` such pairs are orthogonal: means over
    the batch of odd functions have no error, and those of quadratic ones less than of independent normals
    (antithetic variates; orthogonal directions: Yu et al. 2016, of random features).
    """
    pairs = -(-count // 2)
    blocks = -(-pairs // max(1, dimension // _SHARE))
    drawn = draws.normals(blocks, -(-pairs // blocks), dimension)
    lengths = torch.linalg.vector_norm(drawn, dim=2, keepdim=True)
    latents = (orthogonal(drawn) * lengths).flatten(0, 1)[:pairs]
    return torch.stack((latents, -latents), 1).flatten(0, 1)[:count]


def product(one: Tensor, other: Tensor) -> Tensor:
    """`one @ other`, `[K, n, m]` and `[K, m, p]`: on a GPU as sums, one small pass where a product is three."""
    return by_sums(one, other) if one.device.type == "cuda" else one @ other


def by_sums(one: Tensor, other: Tensor) -> Tensor:
    """`one @ other` in so many numbers as it has products."""
    return (one[..., None] * other[:, None]).sum(2)


def orthogonal(rows: Tensor) -> Tensor:
    """Unit rows near the given ones, closely to orthogonal: float32 `[K, n, d]` with n at most d / 2, or 1.

    Newton's iteration for the polar factor, of products alone, which a GPU can record.  It treats all
    directions alike, so that of normal rows each row's direction is uniform however few steps it takes, and independent
    of their lengths.
    """
    count, dimension = rows.shape[1:]
    found: Tensor = rows / (dimension**0.5 + count**0.5)  # near the largest singular value (Marchenko, Pastur 1967)
    for _ in range(_STEPS if count > 1 else 0):
        found = 1.5 * found - 0.5 * product(product(found, found.mT), found)
    lengths: Tensor = torch.linalg.vector_norm(found, dim=2, keepdim=True)
    return found / lengths.clamp_(min=1e-30)
