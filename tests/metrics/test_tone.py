"""Tone and colour against pixels that are counted by hand."""

import numpy as np
import pytest

from prismfl.errors import DataError
from prismfl.metrics.tone import Tone, tone


def flat(*colour):
    """An image of 2×2 pixels of one colour: uint8 `[1, C, 2, 2]`."""
    return np.array(colour, np.uint8)[None, :, None, None].repeat(2, 2).repeat(2, 3)


def test_pixels_are_counted_by_their_luma():
    images = np.concatenate([flat(grey) for grey in (0, 15, 16, 63, 64, 191, 192, 239, 240, 255)])
    assert tone(images) == Tone(0.2, 0.2, 0.2, 0.0)


def test_colours_have_a_range_and_the_luma_of_rec_601():
    # Luma of pure red is 0.299, of green 0.587, of blue 0.114: two of three are midtones.
    found = tone(np.concatenate([flat(255, 0, 0), flat(0, 255, 0), flat(0, 0, 255), flat(10, 40, 20)]))
    assert found == Tone(0.0, 0.0, 0.5, (3 * 255 + 30) / 4)


def test_blocks_add_up_and_no_images_are_refused():
    images = np.random.default_rng(0).integers(0, 256, (1003, 3, 4, 4), np.uint8)
    luma = np.tensordot((0.299, 0.587, 0.114), images / 255, (0, 1))
    assert tone(images).black == pytest.approx((luma < 0.06).mean())
    assert tone(images).channel_range == pytest.approx((images.max(1).astype(int) - images.min(1)).mean())
    with pytest.raises(DataError, match="no images"):
        tone(images[:0])
