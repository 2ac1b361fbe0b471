"""Train on synthetic, test on real: images of the right kind teach, others do not, and the same seed says the same."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from prismfl.data.datasets import ImageSet, load_dataset
from prismfl.errors import DataError
from prismfl.metrics.synthetic import _changed, _mirrored, worth

STEPS = 60


@pytest.fixture(scope="module")
def digits():
    torch.set_num_threads(1)
    return tuple(load_dataset("digits", None, 16, split) for split in ("train", "test"))


@pytest.fixture(scope="module")
def learnt(digits):
    train, test = digits
    return worth(train.images, train.labels, test, steps=STEPS)


def test_real_digits_teach_to_read_real_digits(learnt):
    assert learnt.accuracy > 0.85
    assert len(learnt.class_accuracies) == 10 and min(learnt.class_accuracies) > 0.5


def test_accuracy_is_the_mean_over_classes_by_their_images(learnt, digits):
    counts = np.bincount(digits[1].labels)
    assert learnt.accuracy == pytest.approx(np.dot(learnt.class_accuracies, counts) / counts.sum())


def test_wrong_labels_teach_nothing(digits):
    train, test = digits
    mixed = np.random.default_rng(0).permutation(train.labels)
    assert worth(train.images, mixed, test, steps=STEPS).accuracy < 0.4


def test_a_class_that_was_not_shown_is_not_known(digits):
    train, test = digits
    kept = train.part(np.flatnonzero(train.labels != 3))
    found = worth(kept.images, kept.labels, test, steps=STEPS)
    assert found.class_accuracies[3] == 0 < found.accuracy


def test_a_class_without_test_images_has_no_figure(digits):
    train, test = digits
    fewer = replace(test.part(np.flatnonzero(test.labels != 3)), classes=test.classes)
    found = worth(train.images, train.labels, fewer, steps=2)
    assert found.class_accuracies[3] is None and found.class_accuracies[4] is not None


def test_the_same_seed_says_the_same_whatever_was_drawn_before(digits):
    train, test = digits
    one = worth(train.images, train.labels, test, seed=4, steps=8)
    torch.rand(3)
    state = torch.get_rng_state()
    assert worth(train.images, train.labels, test, seed=4, steps=8) == one
    assert torch.equal(state, torch.get_rng_state()), "nobody else's draws change"
    assert worth(train.images, train.labels, test, seed=5, steps=8) != one


def test_changed_images_are_near_what_they_were(digits):
    images = torch.from_numpy(digits[0].images[:200]).float().div(127.5).sub(1)
    found = _changed(images, torch.Generator().manual_seed(0))
    assert found.shape == images.shape
    apart = (found - images).flatten(1).norm(dim=1)
    others = (found - images.roll(1, 0)).flatten(1).norm(dim=1)
    assert apart.min() > 0 and (apart < others).float().mean() > 0.9


def test_colours_teach_to_tell_colours():
    labels = np.arange(90) % 3
    images = np.random.default_rng(0).integers(0, 100, (90, 3, 16, 16), np.uint8)
    images[np.arange(90), labels] += 100
    made = ImageSet(images, labels, ("red", "green", "blue"))
    assert worth(images, labels, made, steps=20).accuracy > 0.9


def test_about_half_of_the_images_are_mirrored():
    images = torch.rand(200, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = _mirrored(images, torch.Generator().manual_seed(1))
    same, turned = ((found == one).flatten(1).all(1) for one in (images, images.flip(3)))
    assert (same ^ turned).all() and 70 < turned.sum() < 130


@pytest.mark.parametrize("case", ["few", "below", "above", "lengths"])
def test_unusable_images_are_refused(digits, case):
    train, test = digits
    images, labels = train.images[:20], train.labels[:20].copy()
    if case == "few":
        images, labels = images[:9], labels[:9]
    if case in ("below", "above"):
        labels[0] = {"below": -1, "above": 10}[case]
    with pytest.raises(DataError):
        worth(images, labels[:-1] if case == "lengths" else labels, test)
