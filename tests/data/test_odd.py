"""Inputs that users have: each is read as it is meant, or refused in a line that says what to do."""

import shutil

import numpy as np
import pytest
from made import data_folder

from prismfl.data.datasets import load_dataset
from prismfl.errors import DataError
from prismfl.run.prepare import prepare


@pytest.fixture
def read(tiny):
    """What a run makes of a data set, and the line that it says."""

    def made(path, dataset="folder", **changes):
        data = {"dataset": dataset, "data_dir": str(path), "clients": 2}
        ready = prepare(tiny(data=data, generator={"size": 32, "width": 2}, features={"features": "vgg"}, **changes))
        return ready, ready.described.line()

    return made


@pytest.mark.parametrize("name", ["train-val", "toplevel.zip"])
def test_held_back_folders_are_no_labels(read, name):
    ready, line = read(data_folder("odd", name))
    assert ready.agreement.labels == ("cat", "ship") and sum(map(len, ready.clients)) == len(ready.test) == 24
    assert line.startswith("48 images, 2 classes (cat 24, ship 24), colour, 48 → 32 px, 24 held back")


def test_a_linked_class_is_there_or_its_loss_is_told(read, tmp_path):
    place = data_folder("odd", "linked")
    if (place / "ship").is_file():
        with pytest.raises(DataError, match="a link that is written as text"):
            read(place)
    shutil.copytree(place / "cat", tmp_path / "linked" / "cat")
    (tmp_path / "linked" / "ship").symlink_to(data_folder("odd", "train-val", "train", "ship"))
    ready, line = read(tmp_path / "linked")
    assert ready.agreement.labels == ("cat", "ship") and "12 behind links that lead outside" in line


def test_no_suffix_is_dropped(read):
    ready, line = read(data_folder("odd", "suffix"))
    assert len(ready.agreement.labels) == 10 and line.startswith("60 images, 10 classes (a 6, b 6,")


def test_checkpoints_of_notebooks_are_no_label(read):
    ready, line = read(data_folder("odd", "ipynb"))
    assert ready.agreement.labels == ("cat", "ship") and "1 file skipped (hidden)" in line


def test_photographs_are_upright():
    found = load_dataset("folder", data_folder("odd", "exif"), 32, "train").images
    assert (found[..., 24:].mean((1, 2, 3)) > 200).all() and (found[..., :8].mean((1, 2, 3)) < 60).all()


def test_hidden_colours_are_not_trained_on():
    found = load_dataset("folder", data_folder("odd", "rgba-hidden"), 32, "train").images
    corner, middle = found[:, :, 0, 0], found[:, :, 16, 16]
    assert (corner == 255).all() and (middle[:, 0] >= 200).all() and (middle[:, 1:] < 60).all()


def test_labels_are_those_that_are_there(read):
    place = data_folder("odd", "idx-letters")
    ready, line = read(place, "mnist")
    assert ready.agreement.labels == tuple(map(str, range(1, 11))) and "10 classes (1 58, 2 80," in line
    assert [int(mine.labels.min()) for mine in ready.clients] == [0, 0] and ready.test.classes == ready.agreement.labels
    with pytest.raises(DataError, match=r"labels up to 10 .* with epsilon"):
        read(place, "mnist", privacy={"epsilon": 5.0, "delta": 1e-3})


def test_with_epsilon_folders_are_in_colour_unless_grey_is_said(read):
    private = {"epsilon": 5.0, "delta": 1e-3}
    ready, line = read(data_folder("odd", "exif"), privacy=private)
    assert ready.agreement.layout.channels == 3 and "2 classes (cat, ship), colour, 32 px" in line
    assert all(np.ptp(mine.images, 1).max() == 0 for mine in ready.clients), "grey images, in three channels"
