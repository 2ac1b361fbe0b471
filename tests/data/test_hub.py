"""Hugging Face's data sets: by a stand-in for the library, and by the library itself where it is installed."""

import importlib.util
import io
import sys
import types

import numpy as np
import pytest
from made import channels_first, pixels, png
from PIL import Image

from prismfl.data.datasets import load_dataset
from prismfl.errors import DataError, DependencyError
from prismfl.settings.schema import Data


class Table:
    """As much of a `datasets.Dataset` as is asked for."""

    def __init__(self, columns, names=None):
        self.columns = columns
        self.features = {key: types.SimpleNamespace(names=names if key != "image" else None) for key in columns}

    @property
    def column_names(self):
        return list(self.columns)

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key):
        return self.columns[key] if isinstance(key, str) else {name: v[key] for name, v in self.columns.items()}

    def select(self, rows):
        found = Table({name: [values[row] for row in rows] for name, values in self.columns.items()})
        found.features = self.features
        return found

    def select_columns(self, names):
        return Table({name: self.columns[name] for name in names})


class StandIn:
    """The library: what `known` holds by name or folder."""

    def __init__(self, known):
        self.known = known

    def load_dataset(self, name):
        if name not in self.known:
            raise ConnectionError(f"Couldn't reach '{name}' on the Hub")
        return self.known[name]

    def load_from_disk(self, name):
        if name not in self.known:
            raise FileNotFoundError(f"Directory {name} is neither a Dataset nor a DatasetDict directory.")
        return self.known[name]


@pytest.fixture
def library(monkeypatch):
    """Puts a library that knows one data set, "set", in the place of the real one."""

    def put(found):
        monkeypatch.setitem(sys.modules, "datasets", StandIn({"set": found}))

    return put


def load(split="train", size=16, name="set", **settings):
    return load_dataset("hf", name, size, split, settings=Data(**settings))


MADE = pixels(20, grey=False)
PICTURES = [Image.fromarray(array) for array in MADE]
DIGITS = [int(i) % 3 for i in range(20)]


def test_both_splits_are_read_with_the_library_s_class_names(library):
    names = ["cat", "dog", "eel"]
    library(
        {
            "train": Table({"image": PICTURES[:14], "label": DIGITS[:14]}, names),
            "test": Table({"image": PICTURES[14:], "label": DIGITS[14:]}, names),
        }
    )
    train, test = load(), load("test")
    assert np.array_equal(train.images, MADE[:14].transpose(0, 3, 1, 2))
    assert np.array_equal(test.images, MADE[14:].transpose(0, 3, 1, 2))
    assert train.labels.tolist() == DIGITS[:14] and test.labels.tolist() == DIGITS[14:]
    assert train.classes == test.classes == ("cat", "dog", "eel")


@pytest.mark.parametrize("wrap", [lambda table: table, lambda table: {"train": table}])
def test_without_a_test_split_a_tenth_is_held_out(library, wrap):
    library(wrap(Table({"img": PICTURES, "label": DIGITS})))
    train, test = load(), load("test")
    assert np.array_equal(test.images, MADE[9::10].transpose(0, 3, 1, 2)) and len(train) == 18
    assert test.labels.tolist() == DIGITS[9::10]


def test_a_validation_split_is_for_testing(library):
    tables = [Table({"image": PICTURES[i::2], "label": DIGITS[i::2]}) for i in (0, 1)]
    library({"train": tables[0], "validation": tables[1]})
    assert np.array_equal(load("test").images, MADE[1::2].transpose(0, 3, 1, 2))


def test_labels_are_in_the_column_that_is_asked_for(library):
    library(Table({"image": PICTURES, "kind": DIGITS, "label": [0] * 20}))
    assert len(load(attribute="kind").classes) == 3 and len(load().classes) == 1
    with pytest.raises(DataError, match=r"data\.attribute = 'colour' in set; expected one of image, kind"):
        load(attribute="colour")


def test_images_are_in_the_one_column_of_images(library):
    class Image:
        """As `datasets.Image`: the type of a column."""

    table = Table({"photo": PICTURES, "label": DIGITS})
    library(table)
    with pytest.raises(DataError, match="columns photo, label in set; expected a column of images: image or img"):
        load()
    table.features["photo"] = Image()
    library(table)
    assert len(load().classes) == 3


@pytest.mark.parametrize("labels", [["b", "a"] * 10, [7, 3] * 10])
def test_labels_without_names_are_numbered_in_order_over_both_splits(library, labels):
    library(
        {
            "train": Table({"image": PICTURES[:3], "label": [labels[0]] * 3}),
            "test": Table({"image": PICTURES[:2], "label": labels[:2]}),
        }
    )
    assert load().classes == load("test").classes == tuple(map(str, sorted(set(labels))))
    assert load().labels.tolist() == [1, 1, 1] and load("test").labels.tolist() == [1, 0]


def test_images_without_labels_are_one_class(library):
    library(Table({"image": PICTURES}))
    assert load().classes == ("",) and set(load().labels) == {0}


FORMS = {
    "pictures": lambda array: Image.fromarray(array),
    "bytes": lambda array: {"bytes": png(array), "path": None},
    "arrays": lambda array: array,
    "lists": lambda array: array.tolist(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("grey", [True, False])
def test_images_come_in_many_forms(library, form, grey):
    made = pixels(12, grey=grey, seed=8)
    library(Table({"image": [FORMS[form](array) for array in made]}))
    assert np.array_equal(load("test").images, channels_first(made[9])[None])


WRONG_IMAGES = {
    "none": None,
    "text": "picture.png",
    "damaged bytes": {"bytes": b"\xff\xd8damaged", "path": None},
    "a path alone": {"bytes": None, "path": "elsewhere.png"},
    "fractions": np.zeros((16, 16), np.float32),
    "channels first": np.zeros((3, 16, 16), np.uint8),
    "too large a number": [[256] * 16] * 16,
    "no pixels": np.zeros((0, 16), np.uint8),
}


@pytest.mark.parametrize("what", WRONG_IMAGES)
def test_what_is_no_image_is_named_by_its_row(library, what):
    library(Table({"image": [*PICTURES[:5], WRONG_IMAGES[what]]}))
    with pytest.raises(DataError, match="row 5 of set"):
        load()


def test_splits_have_their_usual_names_and_images_may_have_many_sizes(library):
    wide = np.full((16, 32, 3), (1, 2, 3), np.uint8)
    tables = {"Train": Table({"image": [*PICTURES[:5], wide]}), "valid": Table({"image": PICTURES[5:8]})}
    library(tables)
    assert len(load()) == 6 and len(load("test")) == 3 and load().reading.held_back == 3
    library(tables | {"test": Table({"image": PICTURES[:2]})})
    assert len(load("test")) == 2 and load().reading.oblong == 1


def test_where_no_row_may_make_a_class_the_columns_type_names_them(library):
    rows = {"image": PICTURES[:12], "label": [index % 2 for index in range(12)]}
    library(Table(rows, ["a", "b", "c"]))
    assert load_dataset("hf", "set", 16, "train", private=True).classes == ("a", "b", "c")
    library(Table(rows))
    with pytest.raises(DataError, match=r"column label of set with epsilon.*class_encode_column\('label'\)"):
        load_dataset("hf", "set", 16, "train", private=True)


@pytest.mark.parametrize(
    ("value", "names"), [(None, None), (-1, ["a", "b"]), (2, ["a", "b"]), (0.5, None), ([0, 1], None)]
)
def test_what_is_no_label_is_named_by_its_row(library, value, names):
    library(Table({"image": PICTURES[:5], "label": [0, 1, 0, value, 0]}, names))
    with pytest.raises(DataError, match="label of row 3 of set"):
        load()


def test_a_test_split_without_a_column_is_refused(library):
    library({"train": Table({"image": PICTURES, "label": DIGITS}), "test": Table({"image": PICTURES})})
    with pytest.raises(DataError, match="no column label in set's test split"):
        load()


def test_sets_that_cannot_be_had_are_named(library, tmp_path):
    library({"validation": Table({"image": PICTURES})})
    with pytest.raises(DataError, match=r"set has splits validation; expected a split named train"):
        load()
    with pytest.raises(DataError, match=r"some/other does not load \(ConnectionError.*a name and a network"):
        load(name="some/other")
    with pytest.raises(DataError, match=r"does not load \(FileNotFoundError.*save_to_disk"):
        load(name=str(tmp_path))
    library(Table({"image": PICTURES[:9]}))
    with pytest.raises(DataError, match="no test rows in set"):
        load("test")
    with pytest.raises(DataError, match=r"no folder for data set 'hf'.*--data-dir"):
        load(name=None)


@pytest.mark.parametrize("found", [None, types.ModuleType("datasets")])
def test_a_library_that_is_absent_or_another_is_a_missing_dependency(monkeypatch, found):
    """A folder named `datasets` in the working directory imports too, as an empty package."""
    monkeypatch.setitem(sys.modules, "datasets", found)
    with pytest.raises(DependencyError, match=r"datasets does not import.*prismfl\[hf\]"):
        load()


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="datasets is not installed")
@pytest.mark.parametrize("split_up", [True, False])
@pytest.mark.parametrize("decoded", [True, False])
def test_a_saved_folder_is_read_by_the_library_itself(tmp_path, split_up, decoded):
    import datasets

    def table(rows):
        features = datasets.Features(
            {"image": datasets.Image(decode=decoded), "label": datasets.ClassLabel(names=["a", "b", "c"])}
        )
        images = [{"bytes": png(MADE[row]), "path": None} for row in rows]
        return datasets.Dataset.from_dict({"image": images, "label": [DIGITS[r] for r in rows]}, features)

    made = datasets.DatasetDict(train=table(range(14)), test=table(range(14, 20))) if split_up else table(range(20))
    made.save_to_disk(str(tmp_path / "saved"))
    rows = range(14) if split_up else [row for row in range(20) if row % 10 != 9]
    train, test = load(name=str(tmp_path / "saved")), load("test", name=str(tmp_path / "saved"))
    assert np.array_equal(train.images, MADE[list(rows)].transpose(0, 3, 1, 2))
    assert train.labels.tolist() == [DIGITS[row] for row in rows] and train.classes == ("a", "b", "c")
    assert len(test) == 20 - len(rows)


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="datasets is not installed")
def test_a_damaged_image_in_the_library_s_hands_is_named(tmp_path):
    import datasets

    buffer = io.BytesIO()
    Image.fromarray(MADE[0]).save(buffer, "JPEG")
    features = datasets.Features({"image": datasets.Image()})
    images = [{"bytes": raw, "path": None} for raw in (buffer.getvalue(), b"damaged")]
    datasets.Dataset.from_dict({"image": images}, features).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match="row 1 of"):
        load(name=str(tmp_path / "saved"))
