"""CIFAR-10: binary batches, in a folder or an archive, give one data set; damage and pickles are named."""

import io
import tarfile

import numpy as np
import pytest

from prismfl.data.cifar import CLASSES, load_cifar10
from prismfl.data.datasets import load_dataset
from prismfl.errors import DataError

RNG = np.random.default_rng(7)
TRAIN, TEST = RNG.integers(0, 256, (15, 3, 32, 32), np.uint8), RNG.integers(0, 256, (4, 3, 32, 32), np.uint8)
TRAIN_LABELS, TEST_LABELS = np.arange(15) % 10, np.array([9, 0, 3, 3])
PARTS = {
    **{f"data_batch_{i + 1}": (TRAIN[3 * i : 3 * i + 3], TRAIN_LABELS[3 * i : 3 * i + 3]) for i in range(5)},
    "test_batch": (TEST, TEST_LABELS),
}


def binary(images, labels):
    return b"".join(bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True))


def as_binary():
    return {f"{stem}.bin": binary(*part) for stem, part in PARTS.items()}


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    return folder


def pack(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, raw in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return path


def check(root):
    for split, images, labels in (("train", TRAIN, TRAIN_LABELS), ("test", TEST, TEST_LABELS)):
        found = load_dataset("cifar10", root, 32, split)
        assert np.array_equal(found.images, images) and found.labels.tolist() == labels.tolist()
        assert found.images.dtype == np.uint8 and found.labels.dtype == np.int64 and found.classes == CLASSES


@pytest.mark.parametrize("below", [".", "cifar-10-batches-bin"])
def test_batches_give_the_images(tmp_path, below):
    write(tmp_path / below, as_binary())
    check(tmp_path)


def test_an_archive_is_read_where_it_lies(tmp_path):
    """In any order, beside other files, whatever its paths claim; nothing is unpacked."""
    files = {f"../cifar-10-batches/{name}": raw for name, raw in reversed(as_binary().items())} | {"readme": b"x"}
    root = tmp_path / "data"
    root.mkdir()
    check(pack(root / "cifar-10-binary.tar.gz", files))
    check(root)
    assert len(list(tmp_path.rglob("*"))) == 2


def test_images_are_scaled_to_the_run(tmp_path):
    found = load_dataset("cifar10", write(tmp_path, as_binary()), 16, "train").images
    means = TRAIN.reshape(15, 3, 16, 2, 16, 2).mean((3, 5))
    assert found.shape == (15, 3, 16, 16) and np.abs(found - means).max() <= 1


def test_class_names_are_the_published_ones():
    assert ", ".join(CLASSES) == "airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck"


def test_a_missing_batch_is_named(tmp_path):
    write(tmp_path, as_binary())
    (tmp_path / "data_batch_4.bin").unlink()
    with pytest.raises(DataError, match=r"no data_batch_4\.bin in .*check --data-dir"):
        load_cifar10(tmp_path, "train")
    assert len(load_cifar10(tmp_path, "test").images) == 4


@pytest.mark.parametrize("where", ["nowhere", "."])
def test_a_folder_without_batches_is_named(tmp_path, where):
    with pytest.raises(DataError, match=r"no test_batch\.bin in"):
        load_cifar10(tmp_path / where, "test")


WHOLE = binary(TEST, TEST_LABELS)
DAMAGED = {
    "cut short": (WHOLE[:-1], "holds 12291 bytes"),
    "nothing": (b"", "holds 0 bytes"),
    "a label beyond the last class": (b"\x0a" + WHOLE[1:], "labels 0 … 10"),
    "CIFAR-100's two labels": (b"\x01" + WHOLE, "holds 12293 bytes"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_binary_batches_are_refused_by_name(tmp_path, what):
    raw, says = DAMAGED[what]
    write(tmp_path, as_binary() | {"test_batch.bin": raw})
    with pytest.raises(DataError, match=r"test_batch\.bin") as caught:
        load_cifar10(tmp_path, "test")
    assert says in str(caught.value)


@pytest.mark.parametrize("raw", [b"", b"no archive", b"\x1f\x8b\x08\x00" + b"\x00" * 20, "cut"])
def test_a_damaged_archive_is_refused_by_name(tmp_path, raw):
    path = pack(tmp_path / "cifar-10-binary.tar.gz", as_binary())
    path.write_bytes(path.read_bytes()[:-20_000] if raw == "cut" else raw)
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz"):
        load_cifar10(tmp_path, "train")


def test_a_link_in_an_archive_is_not_followed(tmp_path):
    (tmp_path / "secret").write_bytes(WHOLE)
    path = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("test_batch.bin")
        info.type, info.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
        archive.addfile(info)
    with pytest.raises(DataError, match=r"no test_batch\.bin"):
        load_cifar10(path, "test")


@pytest.mark.parametrize("name", ["cifar-10-batches-py/test_batch", "test_batch", "cifar-10-python.tar.gz"])
def test_batches_for_python_are_named_and_not_opened(tmp_path, name):
    """They hold the same images, pickled."""
    write((tmp_path / name).parent, {(tmp_path / name).name: b"\x80\x02}q\x01."})
    with pytest.raises(DataError, match=r"pickled; .*run `prismfl fetch cifar10`"):
        load_cifar10(tmp_path, "test")
