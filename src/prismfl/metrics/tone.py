"""Tone and colour of images, counted by pixels: what a reader checks a distance by."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prismfl.errors import DataError

BLACK, WHITE, MIDDLE = 0.06, 0.94, (0.25, 0.75)
LEAST = 1  # images
_LUMA = (0.299, 0.587, 0.114)
_BLOCK = 1000  # images at a time


@dataclass(frozen=True)
class Tone:
    """Shares of pixels by luma (Rec. 601, 0 … 1), and how far a pixel's channels lie apart.

    black: luma < 0.06; white: > 0.94; midtone: 0.25 … 0.75; channel_range: mean of a pixel's largest less its smallest
    channel, 0 … 255: 0 in grey images.
    """

    black: float
    white: float
    midtone: float
    channel_range: float


def tone(images: NDArray[np.uint8]) -> Tone:
    """Tone and colour of uint8 `[n, 1 or 3, H, W]`.  Raises DataError for no images."""
    if not len(images):
        raise DataError("no images", "at least one", "give more images")
    parts = [_counted(images[start : start + _BLOCK]) for start in range(0, len(images), _BLOCK)]
    pixels = len(images) * images.shape[2] * images.shape[3]
    return Tone(*(float(total) for total in np.sum(parts, axis=0) / pixels))


def _counted(images: NDArray[np.uint8]) -> tuple[float, float, float, float]:
    """Of uint8 `[n, C, H, W]`: dark, light and middling pixels, and the sum of all ranges."""
    luma = images[:, 0] / 255 if images.shape[1] == 1 else np.tensordot(_LUMA, images / 255, (0, 1))
    middle = (luma >= MIDDLE[0]) & (luma <= MIDDLE[1])
    ranges = images.max(1).astype(np.int64) - images.min(1)
    return (luma < BLACK).sum(), (luma > WHITE).sum(), middle.sum(), ranges.sum()
