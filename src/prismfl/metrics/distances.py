"""How far samples lie from real images: as the judge sees both, by Fréchet and kernel distance and by neighbourhoods.

The judge, what every `…_judge` figure is measured in, is EfficientNet-Lite2, trained on ImageNet (see
`prismfl.features.efficientnet`), of images scaled to 96 pixels.  Two of its maps, averaged over places: the last one
says what is shown; an early one, of 144 channels, sees colour and sharpness, to which the last is half blind.  The
last one's 1,280 channels are averaged by tens: the distance of so many features is mostly bias unless there are far
more images.  Each map's features vary by one in the mean on natural images, so that both count alike.
"""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.metrics import pairwise_distances_chunked
from torch import Tensor, nn

from prismfl.data.images import ImageSet
from prismfl.errors import DataError, DependencyError
from prismfl.features.efficientnet import JUDGE, load_lite
from prismfl.features.networks import FeatureNet, LoadedNet, in_batches
from prismfl.metrics.intervals import Estimate, estimate
from prismfl.metrics.text import BIASED
from prismfl.seeding.philox import Purpose, Stream

JUDGE_SIZE = 96  # pixels: at 64 it tells classes less well, at 128 it takes twice as long
JUDGE_FEATURES = 272
BATCH = 32  # the widest maps of more images leave a processor's cache
_EARLY, _EARLY_UNIT = 5, 0.2  # the map's number; root of the mean variance of its averages on CIFAR-10's test images
_LAST_MEANS, _LAST_UNIT = 128, 0.39
_BLACK, _WHITE = 8, 247  # levels beyond are as good as black and white to an eye

NEIGHBOURS = 5
# The fewest images a side: of the kernel distance two subsets of two, of neighbourhoods one more than neighbours.
FRECHET_LEAST, KERNEL_LEAST, NEIGHBOURS_LEAST = 2, 4, NEIGHBOURS + 1
SUBSETS, SUBSET_IMAGES = 10, 1000  # of the kernel distance
MOST = 10_000  # images a side that neighbourhoods are of
CHUNK_MB = 64  # of distances held at once


@cache
def load_judge() -> LoadedNet:
    """The judge, read once a process.  Raises DependencyError without the package of its weights."""
    return load_lite(JUDGE)


def embed(net: FeatureNet, images: Tensor) -> Tensor:
    """Judge features of uint8 `[B, C, H, W]`: float32 `[B, 272]`, images scaled to 96 pixels.

    Levels that look black or white count as such: a network's edges see 3 beside 0, which nobody does.
    """
    x = images.float().clamp(_BLACK, _WHITE).div(127.5).sub(1)
    if x.shape[-1] != JUDGE_SIZE:
        x = F.interpolate(x, (JUDGE_SIZE, JUDGE_SIZE), mode="bilinear", antialias=True)
    early = last = x
    for place, last in enumerate(net.walk(x.contiguous(memory_format=torch.channels_last))):
        early = last if place == _EARLY else early
    means = F.adaptive_avg_pool1d(last.mean((2, 3)), _LAST_MEANS)
    return torch.cat((early.mean((2, 3)) / _EARLY_UNIT, means / _LAST_UNIT), 1)


def judge_features(
    images: NDArray[np.uint8], batch: int = BATCH, device: str = "cpu", after: Callable[[int], object] = int
) -> NDArray[np.float32]:
    """Judge features of uint8 `[n, C, H, W]`: float32 `[n, 272]`.  Raises DataError for no images.

    after: told the size of each batch that is done.
    """
    if not len(images):
        raise DataError("no images", "at least one", "give more images")
    net = load_judge().net.to(device)

    def one(some: Tensor) -> Tensor:
        found = embed(net, some.to(device))
        after(len(some))
        return found

    return in_batches(one, images, batch).numpy()


def few(count: int, what: str = "fid_judge") -> list[str]:
    """A caution where a Fréchet distance is of so few images that it is mostly bias, else none."""
    if count >= JUDGE_FEATURES:
        return []
    return [f"{what} of {count} images, fewer than the judge's {JUDGE_FEATURES} features, {BIASED}: take more images"]


def enough(real: NDArray[np.generic], fake: NDArray[np.generic], least: int) -> None:
    """Raises DataError unless both sets have `least` rows."""
    if min(len(real), len(fake)) < least:
        raise DataError(
            f"{len(real)} real and {len(fake)} generated images", f"at least {least} of each", "give more images"
        )


def of_torchmetrics(module: str, name: str) -> Any:
    """A name from a module of `torchmetrics.image`.  Raises DependencyError when it does not import."""
    try:
        return getattr(importlib.import_module(f"torchmetrics.image.{module}"), name)
    except (ImportError, RuntimeError) as error:  # a torchvision that does not fit torch raises RuntimeError
        raise DependencyError(
            f"torchmetrics does not import ({error})",
            "torchmetrics beside torch",
            "remove or mend torchvision, or reinstall",
        ) from None


# ----------------------------------------------------------------------------------------- Fréchet


@dataclass(frozen=True)
class Reference:
    """Real images that distances are measured against: embedded when first asked for, and only once."""

    test: ImageSet
    device: str = "cpu"

    @cached_property
    def features(self) -> NDArray[np.float32]:
        """Judge features of the images: float32 `[n, 272]`."""
        return judge_features(self.test.images, device=self.device)

    @cached_property
    def halves(self) -> float | None:
        """Fréchet distance of one half of the images from the other, None of fewer than four."""
        order = Stream(0, Purpose.SUBSETS).permutation(len(self.test))
        half = len(order) // 2
        return frechet(self.features[order[:half]], self.features[order[half:]]) if half > 1 else None

    def distance(self, samples: NDArray[np.uint8], after: Callable[[int], object] = int) -> float:
        """Fréchet distance of samples uint8 `[n, C, H, W]`; see `frechet`.  after: as of `judge_features`."""
        return frechet(self.features, judge_features(samples, device=self.device, after=after))


def frechet(real: NDArray[np.float32], fake: NDArray[np.float32]) -> float:
    """Fréchet distance between features float32 `[n, d]` of two image sets.

    `‖μ₁ - μ₂‖² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½)` (Heusel et al. 2017), computed by torchmetrics in double precision.
    It is biased upwards, the more the fewer rows: compare distances of equal numbers of images.
    Raises DataError for fewer than two rows in a set, DependencyError when torchmetrics does
    not import.
    """
    enough(real, fake, FRECHET_LEAST)
    real, fake = _spanned(real, fake)
    given = nn.Identity()  # features are there already
    given.num_features = real.shape[1]
    metric = of_torchmetrics("fid", "FrechetInceptionDistance")(feature=given)
    metric.update(torch.from_numpy(real), real=True)
    metric.update(torch.from_numpy(fake), real=False)
    return float(metric.compute())


def _spanned(
    real: NDArray[np.float32], fake: NDArray[np.float32]
) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
    """Fewer rows than features, as coordinates in the space that all of them span.

    A rotation changes no Fréchet distance, and the features that are dropped are zero: the same number, with
    covariances that are no larger than they have to be.
    """
    rows = np.concatenate((real, fake)).astype(np.float64)
    if len(rows) >= rows.shape[1]:
        return real, fake
    flat = np.linalg.qr(rows.T).R.T
    return flat[: len(real)], flat[len(real) :]


# ------------------------------------------------------------------------------------------ kernel


def kernel_distance(real: NDArray[np.float32], fake: NDArray[np.float32]) -> Estimate:
    """Squared maximum mean discrepancy between features float32 `[n, d]` of two image sets.

    Unbiased, with kernel `(x·y / d + 1)³` (Bińkowski et al. 2018), by torchmetrics in double
    precision: the mean over ten disjoint subsets of up to 1,000 images, drawn by a fixed
    permutation, and its t-interval.  Disjoint, since an interval over overlapping subsets would
    shrink with their number.  Values about zero, negative ones too, say that no difference is seen.
    Raises DataError for fewer than four rows in a set, DependencyError when torchmetrics does
    not import.
    """
    enough(real, fake, KERNEL_LEAST)
    fewer, squared = min(len(real), len(fake)), of_torchmetrics("kid", "poly_mmd")
    count = min(SUBSETS, fewer // 2)
    pairs = zip(*(_subsets(rows, count, min(SUBSET_IMAGES, fewer // count)) for rows in (real, fake)), strict=True)
    return estimate([float(squared(a, b)) for a, b in pairs])


def _subsets(rows: NDArray[np.float32], count: int, size: int) -> list[torch.Tensor]:
    """`count` disjoint subsets of `size` rows, float64: image sets often come sorted by class."""
    order = Stream(0, Purpose.SUBSETS).permutation(len(rows))[: count * size]
    return list(torch.from_numpy(rows[order]).double().view(count, size, -1))


# ---------------------------------------------------------------------------------- neighbourhoods


@dataclass(frozen=True)
class Neighbourhoods:
    """How two image sets lie in each other's neighbourhoods.

    precision: share of generated images near real ones; recall: share of real images near
    generated ones (Kynkäänniemi et al. 2019); density: how many real neighbourhoods a generated
    image lies in, over their expected number: 1 where the sets are alike, more where samples
    crowd where real images do; coverage: share of real images that have a generated one in their
    neighbourhood (Naeem et al. 2020).
    """

    precision_judge: float
    recall_judge: float
    density_judge: float
    coverage_judge: float


@dataclass(frozen=True)
class Balls:
    """Features float32 `[n, d]`, each with the distance to its k-th nearest other one, float32 `[n]`."""

    rows: NDArray[np.float32]
    radii: NDArray[np.float32]


def balls(rows: NDArray[np.float32], neighbours: int = NEIGHBOURS) -> Balls:
    """Neighbourhoods of features float32 `[n, d]`: of 10,000 of them where there are more.

    Raises DataError for fewer than `neighbours + 1` rows.
    """
    enough(rows, rows, neighbours + 1)
    kept = np.ascontiguousarray(rows[np.sort(Stream(0, Purpose.SUBSETS).permutation(len(rows))[:MOST])])
    # Each row is its own nearest, at distance zero: the k-th other one is number k, from zero.
    parts = [np.partition(part, neighbours, axis=1)[:, neighbours].copy() for part in _distances(kept, kept)]
    return Balls(kept, np.concatenate(parts))


def compare(real: Balls, fake: Balls, neighbours: int = NEIGHBOURS) -> Neighbourhoods:
    """Precision, recall, density and coverage, as the `prdc` package computes them.

    Distances are made 64 MB at a time; the package holds all of them at once.
    """
    holders, covered, recalled, start = np.zeros(len(fake.rows), np.int64), [], [], 0
    for distances in _distances(real.rows, fake.rows):
        inside = distances < real.radii[start : start + len(distances), None]
        holders += inside.sum(0)
        covered.append(inside.any(1))
        recalled.append((distances < fake.radii).any(1))
        start += len(distances)
    return Neighbourhoods(
        float((holders > 0).mean()),
        float(np.concatenate(recalled).mean()),
        float(holders.mean() / neighbours),
        float(np.concatenate(covered).mean()),
    )


def _distances(a: NDArray[np.float32], b: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Euclidean distances of consecutive rows of `a` to all of `b`: float32 `[rows, len(b)]` at a time."""
    return pairwise_distances_chunked(a, b, working_memory=CHUNK_MB)  # type: ignore[no-any-return]
