"""The line of what was read: what is in it, and what is private."""

import json
from dataclasses import replace

import numpy as np

from prismfl.data.description import describe
from prismfl.data.images import ImageSet, Reading

SKIPPED = (("a/1.cr2", ".cr2"), ("a/2.cr2", ".cr2"), ("b/.x.png", "hidden"))


def images(counts, sides=((48, 48), (48, 48)), channels=3, **met):
    labels = np.repeat(np.arange(len(counts)), counts)
    names = ("cat", "dog", "ship")[: len(counts)]
    pixels = np.zeros((len(labels), channels, 32, 32), np.uint8)
    return ImageSet(pixels, labels, names, reading=Reading(sides, skipped=SKIPPED, **met))


def test_a_plain_set_takes_a_short_line():
    found = describe(images((3, 4), channels=1), 0, "crop", private=False)
    assert (
        found.line()
        == "7 images, 2 classes (cat 3, dog 4), grey, 48 → 32 px, none held back, 3 files skipped (.cr2, hidden)"
    )


def test_all_that_was_done_is_told():
    train = images((3, 4), ((640, 480), (4000, 3000)), oblong=7, turned=2, transparent=1, elsewhere=3, left_out=5)
    found = describe(train, 2, "pad", test=images((1, 1), ((20, 20),)), private=False, untrained=4)
    assert found.line() == (
        "13 images, 2 classes (cat 4, dog 5), colour, 20 … 4000×3000 → 32 px, padded to squares, 2 turned upright, "
        "1 transparent ones on white, 3 behind links that lead outside, 2 held back, "
        "4 of classes that training lacks left out, 5 of other splits left out, 3 files skipped (.cr2, hidden)"
    )
    told = found.as_json()
    assert told["counts"] == [4, 5] and told["skipped"] == {".cr2": 2, "hidden": 1} and told["left_out"] == 9
    assert "a/1.cr2" not in json.dumps(told), "names of files stay in a file of their own"


def test_with_epsilon_what_is_told_is_the_same_whatever_an_image_is():
    one = images((3, 4, 1), oblong=1, elsewhere=1)
    two = images((4, 4, 0), ((16, 16), (900, 30)), oblong=3, turned=3, transparent=2)
    found = [describe(train, 1, "crop", private=True) for train in (one, two)]
    assert found[0].line() == found[1].line() and found[0].as_json() == found[1].as_json()
    assert found[0].line().startswith("9 images, 3 classes (cat, dog, ship), colour, 32 px, centre-cropped where not")


def test_of_many_classes_some_are_named():
    labels = np.arange(40)
    many = ImageSet(np.zeros((40, 1, 8, 8), np.uint8), labels, tuple(f"c{label}" for label in labels))
    assert "40 classes (c0 1, c1 1," in describe(many, 0, "crop", private=False).line()
    odd = replace(many, classes=("a\x1b[2J\udcff", *many.classes[1:]))
    assert r"a\x1b[2J\udcff" in describe(odd, 0, "crop", private=False).line()
    one = replace(many, labels=labels * 0, classes=("",))
    assert describe(one, 0, "crop", private=False).line() == "40 images, no classes, grey, 8 px, none held back"
