"""Means with their 95 % intervals: over seeds, subsets or splits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t

from prismfl.errors import SettingError

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure measured several times: its mean, and the 95 % interval of that mean (low, high)."""

    mean: float
    interval: tuple[float, float]


def estimate(values: Sequence[float]) -> Estimate:
    """Mean of two or more independent values and Student's t-interval of it.  Raises SettingError for fewer."""
    low, high = t_interval(values)
    return Estimate(float(np.mean(values)), (float(low), float(high)))


def t_interval(values: ArrayLike) -> NDArray[np.float64]:
    """95 % t-interval of the mean over the first axis, float64 `[n, …]`: low and high, `[2, …]`.

    `mean ± t_(n-1) s / √n` (Student 1908), for values that are independent and near normal.
    Raises SettingError for fewer than two values.
    """
    every = np.asarray(values, np.float64)
    if len(every) < 2:
        raise SettingError(f"an interval of {len(every)} values", "at least 2", "measure more often")
    reach = t.ppf((1 + CONFIDENCE) / 2, len(every) - 1) * every.std(0, ddof=1) / np.sqrt(len(every))
    return np.stack((every.mean(0) - reach, every.mean(0) + reach))
