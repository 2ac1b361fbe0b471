"""Kernel distance in the judge network: `kid_judge`."""

import numpy as np
import torch
from numpy.typing import NDArray

from prismfl.metrics.embedding import enough, judge_features
from prismfl.metrics.intervals import Estimate, estimate
from prismfl.metrics.optional import of_torchmetrics
from prismfl.seeding.philox import Purpose, Stream

SUBSETS, SUBSET_IMAGES = 10, 1000
LEAST = 4  # images a side: two subsets of two


def kid_judge(real: NDArray[np.uint8], fake: NDArray[np.uint8], batch: int = 250, device: str = "cpu") -> Estimate:
    """Kernel distance between judge features of two image sets, uint8 `[n, C, H, W]` each.

    See `kernel_distance`.  Not comparable with Inception's KID.
    """
    enough(real, fake, LEAST)
    return kernel_distance(judge_features(real, batch, device), judge_features(fake, batch, device))


def kernel_distance(real: NDArray[np.float32], fake: NDArray[np.float32]) -> Estimate:
    """Squared maximum mean discrepancy between features float32 `[n, d]` of two image sets.

    Unbiased, with kernel `(x·y / d + 1)³` (Bińkowski et al. 2018), by torchmetrics in double
    precision: the mean over ten disjoint subsets of up to 1,000 images, drawn by a fixed
    permutation, and its t-interval.  Disjoint, since an interval over overlapping subsets would
    shrink with their number.  Values about zero, negative ones too, say that no difference is seen.
    Raises DataError for fewer than four rows in a set, DependencyError when torchmetrics does
    not import.
    """
    enough(real, fake, LEAST)
    fewer, squared = min(len(real), len(fake)), of_torchmetrics("kid", "poly_mmd")
    count = min(SUBSETS, fewer // 2)
    pairs = zip(*(_subsets(rows, count, min(SUBSET_IMAGES, fewer // count)) for rows in (real, fake)), strict=True)
    return estimate([float(squared(a, b)) for a, b in pairs])


def _subsets(rows: NDArray[np.float32], count: int, size: int) -> list[torch.Tensor]:
    """`count` disjoint subsets of `size` rows, float64: image sets often come sorted by class."""
    order = Stream(0, Purpose.SUBSETS).permutation(len(rows))[: count * size]
    return list(torch.from_numpy(rows[order]).double().view(count, size, -1))
