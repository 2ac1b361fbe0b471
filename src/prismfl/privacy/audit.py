"""Attacks on a release that measure ε from outside: lower bounds that hold with 95 % confidence.

An attacker who knows everything but one image (a canary) looks at what was released and says
whether it was there.  How often that is right bounds ε from below.  A bound above the ε that was
promised is a defect; a bound far below it says little, for another attack may be better.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import beta, binom, norm
from torch import Tensor

from prismfl.errors import SettingError
from prismfl.moments import FeatureMap
from prismfl.privacy.ledger import epsilon_of
from prismfl.privacy.release import noisy_sums
from prismfl.settings.schema import Privacy

CONFIDENCE = 0.95
IMAGES = 100  # of the store in the attack of many releases
_ENTRIES, _BATCH, _MOST = 4, 256, 60.0
_GUESSED = 10  # of so many canaries one is guessed

# (vectors float32 [B, D] at a time, number of images, settings, draws) → released sums [draws, D].
Mechanism = Callable[[Iterable[Tensor], int, Privacy, int], NDArray[np.int64]]


@dataclass(frozen=True)
class Findings:
    """Lower bounds on ε at 95 % confidence each; the promise is `epsilon` at `delta`.

    many_runs: of thousands of releases of two stores one canary apart, whatever the noise is;
    many_runs_if_gaussian: the same, granted that the noise has a Gaussian's shape; one_run: of one
    release with thousands of canaries; fresh: whether two releases of one store differ in every entry.
    """

    epsilon: float
    delta: float
    many_runs: float
    many_runs_if_gaussian: float
    one_run: float
    fresh: bool

    @property
    def broken(self) -> bool:
        """Whether a bound contradicts the promise (of honest releases one in seven or so by chance)."""
        return not self.fresh or max(self.many_runs, self.many_runs_if_gaussian, self.one_run) > self.epsilon


def audit_release(
    privacy: Privacy, runs: int = 20_000, canaries: int = 5_000, mechanism: Mechanism = noisy_sums, seed: int = 0
) -> Findings:
    """Attack the release itself, with canary vectors at its input.

    runs: releases of each of two neighbouring stores; canaries: of the attack on one release, half
    of them in it by coins of `seed`.  Unit one image, adjacency replace-one.  Raises SettingError.
    """
    if runs < 20 or canaries < 20:
        raise SettingError(f"{runs} runs and {canaries} canaries", "at least 20 of each", "ask for more")
    with_it, without = (_scores(mechanism, privacy, runs, there) for there in (True, False))
    right, guesses = _guesses(mechanism, privacy, canaries, np.random.default_rng(seed))
    return Findings(
        privacy.epsilon,
        privacy.delta,
        many_runs(with_it, without, privacy.delta),
        many_runs_if_gaussian(with_it, without, privacy.delta),
        one_run(right, guesses, canaries, privacy.delta),
        _fresh(mechanism, privacy),
    )


@dataclass(frozen=True)
class TrainingFindings:
    """Lower bounds on ε of whole training runs, as in `Findings`; of few runs they are small whatever is true."""

    epsilon: float
    runs: int
    many_runs: float
    many_runs_if_gaussian: float


def audit_training(
    train: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    images: NDArray[np.uint8],
    features: FeatureMap,
    privacy: Privacy,
    runs: int = 20,
) -> TrainingFindings:
    """Attack whole runs through their samples: is a checkerboard among the images, or a blank in its place?

    train: images uint8 `[n, C, H, W]` → samples of a model trained on them, with new noise every
    time; images: the store, whose first image gives way; runs: of each kind.  A run's score is how
    far its samples' mean features lie towards the checkerboard's.  Raises SettingError.
    """
    if runs < 4:
        raise SettingError(f"{runs} training runs", "at least 4", "ask for more")
    board = np.where(np.indices(images.shape[-2:]).sum(0) % 2, 255, 0)
    pair = np.broadcast_to(np.stack((board, 0 * board))[:, None], (2, *images.shape[1:])).astype(np.uint8)
    there, away = features.vectors(np.ascontiguousarray(pair))

    def score(first: NDArray[np.uint8]) -> float:
        return float(
            (features.vectors(train(np.concatenate((first[None], images[1:])))).mean(0) @ (there - away)).cpu()
        )

    with_it, without = (np.array([score(first) for _ in range(runs)]) for first in pair)
    found = many_runs(with_it, without, privacy.delta), many_runs_if_gaussian(with_it, without, privacy.delta)
    return TrainingFindings(privacy.epsilon, runs, *found)


# ------------------------------------------------------------------------------- attacks


def _store(there: bool) -> Tensor:
    """Vectors of a store, float32 `[IMAGES, 4]`: the last one is the canary or what replaces it."""
    vectors = torch.zeros(IMAGES, _ENTRIES)
    vectors[:-1, 2] = 1.0
    vectors[-1, 0 if there else 1] = 1.0
    return vectors


def _scores(mechanism: Mechanism, privacy: Privacy, runs: int, there: bool) -> NDArray[np.float64]:
    """The best statistic of two Gaussians: how far each release lies towards the canary, float64 `[runs]`."""
    found = mechanism([_store(there)], IMAGES, privacy, runs).astype(np.float64)
    return found[:, 0] - found[:, 1]


def _guesses(mechanism: Mechanism, privacy: Privacy, canaries: int, coins: np.random.Generator) -> tuple[int, int]:
    """Right guesses, and guesses, of which canaries one release holds: the surest tenth of them."""
    there = coins.random(canaries) < 0.5
    found = mechanism(_canaries(there), canaries, privacy, 1)[0].astype(np.float64).reshape(canaries, 2)
    score = found[:, 0] - found[:, 1]
    surest = np.argsort(-np.abs(score))[: max(1, canaries // _GUESSED)]
    return int(((score > 0) == there)[surest].sum()), len(surest)


def _canaries(there: NDArray[np.bool_]) -> Iterator[Tensor]:
    """Canary i is entry 2i, its replacement entry 2i + 1: float32 `[B, 2 canaries]` at a time."""
    place = 2 * np.arange(len(there)) + ~there
    for start in range(0, len(there), _BATCH):
        rows = torch.from_numpy(place[start : start + _BATCH])
        yield torch.zeros(len(rows), 2 * len(there)).scatter_(1, rows[:, None], 1.0)


def _fresh(mechanism: Mechanism, privacy: Privacy) -> bool:
    one, two = (mechanism([_store(True)], IMAGES, privacy, 16) for _ in range(2))
    return len(np.unique(np.concatenate((one, two)))) == 2 * one.size


# ------------------------------------------------------------------------------- bounds


def many_runs(with_it: NDArray[np.float64], without: NDArray[np.float64], delta: float) -> float:
    """Lower bound on ε from scores with and without a canary, float64 `[N]` each.

    (ε, δ)-DP says that a test's power is at most e^ε times its size plus δ.  A threshold is chosen on
    one half of the scores; Clopper-Pearson limits on the other half give the bound.
    """
    best = max(_tests(with_it[::2], without[::2], delta))
    _, threshold, flipped = best
    return max(0.0, _bound(with_it[1::2], without[1::2], threshold, flipped, delta))


def _tests(with_it: NDArray[np.float64], without: NDArray[np.float64], delta: float) -> list[tuple[float, float, bool]]:
    """Bounds of tests both ways at sixty thresholds: (bound, threshold, flipped)."""
    thresholds = np.quantile(np.concatenate((with_it, without)), np.linspace(0.02, 0.98, 60))
    return [
        (_bound(with_it, without, float(at), flipped, delta), float(at), flipped)
        for at in thresholds
        for flipped in (False, True)
    ]


def _bound(
    with_it: NDArray[np.float64], without: NDArray[np.float64], threshold: float, flipped: bool, delta: float
) -> float:
    """log((power - δ) / size) of one test, each at its worse limit."""
    power, size = (
        (without <= threshold, with_it <= threshold) if flipped else (with_it > threshold, without > threshold)
    )
    gain = _limits(int(power.sum()), len(power))[0] - delta
    return math.log(gain / _limits(int(size.sum()), len(size))[1]) if gain > 0 else -math.inf


def many_runs_if_gaussian(with_it: NDArray[np.float64], without: NDArray[np.float64], delta: float) -> float:
    """The same for noise of a Gaussian's shape, which one threshold tells all of (Nasr et al. 2023).

    μ ≥ Φ⁻¹(1 - size) - Φ⁻¹(1 - power) is bounded by the limits of size and power, and gives ε at δ.
    """
    threshold = float(np.median(np.concatenate((with_it[::2], without[::2]))))
    power, size = with_it[1::2] > threshold, without[1::2] > threshold
    least, most = _limits(int(power.sum()), len(power))[0], _limits(int(size.sum()), len(size))[1]
    shift = float(norm.ppf(least) - norm.ppf(most))
    return epsilon_of(1 / shift, delta) if shift > 0 else 0.0


def _limits(hits: int, count: int) -> tuple[float, float]:
    """Clopper-Pearson limits of a share, which leave out 1.25 % on either side: a bound takes two limits."""
    outside = (1 - CONFIDENCE) / 2
    low = float(beta.ppf(outside, hits, count - hits + 1)) if hits else 0.0
    return low, float(beta.ppf(1 - outside, hits + 1, count - hits)) if hits < count else 1.0


def one_run(right: int, guesses: int, canaries: int, delta: float) -> float:
    """Lower bound on ε from right guesses of independently tossed canaries in one release.

    The largest ε that the number of right guesses rejects (Steinke, Nasr, Jagielski 2023, theorem 5.2).
    Raises SettingError for numbers that are none.
    """
    if not 0 <= right <= guesses <= canaries or guesses < 1:
        raise SettingError(
            f"{right} of {guesses} guesses of {canaries} canaries", "right ≤ guesses ≤ canaries", "count"
        )
    low, high = 0.0, _MOST
    if chance(right, guesses, canaries, low, delta) > 1 - CONFIDENCE:
        return 0.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (
            (low, middle) if chance(right, guesses, canaries, middle, delta) > 1 - CONFIDENCE else (middle, high)
        )
    return low


def chance(right: int, guesses: int, canaries: int, epsilon: float, delta: float) -> float:
    """Largest probability, under (ε, δ)-DP, of at least so many right guesses.

    Under pure ε right guesses are no more than Binomial(guesses, 1 / (1 + e^-ε)); δ adds at most
    2 m δ max_i P(right - i ≤ that < right) / i.
    """
    share = 1 / (1 + math.exp(-epsilon))
    falls = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, share))
    steepest = float((falls / np.arange(1, right + 1)).max()) if right else 0.0
    return min(1.0, float(binom.sf(right - 1, guesses, share)) + 2 * canaries * delta * steepest)
