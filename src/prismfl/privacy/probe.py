"""Releases of small sources through the path that runs take, with what is known of each: what the audit looks at.

Three clients hold images whose features are their pixels; in half of the releases the images of one person, canaries,
are others.  Everything that a run does stands between the images and what is read here: the feature map's vectors, the
integer sums, the noise, the labels that are dropped, the ledger, the stored file.
"""

import hashlib
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm
from torch import Tensor

from prismfl.data.images import ImageSet
from prismfl.moments import Block, FeatureMap
from prismfl.privacy.source import SourceLedger, spent_of
from prismfl.privacy.store import Releases, dealing_of
from prismfl.settings.schema import Privacy

CLIENTS, LABELS = 3, 3
SIDES = 4, 8
PIXELS = SIDES[0] * SIDES[1]
_LABEL_WEIGHT = 0.1  # of a label's count in a vector of norm 1, as docs/concepts/privacy.md has it
_LEAST, _LARGE = 120, 750  # images of a client
_BRIGHT = 4.0  # norm of a canary's features before it is held to 1
_DIM = 12  # of a pixel of other images: their features have norm below 1


class PixelFeatures(FeatureMap):
    """A feature map whose features are pixels, white ones `bright`: two blocks with weights of their own.

    Its vectors are not of norm ≤ 1, which the release must see to itself.
    """

    def __init__(self, pixels: int = PIXELS, bright: float = _BRIGHT) -> None:
        self.dimension, self.bright = pixels, bright
        self.blocks = Block(pixels // 4, 0.6), Block(pixels - pixels // 4, 0.8)

    def vectors(self, images: NDArray[np.uint8], first: int = 0) -> Tensor:  # noqa: ARG002 - as its base has it
        """Pixels of uint8 `[B, 1, H, W]`: float32 `[B, H · W]`."""
        return torch.from_numpy(images.reshape(len(images), -1)).float() * (self.bright / 255)

    def fingerprint(self) -> str:
        """Names this map."""
        return hashlib.sha256(repr((type(self).__name__, self.dimension, self.bright)).encode()).hexdigest()


@dataclass(frozen=True)
class Probe:
    """What was released, of so many runs on neighbouring sources by turns.

    moments: float64 `[R, CLIENTS, LABELS, PIXELS]`; residuals: those less the true ones, in units of the noise that the
    promise needs, nan where a label drowned; known: float64 `[CLIENTS, LABELS, PIXELS]`, true means of what an attacker
    knows, all images but one person's; shares: float64 `[R, CLIENTS, LABELS]`; there: bool `[R]`, whether the
    canaries were; whose, label: int64 `[R]`, their client, and their label (1, or 2 that nobody else has); same:
    whether what was asked for again was as before, and its ledger counted it once and as promised; sizes: images of
    each client; weights: float64 `[PIXELS]`, of entries, in the inverse of their noise's variance.
    """

    moments: NDArray[np.float64]
    residuals: NDArray[np.float64]
    known: NDArray[np.float64]
    shares: NDArray[np.float64]
    there: NDArray[np.bool_]
    whose: NDArray[np.int64]
    label: NDArray[np.int64]
    same: bool
    sizes: tuple[int, ...]
    weights: NDArray[np.float64]


def needed(epsilon: float, delta: float) -> float:
    """σ / Δ of Gaussian noise that is (ε, δ)-DP, from Balle and Wang's theorem 8 (2018) and no library of privacy."""

    def excess(z: float) -> float:
        one, two = 0.5 / z - epsilon * z, -0.5 / z - epsilon * z
        return float(norm.cdf(one) - math.exp(epsilon + norm.logcdf(two))) - delta

    return float(brentq(excess, 1e-3, 1e6, xtol=1e-12))


def probe(privacy: Privacy, runs: int, seed: int = 0, each: int = 0, after: Callable[[int], object] = int) -> Probe:
    """So many runs' releases with and without canaries, by turns; unit and adjacency are those of the release.

    The unit is the images of one person at one client, `images_per_person` of them, or where it is known whose each is
    all of them, `each` of everybody; adjacency is replace-one.  after: told of each run.
    """
    coins, of_person = np.random.default_rng(seed), each or privacy.images_per_person
    multiplier = needed(privacy.epsilon, privacy.delta) * privacy.images_per_person
    # As many images that no label of theirs drowns in the noise of its count.
    least = max(_LEAST, math.ceil(10 * math.sqrt(2) / _LABEL_WEIGHT * multiplier))
    sizes = (least, max(_LARGE, 3 * least), least)
    features, found = PixelFeatures(), []
    whole = [_images(size, coins, each) for size in sizes]
    for number in range(runs):
        there, whose = number % 2 == 0, number // 2 % CLIENTS
        label = 2 if number // 2 // CLIENTS % 4 == 3 else 1
        start = int(coins.integers(0, sizes[whose] if each else sizes[whose] - of_person + 1)) * max(1, each)
        rows = slice(start, start + of_person)
        clients = [_with(one, rows, there, label) if at == whose else one for at, one in enumerate(whole)]
        after(1)
        found.append((*_released(features, clients, privacy), there, whose, label, [_means(one) for one in clients]))
    moments, shares, same, present, clients_of, labels, means = (list(column) for column in zip(*found, strict=True))
    told, weights = np.array(moments), _weights(features)
    scale = multiplier * math.sqrt(2) / np.array(sizes)
    heard = (told != 0).any(-1, keepdims=True)
    return Probe(
        told,
        np.where(heard, (told - np.array(means)) * np.sqrt(weights) / scale[:, None, None], np.nan),
        np.array([_means(one) for one in whole]),
        np.array(shares),
        np.array(present),
        np.array(clients_of),
        np.array(labels),
        all(same),
        sizes,
        weights,
    )


def _images(count: int, coins: np.random.Generator, each: int) -> ImageSet:
    """Dim images of random patterns, of labels 0 and 1 by turns; each: images of a person, 0 where none are known."""
    total = count * max(1, each)
    images, people = (coins.random((total, 1, *SIDES)) < 0.5) * np.uint8(_DIM), np.arange(total) // max(1, each)
    labels = np.arange(total) % 2
    return ImageSet(images.astype(np.uint8), labels, ("zero", "one", "two"), people=people if each else None)


def _with(whole: ImageSet, rows: slice, there: bool, label: int) -> ImageSet:
    """The images with one person's in some rows: canaries of a label, or what replaces them, of label 0."""
    images, labels = whole.images.copy(), whole.labels.copy()
    images[rows] = 0
    images[rows].reshape(-1, PIXELS)[:, 0 if there else PIXELS - 1] = 255
    labels[rows] = label if there else 0
    return replace(whole, images=images, labels=labels)


def _released(
    features: FeatureMap, clients: list[ImageSet], privacy: Privacy
) -> tuple[NDArray[np.float64], NDArray[np.float64], bool]:
    """What all clients released: moments, shares, and whether asking again and the ledger say the same."""
    with tempfile.TemporaryDirectory() as root:
        source = SourceLedger(Path(root) / "ledger.jsonl")
        releases = Releases(features, LABELS, privacy, source, dealing_of(clients))
        targets = [releases.of(client, mine)[1].target for client, mine in enumerate(clients)]
        again = [releases.of(client, mine)[1].target for client, mine in enumerate(clients)]
        same = all(
            np.array_equal(one.moments, other.moments) and np.array_equal(one.shares, other.shares)
            for one, other in zip(targets, again, strict=True)
        )
        held = source.releases()
        counted = len(held) == len(clients) and spent_of(held, privacy.delta).epsilon <= privacy.epsilon * (1 + 1e-6)
    moments = np.array([target.moments.reshape(LABELS, PIXELS) for target in targets], np.float64)
    return moments, np.array([target.shares for target in targets], np.float64), same and counted


def _means(mine: ImageSet) -> NDArray[np.float64]:
    """What moments would be without noise, by another way than the release's: float64 `[LABELS, PIXELS]`."""
    vectors = mine.images.reshape(len(mine), -1) * (_BRIGHT / 255)
    vectors = vectors / np.maximum(1, _norms(vectors))[:, None]
    return np.array([vectors[mine.labels == label].sum(0) for label in range(LABELS)]) / len(mine)


def _norms(vectors: NDArray[Any]) -> NDArray[np.float64]:
    """Norms in a release, whose blocks have weights of their own."""
    return np.asarray(np.linalg.norm(vectors * np.sqrt(_weights(PixelFeatures())), axis=1))


def _weights(features: PixelFeatures) -> NDArray[np.float64]:
    """Squares of what each entry is stretched by before the noise: float64 `[PIXELS]`."""
    weights, sizes = (np.array([getattr(b, name) for b in features.blocks]) for name in ("weight", "size"))
    squares = weights * np.sqrt(sizes) * (weights @ weights) / (weights * np.sqrt(sizes)).sum()
    return np.repeat(squares / weights**2, sizes)


def expected_spread(probe: Probe, privacy: Privacy, seed: int = 0) -> float:
    """Standard deviation of the largest client's shares, were their counts as noisy as the promise needs."""
    draws, size = np.random.default_rng(seed), max(probe.sizes)
    sigma = needed(privacy.epsilon, privacy.delta) * privacy.images_per_person * math.sqrt(2) / _LABEL_WEIGHT
    counts = np.array([size / 2, size / 2, 0]) + sigma * draws.normal(size=(20_000, LABELS))
    heard = np.where(counts > 2 * sigma, counts, 0)
    return float((heard / heard.sum(1, keepdims=True))[:, 0].std())
