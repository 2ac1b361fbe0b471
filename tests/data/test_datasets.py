"""Loaders: what was written is read back, and what is damaged is refused by name."""

import gzip
import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from prismfl.data.datasets import fit, load_dataset, read_idx
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


def data_folder(*parts):
    root = os.environ.get("PRISMFL_DATA")
    if not root:
        pytest.skip("PRISMFL_DATA is unset")
    if not (path := Path(root, *parts)).exists():
        pytest.skip(f"{'/'.join(parts)} is absent from PRISMFL_DATA")
    return path


# --------------------------------------------------------------------------------- digits and IDX


def test_digits_are_split_and_scaled():
    train, test = (load_dataset("digits", None, 16, split) for split in ("train", "test"))
    assert train.images.shape == (1438, 1, 16, 16) and test.images.shape == (359, 1, 16, 16)
    assert train.images.dtype == np.uint8 and train.labels.dtype == np.int64
    assert np.bincount(train.labels).sum() + np.bincount(test.labels).sum() == 1797
    assert train.classes == tuple("0123456789") and set(test.labels) == set(range(10))
    assert train.images.min() == 0 and train.images.max() == 255
    seen = {image.tobytes() for image in train.images}
    assert sum(image.tobytes() in seen for image in test.images) < 3, "test images are not training images"


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
    assert train.classes == ("0", "1", "2") and train.owners is None and len(train) == 12


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


@pytest.mark.slow
def test_the_zip_of_jpegs_is_read():
    path = data_folder("cifar10", "cifar10-jpeg.zip")
    test = load_dataset("folder", path, 32, "test")
    assert test.images.shape == (5000, 3, 32, 32) and len(test.classes) == 10
    assert np.bincount(test.labels).min() > 100


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


def test_split_name_and_folder_are_asked_for(tmp_path):
    with pytest.raises(DataError, match=r"split 'valid'.*train or test"):
        load_dataset("digits", None, 16, "valid")
    with pytest.raises(DataError, match=r"'imagenet'.*digits, mnist, fmnist, kmnist, cifar10, celeba, folder, hf"):
        load_dataset("imagenet", tmp_path, 16, "train")
    for name in ("mnist", "folder"):
        with pytest.raises(DataError, match=f"no folder for data set '{name}'.*--data-dir"):
            load_dataset(name, None, 16, "train")


# -------------------------------------------------------------------------------- folders and zips


def png(array, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def pixels(count, *, grey, size=16, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, size, size) if grey else (count, size, size, 3), np.uint8)


def channels_first(array):
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


class Tree:
    """An image tree, as a folder or as a zip."""

    def __init__(self, path, packed):
        self.path, self.packed = (path.with_suffix(".zip") if packed else path), packed
        if not packed:
            path.mkdir(parents=True)

    def write(self, files):
        if self.packed:
            with zipfile.ZipFile(self.path, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, raw in files.items():
                    archive.writestr(name, raw)
        for name, raw in () if self.packed else files.items():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_bytes(raw)
        return self.path


@pytest.fixture(params=["folder", "zip"])
def tree(request, tmp_path):
    return Tree(tmp_path / "images", request.param == "zip")


@pytest.mark.parametrize("grey", [True, False])
def test_marked_splits_are_read_back(tree, grey):
    made = pixels(5, grey=grey)
    names = ["train/b/1.png", "train/a/2.PNG", "train/a/1.png", "test/b/1.png", "test/a/1.png"]
    files = {name: png(image) for name, image in zip(names, made, strict=True)} | {"train/a/notes.txt": b"no image"}
    path = tree.write(files)
    train, test = (load_dataset("folder", path, 16, split) for split in ("train", "test"))
    assert train.classes == test.classes == ("a", "b")
    assert train.labels.tolist() == [0, 0, 1] and test.labels.tolist() == [0, 1]
    for found, index in [(train.images, (2, 1, 0)), (test.images, (4, 3))]:
        assert found.shape[1] == (1 if grey else 3)
        assert np.array_equal(found, np.stack([channels_first(made[i]) for i in index]))


@pytest.mark.parametrize("count", [30, 47, 10])
def test_without_splits_a_tenth_is_held_out(tree, count):
    made = pixels(count, grey=True)
    path = tree.write({f"{'ab'[i % 2]}/{i:03}.png": png(image) for i, image in enumerate(made)})
    train, test = (load_dataset("folder", path, 16, split) for split in ("train", "test"))
    keys = [{image.tobytes() for image in part.images} for part in (train, test)]
    assert not keys[0] & keys[1]
    assert keys[0] | keys[1] == {image.tobytes() for image in made}
    assert len(test) == count // 10


def test_labels_follow_class_names_in_both_splits(tree):
    """A class that one split lacks must not shift the numbers of the others."""
    made = pixels(5, grey=True)
    names = ["train/a/1.png", "train/b/1.png", "train/c/1.png", "test/b/1.png", "test/c/1.png"]
    path = tree.write({name: png(image) for name, image in zip(names, made, strict=True)})
    train, test = (load_dataset("folder", path, 16, split) for split in ("train", "test"))
    assert [train.classes[label] for label in train.labels] == ["a", "b", "c"]
    assert [train.classes[label] for label in test.labels] == ["b", "c"]


def test_folders_are_clients_as_given(tree):
    made = pixels(6, grey=False)
    names = ["north/x/1.png", "north/y/1.png", "south/x/1.png", "south/x/2.png", "east/1.png", "east/2.png"]
    path = tree.write({name: png(image) for name, image in zip(names, made, strict=True)})
    found = load_dataset("folder", path, 16, "train", per_client=True)
    assert found.owners.tolist() == [0, 0, 1, 1, 2, 2], "east, north, south"
    assert found.classes == ("", "x", "y") and found.labels.tolist() == [0, 0, 1, 2, 1, 1]
    assert np.array_equal(found.images[2], channels_first(made[0]))


def test_one_coloured_image_makes_a_set_coloured(tmp_path):
    grey, coloured = pixels(1, grey=True)[0], pixels(1, grey=False)[0]
    path = Tree(tmp_path / "images", False).write({f"a/{i:02}.png": png(grey) for i in range(4)})
    assert load_dataset("folder", path, 16, "train").images.shape[1] == 1
    (path / "a" / "99.png").write_bytes(png(coloured))
    mixed = load_dataset("folder", path, 16, "train").images
    assert mixed.shape[1] == 3 and np.array_equal(mixed[0], np.stack([grey] * 3))


def test_jpegs_come_close_to_what_was_written(tmp_path):
    smooth = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8) * 4
    path = Tree(tmp_path / "images", False).write({f"a/{i}.jpeg": png(smooth, "JPEG") for i in range(3)})
    found = load_dataset("folder", path, 32, "train").images
    assert found.shape == (3, 1, 32, 32) and np.abs(found[0, 0].astype(int) - smooth).max() < 12


def test_sixteen_bit_grey_keeps_its_picture(tmp_path):
    """Scanners write 16-bit grey; it is scaled or refused, never cut off at 255."""
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    path = Tree(tmp_path / "images", False).write({f"a/{i}.png": png(ramp) for i in range(3)})
    try:
        found = load_dataset("folder", path, 16, "train").images[0, 0]
    except DataError as error:
        assert "a/0.png" in str(error)
    else:
        assert np.abs(found.astype(int).ravel() - np.arange(256)).max() <= 1


def good_tree():
    return {f"{'ab'[i % 2]}/{i}.png": png(image) for i, image in enumerate(pixels(4, grey=False))}


NOISE = pixels(1, grey=False, size=64)[0]
DAMAGED_IMAGES = {
    "corrupt jpeg": ("a/bad.jpg", b"\xff\xd8\xff\xe0" + b"\x12" * 200),
    "truncated jpeg": ("a/bad.jpg", png(NOISE, "JPEG")[:900]),
    "truncated png": ("a/bad.png", png(NOISE)[:400]),
    "png cut in its header": ("a/bad.png", png(NOISE)[:20]),
    "png with damaged pixels": ("a/bad.png", png(NOISE)[:60] + b"\x00" * 500 + png(NOISE)[560:]),
    "text called png": ("b/bad.png", b"hello"),
    "nothing": ("b/bad.gif", b""),
}


@pytest.mark.parametrize("what", DAMAGED_IMAGES)
def test_damaged_images_are_refused_by_name(tree, what):
    name, raw = DAMAGED_IMAGES[what]
    path = tree.write(good_tree() | {name: raw})
    with pytest.raises(DataError, match="bad") as caught:
        load_dataset("folder", path, 16, "train")
    assert f"{path}/{name}" in str(caught.value) and "does not decode" in str(caught.value)


@given(st.integers(0, 2**20), st.integers(0, 255))
def test_any_damage_to_a_zip_is_read_or_refused(tmp_path_factory, place, byte):
    root = tmp_path_factory.getbasetemp() / f"fuzz-{place}-{byte}.zip"
    raw = bytearray(Tree(root.with_suffix(""), True).write(good_tree()).read_bytes())
    raw[place % len(raw)] = byte
    root.write_bytes(bytes(raw))
    try:
        found = load_dataset("folder", root, 16, "train")
    except DataError as error:
        assert root.name in str(error)
    else:
        assert len(found) > 0
    finally:
        root.unlink()


@given(st.integers(0, 2**20), st.integers(0, 255), st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]))
def test_any_damage_to_an_image_is_read_or_refused(tmp_path_factory, place, byte, kind):
    root = tmp_path_factory.getbasetemp() / f"fuzz-{kind}-{place}-{byte}"
    raw = bytearray(png(NOISE[:16, :16], kind))
    raw[place % len(raw)] = byte
    path = Tree(root, False).write({f"a/bad.{kind.lower()}": bytes(raw)})
    try:
        assert len(load_dataset("folder", path, 16, "train")) == 1
    except DataError as error:
        assert "bad." in str(error)


def test_mixed_sizes_are_refused_by_name(tree):
    path = tree.write(good_tree() | {"b/wide.png": png(np.zeros((16, 20, 3), np.uint8))})
    with pytest.raises(DataError, match=r"wide\.png has 20×16 pixels.*has 16×16"):
        load_dataset("folder", path, 16, "train")


def test_nothing_to_read_is_refused_by_name(tree, tmp_path):
    path = tree.write({"a/readme.txt": b"no image"})
    with pytest.raises(DataError, match=f"no train images in {path}"):
        load_dataset("folder", path, 16, "train")
    with pytest.raises(DataError, match="nowhere does not exist"):
        load_dataset("folder", tmp_path / "nowhere", 16, "train")
    with pytest.raises(DataError, match="nowhere does not exist"):
        load_dataset("folder", tmp_path / "nowhere", 16, "train", per_client=True)


@pytest.mark.parametrize("raw", [b"", b"not a zip at all", b"PK\x03\x04" + b"\x00" * 40])
def test_a_zip_that_is_none_is_refused(tmp_path, raw):
    path = tmp_path / "images.zip"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"images\.zip is not a readable zip"):
        load_dataset("folder", path, 16, "train")


def test_a_zip_cut_short_is_refused(tmp_path):
    path = Tree(tmp_path / "images", True).write(good_tree())
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="not a readable zip"):
        load_dataset("folder", path, 16, "train")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_zip_member_is_refused_by_name(tmp_path, method):
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, raw in good_tree().items():
            archive.writestr(name, raw)
        inside = archive.getinfo("b/3.png")
    raw = bytearray(path.read_bytes())
    start = inside.header_offset + 30 + len("b/3.png")
    raw[start + 20 : start + 120] = bytes(100)
    path.write_bytes(bytes(raw))
    with pytest.raises(DataError, match=r"images\.zip:b/3\.png does not unpack"):
        load_dataset("folder", path, 16, "train")


# ------------------------------------------------------------------------------------------- scale


def test_twenty_eight_pixels_are_padded_and_kept():
    found = fit(TRAIN[:, None], 32)
    assert np.array_equal(found[:, 0, 2:30, 2:30], TRAIN)
    assert found.sum() == TRAIN.sum()


@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("shape", [(28, 28), (32, 32), (100, 40), (8, 8)])
def test_resizing_keeps_shape_mean_and_channels(size, shape):
    ramp = np.broadcast_to(np.linspace(0, 255, shape[0])[:, None], shape).astype(np.uint8)
    images = np.stack([ramp, 255 - ramp, np.full(shape, 90, np.uint8)])[None].repeat(2, 0)
    found = fit(images, size)
    assert found.shape == (2, 3, size, size) and found.dtype == np.uint8
    assert np.abs(found.mean((2, 3)) - images.mean((2, 3))).max() < 1.5
    assert (np.diff(found[0, 0, :, 0].astype(int)) >= 0).all(), "a ramp stays a ramp"
    assert np.ptp(found[:, 2]) == 0, "a flat plane stays flat"


def test_halving_averages_pixels():
    images = RNG.integers(0, 256, (3, 1, 32, 32), np.uint8)
    means = images.reshape(3, 16, 2, 16, 2).mean((2, 4))
    assert np.abs(fit(images, 16)[:, 0] - means).max() <= 1, "each of the two passes rounds"


def test_the_right_size_is_left_alone():
    images = RNG.integers(0, 256, (3, 3, 16, 16), np.uint8)
    assert np.array_equal(fit(images, 16), images)
