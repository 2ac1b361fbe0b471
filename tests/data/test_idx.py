"""IDX files: what was written is read back, and what is damaged is refused by name."""

import gzip
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import data_folder

from prismfl.data.datasets import load_dataset
from prismfl.data.idx import read_idx
from prismfl.errors import DataError

RNG = np.random.default_rng(11)
TRAIN, TEST = RNG.integers(0, 256, (12, 28, 28), np.uint8), RNG.integers(0, 256, (5, 28, 28), np.uint8)
TRAIN_LABELS, TEST_LABELS = np.arange(12, dtype=np.uint8) % 3, np.array([2, 0, 1, 1, 0], np.uint8)


def idx(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder, pack=lambda raw: raw, suffix="", dot="-"):
    folder.mkdir(exist_ok=True)
    for name, array in [
        (f"train-images{dot}idx3-ubyte", TRAIN),
        (f"train-labels{dot}idx1-ubyte", TRAIN_LABELS),
        (f"t10k-images{dot}idx3-ubyte", TEST),
        (f"t10k-labels{dot}idx1-ubyte", TEST_LABELS),
    ]:
        (folder / (name + suffix)).write_bytes(pack(idx(array)))
    return folder


@pytest.mark.parametrize(
    ("pack", "suffix", "dot"),
    [(lambda raw: raw, "", "-"), (gzip.compress, ".gz", "-"), (gzip.compress, "", "-"), (lambda raw: raw, "", ".")],
)
def test_idx_files_are_read_back(tmp_path, pack, suffix, dot):
    folder = write_idx(tmp_path / "idx", pack, suffix, dot)
    train, test = (load_dataset("mnist", folder, 32, split) for split in ("train", "test"))
    assert np.array_equal(train.images[:, 0, 2:30, 2:30], TRAIN) and np.array_equal(test.images[:, 0, 2:-2, 2:-2], TEST)
    assert train.images.astype(int).sum() == TRAIN.astype(int).sum(), "the border is black"
    assert train.labels.tolist() == TRAIN_LABELS.tolist() and test.labels.tolist() == TEST_LABELS.tolist()
    assert train.classes == test.classes == tuple("0123456789") and train.owners is None and len(train) == 12


def test_where_no_label_may_make_a_class_the_ten_are_all(tmp_path):
    folder = write_idx(tmp_path / "idx")
    assert load_dataset("mnist", folder, 16, "train", private=True).classes == tuple("0123456789")
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(TRAIN_LABELS + 8))
    assert len(load_dataset("mnist", folder, 16, "train").classes) == 11
    with pytest.raises(DataError, match=r"labels up to 10 .*class folders"):
        load_dataset("mnist", folder, 16, "train", private=True)


@pytest.mark.parametrize("name", ["fmnist", "kmnist"])
def test_the_whole_idx_family_is_served(tmp_path, name):
    assert load_dataset(name, write_idx(tmp_path / "idx"), 16, "test").images.shape == (5, 1, 16, 16)


def test_mnist_is_the_published_one():
    folder = data_folder("mnist")
    train, test = (load_dataset("mnist", folder, 32, split) for split in ("train", "test"))
    assert train.images.shape == (60000, 1, 32, 32) and test.images.shape == (10000, 1, 32, 32)
    # Class counts, first labels and mean pixel as published with the data set.
    assert np.bincount(train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert train.labels[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]
    assert train.images[:, :, 2:30, 2:30].mean() / 255 == pytest.approx(0.1307, abs=5e-5)


DAMAGED_IDX = {
    "truncated gzip": (gzip.compress(idx(TRAIN))[:-20], "does not decompress"),
    "a gzip header alone": (gzip.compress(idx(TRAIN))[:5], "does not decompress"),
    "gzip with a wrong checksum": (gzip.compress(idx(TRAIN))[:-8] + b"\x00" * 8, "does not decompress"),
    "gzip with damaged data": (gzip.compress(idx(TRAIN))[:40] + b"\xff" * 5000, "does not decompress"),
    "truncated": (idx(TRAIN)[:-1], "holds 9407 bytes"),
    "with bytes after its end": (idx(TRAIN) + b"\x00", "holds 9409 bytes"),
    "wrong magic": (b"\x00\x00\x08\x01" + idx(TRAIN)[4:], "begins with 00000801"),
    "floats": (b"\x00\x00\x0d\x03" + idx(TRAIN)[4:], "begins with 00000d03"),
    "text": (b"<html>not found</html>", "begins with 3c68746d"),
    "empty": (b"", "begins with nothing"),
    "a header cut short": (idx(TRAIN)[:10], "IDX header"),
    "2^32 - 1 images": (b"\x00\x00\x08\x03" + b"\xff" * 12 + b"x" * 100, "4294967295"),
    "2^32 - 1 images of 28 × 28": (struct.pack(">4I", 0x803, 2**32 - 1, 28, 28) + b"x" * 784, "4294967295"),
    "sizes whose product wraps to few": (struct.pack(">4I", 0x803, 2**31, 2**31, 4) + b"", "2147483648"),
    "no images": (struct.pack(">4I", 0x803, 0, 28, 28), "more than none"),
    "images without pixels": (struct.pack(">4I", 0x803, 12, 0, 28), "more than none"),
}


@pytest.mark.parametrize("what", DAMAGED_IDX)
def test_damaged_idx_files_are_refused_by_name(tmp_path, what):
    raw, says = DAMAGED_IDX[what]
    folder = write_idx(tmp_path / "idx")
    (folder / "train-images-idx3-ubyte").write_bytes(raw)
    with pytest.raises(DataError, match="train-images-idx3-ubyte") as caught:
        load_dataset("mnist", folder, 32, "train")
    assert says in str(caught.value)
    assert len(load_dataset("mnist", folder, 32, "test")) == 5, "the other split is still good"


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(tmp_path_factory, raw):
    path = tmp_path_factory.getbasetemp() / "any-idx1-ubyte"
    path.write_bytes(b"\x00\x00\x08\x01" + raw)
    try:
        found = read_idx(path, rank=1)
    except DataError as error:
        assert "any-idx1-ubyte" in str(error)
    else:
        assert idx(found) == path.read_bytes()


def test_idx_label_counts_must_match(tmp_path):
    folder = write_idx(tmp_path / "idx")
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(TRAIN_LABELS[:11]))
    with pytest.raises(DataError, match="12 images and 11 labels"):
        load_dataset("mnist", folder, 32, "train")


def test_missing_idx_file_and_folder_are_named(tmp_path):
    folder = write_idx(tmp_path / "idx")
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"no t10k-labels-idx1-ubyte or .*\.gz in .*idx.*MNIST"):
        load_dataset("mnist", folder, 32, "test")
    with pytest.raises(DataError, match="nowhere"):
        load_dataset("mnist", tmp_path / "nowhere", 32, "test")


def test_unreadable_idx_file_is_named(tmp_path):
    with pytest.raises(DataError, match="gone"):
        read_idx(tmp_path / "gone", rank=1)
