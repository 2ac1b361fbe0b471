"""Images as the judge sees them: what every `…_judge` figure is measured in.

The judge is EfficientNet-Lite2, trained on ImageNet (see `prismfl.nets.efficientnet`): images are scaled up to 96 pixels,
and its last map's means are the features.
"""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from prismfl.errors import DataError
from prismfl.nets.efficientnet import JUDGE, load_lite
from prismfl.nets.features import FeatureNet, LoadedNet

JUDGE_SIZE = 96  # pixels: smaller ones see less, larger ones take longer
BATCH = 32  # the widest maps of more images leave a processor's cache


@cache
def load_judge() -> LoadedNet:
    """The judge, read once a process.  Raises DependencyError without the package of its weights."""
    return load_lite(JUDGE)


def embed(net: FeatureNet, images: Tensor) -> Tensor:
    """Judge features of uint8 `[B, C, H, W]`: float32 `[B, 1280]`, images scaled to 96 pixels."""
    x = images.float().div(127.5).sub(1)
    if x.shape[-1] != JUDGE_SIZE:
        x = F.interpolate(x, (JUDGE_SIZE, JUDGE_SIZE), mode="bilinear", antialias=True)
    return net.embed(x.contiguous(memory_format=torch.channels_last))


@torch.no_grad()
def judge_features(images: NDArray[np.uint8], batch: int = BATCH, device: str = "cpu") -> NDArray[np.float32]:
    """Judge features of uint8 `[n, C, H, W]`: float32 `[n, 1280]`.  Raises DataError for no images."""
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
