"""Fréchet distances: `fid_embedded` in the embedded judge network, `fid` in Inception-v3."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from prismfl.errors import DataError, DependencyError
from prismfl.nets.features import FeatureNet, load_features
from prismfl.nets.inception import Inception

JUDGE_SIZE = 32  # pixels that the judge was trained at


class _Embedding(nn.Module):
    """The judge as torchmetrics wants a feature extractor: uint8 images in, features out."""

    def __init__(self, net: FeatureNet) -> None:
        super().__init__()
        self.net, self.num_features = net, net.width

    def forward(self, images: Tensor) -> Tensor:
        return embed(self.net, images)


def embed(net: FeatureNet, images: Tensor) -> Tensor:
    """Judge features of uint8 `[B, C, H, W]`: float32 `[B, width]`, images scaled to 32 pixels."""
    x = images.float().div(127.5).sub(1)
    if x.shape[-1] != JUDGE_SIZE:
        x = F.interpolate(x, (JUDGE_SIZE, JUDGE_SIZE), mode="bilinear", antialias=True)
    return net.embed(x.contiguous(memory_format=torch.channels_last))


def fid_embedded(real: NDArray[np.uint8], fake: NDArray[np.uint8], batch: int = 250, device: str = "cpu") -> float:
    """Fréchet distance between judge features of two image sets, uint8 `[n, C, H, W]` each.

    `‖μ₁ - μ₂‖² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½)` (Heusel et al. 2017), computed by torchmetrics.
    Not comparable with Inception's FID.  Raises DataError for fewer than two images in a set,
    DependencyError when torchmetrics does not import.
    """
    if min(len(real), len(fake)) < 2:
        raise DataError(f"{len(real)} real and {len(fake)} generated images", "at least 2 of each", "give more images")
    metric = _metric(_Embedding(load_features("judge").net)).to(device)
    for images, is_real in ((real, True), (fake, False)):
        for start in range(0, len(images), batch):
            metric.update(torch.from_numpy(images[start : start + batch]).to(device), real=is_real)
    return float(metric.compute())


def fid(
    real: NDArray[np.uint8], fake: NDArray[np.uint8], inception: Inception, batch: int = 50, device: str = "cpu"
) -> float:
    """Fréchet inception distance of two image sets, uint8 `[n, C, H, W]` each.

    Images of any size are scaled as the network's makers did it; grey ones serve as three equal
    channels.  Raises DataError for fewer than two images in a set, DependencyError when
    torchmetrics does not import.
    """
    if min(len(real), len(fake)) < 2:
        raise DataError(f"{len(real)} real and {len(fake)} generated images", "at least 2 of each", "give more images")
    inception.to(device)
    features = [torch.from_numpy(inception.features(images, batch)) for images in (real, fake)]
    metric = _metric(_Given(features[0].shape[1]))
    for found, is_real in zip(features, (True, False), strict=True):
        metric.update(found, real=is_real)
    return float(metric.compute())


class _Given(nn.Module):
    """What torchmetrics takes for a feature extractor where features are there already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


def _metric(extractor: nn.Module) -> Any:
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except (ImportError, RuntimeError) as error:  # a torchvision that does not fit torch raises RuntimeError
        raise DependencyError(
            f"torchmetrics does not import ({error})",
            "torchmetrics beside torch",
            "remove or mend torchvision, or reinstall",
        ) from None
    return FrechetInceptionDistance(feature=extractor, input_img_size=(3, JUDGE_SIZE, JUDGE_SIZE))
