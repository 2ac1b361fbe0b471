"""Inception score of any class probabilities, and how far class shares lie apart."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr

from prismfl.errors import DataError, SettingError
from prismfl.metrics.intervals import Estimate, estimate
from prismfl.seeding.philox import Purpose, Stream

_ROUNDING = 1e-3  # how far a row of float32 probabilities may sum from 1


def inception_score(probabilities: NDArray[np.float64], splits: int = 10) -> Estimate:
    """Inception score of class probabilities float64 `[n, classes]`, 1 … classes, more is better.

    `exp(mean KL(p(y|x) ‖ mean p(y|x)))` (Salimans et al. 2016): the mean over `splits` parts of
    the images, drawn by a fixed permutation, and its t-interval.  Small parts score low: compare
    equal numbers of images.  Raises DataError for rows that are no probabilities or for fewer
    than two rows a part, SettingError for fewer than two splits.
    """
    _check(probabilities, splits)
    order = Stream(0, Purpose.SUBSETS).permutation(len(probabilities))
    return estimate([_score(probabilities[part]) for part in np.array_split(order, splits)])


def _score(rows: NDArray[np.float64]) -> float:
    return float(np.exp(rel_entr(rows, rows.mean(0)).sum(1).mean()))


def _check(rows: NDArray[np.float64], splits: int) -> None:
    if splits < 2:
        raise SettingError(f"splits {splits}", "at least 2", "ask for more")
    if rows.ndim != 2 or len(rows) < 2 * splits:
        raise DataError(
            f"probabilities {list(rows.shape)} for {splits} splits",
            "[n, classes] with at least 2 rows a split",
            "give more images or fewer splits",
        )
    if not (np.isfinite(rows).all() and rows.min() >= 0 and np.abs(rows.sum(1) - 1).max() < _ROUNDING):
        raise DataError(
            "rows that are no probabilities", "numbers from 0 that sum to 1 in each row", "pass logits through softmax"
        )


def label_imbalance(shares: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    """Total variation distance of class shares float64 `[classes]` from wanted ones: 0 … 1.

    `½ Σ |p - q|`: the share of samples that would have to change their class.
    Raises DataError for shares of different classes.
    """
    if shares.shape != wanted.shape:
        raise DataError(
            f"shares of {len(shares)} and of {len(wanted)} classes", "the same classes", "judge against the same data"
        )
    return float(np.abs(shares - wanted).sum() / 2)
