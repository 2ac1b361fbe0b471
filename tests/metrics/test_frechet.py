"""`fid_judge` against a computation of its own, and how it behaves."""

import sys

import numpy as np
import pytest
import scipy.linalg
import torch

from prismfl.data.datasets import ImageSet
from prismfl.errors import DataError, DependencyError
from prismfl.metrics.distances import Reference, embed, frechet, judge_features, load_judge


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def blots(count, seed, channels=3, size=32):
    """Smooth random pictures: uint8 `[count, channels, size, size]`."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, channels, 4, 4)).astype(np.uint8)
    return coarse.repeat(size // 4, 2).repeat(size // 4, 3)


def noisy(images, share, seed=9):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(images.shape) < share, rng.integers(0, 256, images.shape), images).astype(np.uint8)


def fid_judge(real, fake, batch=32):
    """Of images uint8 `[n, C, H, W]`."""
    return frechet(judge_features(real, batch), judge_features(fake, batch))


def distance(real, fake):
    """The formula, term by term, in double precision."""
    net = load_judge().net
    with torch.no_grad():
        a, b = (embed(net, torch.from_numpy(x)).double().numpy() for x in (real, fake))
    root = scipy.linalg.sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False))
    trace = np.cov(a, rowvar=False).trace() + np.cov(b, rowvar=False).trace() - 2 * np.trace(root).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + trace)


# More images than the judge has features, so that covariances have full rank.
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 16)])
def test_it_equals_an_independent_computation(channels, size):
    real = blots(300, 0, channels, size)
    fake = noisy(blots(290, 1, channels, size), 0.3)
    assert fid_judge(real, fake) == pytest.approx(distance(real, fake), rel=1e-3)


def test_batches_do_not_matter():
    real, fake = blots(60, 0), noisy(blots(50, 1), 0.2)
    assert fid_judge(real, fake, batch=17) == pytest.approx(fid_judge(real, fake), rel=1e-4)


def test_features_are_those_of_the_judge_and_no_images_are_refused():
    images = blots(7, 0)
    with torch.no_grad():
        expected = embed(load_judge().net, torch.from_numpy(images)).numpy()
    assert np.allclose(judge_features(images, batch=3), expected, atol=1e-5)
    with pytest.raises(DataError, match="no images"):
        judge_features(images[:0])


def test_the_same_set_has_no_distance_and_order_is_nothing():
    real = blots(100, 0)
    far = fid_judge(real, noisy(real, 0.5))
    assert abs(fid_judge(real, real)) < 1e-3 * far
    assert abs(fid_judge(real, real[::-1].copy())) < 1e-3 * far


def test_it_is_symmetric():
    real, fake = blots(60, 0), noisy(blots(60, 1), 0.2)
    assert fid_judge(real, fake) == pytest.approx(fid_judge(fake, real), rel=1e-3)


def test_it_grows_with_corruption():
    real = blots(100, 0)
    found = [fid_judge(real, noisy(real, share)) for share in (0.0, 0.05, 0.2, 0.6)]
    assert found == sorted(found) and found[-1] > 2 * found[1] > 0


def test_fewer_rows_than_features_have_the_same_distance_in_the_space_they_span():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 30, 8)).astype(np.float32) * (1, 2, 3, 1, 1, 1, 1, 1)
    a, b = a.astype(np.float32), (b + 1).astype(np.float32)
    wider = np.linalg.qr(rng.normal(size=(100, 8)))[0].T.astype(np.float32)  # a rotation into 100 features
    assert frechet(a @ wider, b @ wider) == pytest.approx(frechet(a, b), rel=1e-4)


def test_halves_of_one_set_are_nearer_than_another_set():
    real = Reference(ImageSet(blots(80, 0), np.zeros(80, np.int64), ("one",)))
    assert 0 < real.halves < real.distance(noisy(blots(40, 1), 0.3))
    assert real.distance(blots(40, 1)) == frechet(real.features, judge_features(blots(40, 1)))
    assert Reference(ImageSet(blots(3, 0), np.zeros(3, np.int64), ("one",))).halves is None


def test_grey_is_three_equal_channels():
    grey = blots(40, 0, channels=1)
    other = noisy(grey, 0.3)
    assert fid_judge(grey.repeat(3, 1), other) == pytest.approx(fid_judge(grey, other), rel=1e-3)


@pytest.mark.parametrize(("real", "fake"), [(0, 5), (1, 5), (5, 1), (5, 0)])
def test_fewer_than_two_images_are_refused(real, fake):
    with pytest.raises(DataError, match=f"{real} real and {fake} generated images; expected at least 2"):
        frechet(np.zeros((real, 9), np.float32), np.zeros((fake, 9), np.float32))


class Broken:
    """An import hook that fails as a torchvision built for another torch does."""

    def __init__(self, name, error):
        self.name, self.error = name, error

    def find_spec(self, name, *_):
        if name == self.name:
            raise self.error


@pytest.mark.parametrize(
    "error", [RuntimeError("operator torchvision::nms does not exist"), ImportError("no such module")]
)
def test_a_torchmetrics_that_does_not_import_is_named(monkeypatch, error):
    for name in [n for n in sys.modules if n.startswith("torchmetrics.image")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken("torchmetrics.image.fid", error), *sys.meta_path])
    with pytest.raises(DependencyError, match="torchmetrics does not import") as caught:
        fid_judge(blots(3, 0), blots(3, 1))
    assert str(error) in str(caught.value) and "torchvision" in caught.value.remedy


def test_a_missing_torchmetrics_is_named(monkeypatch):
    for name in [n for n in sys.modules if n.startswith("torchmetrics")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(DependencyError, match="torchmetrics does not import"):
        fid_judge(blots(3, 0), blots(3, 1))
