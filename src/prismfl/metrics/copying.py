"""Whether samples lie nearer to images that trained the model than to images that did not."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu, norm
from sklearn.metrics import pairwise_distances_argmin_min

from prismfl.errors import DataError, SettingError
from prismfl.metrics.distances import judge_features
from prismfl.metrics.intervals import CONFIDENCE, Estimate

LEAST = 2  # images of each kind
SPACES = ("judge", "pixels")
_BLOCK = 2000  # members at a time


def membership(members: NDArray[np.float32], others: NDArray[np.float32], samples: NDArray[np.float32]) -> Estimate:
    """What distances to the nearest sample tell of membership: an AUC with its 95 % interval (Hanley, McNeil 1982).

    It is the share of pairs of a member and another image in which the member has the nearer sample, ties counting
    half: 0.5 where nothing is told.

    members, others, samples: features float32 `[n, d]` each, compared by Euclidean distance; members of images that
    trained the model, others of images of the same source that did not.
    Raises DataError for fewer than two members or others, or no sample.
    """
    if min(len(members), len(others)) < LEAST or not len(samples):
        raise DataError(
            f"{len(members)} members, {len(others)} others and {len(samples)} samples",
            f"at least {LEAST} of each, and a sample",
            "give more images",
        )
    near, far = (pairwise_distances_argmin_min(images, samples)[1].astype(np.float64) for images in (members, others))
    area = auc(near, far)
    reach = float(norm.ppf((1 + CONFIDENCE) / 2)) * _deviation(area, len(near), len(far))
    return Estimate(area, (max(0.0, area - reach), min(1.0, area + reach)))


def nearest_images(
    members: NDArray[np.uint8],
    samples: NDArray[np.uint8],
    space: str = "judge",
    device: str = "cpu",
    after: Callable[[int], object] = int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Of each sample the nearest member: its row, int64 `[n]`, and the Euclidean distance, float64 `[n]`.

    members, samples: uint8 `[m, C, H, W]` and `[n, C, H, W]`; space: `judge` (its features) or `pixels` (0 … 1).
    after: told the number of members of each block that is done: they are taken a block at a time, so that memory does
    not grow with their number.  Raises SettingError for another space, DataError for no images.
    """
    if space not in SPACES:
        raise SettingError(f"space {space!r}", f"one of {', '.join(SPACES)}", "name one of these")
    if not len(members) or not len(samples):
        raise DataError(f"{len(members)} images and {len(samples)} samples", "at least one of each", "give more images")
    mine = _placed(samples, space, device)
    rows, far = np.zeros(len(samples), np.int64), np.full(len(samples), np.inf)
    for start in range(0, len(members), _BLOCK):
        theirs = _placed(members[start : start + _BLOCK], space, device)
        found, distances = pairwise_distances_argmin_min(mine, theirs)
        nearer = distances < far
        rows[nearer], far[nearer] = found[nearer] + start, distances[nearer]
        after(len(theirs))
    return rows, far


def _placed(images: NDArray[np.uint8], space: str, device: str) -> NDArray[np.float32]:
    """Where images lie: float32 `[n, d]`."""
    if space == "judge":
        return judge_features(images, device=device)
    return (images.reshape(len(images), -1) / np.float32(255)).astype(np.float32)


def auc(near: NDArray[np.float64], far: NDArray[np.float64]) -> float:
    """P(near < far) + P(near = far) / 2 over all pairs of values `[n]` and `[m]` (Mann, Whitney 1947)."""
    return float(mannwhitneyu(far, near).statistic / (len(near) * len(far)))


def _deviation(area: float, near: int, far: int) -> float:
    one, two = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (near - 1) * (one - area**2) + (far - 1) * (two - area**2)
    return float((max(0.0, spread) / (near * far)) ** 0.5)
