"""Images: scaling keeps what it should, and many images lie in a file that vanishes."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import png

from prismfl.data import images as images_module
from prismfl.data.datasets import load_dataset
from prismfl.data.images import ImageSet, deal, fit, room
from prismfl.errors import DataError

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


@given(st.integers(1, 2500), st.sampled_from([(9, 9), (16, 16), (20, 12)]))
def test_fitting_many_is_fitting_each(count, shape):
    images = np.random.default_rng(count).integers(0, 256, (count, 1, *shape), np.uint8)
    found = fit(images, 16)
    for row in {0, count // 2, count - 1, min(count - 1, 1024)}:
        assert np.array_equal(found[row], fit(images[row : row + 1], 16)[0])


# --------------------------------------------------------------------------------- many images


@pytest.fixture
def low_limit(monkeypatch):
    """Nothing larger than a kilobyte stays in memory."""
    monkeypatch.setattr(images_module, "LARGE", 1024)


def test_small_images_are_in_memory(tmp_path):
    assert type(room((3, 1, 8, 8), tmp_path)) is np.ndarray and not list(tmp_path.iterdir())


def test_the_limit_is_what_fits(low_limit, tmp_path):
    assert not isinstance(room((4, 1, 16, 16), tmp_path), np.memmap)
    assert isinstance(room((5, 1, 16, 16), tmp_path), np.memmap)


def test_large_images_lie_in_a_file_that_nobody_sees(low_limit, tmp_path):
    found = room((50, 1, 16, 16), tmp_path / "new" / "folder")
    assert isinstance(found, np.memmap) and found.dtype == np.uint8 and found.shape == (50, 1, 16, 16)
    found[:] = 7
    assert found.sum() == 7 * found.size
    if os.name == "posix":
        assert not list((tmp_path / "new" / "folder").iterdir()), "unlinked while it is used"


def test_nothing_is_left_behind_by_a_process(tmp_path):
    text = """
from prismfl.data import images
images.LARGE = 10
found = images.room((5000, 1, 16, 16))
found[:] = 3
"""
    env = os.environ | {"TMPDIR": str(tmp_path), "TEMP": str(tmp_path)}
    subprocess.run([sys.executable, "-c", text], check=True, timeout=60, env=env)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(2**50, 1, 16, 16), (2**62, 3, 32, 32)])
def test_a_disk_without_room_is_named(tmp_path, shape):
    with pytest.raises(DataError, match=r"no room for .* bytes of images in .*running\.cache_dir"):
        room(shape, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(low_limit, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"no room for .*file"):
        room((50, 1, 16, 16), tmp_path / "file")


def test_a_disk_that_fills_up_is_found_before_anything_is_written(low_limit, tmp_path, monkeypatch):
    """Writing into a map on a full disk would kill the process."""

    def full(*_):
        raise OSError(28, "No space left on device")

    if not hasattr(os, "posix_fallocate"):
        pytest.skip("this system reserves no room")
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError, match="No space left"):
        room((50, 1, 16, 16), tmp_path)
    assert not list(tmp_path.iterdir())


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.booleans())
def test_dealing_gives_each_part_its_images(owners, large):
    owners = np.array(owners)
    images = np.random.default_rng(1).integers(0, 256, (len(owners), 1, 4, 4), np.uint8)
    parts = [np.flatnonzero(owners == owner) for owner in np.unique(owners)]
    before = images_module.LARGE
    images_module.LARGE = 1 if large else before
    try:
        held = room(images.shape)
        held[:] = images
        found = deal(ImageSet(held, owners, tuple("abcde")), parts)
    finally:
        images_module.LARGE = before
    for rows, part in zip(parts, found, strict=True):
        assert np.array_equal(part.images, images[rows]) and np.array_equal(part.labels, owners[rows])
        assert isinstance(part.images, np.memmap) == large and part.classes == tuple("abcde")
        assert np.array_equal(part.part(np.array([0])).images, images[rows[:1]])


@pytest.mark.parametrize("grey", [True, False])
def test_large_folders_give_the_images_that_small_ones_give(grey, tmp_path, monkeypatch):
    made = RNG.integers(0, 256, (30, 20, 20) if grey else (30, 20, 20, 3), np.uint8)
    for index, image in enumerate(made):
        path = tmp_path / "in" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image))
    small = load_dataset("folder", tmp_path / "in", 16, "train")
    monkeypatch.setattr(images_module, "LARGE", 1000)
    large = load_dataset("folder", tmp_path / "in", 16, "train", scratch=tmp_path)
    assert isinstance(large.images, np.memmap) and not isinstance(small.images, np.memmap)
    assert large.images.shape == small.images.shape and np.array_equal(large.images, small.images)
    assert small.images.shape[1] == (1 if grey else 3)
