"""Persons: numbered by file names, held back whole, and never at two clients."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import Tree, pixels, png

from prismfl.data import images as images_module
from prismfl.data.datasets import ImageSet, load_dataset
from prismfl.data.images import deal
from prismfl.data.partition import partition
from prismfl.data.persons import people_of
from prismfl.errors import DataError, SettingError
from prismfl.run.prepare import prepare
from prismfl.settings.schema import Data
from prismfl.settings.toml import settings_from

PEOPLE = r"person(\d+)"


@pytest.fixture(params=["folder", "zip"])
def tree(request, tmp_path):
    return Tree(tmp_path / "images", request.param == "zip")


def load(path, split="train", people=PEOPLE):
    return load_dataset("folder", path, 16, split, settings=Data(dataset="folder", partition="iid", people=people))


def test_a_group_or_else_the_whole_match_is_the_person():
    names = ["b/p2-0.png", "a/p1-0.png", "a/p2-1.png"]
    assert people_of(names, r"p(\d)-").tolist() == people_of(names, r"p\d").tolist() == [1, 0, 1]
    assert people_of(names, r"^[a-z]").tolist() == [1, 0, 0] and people_of(names, "") is None


@pytest.mark.parametrize("pattern", [r"p(\d+)", r"p(\d*)|x"])
def test_files_of_nobody_are_counted_and_not_named(pattern):
    with pytest.raises(DataError, match=r"2 of 3 file names in which data\.people finds nobody") as caught:
        people_of(["p1.png", "secret.png", "x.png"], pattern)
    assert "secret" not in str(caught.value)


def test_images_without_class_folders_are_one_class_of_known_persons(tree):
    made = pixels(5, grey=True)
    names = [
        "train/person2-1.png",
        "train/person1-1.png",
        "train/person2-2.png",
        "test/person7-1.png",
        "test/person8.png",
    ]
    path = tree.write({name: png(image) for name, image in zip(names, made, strict=True)})
    train, test = load(path), load(path, "test")
    assert train.classes == test.classes == ("",) and train.labels.tolist() == [0, 0, 0]
    assert train.people.tolist() == [0, 1, 1] and test.people.tolist() == [0, 1]
    assert np.array_equal(train.images[:, 0], made[[1, 0, 2]]) and load(path, people="").people is None


@pytest.mark.parametrize(
    "names", [["a/1.png", "2.png"], ["train/a/1.png", "train/2.png"], ["train/2.png", "test/a/1.png"]]
)
def test_images_beside_class_folders_are_refused(tree, names):
    path = tree.write({name: png(image) for name, image in zip(names, pixels(2, grey=True), strict=True)})
    with pytest.raises(DataError, match="1 images beside the class folders"):
        load(path, people="")


@pytest.mark.parametrize(("persons", "held"), [(23, {9, 19}), (4, {3})])
def test_without_splits_whole_persons_are_held_back(tmp_path, persons, held):
    path = Tree(tmp_path / "images", False)
    path.write({f"person{i % persons:02}-{i}.png": png(np.full((16, 16), i % persons, np.uint8)) for i in range(60)})
    seen = [{int(image.max()) for image in load(path.path, split).images} for split in ("train", "test")]
    assert seen == [set(range(persons)) - held, held]


@st.composite
def people_and_clients(draw):
    counts = draw(st.lists(st.integers(1, 30), min_size=1, max_size=40))
    people = np.repeat(np.arange(len(counts)), counts)
    return draw(st.permutations(people.tolist())), draw(st.integers(1, len(counts))), max(counts)


@given(people_and_clients(), st.integers(0, 2**64 - 1))
def test_nobody_is_at_two_clients_and_clients_have_about_as_many_images(case, seed):
    people, clients, most = np.array(case[0]), case[1], case[2]
    count = len(people)
    images = ImageSet(np.zeros((count, 1, 2, 2), np.uint8), np.zeros(count, np.int64), ("",), people=people)
    parts = partition(images, Data(clients=clients, partition="iid"), seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(count))
    homes = [set(one.people.tolist()) for one in deal(images, parts)]
    assert sum(map(len, homes)) == len(set.union(*homes)), "no person at two clients"
    sizes = [len(part) for part in parts]
    assert min(sizes) > 0 and max(sizes) - min(sizes) <= most


def test_the_seed_deals_persons():
    people = np.arange(60) % 20
    images = ImageSet(np.zeros((60, 1, 2, 2), np.uint8), people * 0, ("",), people=people)
    dealt = [
        [part.tolist() for part in partition(images, Data(clients=4, partition="iid"), seed)] for seed in (1, 1, 2)
    ]
    assert dealt[0] == dealt[1] != dealt[2]
    with pytest.raises(SettingError, match=r"data\.clients = 21 with 20 persons; expected 1 … 20"):
        partition(images, Data(clients=21, partition="iid"), 0)


def test_persons_go_with_images_in_a_file_too(monkeypatch, tmp_path):
    monkeypatch.setattr(images_module, "LARGE", 10)
    whole = ImageSet(images_module.room((6, 1, 2, 2), tmp_path), np.zeros(6, np.int64), ("",), people=np.arange(6))
    assert [part.people.tolist() for part in deal(whole, [np.array([5, 0]), np.array([3])], tmp_path)] == [[5, 0], [3]]


# --------------------------------------------------------------------------------- what is asked


def test_with_people_persons_are_dealt_unless_clients_are_given():
    assert settings_from({"data": {"dataset": "folder", "people": PEOPLE}}).data.partition == "iid"
    assert settings_from({"data": {"data_dir": "sites/*", "people": PEOPLE}}).data.partition == "given"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"partition": "shards"}, "data.partition = 'shards' with data.people.*choose data.partition = 'iid'"),
        ({"dataset": "mnist"}, "data.people with data.dataset = 'mnist'"),
        ({"people": "person("}, "expected a regular expression"),
        ({"people": "(a)(b)"}, "with 2 groups; expected one at most"),
    ],
)
def test_what_cannot_keep_persons_whole_is_refused(data, says):
    with pytest.raises(SettingError, match=says):
        settings_from({"data": {"dataset": "folder", "people": PEOPLE} | data})


@pytest.fixture
def pictured(tmp_path, tiny):
    """Settings of a run on pictures of twenty persons, of whom two are held back: number 0 has nine, others two."""
    files = {f"person{i:02}-{n}.png": None for i in range(20) for n in range(2 if i else 9)}
    made = pixels(len(files), grey=True)
    path = Tree(tmp_path / "images", False).write({n: png(image) for n, image in zip(files, made, strict=True)})
    data = {"dataset": "folder", "data_dir": str(path), "people": PEOPLE}
    return lambda **changes: tiny(data=data, **changes)


def test_a_run_deals_whole_persons(pictured):
    ready = prepare(pictured())
    homes = [set(mine.people.tolist()) for mine in ready.clients]
    assert sum(map(len, homes)) == len(set.union(*homes)) == 18 and len(set(ready.test.people.tolist())) == 2


def test_with_epsilon_persons_are_counted_and_images_are_nobodys_business(pictured):
    def made(**data):
        privacy = {"epsilon": 5.0, "delta": 1e-3, "images_per_person": data.pop("most", 1)}
        return prepare(pictured(privacy=privacy, generator={"channels": 1}, **data))

    ready = made()
    assert sum(mine.units for mine in ready.clients) == 18 and len(ready.warnings) == 1, "of noise alone"
    assert ready.described.line().startswith("images of 20 persons, no classes, grey, 16 px")
    assert "2 of them held back" in ready.described.line()
    assert not {"images", "held_back", "left_out", "counts"} & set(ready.described.as_json())
    line = made(most=8).warnings[0]
    assert re.search(r"all of its images are covered: privacy\.images_per_person = 8 changes nothing", line)
    plain = prepare(pictured()).described.line()
    assert plain.startswith("47 images of 20 persons") and "4 held back" in plain


# ------------------------------------------------------------------------------------- tables


NAMES = ["a/1.png", "a/2.png", "b/1.png", "b/3.png"]
TABLE = b"file,person\na/1.png,ann\na/2.png,bob\nb/1.png,ann\nb/3.png,cy\n"


def tabled(tree, table, people="", name="people.csv", private=False):
    files = {one: png(image) for one, image in zip(NAMES, pixels(4, grey=True), strict=True)}
    path = tree.write({f"train/{one}": raw for one, raw in files.items()} | {f"test/{one}": raw for one, raw in
                      files.items()} | ({name: table} if name else {}))  # fmt: skip
    return load_dataset("folder", path, 16, "train", settings=Data(dataset="folder", people=people), private=private)


@pytest.mark.parametrize(
    "table",
    [
        TABLE.replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbfPerson;File\nann;b/1.png\nann;a/1.png\nbob;a\\2.png\ncy;b/3.png\n",
        b"a/1.png\tann\na/2.png\tbob\nb/1.png\tann\nb/3.png\tcy\n",
        b"2.png,bob\n3.png,cy\n1.png,ann\n",
    ],
    ids=["windows", "head", "tabs", "names"],
)
def test_a_table_says_whose_images_are(tree, table):
    found = tabled(tree, table, name="train/people.csv" if b"2.png,bob\n3" not in table else "people.csv")
    assert found.people.tolist() == [0, 1, 0, 2] and not found.reading.skipped


def test_a_table_elsewhere_is_named_and_a_pattern_goes_before_one(tmp_path):
    place = tmp_path / "who.csv"
    place.write_bytes(TABLE.replace(b"a/", b"train/a/").replace(b"b/", b"train/b/") + TABLE.replace(b"a/", b"test/a/")
                      .replace(b"b/", b"test/b/").split(b"\n", 1)[1])  # fmt: skip
    found = tabled(Tree(tmp_path / "1", False), b"", str(place), name="")
    assert found.people.tolist() == [0, 1, 0, 2]
    assert tabled(Tree(tmp_path / "2", False), TABLE, "[ab]/").people.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (b"file,person\na/1.png,ann\n", "images that the table of persons does not name"),
        (b"file,person\na/1.png,\n", "line 2 of the table of persons, without a file and a person"),
        (TABLE + b"a/1.png,bert\n", "line 6 of the table of persons, another person for a file"),
        (b"\xff\xfe\x00", "a table of persons that does not read"),
        (b"names of people\n", "line 1 of the table of persons, without .*another name than people.csv"),
    ],
)
def test_a_table_that_leaves_somebody_out_is_refused_without_names(tree, table, says):
    with pytest.raises(DataError, match=says) as caught:
        tabled(tree, table, name="train/people.csv")
    assert "ann" not in str(caught.value) and "1.png" not in str(caught.value)


def test_with_epsilon_persons_that_a_table_tells_are_not_dealt_by_label(tmp_path, tiny):
    files = {f"{'ab'[i % 2]}/{i}.png": png(image) for i, image in enumerate(pixels(40, grey=True))}
    table = "".join(f"{name},p{i // 2}\n" for i, name in enumerate(files))
    path = Tree(tmp_path / "images", False).write(files | {"people.csv": table.encode()})
    data = {"dataset": "folder", "data_dir": str(path), "partition": "shards"}
    assert prepare(tiny(data=data)).clients[0].people is not None
    with pytest.raises(SettingError, match="'shards' with epsilon and images whose persons are known; expected iid"):
        prepare(tiny(data=data, privacy={"epsilon": 1.0, "delta": 1e-3}))


def test_of_unlabelled_images_shards_are_cuts_in_name_order(tiny):
    images = ImageSet(np.zeros((80, 1, 2, 2), np.uint8), np.zeros(80, np.int64), ("",))
    for part in partition(images, Data(clients=4, partition="shards:2"), 0):
        assert (
            len(part) == 20 and set(np.diff(part)) <= {1, 11, 21, 31, 41, 51, 61} and (np.diff(part) == 1).sum() >= 18
        )
