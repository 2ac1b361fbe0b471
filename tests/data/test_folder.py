"""Image folders and zips: what was written is read back, and what is damaged is refused by name."""

import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import Tree, channels_first, data_folder, pixels, png

from prismfl.data.datasets import load_dataset
from prismfl.data.folder import client_roots, load_folder
from prismfl.errors import DataError
from prismfl.run.prepare import prepare
from prismfl.settings.schema import Data


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


@pytest.mark.slow
def test_the_zip_of_jpegs_is_read():
    path = data_folder("cifar10", "cifar10-jpeg.zip")
    test = load_dataset("folder", path, 32, "test")
    assert test.images.shape == (5000, 3, 32, 32) and len(test.classes) == 10
    assert np.bincount(test.labels).min() > 100


# ----------------------------------------------------------------------------- clients by pattern


def clients_from(pattern, size=16):
    return load_dataset("folder", None, size, "train", per_client=True, settings=by_pattern(pattern))


def by_pattern(pattern):
    return Data(dataset="folder", partition="given", data_dir=str(pattern))


SITES = ["north/x/1.png", "north/y/1.png", "south/x/1.png", "south/x/2.png", "west/y/1.png"]


def sites(root, packed=()):
    """Three clients' folders, some of them as zips: the images in order of client and name."""
    made = pixels(len(SITES), grey=False, seed=5)
    root.mkdir()
    for client in ("north", "south", "west"):
        mine = {n.split("/", 1)[1]: png(i) for n, i in zip(SITES, made, strict=True) if n.startswith(client)}
        Tree(root / client, client in packed).write(mine)
    return made


@pytest.mark.parametrize("packed", [(), ("south",), ("north", "south", "west")])
def test_every_folder_or_zip_of_a_pattern_is_a_client(tmp_path, packed):
    made = sites(tmp_path / "sites", packed)
    (tmp_path / "sites" / "notes.txt").write_text("no client")
    found = clients_from(tmp_path / "sites" / "*")
    assert found.owners.tolist() == [0, 0, 1, 1, 2] and found.classes == ("x", "y")
    assert found.labels.tolist() == [0, 1, 0, 0, 1]
    assert np.array_equal(found.images, made.transpose(0, 3, 1, 2))


def test_a_pattern_equals_one_folder_of_clients_as_given(tmp_path):
    sites(tmp_path / "sites")
    one = clients_from(tmp_path / "sites" / "*")
    two = load_dataset("folder", tmp_path / "sites", 16, "train", per_client=True)
    assert np.array_equal(one.images, two.images) and one.classes == two.classes
    assert np.array_equal(one.labels, two.labels) and np.array_equal(one.owners, two.owners)


def test_a_pattern_may_choose(tmp_path):
    sites(tmp_path / "sites")
    assert clients_from(tmp_path / "sites" / "[ns]*").owners.tolist() == [0, 0, 1, 1]
    assert [path.name for path in client_roots(str(tmp_path / "*" / "?est"))] == ["west"]


def test_a_pattern_is_read_from_where_one_stands_and_from_home(tmp_path, monkeypatch):
    sites(tmp_path / "sites")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(client_roots("sites/*")) == 3
    assert len(client_roots("~/sites/*")) == 3


def test_of_a_client_with_splits_the_training_images_count(tmp_path):
    made = pixels(3, grey=False)
    Tree(tmp_path / "a", False).write({"train/x/1.png": png(made[0]), "test/x/2.png": png(made[1])})
    Tree(tmp_path / "b", False).write({"x/1.png": png(made[2])})
    found = clients_from(tmp_path / "*")
    assert found.owners.tolist() == [0, 1] and found.classes == ("x",)
    assert np.array_equal(found.images, made[[0, 2]].transpose(0, 3, 1, 2))


def test_one_coloured_client_makes_all_coloured(tmp_path):
    Tree(tmp_path / "a", False).write({"1.png": png(pixels(1, grey=True)[0])})
    Tree(tmp_path / "b", False).write({"1.png": png(pixels(1, grey=False)[0])})
    found = clients_from(tmp_path / "*")
    assert found.images.shape == (2, 3, 16, 16) and found.classes == ("",)


@pytest.mark.parametrize("pattern", ["nothing*", "notes.txt", "sites/[", "\0", "~nobody-here/*"])
def test_a_pattern_without_a_match_is_refused_by_name(tmp_path, monkeypatch, pattern):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError, match=r"data\.data_dir"):
        client_roots(pattern)


def test_a_client_without_images_is_named(tmp_path):
    sites(tmp_path / "sites")
    (tmp_path / "sites" / "empty").mkdir()
    with pytest.raises(DataError, match=r"no train images in .*empty"):
        clients_from(tmp_path / "sites" / "*")


def test_a_damaged_image_of_a_client_is_named(tmp_path):
    sites(tmp_path / "sites")
    (tmp_path / "sites" / "west" / "y" / "2.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"west/y/2\.png does not decode"):
        clients_from(tmp_path / "sites" / "*")


# ------------------------------------------------------------------------------ what folders mean


def flat(names, seed=0):
    """An image a name, of the name's own shade."""
    return {name: png(np.full((8, 8), 5 + 3 * index + seed, np.uint8)) for index, name in enumerate(names)}


def read_both(path, data=None):
    return tuple(load_folder(path, split, False, 8, None, data) for split in ("train", "test"))


@pytest.mark.parametrize(
    ("train", "held", "unused"),
    [
        ("train", "val", None),
        ("Train", "Test", None),
        ("TRAINING", "validation", None),
        ("train", "test", "valid"),
        ("train2017", "val2017", None),
        ("train_set", "test-images", "val data"),
    ],
)
@pytest.mark.parametrize("top", ["", "pictures/"])
def test_splits_are_known_by_their_usual_names_below_one_top_folder(tree, top, train, held, unused):
    names = [f"{top}{split}/{name}/{i}.png" for split in (train, held, unused) if split for name in "ab" for i in "01"]
    path = tree.write(flat(names))
    one, two = read_both(path)
    assert one.classes == two.classes == ("a", "b") and len(one) == len(two) == 4
    assert one.reading.held_back == 4 and one.reading.left_out == (4 if unused else 0)


def test_a_folder_of_images_in_every_class_folder_says_nothing(tree):
    path = tree.write(flat(["x/train/a/images/1.png", "x/train/b/images/1.png", "x/val/images/1.png"]))
    found = load_folder(path, "train", False, 8)
    assert [name for name in found.classes if name != "images"] == ["a", "b"] and len(found) == 2


def test_a_train_folder_alone_holds_a_tenth_back(tree):
    path = tree.write(flat([f"train/a/{i:02}.png" for i in range(20)]))
    assert [len(part) for part in read_both(path)] == [18, 2]


def test_a_class_may_be_called_train(tree):
    found = load_folder(
        tree.write(flat([f"{name}/{i}.png" for name in ("car", "train") for i in "01"])), "train", False, 8
    )
    assert found.classes == ("car", "train")


def test_of_fewer_than_ten_images_none_is_held_back(tree, tiny):
    path = tree.write(flat([f"a/{i}.png" for i in range(9)]))
    assert len(load_folder(path, "train", False, 8)) == 9
    with pytest.raises(DataError, match="at least ten images"):
        load_folder(path, "test", False, 8)
    data = {"dataset": "folder", "data_dir": str(path)}
    ready = prepare(tiny(data=data, running={"distance_samples": 100}))
    assert ready.test is None and sum(map(len, ready.clients)) == 9 and "none held back" in ready.described.line()
    assert "too few images are held back (0)" in ready.warnings[0]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["train/a/1.png", "extra/b/1.png"], "extra beside train in .*move what is neither"),
        (["train/a/1.png", "1.png"], "images beside train in"),
        (["a/train/1.png", "a/test/1.png", "b/train/1.png"], r"folders of splits inside 1 folders of .*, as a;"),
        (["h1/cat/1.png", "h2/cat/1.png"], r"2 folders \(h1, h2\) in .*--partition given"),
        (["h1/train/cat/1.png", "h2/train/cat/1.png"], r"2 folders \(h1, h2\) in .*--partition given"),
        (["test/cat/1.png"], "no train images in"),
    ],
)
def test_folders_that_may_mean_two_things_are_refused(tree, names, says):
    with pytest.raises(DataError, match=says):
        load_folder(tree.write(flat(names)), "train", False, 8)


def test_of_clients_with_splits_the_training_images_count(tree):
    names = ["north/train/x/1.png", "north/val/x/2.png", "south/x/3.png", "south/y/4.png", "one/north/x/1.png"]
    found = load_folder(tree.write(flat(names[:4])), "train", True, 8)
    assert found.owners.tolist() == [0, 1, 1] and found.classes == ("x", "y") and found.reading.left_out == 1


def test_clients_below_one_top_folder_are_found(tree):
    names = ["sites/north/x/1.png", "sites/south/x/3.png"]
    found = load_folder(tree.write(flat(names)), "train", True, 8, None, Data(clients=2))
    assert found.owners.tolist() == [0, 1] and found.classes == ("x",)


@pytest.mark.parametrize("without", [False, True])
def test_with_epsilon_folders_are_classes_whatever_images_are_in_them(tmp_path, without):
    path = Tree(tmp_path / "in", False).write(flat(["a/1.png", "b/1.png"][: 2 - without]))
    for name in ("b", "c", "notes"):
        (path / name).mkdir(exist_ok=True)
    for name in ("b", "notes"):
        (path / name / "read.txt").write_text("")
    plain, private = (load_folder(path, "train", False, 8, private=private).classes for private in (False, True))
    assert plain == (("a",) if without else ("a", "b")) and private == ("a", "b", "c", "notes")


def test_with_epsilon_images_beside_folders_are_refused(tree):
    path = tree.write(flat(["a/1.png", "b/1.png", "b/inner/2.png"]))
    assert load_folder(path, "train", False, 8).classes == ("a", "b", "b/inner")
    with pytest.raises(DataError, match="1 images beside folders, with epsilon"):
        load_folder(path, "train", False, 8, private=True)
