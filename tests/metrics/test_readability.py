"""Readability: real digits are readable, noise is not, and shares are shares."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prismfl.data.datasets import ImageSet, load_dataset
from prismfl.errors import DataError
from prismfl.metrics.readability import Classifier, _rows, _shifted, readability, record, steps_of


@pytest.fixture(scope="module")
def digits():
    torch.set_num_threads(1)
    return tuple(load_dataset("digits", None, 16, split) for split in ("train", "test"))


@pytest.fixture(scope="module")
def classifier(digits):
    return Classifier(digits[0], steps=150)


def test_real_digits_are_readable(classifier, digits):
    test = digits[1]
    found, known = readability(classifier, test.images, test), record(classifier, test)
    assert known["test_accuracy"] > 0.95 and known["test_readable"] > 0.85
    assert found.readable == known["test_readable"], "the same images have the same figure"
    assert found.confidence > 0.9
    assert np.abs(np.array(found.class_shares) - np.bincount(test.labels) / len(test)).max() < 0.03


def test_noise_is_less_readable(classifier, digits):
    noise = np.random.default_rng(0).integers(0, 256, (300, 1, 16, 16), np.uint8)
    found = readability(classifier, noise, digits[1])
    assert found.readable < record(classifier, digits[1])["test_readable"] - 0.3 and found.confidence < 0.9


def test_shares_are_shares(classifier, digits):
    zeros = digits[1].images[digits[1].labels == 0]
    found = readability(classifier, zeros, digits[1])
    assert sum(found.class_shares) == pytest.approx(1) and len(found.class_shares) == 10
    assert found.least_class == min(found.class_shares) == 0
    assert found.class_shares[0] > 0.9, "only zeros were shown"
    assert 0.9 * found.readable <= found.confidence <= 1 and 0 <= found.readable <= 1


def test_a_lost_class_is_seen_in_balance_and_inception_score(classifier, digits):
    test = digits[1]
    whole = readability(classifier, test.images, test)
    assert whole.label_imbalance < 0.05 and whole.is_classifier > 8, "ten classes, all shown"
    kept = test.part(np.flatnonzero(test.labels < 5))
    half = readability(classifier, kept.images, test)
    assert half.label_imbalance == pytest.approx(0.5, abs=0.05) and 3.5 < half.is_classifier < 5.5
    low, high = half.is_classifier_over_splits
    assert low < half.is_classifier < high


def test_agreement_with_labels_is_the_share_that_the_classifier_names_alike(classifier, digits):
    test = digits[1]
    alike = readability(classifier, test.images, test, test.labels).label_agreement
    assert alike == record(classifier, test)["test_accuracy"]
    assert readability(classifier, test.images, test, (test.labels + 1) % 10).label_agreement < 0.05
    assert readability(classifier, test.images, test).label_agreement is None


@pytest.mark.parametrize("count", [0, 1, 3])
def test_fewer_than_four_samples_are_refused(classifier, digits, count):
    with pytest.raises(DataError, match=f"{count} samples; expected at least 4"):
        readability(classifier, digits[1].images[:count], digits[1])


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.sampled_from([16, 32, 64]), st.sampled_from([1, 3]))
def test_shifted_images_are_windows_of_themselves_with_repeated_borders(seed, side, channels):
    images = np.random.default_rng(seed).integers(0, 256, (4, channels, side, side), np.uint8)
    moved, reach = _shifted(torch.from_numpy(images), torch.Generator().manual_seed(seed)).numpy(), side // 16
    padded = np.pad(images, ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="edge")
    for one, wide in zip(moved, padded, strict=True):
        windows = [
            wide[:, top : top + side, left : left + side]
            for top in range(2 * reach + 1)
            for left in range(2 * reach + 1)
        ]
        assert sum(np.array_equal(one, window) for window in windows) == 1


def test_images_are_shifted_each_by_itself_and_all_ways():
    picture = np.random.default_rng(0).integers(0, 256, (1, 1, 16, 16), np.uint8)
    moved = _shifted(torch.from_numpy(picture.repeat(200, 0)), torch.Generator().manual_seed(0))
    assert len(np.unique(moved.reshape(200, -1), axis=0)) == 9


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 15))
def test_passes_leave_no_image_out(count, batch, steps):
    rows = torch.stack(list(_rows(count, batch, steps, torch.Generator().manual_seed(0)))).flatten()
    times = np.bincount(rows.numpy(), minlength=count)
    assert len(rows) == batch * steps and times.max() - times.min() <= 1


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


def test_large_images_are_seen_at_32_pixels_and_few_images_take_few_steps():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (40, 1, 32, 32), np.uint8)
    large = small.repeat(2, 2).repeat(2, 3)
    judge = Classifier(ImageSet(large, np.arange(40) % 2, ("a", "b")), steps=2)
    np.testing.assert_array_equal(judge.probabilities(large), judge.probabilities(small))
    taken = [steps_of(ImageSet(large[:1].repeat(count, 0), np.zeros(count, np.int64), ("a",))) for count in (9, 600)]
    assert taken == [200, 300]
