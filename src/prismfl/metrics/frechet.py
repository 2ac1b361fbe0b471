"""Fréchet distances: `fid_judge` in the judge network, `fid` in Inception-v3."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from prismfl.data.datasets import ImageSet
from prismfl.features.inception import Inception
from prismfl.metrics.embedding import enough, judge_features
from prismfl.metrics.optional import of_torchmetrics
from prismfl.seeding.philox import Purpose, Stream


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

    def distance(self, samples: NDArray[np.uint8]) -> float:
        """Fréchet distance of samples uint8 `[n, C, H, W]`; see `frechet`."""
        enough(self.test.images, samples, 2)
        return frechet(self.features, judge_features(samples, device=self.device))


class _Given(nn.Module):
    """What torchmetrics takes for a feature extractor where features are there already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def fid_judge(real: NDArray[np.uint8], fake: NDArray[np.uint8], batch: int = 250, device: str = "cpu") -> float:
    """Fréchet distance between judge features of two image sets, uint8 `[n, C, H, W]` each.

    See `frechet`.  Not comparable with Inception's FID.  Raises DataError for fewer than two
    images in a set, DependencyError when torchmetrics does not import.
    """
    enough(real, fake, 2)
    return frechet(judge_features(real, batch, device), judge_features(fake, batch, device))


def frechet(real: NDArray[np.float32], fake: NDArray[np.float32]) -> float:
    """Fréchet distance between features float32 `[n, d]` of two image sets.

    `‖μ₁ - μ₂‖² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½)` (Heusel et al. 2017), computed by torchmetrics in double precision.
    It is biased upwards, the more the fewer rows: compare distances of equal numbers of images.
    Raises DataError for fewer than two rows in a set, DependencyError when torchmetrics does
    not import.
    """
    enough(real, fake, 2)
    real, fake = _spanned(real, fake)
    metric = of_torchmetrics("fid", "FrechetInceptionDistance")(feature=_Given(real.shape[1]))
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


def fid(
    real: NDArray[np.uint8], fake: NDArray[np.uint8], inception: Inception, batch: int = 50, device: str = "cpu"
) -> float:
    """Fréchet inception distance of two image sets, uint8 `[n, C, H, W]` each.

    Images of any size are scaled as the network's makers did it; grey ones serve as three equal
    channels.  Raises DataError for fewer than two images in a set, DependencyError when
    torchmetrics does not import.
    """
    enough(real, fake, 2)
    inception.to(device)
    return frechet(inception.features(real, batch), inception.features(fake, batch))
