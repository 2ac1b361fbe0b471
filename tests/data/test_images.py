"""Images: scaling keeps what it should, and many images lie in a file that vanishes."""

import numpy as np
import pytest

from prismfl.data.images import fit

RNG = np.random.default_rng(11)
TRAIN = RNG.integers(0, 256, (12, 28, 28), np.uint8)


def test_twenty_eight_pixels_are_padded_and_kept():
    found = fit(TRAIN[:, None], 32)
    assert np.array_equal(found[:, 0, 2:30, 2:30], TRAIN)
    assert found.sum() == TRAIN.sum()


@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("shape", [(28, 28), (32, 32), (100, 40), (8, 8)])
def test_resizing_keeps_shape_mean_and_channels(size, shape):
    ramp = np.broadcast_to(np.linspace(0, 255, shape[0])[:, None], shape).astype(np.uint8)
    images = np.stack([ramp, 255 - ramp, np.full(shape, 90, np.uint8)])[None].repeat(2, 0)
    found = fit(images, size)
    assert found.shape == (2, 3, size, size) and found.dtype == np.uint8
    assert np.abs(found.mean((2, 3)) - images.mean((2, 3))).max() < 1.5
    assert (np.diff(found[0, 0, :, 0].astype(int)) >= 0).all(), "a ramp stays a ramp"
    assert np.ptp(found[:, 2]) == 0, "a flat plane stays flat"


def test_halving_averages_pixels():
    images = RNG.integers(0, 256, (3, 1, 32, 32), np.uint8)
    means = images.reshape(3, 16, 2, 16, 2).mean((2, 4))
    assert np.abs(fit(images, 16)[:, 0] - means).max() <= 1, "each of the two passes rounds"


def test_the_right_size_is_left_alone():
    images = RNG.integers(0, 256, (3, 3, 16, 16), np.uint8)
    assert np.array_equal(fit(images, 16), images)
