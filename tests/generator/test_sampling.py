"""Samples of a finished model: by turns, by label, as grids; and what it does not make."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prismfl.data.images import ImageSet
from prismfl.errors import SettingError
from prismfl.generator.layout import Layout
from prismfl.generator.sampling import Sampler, finish, grid_of, grid_of_real, image_grid, label_columns, labels_like

NAMES = ("cat", "dog", "a/b")


def sampler_of(classes, names=None):
    """A model with a random mask; its labels are numbers unless they are named."""
    layout = Layout(16, 1, 2, 8, classes)
    mask = np.random.default_rng(0).random(layout.count) < 0.5
    labels = names or tuple(str(label) for label in range(classes))
    return Sampler(finish(layout, 0, mask, "", labels))


@pytest.fixture(scope="module")
def sampler():
    return sampler_of(3, NAMES)


@pytest.fixture(scope="module")
def plain():
    return sampler_of(0)


def close(one, other):
    """Equal but for a rounding that another batch may tip."""
    return one.shape == other.shape and np.abs(one.astype(int) - other).max() <= 1


# ----------------------------------------------------------------------------------------- labels


def test_a_finished_model_knows_its_labels(sampler, plain):
    assert sampler.model.labels == NAMES
    assert plain.model.labels == ()


def test_without_labels_they_take_turns(sampler):
    images = sampler.sample(7, seed=3)
    assert np.array_equal(images, sampler.sample(7, seed=3, labels=np.arange(7) % 3))
    assert not np.array_equal(images, sampler.sample(7, seed=3, labels=(np.arange(7) + 1) % 3))


def test_an_image_follows_from_its_latent_and_its_label(sampler):
    mixed = np.array([0, 2, 2, 1, 0, 1])
    images = sampler.sample(6, seed=1, labels=mixed)
    for label in range(3):
        pure = sampler.sample(6, seed=1, labels=np.full(6, label))
        assert close(images[mixed == label], pure[mixed == label])
        assert not close(images[mixed != label], pure[mixed != label])


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.uint64])
def test_labels_may_be_whole_numbers_of_any_width(sampler, kind):
    labels = np.array([2, 0, 1])
    assert np.array_equal(sampler.sample(3, labels=labels.astype(kind)), sampler.sample(3, labels=labels))


BAD_LABELS = {
    "too few": np.zeros(3, np.int64),
    "too many": np.zeros(5, np.int64),
    "none": np.zeros(0, np.int64),
    "a column": np.zeros((4, 1), np.int64),
    "a number": np.int64(1),
    "fractions": np.zeros(4),
    "truths": np.zeros(4, bool),
    "text": np.array(["cat"] * 4),
    "below": np.array([0, 0, -1, 0]),
    "above": np.array([0, 3, 0, 0]),
    "far above": np.full(4, 2**64 - 1, np.uint64),
}


@pytest.mark.parametrize("what", sorted(BAD_LABELS))
def test_labels_that_the_model_does_not_have_are_refused(sampler, what):
    with pytest.raises(SettingError, match="labels"):
        sampler.sample(4, labels=BAD_LABELS[what])


def test_a_model_that_takes_no_label_refuses_them(plain):
    for asked in (
        lambda: plain.sample(4, labels=np.zeros(4, np.int64)),
        lambda: plain.labelled("cat", 4),
        lambda: plain.per_class(2),
    ):
        with pytest.raises(SettingError, match="label"):
            asked()


def test_a_label_is_found_by_its_name(sampler):
    for number, name in enumerate(NAMES):
        assert sampler.labelled(name, 4).tolist() == [number] * 4
    with pytest.raises(SettingError, match=r"label 'cow'; expected one of 'cat', 'dog', 'a/b'"):
        sampler.labelled("cow", 4)


def test_each_class_has_its_images(sampler):
    found = sampler.per_class(4, seed=2)
    assert tuple(found) == NAMES
    every = sampler.sample(12, seed=2, labels=np.repeat(np.arange(3), 4))
    assert np.array_equal(np.concatenate(list(found.values())), every)
    assert {len(images) for images in found.values()} == {4}


@pytest.mark.parametrize("count", [0, -1, 10**17])
def test_impossible_numbers_of_images_are_refused(sampler, count):
    for asked in (
        lambda: sampler.sample(count),
        lambda: sampler.per_class(count),
        lambda: sampler.sample(count, labels=sampler.labelled("cat", count)),
    ):
        with pytest.raises(SettingError):
            asked()


@pytest.mark.parametrize("name", ["..", "../up", "a/../../up", "/etc", "a\\b", "C:", "a\0b", "\ud800"], ids=ascii)
def test_labels_that_lead_out_of_a_folder_name_none(sampler, name):
    foreign = Sampler(replace(sampler.model, labels=("cat", name, "dog")))
    with pytest.raises(SettingError, match="that can name folders"):
        foreign.per_class(1)
    assert len(foreign.sample(2, labels=foreign.labelled(name, 2))) == 2


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 90))
def test_labels_like_others_have_their_shares(labels, count):
    given_labels = np.array(labels)
    found = labels_like(given_labels, count)
    assert found.shape == (count,) and found.dtype == given_labels.dtype
    wanted = np.bincount(given_labels, minlength=5) * count / len(labels)
    assert np.abs(np.bincount(found, minlength=5) - wanted).max() < 1 + 1e-9


def test_labels_like_others_in_turns_have_their_shares():
    """Even steps through labels in turns could meet one of them alone."""
    assert np.bincount(labels_like(np.arange(1000) % 10, 100)).tolist() == [10] * 10


# ------------------------------------------------------------------------------------------ grids


@pytest.mark.parametrize(("classes", "columns"), [(0, 0), (2, 2), (10, 10), (16, 16), (17, 0)])
def test_a_grid_has_a_column_a_label_where_they_fit(classes, columns):
    sampler = sampler_of(classes)
    assert label_columns(sampler) == columns
    shown, wide = grid_of(sampler, seed=4), columns or 8
    assert shown.size == (2 * (17 * wide + 1), 2 * (17 * 8 + 1))
    images = sampler.sample(8 * wide, seed=4)
    assert np.array_equal(np.asarray(shown), np.asarray(image_grid(images, wide)))
    if columns:
        first_column = image_grid(images[::columns], 1)
        assert np.array_equal(np.asarray(shown)[:, : first_column.width], np.asarray(first_column))


def test_a_grid_of_no_given_width_is_as_good_as_square():
    images = np.arange(5, dtype=np.uint8).repeat(256).reshape(5, 1, 16, 16)
    sheet = np.asarray(image_grid(images, scale=1))
    assert sheet.shape == (2 * 17 + 1, 3 * 17 + 1)
    assert [sheet[1 + 17 * (i // 3), 1 + 17 * (i % 3)] for i in range(5)] == list(range(5))


@pytest.mark.parametrize("classes", [0, 3, 20])
def test_real_images_stand_where_samples_of_their_label_do(classes):
    """Of label 1 there are too few: their places stay empty."""
    labels = np.repeat(np.arange(max(1, classes)), 30)[: None if classes else 100]
    labels = labels[(labels != 1) | (np.arange(len(labels)) % 30 < 2)]
    shades = (np.arange(len(labels)) % 180 + 70).astype(np.uint8)
    images = ImageSet(np.broadcast_to(shades[:, None, None, None], (len(labels), 1, 16, 16)), labels, ("",))
    layout = Layout(16, 1, 2, 8, classes)
    shown = np.asarray(grid_of_real(images, layout))
    assert shown.shape == np.asarray(grid_of(sampler_of(classes))).shape
    columns = (shown.shape[1] // 2 - 1) // 17
    places = shown[::2, ::2][1::17, 1::17].ravel()
    for label in range(max(1, classes)):
        mine = places[(np.arange(8 * columns) % max(1, classes)) == label] if classes else places
        there = mine[mine != 64]
        assert len(there) == min(len(mine), (labels == label).sum()) and set(there) <= set(shades[labels == label])
        assert len(set(there)) == len(there) and there[0] == shades[labels == label][0]
