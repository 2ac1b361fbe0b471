"""Some classes of a data set: the right images, numbered anew, and clear refusals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prismfl.data.classes import named_alike, present, select_classes
from prismfl.data.datasets import ImageSet
from prismfl.errors import DataError, SettingError

NAMES = ("ant", "bee", "t-shirt", "3", "0")


@pytest.fixture(scope="module")
def whole():
    labels = np.array([4, 0, 2, 1, 0, 3, 2, 4, 1], np.int64)
    images = np.arange(9, dtype=np.uint8)[:, None, None, None].repeat(4, 2)
    return ImageSet(images, labels, NAMES, np.arange(9) % 2)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("ant", ["ant"]),
        ("1", ["bee"]),
        ("1-2", ["bee", "t-shirt"]),
        ("t-shirt", ["t-shirt"]),
        ("bee, ant", ["ant", "bee"]),
        ("ant,0-1,1", ["ant", "bee"]),
        ("3", ["3"]),  # a name goes before a number
        ("0", ["0"]),
        ("0-0", ["ant"]),
        ("0-4", list(NAMES)),
        ("4,2", ["t-shirt", "0"]),
    ],
)
def test_classes_are_named_or_numbered(whole, text, names):
    found = select_classes(whole, text)
    assert found.classes == tuple(names)
    kept = np.flatnonzero([NAMES[label] in names for label in whole.labels])
    assert np.array_equal(found.images, whole.images[kept]) and np.array_equal(found.owners, whole.owners[kept])
    assert [found.classes[label] for label in found.labels] == [NAMES[label] for label in whole.labels[kept]]
    assert found.labels.dtype == np.int64


def test_no_text_keeps_all(whole):
    assert select_classes(whole, "") is whole


@given(st.sets(st.integers(0, 9), min_size=1), st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_the_parts_of_a_data_set_are_the_whole(chosen, labels):
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    data = ImageSet(images, np.array(labels, np.int64), tuple(f"class {number}" for number in range(10)))
    seen = []
    for part in (chosen, set(range(10)) - chosen):
        if set(labels) & part:
            seen += select_classes(data, ",".join(map(str, part))).images.ravel().tolist()
    assert sorted(seen) == list(range(len(labels)))


@pytest.mark.parametrize(
    "text", ["5", "0-5", "3-1", "-1", "cat", "ant;bee", ",", "1-", "1,,2", " ", "1" * 40, "²", "0-٣"]
)
def test_classes_that_do_not_exist_are_refused(whole, text):
    with pytest.raises(SettingError, match=r"class '.*expected numbers in 0 … 4.*ant, bee"):
        select_classes(whole, text)


def test_classes_without_an_image_are_refused(whole):
    with pytest.raises(DataError, match="no image of classes 'ant'"):
        select_classes(whole.part(np.array([0])), "ant")


def test_classes_without_images_go_and_others_follow_by_name(whole):
    some = whole.part(np.flatnonzero(whole.labels != 2))
    found = present(some)
    assert found.classes == ("ant", "bee", "3", "0") and len(found) == 7
    assert [found.classes[label] for label in found.labels] == [NAMES[label] for label in some.labels]
    assert present(whole) is whole
    alike = named_alike(whole, found.classes)
    assert alike.classes == found.classes and np.array_equal(alike.labels, found.labels)
    assert named_alike(whole, ("none",)) is None
