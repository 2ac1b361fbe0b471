"""Convolutions of small maps, several images side by side, where the processor has a matrix unit.

A matrix unit multiplies sixteen rows at a time, and the library hands it the pixels of one line of one image: on lines
of four most of it stands idle.  Images in a row, a column of zeros after each, are one wide map that has the same
convolutions.  Without such a unit lines of any length are as good, and joining them costs time.
"""

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

_LINE = 64  # pixels of a joined line
_UNIT = "_is_amx_tile_supported"


@cache
def matrix_unit() -> bool:
    """Whether this processor multiplies tiles of bfloat16 (Intel's AMX)."""
    # A private name of torch: where it is gone, maps are left as they are.
    return bool(getattr(torch.cpu, _UNIT, bool)())


def convolved(x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution by a 3×3 kernel with a border of zeros: `[B, I, H, W]` → `[B, O, H, W]`.

    kernel: `[O, I, 3, 3]`; bias: `[O]`.
    """
    images = together(x, most=4)
    if images == 1:
        return F.conv2d(x, kernel, bias, padding=1)
    return parted(F.conv2d(joined(x, images), kernel, bias, padding=1), x.shape[3], images, gap=1)


def together(x: Tensor, most: int) -> int:
    """How many images of `[B, C, H, W]` pay for being joined, none of more than `most` pixels a line: 1 for none."""
    side = x.shape[3]
    fits = x.device.type == "cpu" and x.dtype == torch.bfloat16 and side <= most and matrix_unit()
    return math.gcd(len(x), _LINE // side) if fits else 1


def joined(x: Tensor, images: int) -> Tensor:
    """So many images side by side, a column of zeros after each: `[B / images, C, H, images · (W + 1)]`."""
    count, channels, high, wide = x.shape
    lines = x.permute(0, 2, 3, 1).unflatten(0, (count // images, images)).transpose(1, 2)
    return F.pad(lines, (0, 0, 0, 1)).reshape(-1, high, images * (wide + 1), channels).permute(0, 3, 1, 2)


def parted(x: Tensor, wide: int, images: int, gap: int) -> Tensor:
    """Images of so many pixels a line out of a row of them, without the gap after each: `[B, C, H, wide]`."""
    lines = x.permute(0, 2, 3, 1).unflatten(2, (images, wide + gap))[:, :, :, :wide]
    found: Tensor = lines.transpose(1, 2).flatten(0, 1).permute(0, 3, 1, 2)
    return found
