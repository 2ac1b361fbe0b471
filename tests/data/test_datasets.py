"""Data sets by name."""

import numpy as np
import pytest

from prismfl.data.datasets import load_dataset
from prismfl.errors import DataError


def test_a_part_keeps_images_and_labels_together_and_the_numbering():
    whole = load_dataset("digits", None, 16, "test")
    rows = np.flatnonzero(whole.labels == 7)[::-1]
    part = whole.part(rows)
    assert len(part) == len(rows) and np.array_equal(part.images, whole.images[rows])
    assert set(part.labels) == {7} and part.classes == whole.classes


def test_digits_are_split_and_scaled():
    train, test = (load_dataset("digits", None, 16, split) for split in ("train", "test"))
    assert train.images.shape == (1438, 1, 16, 16) and test.images.shape == (359, 1, 16, 16)
    assert train.images.dtype == np.uint8 and train.labels.dtype == np.int64
    assert np.bincount(train.labels).sum() + np.bincount(test.labels).sum() == 1797
    assert train.classes == tuple("0123456789") and set(test.labels) == set(range(10))
    assert train.images.min() == 0 and train.images.max() == 255
    seen = {image.tobytes() for image in train.images}
    assert sum(image.tobytes() in seen for image in test.images) < 3, "test images are not training images"


def test_split_name_and_folder_are_asked_for(tmp_path):
    with pytest.raises(DataError, match=r"split 'valid'.*train or test"):
        load_dataset("digits", None, 16, "valid")
    with pytest.raises(DataError, match=r"'imagenet'.*digits, mnist, fmnist, kmnist, cifar10, celeba, folder, hf"):
        load_dataset("imagenet", tmp_path, 16, "train")
    for name in ("mnist", "folder"):
        with pytest.raises(DataError, match=f"no folder for data set '{name}'.*--data-dir"):
            load_dataset(name, None, 16, "train")
