"""Images as the judge sees them: what every `…_judge` figure is measured in.

The judge is EfficientNet-Lite2, trained on ImageNet (see `prismfl.features.efficientnet`), of images scaled to 96
pixels.  Two of its maps, averaged over places: the last one says what is shown; an early one, of 144 channels, sees
colour and sharpness, to which the last is half blind.  The last one's 1,280 channels are averaged by tens: the
distance of so many features is mostly bias unless there are far more images.  Each map's features vary by one in the
mean on natural images, so that both count alike.
"""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from prismfl.errors import DataError
from prismfl.features.efficientnet import JUDGE, load_lite
from prismfl.features.networks import FeatureNet, LoadedNet

JUDGE_SIZE = 96  # pixels: at 64 it tells classes less well, at 128 it takes twice as long
JUDGE_FEATURES = 272
BATCH = 32  # the widest maps of more images leave a processor's cache
_EARLY, _EARLY_UNIT = 5, 0.2  # the map's number; root of the mean variance of its averages on CIFAR-10's test images
_LAST_MEANS, _LAST_UNIT = 128, 0.39
_BLACK, _WHITE = 8, 247  # levels beyond are as good as black and white to an eye


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


@torch.no_grad()
def judge_features(images: NDArray[np.uint8], batch: int = BATCH, device: str = "cpu") -> NDArray[np.float32]:
    """Judge features of uint8 `[n, C, H, W]`: float32 `[n, 272]`.  Raises DataError for no images."""
    if not len(images):
        raise DataError("no images", "at least one", "give more images")
    net = load_judge().net.to(device)
    starts = range(0, len(images), batch)
    parts = [embed(net, torch.from_numpy(images[start : start + batch]).to(device)).cpu() for start in starts]
    return torch.cat(parts).numpy()


def enough(real: NDArray[np.generic], fake: NDArray[np.generic], least: int) -> None:
    """Raises DataError unless both sets have `least` rows."""
    if min(len(real), len(fake)) < least:
        raise DataError(
            f"{len(real)} real and {len(fake)} generated images", f"at least {least} of each", "give more images"
        )
