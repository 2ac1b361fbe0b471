"""Tones and colours of an image, cell by cell: bounded features of its pixels, without a network.

Unit vectors of a network's maps hardly say how bright or how strong in contrast an image is.  These do.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_SIDE = 16  # pixels a side that tones are taken of: images are averaged down to it
_MEANS, _CELLS = 8, 4  # cells a side, of means and of histograms
_LEVELS = 9  # of a histogram, from -1 to 1: each pixel counts for the two next to it


def mean_colours(x: Tensor) -> Tensor:
    """Means of 8×8 cells, from 0 to 1: `[B, C, H, W]` in [-1, 1] → `[B, C · 64]` of norm ≤ 1, never below 0."""
    means = (1 + _averaged(x, _MEANS).flatten(1)) / 2
    found: Tensor = means / means.shape[1] ** 0.5
    return found


def tone_histograms(x: Tensor) -> Tensor:
    """Histograms of each channel and of brightness in 4×4 cells: `[B, d]` of norm ≤ 1, never below 0.

    x: `[B, C, H, W]` in [-1, 1].  A pixel's share of a level falls linearly to 0 at the next one, so a histogram
    sums to 1, and its norm is 1 at most; all of them together are divided by the root of their number.
    """
    small = _averaged(x, _SIDE)
    if small.shape[1] > 1:
        small = torch.cat((small, small.mean(1, keepdim=True)), 1)
    levels = torch.linspace(-1, 1, _LEVELS, device=x.device, dtype=x.dtype)
    shares = F.relu(1 - (small[:, :, None] - levels[:, None, None]).abs() * ((_LEVELS - 1) / 2))
    counts = _averaged(shares.flatten(1, 2), _CELLS).flatten(1)
    found: Tensor = counts / (small.shape[1] * _CELLS**2) ** 0.5
    return found


def _averaged(x: Tensor, side: int) -> Tensor:
    return F.avg_pool2d(x, x.shape[-1] // side) if x.shape[-1] > side else x
