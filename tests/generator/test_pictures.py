"""Folders of generated images: read back as they were made, whole or not at all."""

import numpy as np
import pytest
from PIL import Image

from prismfl.data.folder import load_folder
from prismfl.errors import RunFolderError
from prismfl.generator import pictures
from prismfl.generator.layout import Layout
from prismfl.generator.pictures import save_folders, save_pictures
from prismfl.generator.sampling import Sampler, finish


def sampler_of(channels, names):
    layout = Layout(16, channels, 2, 8, len(names))
    mask = np.random.default_rng(0).random(layout.count) < 0.5
    return Sampler(finish(layout, 0, mask, "", names))


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def rows(images):
    return sorted(image.tobytes() for image in images)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("names", [("2", "10", "1"), ("cat", "a/b", "a"), ("ü", "x y")], ids=str)
def test_a_labelled_folder_is_read_back_as_it_was_made(tmp_path, channels, names):
    made = sampler_of(channels, names).per_class(20, seed=3)
    save_folders(made, tmp_path / "deep" / "images")
    train, test = (load_folder(tmp_path / "deep" / "images", split, False, 16) for split in ("train", "test"))
    assert set(train.classes) == set(test.classes) == set(names)
    assert (len(train), len(test)) == (18 * len(names), 2 * len(names))
    for number, name in enumerate(train.classes):
        parts = [part.images[part.labels == number] for part in (train, test)]
        assert [len(part) for part in parts] == [18, 2]
        assert rows(np.concatenate(parts)) == rows(made[name])


def test_the_training_half_of_a_split_folder_may_be_generated(tmp_path):
    made = sampler_of(1, ("a", "b")).per_class(5)
    save_folders(made, tmp_path / "train")
    save_folders({name: images[:2] for name, images in made.items()}, tmp_path / "test")
    train, test = (load_folder(tmp_path, split, False, 16) for split in ("train", "test"))
    assert (len(train), len(test), train.classes) == (10, 4, ("a", "b"))


def test_a_folder_with_files_is_left_as_it_is(tmp_path):
    images = np.zeros((2, 1, 4, 4), np.uint8)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "000005.png").write_bytes(b"mine")
    with pytest.raises(RunFolderError, match="files in"):
        save_pictures(images, tmp_path / "old")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunFolderError):
        save_pictures(images, tmp_path / "file")
    with pytest.raises(RunFolderError):
        save_pictures(images, tmp_path / "file" / "below")
    assert names_in(tmp_path) == ["file", "old"] and names_in(tmp_path / "old") == ["000005.png"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "new").mkdir()
    save_pictures(np.arange(2, dtype=np.uint8).repeat(16).reshape(2, 1, 4, 4), tmp_path / "new")
    assert [np.asarray(Image.open(tmp_path / "new" / f"00000{i}.png")).max() for i in range(2)] == [0, 1]


def test_what_fails_half_way_leaves_nothing(tmp_path, monkeypatch):
    whole = pictures._picture

    def full(image):
        if image.max():
            raise OSError(28, "No space left on device")
        return whole(image)

    monkeypatch.setattr(pictures, "_picture", full)
    with pytest.raises(RunFolderError, match="No space"):
        save_pictures(np.arange(2, dtype=np.uint8).repeat(16).reshape(2, 1, 4, 4), tmp_path / "new")
    assert names_in(tmp_path) == []
