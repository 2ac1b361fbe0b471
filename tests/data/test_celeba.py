"""CelebA: the published split, the middle of each face, one attribute; what is missing or damaged is named."""

import numpy as np
import pytest
from made import png

from prismfl.data.celeba import load_celeba
from prismfl.data.datasets import load_dataset
from prismfl.errors import DataError
from prismfl.settings.schema import Data

RNG = np.random.default_rng(3)
COUNT, NAMES = 12, ("Bald", "Male", "Young")
FACES = RNG.integers(0, 256, (COUNT, 218, 178, 3), np.uint8)
SPLITS = [0, 0, 2, 0, 1, 0, 2, 0, 1, 0, 0, 2]
MARKS = RNG.choice([-1, 1], (COUNT, 3))


def called(index):
    return f"{index + 1:06}.png"


def lists():
    rows = [f"{called(i)} " + " ".join(f"{mark:2}" for mark in MARKS[i]) for i in range(COUNT)]
    return {
        "list_eval_partition.txt": "".join(f"{called(i)} {part}\n" for i, part in enumerate(SPLITS)),
        "list_attr_celeba.txt": "\n".join([str(COUNT), " ".join(NAMES), *rows]) + "\n",
    }


def write(root, faces="img_align_celeba", **changed):
    (root / faces).mkdir(parents=True, exist_ok=True)
    for index, face in enumerate(FACES):
        (root / faces / called(index)).write_bytes(png(face))
    for name, text in (lists() | changed).items():
        (root / name).write_text(text)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write(tmp_path_factory.mktemp("celeba"))


@pytest.mark.parametrize(("split", "part"), [("train", 0), ("test", 2)])
def test_the_published_split_is_kept_and_the_middle_taken(root, split, part):
    rows = [index for index, one in enumerate(SPLITS) if one == part]
    found = load_dataset("celeba", root, 32, split)
    middle = FACES[rows][:, 29:189, 9:169]
    means = middle.reshape(len(rows), 32, 5, 32, 5, 3).mean((2, 4)).transpose(0, 3, 1, 2)
    assert found.images.shape == (len(rows), 3, 32, 32) and np.abs(found.images - means).max() <= 1
    assert found.labels.tolist() == [int(MARKS[row, 1] > 0) for row in rows]
    assert found.classes == ("not_Male", "Male")


@pytest.mark.parametrize("attribute", NAMES)
def test_the_attribute_is_chosen(root, attribute):
    found = load_dataset("celeba", root, 16, "train", settings=Data(attribute=attribute))
    marks = MARKS[np.array(SPLITS) == 0, NAMES.index(attribute)]
    assert found.labels.tolist() == (marks > 0).tolist() and found.classes == (f"not_{attribute}", attribute)


def test_images_may_lie_beside_the_lists(root, tmp_path):
    one, two = (load_celeba(place, "test", "Male", 16) for place in (root, write(tmp_path, ".")))
    assert np.array_equal(one.images, two.images)


def test_images_keep_their_colours_even_where_all_are_grey(tmp_path):
    write(tmp_path)
    for path in (tmp_path / "img_align_celeba").iterdir():
        path.write_bytes(png(np.full((218, 178), 90, np.uint8)))
    assert load_celeba(tmp_path, "train", "Male", 16).images.shape[1:] == (3, 16, 16)


def test_an_unknown_attribute_is_refused_with_the_known(root):
    with pytest.raises(DataError, match=r"data\.attribute = 'male'; expected one of Bald, Male, Young"):
        load_celeba(root, "train", "male", 16)


@pytest.mark.parametrize("name", ["list_eval_partition.txt", "list_attr_celeba.txt"])
def test_a_missing_list_is_named(tmp_path, name):
    (write(tmp_path) / name).unlink()
    with pytest.raises(DataError, match=f"cannot read .*{name}"):
        load_celeba(tmp_path, "train", "Male", 16)


@pytest.mark.parametrize("name", [called(1), called(9)])
def test_missing_images_are_named_before_any_is_decoded(tmp_path, name):
    write(tmp_path)
    (tmp_path / "img_align_celeba" / called(0)).write_bytes(b"damaged, and never looked at")
    (tmp_path / "img_align_celeba" / name).unlink()
    with pytest.raises(DataError, match=rf"{name} is missing \(1 of 7 are\)"):
        load_celeba(tmp_path, "train", "Male", 16)
    assert len(load_celeba(tmp_path, "test", "Male", 16)) == 3


@pytest.mark.parametrize(
    ("raw", "says"), [(b"text", "does not decode"), (png(FACES[0])[:500], "decode"), (png(FACES[0][:159]), "178×159")]
)
def test_a_damaged_image_is_named(tmp_path, raw, says):
    (write(tmp_path) / "img_align_celeba" / called(3)).write_bytes(raw)
    with pytest.raises(DataError, match=called(3)) as caught:
        load_celeba(tmp_path, "train", "Male", 16)
    assert says in str(caught.value)


def test_an_image_of_another_size_is_read(tmp_path):
    """Only the middle counts: faces of 178×218 and of 200×200 have one."""
    (write(tmp_path) / "img_align_celeba" / called(3)).write_bytes(png(np.zeros((200, 200, 3), np.uint8)))
    assert load_celeba(tmp_path, "train", "Male", 16).images[2].max() == 0


def lines(name, number, text):
    """A list with one line changed."""
    found = lists()[name].splitlines()
    found[number - 1] = text
    return "\n".join(found)


SPLIT_LIST, MARK_LIST = "list_eval_partition.txt", "list_attr_celeba.txt"
DAMAGED = {
    "a partition that is none": (SPLIT_LIST, lines(SPLIT_LIST, 3, "000003.png 3"), "line 3"),
    "a line without partition": (SPLIT_LIST, lines(SPLIT_LIST, 5, "000005.png"), "line 5"),
    "an image that is named twice": (SPLIT_LIST, lines(SPLIT_LIST, 5, "000003.png 2"), "line 5"),
    "html": (SPLIT_LIST, "<html>\nnot found\n</html>", "line 1"),
    "no lines": (SPLIT_LIST, "", "names no train images"),
    "test images only": (SPLIT_LIST, "000001.png 2\n", "names no train images"),
    "a count that is wrong": (MARK_LIST, lines(MARK_LIST, 1, "13"), "line 1"),
    "a count that is none": (MARK_LIST, lines(MARK_LIST, 1, "many"), "line 1"),
    "nothing": (MARK_LIST, "", "line 1"),
    "a mark that is none": (MARK_LIST, lines(MARK_LIST, 4, "000002.png 1 0 1"), "line 4"),
    "too few marks": (MARK_LIST, lines(MARK_LIST, 4, "000002.png 1 1"), "line 4"),
    "an image without marks": (MARK_LIST, lines(MARK_LIST, 4, "000099.png 1 1 1"), "000002.png"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_lists_are_refused_by_name(tmp_path, what):
    name, text, says = DAMAGED[what]
    with pytest.raises(DataError, match=name) as caught:
        load_celeba(write(tmp_path, **{name: text}), "train", "Male", 16)
    assert says in str(caught.value)


def test_a_list_leads_to_nothing_outside_the_folder(tmp_path):
    root = write(tmp_path / "celeba")
    (root / "secret.png").write_bytes(png(FACES[0]))
    for name in (SPLIT_LIST, MARK_LIST):
        (root / name).write_text(lists()[name].replace("000001.png", "../secret.png"))
    with pytest.raises(DataError, match=r"secret\.png is missing"):
        load_celeba(root, "train", "Male", 16)


def test_a_list_that_is_no_text_is_refused_by_name(tmp_path):
    (write(tmp_path) / SPLIT_LIST).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=SPLIT_LIST):
        load_celeba(tmp_path, "train", "Male", 16)
