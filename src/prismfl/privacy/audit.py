"""Attacks on a release that measure ε from outside: lower bounds that hold with 95 % confidence.

An attacker who knows everything but the images of one person (canaries) looks at what was released and says whether
they were there.  How often that is right bounds ε from below.  A bound above the ε that was promised is a defect; a
bound far below it says little, for another attack may be better.

What is attacked is the path that runs take, with several clients, labels, a ledger and stored files: see
`prismfl.privacy.probe`.  Beside the bounds stands what needs no attack: whether noise is as large as the promise needs,
new each time, and added to the true means.
"""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binom, chi2, norm

from prismfl.data.images import ImageSet
from prismfl.errors import SettingError
from prismfl.moments import FeatureMap
from prismfl.privacy.ledger import epsilon_of
from prismfl.privacy.probe import CLIENTS, LABELS, PIXELS, PixelFeatures, Probe, expected_spread, needed, probe
from prismfl.privacy.release import grid_of
from prismfl.privacy.source import SourceLedger
from prismfl.privacy.store import Releases
from prismfl.settings.schema import Privacy

CONFIDENCE = 0.95
_MOST = 60.0
_GUESSED = 10  # of so many canaries one is guessed
_UNLIKELY = 1e-6  # what chance may bring once in so many audits is no defect
ROUNDED = 0.98  # noise may fall short of what is needed by what grids and the label's entry round
_ALIKE = 0.9  # correlation of two blocks' noise above which it is the same
_SEEN = 1500  # blocks that are compared with each other
_CANARY_SIDE = 100  # pixels a side of an image in the attack on one release: two for each canary


@dataclass(frozen=True)
class Findings:
    """What an audit found; the promise is `epsilon` at `delta`, for the images of one person at one client.

    many_runs: lower bound on ε, of many releases of two neighbouring sources, whatever the noise is;
    many_runs_if_gaussian: the same, granted that the noise has a Gaussian's shape; one_run: of one release with
    thousands of canaries; each holds with 95 % confidence.  noise: the least noise of any client's moments, beside what
    the promise needs; counts: the same of label counts; true: whether means are those of the images, each counted once;
    drowned: whether labels are dropped by noisy counts alone; fresh: whether no two releases, clients or labels share
    noise; kept: whether a release asked for again is the same, and the ledger says it once.
    """

    epsilon: float
    delta: float
    many_runs: float
    many_runs_if_gaussian: float
    one_run: float
    noise: float
    counts: float
    true: bool
    drowned: bool
    fresh: bool
    kept: bool

    @property
    def defects(self) -> list[str]:
        """What contradicts the promise, in words; of honest releases a bound is too high in one of seven."""
        bounds = {"many_runs": self.many_runs, "if_gaussian": self.many_runs_if_gaussian, "one_run": self.one_run}
        found = [f"the attack {name} shows ε ≥ {bound:.3g}" for name, bound in bounds.items() if bound > self.epsilon]
        if self.noise < ROUNDED:
            found.append(f"moments have {self.noise:.2f} of the noise that is needed")
        if self.counts < ROUNDED:
            found.append(f"label counts have {self.counts:.2f} of the noise that is needed")
        words = {
            "true": "released means are not those of the images, each counted once",
            "drowned": "labels are not dropped by noisy counts alone",
            "fresh": "releases, clients or labels share noise",
            "kept": "a release asked for again is another, or its ledger does not say what it cost",
        }
        return found + [text for name, text in words.items() if not getattr(self, name)]

    @property
    def broken(self) -> bool:
        """Whether anything contradicts the promise."""
        return bool(self.defects)


def audit_release(
    privacy: Privacy,
    runs: int = 600,
    canaries: int = 5_000,
    seed: int = 0,
    whole_persons: int = 0,
    after: Callable[[int], object] = int,
) -> Findings:
    """Attack releases as runs make them, with canaries among the images.

    The unit is the images of one person at one client, `images_per_person` of them, or with `whole_persons` all of
    them; adjacency is replace-one.

    Args:
        privacy: what is promised, and the sampler.
        runs: releases of each of two neighbouring sources, by three clients each.
        canaries: of the attack on one release, half of them in it by coins of `seed`; 5000 at most.
        seed: of coins and canaries, never of noise.
        whole_persons: images that each person has, of releases that know whose each is; 0 for those that do not.
        after: told of each of the 2 · `runs` runs.

    Raises:
        SettingError: for too few runs, or too few or many canaries.
    """
    if runs < 24 or not 20 <= canaries <= _CANARY_SIDE**2 // 2:
        raise SettingError(
            f"{runs} runs and {canaries} canaries", f"at least 24, and 20 … {_CANARY_SIDE**2 // 2}", "mend the numbers"
        )
    privacy = replace(privacy, images_per_person=1) if whole_persons else privacy
    found = probe(privacy, 2 * runs, seed, whole_persons, after)
    scores = _scores(found)
    confidence = 1 - (1 - CONFIDENCE) / len(scores)
    delta = privacy.delta
    right, guesses = _guesses(privacy, canaries, np.random.default_rng(seed))
    return Findings(
        privacy.epsilon,
        delta,
        max(many_runs(one, other, delta, confidence) for one, other in scores),
        max(many_runs_if_gaussian(one, other, delta, confidence) for one, other in scores),
        one_run(right, guesses, canaries, delta),
        _noise(found),
        _counts(found, privacy),
        _true(found),
        _drowned(found),
        _fresh(found),
        found.same,
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

_Scores = tuple[NDArray[np.float64], NDArray[np.float64]]  # of releases with the canaries, and without


def _scores(found: Probe) -> list[_Scores]:
    """Scores by attack: towards the canaries, the same beside another client, by shares, and by the rarest label."""
    toward = np.zeros((LABELS, PIXELS))
    toward[1, 0], toward[0, -1] = 1, -1
    heard = (found.moments != 0).any(-1, keepdims=True)
    # What the attacker knows of the other images is taken away, or clients would seem to differ by it.
    news = np.where(heard, found.moments - found.known, 0) * np.sqrt(found.weights)
    lean = (news * toward).sum((2, 3)) * found.sizes  # [R, CLIENTS], of one scale for all
    runs, other = np.arange(len(lean)), (found.whose + 1) % CLIENTS
    mine, shares = lean[runs, found.whose], found.shares[runs, found.whose]
    # With a label of their own the canaries show in whether that label drowned.
    rare = (found.moments[runs, found.whose, 2] != 0).any(1) + shares[:, 2]
    common = found.label == 1
    attacks = (
        (mine, common),
        (mine - lean[runs, other], common),
        (shares[:, 1] * np.array(found.sizes)[found.whose], common),
        (rare, ~common),
    )
    return [(values[rows & found.there], values[rows & ~found.there]) for values, rows in attacks]


def _guesses(privacy: Privacy, canaries: int, coins: np.random.Generator) -> tuple[int, int]:
    """Right guesses, and guesses, of which canaries one release holds: the surest tenth of them.

    Canary i is pixel 2i of an image, its replacement pixel 2i + 1.
    """
    there = coins.random(canaries) < 0.5
    images = np.zeros((canaries, 1, _CANARY_SIDE, _CANARY_SIDE), np.uint8)
    images.reshape(canaries, -1)[np.arange(canaries), 2 * np.arange(canaries) + ~there] = 255
    mine = ImageSet(images, np.zeros(canaries, np.int64), ("",))
    with tempfile.TemporaryDirectory() as root:
        source = SourceLedger(Path(root) / "ledger.jsonl")
        target = Releases(PixelFeatures(_CANARY_SIDE**2), 0, privacy, source).of(0, mine)[1].target
    pairs = target.moments[: 2 * canaries].reshape(canaries, 2).astype(np.float64)
    score = pairs[:, 0] - pairs[:, 1]
    surest = np.argsort(-np.abs(score))[: max(1, canaries // _GUESSED)]
    return int(((score > 0) == there)[surest].sum()), len(surest)


# ------------------------------------------------------------------------------- what needs no attack


def _noise(found: Probe) -> float:
    """The upper limit of the least noise of a client, of labels 0 and 1, beside what is needed."""
    return min(_upper(found.residuals[:, client, :2]) for client in range(CLIENTS))


def _upper(residuals: NDArray[np.float64]) -> float:
    """The upper limit of a standard deviation, of values around 0 that are independent."""
    return float(math.sqrt(np.nansum(residuals**2) / chi2.ppf(_UNLIKELY, np.isfinite(residuals).sum())))


def _counts(found: Probe, privacy: Privacy) -> float:
    """The upper limit of how much shares vary, of the largest client without canaries, beside what is needed."""
    largest = int(np.argmax(found.sizes))
    shares = found.shares[found.whose != largest, largest, 0]
    spread = math.sqrt(((shares - shares.mean()) ** 2).sum() / chi2.ppf(_UNLIKELY, len(shares) - 1))
    return spread / expected_spread(found, privacy)


def _true(found: Probe) -> bool:
    """Whether residuals of labels 0 and 1 have mean 0, entry by entry: of all runs, and of those with canaries."""
    rows = np.flatnonzero(found.there & (found.label == 1))
    return _centred(found.residuals[:, :, :2]) and _centred(found.residuals[rows, found.whose[rows], :2])


def _centred(kept: NDArray[np.float64]) -> bool:
    """Whether the means over runs are 0, as far as their own spread says."""
    means, spread = np.nanmean(kept, 0), np.nanstd(kept, 0) / np.sqrt(np.isfinite(kept).sum(0))
    return bool(((means / np.maximum(spread, 1e-3)) ** 2).sum() < chi2.isf(_UNLIKELY, means.size))


def _drowned(found: Probe) -> bool:
    """Whether a label that a client has none of is heard as often as noise alone says: now and then."""
    absent = np.ones(found.moments.shape[:2], np.bool_)
    mine = np.flatnonzero(found.there & (found.label == 2))
    absent[mine, found.whose[mine]] = False
    heard, share = (found.moments[:, :, 2] != 0).any(-1)[absent], float(norm.sf(2))
    few, many = binom.cdf(heard.sum(), len(heard), share), binom.sf(heard.sum() - 1, len(heard), share)
    return bool(min(few, many) > _UNLIKELY)


def _fresh(found: Probe) -> bool:
    """Whether no two blocks of noise, of any run, client or label, are alike."""
    rows = found.residuals[:, :, :2].reshape(-1, PIXELS)
    rows = rows[np.isfinite(rows).all(1)][:_SEEN]
    rows = rows - rows.mean(1, keepdims=True)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    return bool(np.triu(rows @ rows.T, 1).max() < _ALIKE)


def noise_at_size(features: FeatureMap, mine: ImageSet, classes: int, privacy: Privacy) -> float:
    """Noise of one release of a real feature map, of labels that did not drown, beside what the promise needs.

    The unit is the images of one person at one client; adjacency is replace-one.  Raises PrismError subclasses.
    """
    with tempfile.TemporaryDirectory() as root:
        source = SourceLedger(Path(root) / "ledger.jsonl")
        target = Releases(features, classes, privacy, source).of(0, mine)[1].target
    rows = (max(1, classes), -1)
    known = np.arange(len(mine)) if mine.people is None else np.unique(mine.people, return_inverse=True)[1]
    place = known + np.array([(known[:row] == known[row]).sum() for row in range(len(mine))])  # says at what shift
    vectors = np.concatenate(
        [features.vectors(mine.images[at : at + 1], place[at]).cpu().numpy() for at in range(len(mine))]
    )
    vectors = vectors / np.bincount(known)[known][:, None]
    tags = mine.labels if classes else np.zeros(len(mine), np.int64)
    means = np.array([vectors[tags == label].sum(0, dtype=np.float64) for label in range(rows[0])]) / mine.units
    told = target.moments.reshape(rows)
    most = 1 if mine.people is not None else privacy.images_per_person
    scale = needed(privacy.epsilon, privacy.delta) * most * math.sqrt(2) / mine.units
    residuals = (told - means)[(told != 0).any(1)] * grid_of(features, classes).stretch / scale
    return float(np.sqrt((residuals**2).mean()))


# ------------------------------------------------------------------------------- bounds


def many_runs(
    with_it: NDArray[np.float64], without: NDArray[np.float64], delta: float, confidence: float = CONFIDENCE
) -> float:
    """Lower bound on ε from scores with and without a canary, float64 `[N]` each.

    (ε, δ)-DP says that a test's power is at most e^ε times its size plus δ.  A threshold is chosen on
    one half of the scores; Clopper-Pearson limits on the other half give the bound.
    """
    best = max(_tests(with_it[::2], without[::2], delta, confidence))
    _, threshold, flipped = best
    return max(0.0, _bound(with_it[1::2], without[1::2], threshold, flipped, delta, confidence))


def _tests(
    with_it: NDArray[np.float64], without: NDArray[np.float64], delta: float, confidence: float
) -> list[tuple[float, float, bool]]:
    """Bounds of tests both ways at sixty thresholds: (bound, threshold, flipped)."""
    thresholds = np.quantile(np.concatenate((with_it, without)), np.linspace(0.02, 0.98, 60))
    return [
        (_bound(with_it, without, float(at), flipped, delta, confidence), float(at), flipped)
        for at in thresholds
        for flipped in (False, True)
    ]


def _bound(
    with_it: NDArray[np.float64],
    without: NDArray[np.float64],
    threshold: float,
    flipped: bool,
    delta: float,
    confidence: float,
) -> float:
    """log((power - δ) / size) of one test, each at its worse limit."""
    power, size = (
        (without <= threshold, with_it <= threshold) if flipped else (with_it > threshold, without > threshold)
    )
    gain = _limits(int(power.sum()), len(power), confidence)[0] - delta
    return math.log(gain / _limits(int(size.sum()), len(size), confidence)[1]) if gain > 0 else -math.inf


def many_runs_if_gaussian(
    with_it: NDArray[np.float64], without: NDArray[np.float64], delta: float, confidence: float = CONFIDENCE
) -> float:
    """The same for noise of a Gaussian's shape, which one threshold tells all of (Nasr et al. 2023).

    μ ≥ Φ⁻¹(1 - size) - Φ⁻¹(1 - power) is bounded by the limits of size and power, and gives ε at δ.
    """
    threshold = float(np.median(np.concatenate((with_it[::2], without[::2]))))
    power, size = with_it[1::2] > threshold, without[1::2] > threshold
    least = _limits(int(power.sum()), len(power), confidence)[0]
    most = _limits(int(size.sum()), len(size), confidence)[1]
    shift = float(norm.ppf(least) - norm.ppf(most))
    return epsilon_of(1 / shift, delta) if shift > 0 else 0.0


def _limits(hits: int, count: int, confidence: float) -> tuple[float, float]:
    """Clopper-Pearson limits of a share, which leave out half of what may be missed: a bound takes two limits."""
    outside = (1 - confidence) / 2
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
