"""Whether samples lie nearer to images that trained the model than to images that did not."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata
from sklearn.metrics import pairwise_distances_argmin_min

from prismfl.errors import DataError
from prismfl.metrics.embedding import judge_features
from prismfl.metrics.intervals import CONFIDENCE

LEAST = 2  # images of each kind


@dataclass(frozen=True)
class Copying:
    """What distances to the nearest sample tell of membership.

    membership_auc: share of pairs of a member and another image in which the member has the nearer
    sample, ties counting half; 0.5 where nothing is told.  interval: 95 %, of the AUC (Hanley,
    McNeil 1982).  nearest_member, nearest_other: median distances.
    """

    membership_auc: float
    interval: tuple[float, float]
    nearest_member: float
    nearest_other: float


def copying_embedded(
    members: NDArray[np.uint8], others: NDArray[np.uint8], samples: NDArray[np.uint8], device: str = "cpu"
) -> Copying:
    """Copying of images uint8 `[n, C, H, W]` each, by distances of judge features.

    members: images that trained the model; others: of the same source, that did not.
    Raises DataError for fewer than two images of either, or no sample.
    """
    return copying(*(judge_features(images, device=device) for images in (members, others, samples)))


def copying(members: NDArray[np.float32], others: NDArray[np.float32], samples: NDArray[np.float32]) -> Copying:
    """The same of features float32 `[n, d]` each, by Euclidean distance."""
    if min(len(members), len(others)) < LEAST or not len(samples):
        raise DataError(
            f"{len(members)} members, {len(others)} others and {len(samples)} samples",
            f"at least {LEAST} of each, and a sample",
            "give more images",
        )
    near, far = nearest(members, samples), nearest(others, samples)
    area = auc(near, far)
    reach = norm.ppf((1 + CONFIDENCE) / 2) * _deviation(area, len(near), len(far))
    interval = (max(0.0, area - reach), min(1.0, area + reach))
    return Copying(area, interval, float(np.median(near)), float(np.median(far)))


def nearest(images: NDArray[np.float32], samples: NDArray[np.float32]) -> NDArray[np.float64]:
    """Euclidean distance of each row of `images` to the nearest row of `samples`: float64 `[n]`."""
    return np.asarray(pairwise_distances_argmin_min(images, samples)[1], np.float64)


def auc(near: NDArray[np.float64], far: NDArray[np.float64]) -> float:
    """P(near < far) + P(near = far) / 2 over all pairs of values `[n]` and `[m]` (Mann, Whitney 1947)."""
    ranks = rankdata(np.concatenate((far, near)))[: len(far)]
    return float((ranks.sum() - len(far) * (len(far) + 1) / 2) / (len(near) * len(far)))


def _deviation(area: float, near: int, far: int) -> float:
    one, two = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (near - 1) * (one - area**2) + (far - 1) * (two - area**2)
    return float((max(0.0, spread) / (near * far)) ** 0.5)
