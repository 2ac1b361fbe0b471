"""Readability: real digits are readable, noise is not, and shares are shares."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from prismfl.data.datasets import ImageSet, load_dataset
from prismfl.errors import DataError
from prismfl.metrics.readability import Classifier, readability


@pytest.fixture(scope="module")
def digits():
    torch.set_num_threads(1)
    return tuple(load_dataset("digits", None, 16, split) for split in ("train", "test"))


@pytest.fixture(scope="module")
def classifier(digits):
    return Classifier(digits[0], steps=150)


def test_real_digits_are_readable(classifier, digits):
    test = digits[1]
    found = readability(classifier, test.images, test)
    assert found.test_accuracy > 0.9 and found.test_readable > 0.75
    assert found.readable == found.test_readable, "the same images have the same figure"
    assert found.confidence > 0.85
    assert np.abs(np.array(found.class_shares) - np.bincount(test.labels) / len(test)).max() < 0.03


def test_labels_agree_as_far_as_the_classifier_sees_them(classifier, digits):
    test = digits[1]
    right, wrong = (readability(classifier, test.images, test, labels) for labels in (test.labels, 9 - test.labels))
    assert right.label_agreement == right.test_accuracy
    assert wrong.label_agreement < 0.1, "no digit is nine less itself"
    assert readability(classifier, test.images, test).label_agreement is None


def test_noise_is_less_readable(classifier, digits):
    noise = np.random.default_rng(0).integers(0, 256, (300, 1, 16, 16), np.uint8)
    found = readability(classifier, noise, digits[1])
    assert found.readable < found.test_readable - 0.3 and found.confidence < 0.9


def test_shares_are_shares(classifier, digits):
    zeros = digits[1].images[digits[1].labels == 0]
    found = readability(classifier, zeros, digits[1])
    assert sum(found.class_shares) == pytest.approx(1) and len(found.class_shares) == 10
    assert found.least_class == min(found.class_shares) == 0
    assert found.class_shares[0] > 0.9, "only zeros were shown"
    assert 0 <= found.readable <= found.confidence <= 1


def test_probabilities_sum_to_one_whatever_the_batch(classifier, digits):
    images = digits[1].images[:50]
    once, parts = classifier.probabilities(images), classifier.probabilities(images, batch=7)
    assert once.shape == (50, 10) and np.allclose(once.sum(1), 1)
    assert np.allclose(once, parts, atol=1e-5)


def test_the_seed_decides_the_classifier_and_nothing_else(digits):
    image = digits[1].images[:4]
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = Classifier(digits[0], seed=1, steps=2).probabilities(image)
    assert torch.equal(torch.random.get_rng_state(), before), "the caller's random state is left alone"
    torch.manual_seed(2)
    assert np.array_equal(first, Classifier(digits[0], seed=1, steps=2).probabilities(image))
    assert not np.array_equal(first, Classifier(digits[0], seed=2, steps=2).probabilities(image))


@pytest.mark.parametrize("size", [32, 64])
def test_colour_and_other_sizes_are_classified(size):
    images = np.random.default_rng(0).integers(0, 256, (12, 3, size, size), np.uint8)
    made = ImageSet(images, np.arange(12) % 3, ("a", "b", "c"))
    found = readability(Classifier(made, steps=1, batch=4), images, made)
    assert len(found.class_shares) == 3 and sum(found.class_shares) == pytest.approx(1)


def test_one_class_cannot_be_read(digits):
    with pytest.raises(DataError, match="1 classes; expected at least 2"):
        Classifier(replace(digits[0], classes=("a",)))
