"""Images as the embedded judge network sees them: what every `…_embedded` figure is measured in."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from prismfl.errors import DataError
from prismfl.nets.features import FeatureNet, load_features

JUDGE_SIZE = 32  # pixels that the judge was trained at


def embed(net: FeatureNet, images: Tensor) -> Tensor:
    """Judge features of uint8 `[B, C, H, W]`: float32 `[B, width]`, images scaled to 32 pixels."""
    x = images.float().div(127.5).sub(1)
    if x.shape[-1] != JUDGE_SIZE:
        x = F.interpolate(x, (JUDGE_SIZE, JUDGE_SIZE), mode="bilinear", antialias=True)
    return net.embed(x.contiguous(memory_format=torch.channels_last))


@torch.no_grad()
def judge_features(images: NDArray[np.uint8], batch: int = 250, device: str = "cpu") -> NDArray[np.float32]:
    """Judge features of uint8 `[n, C, H, W]`: float32 `[n, 160]`.  Raises DataError for no images."""
    if not len(images):
        raise DataError("no images", "at least one", "give more images")
    net = load_features("judge").net.to(device)
    starts = range(0, len(images), batch)
    parts = [embed(net, torch.from_numpy(images[start : start + batch]).to(device)).cpu() for start in starts]
    return torch.cat(parts).numpy()


def enough(real: NDArray[np.generic], fake: NDArray[np.generic], least: int) -> None:
    """Raises DataError unless both sets have `least` rows."""
    if min(len(real), len(fake)) < least:
        raise DataError(
            f"{len(real)} real and {len(fake)} generated images", f"at least {least} of each", "give more images"
        )
