"""Data sets of Hugging Face's `datasets`: a saved folder, or a name where there is a network."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from prismfl.data.decoding import Picture, gather, picture_of, read_picture
from prismfl.data.images import Images, ImageSet, Labels, Reading
from prismfl.data.tree import split_of
from prismfl.errors import DataError, DependencyError

_IMAGE_COLUMNS = ("image", "img")
_REMEDY = "check --data-dir: a folder of save_to_disk, or a name and a network"

# A table of `datasets`: typed as what is asked of it, for the library is optional.
_Table = Any


def load_hub(
    name: str,
    split: str,
    attribute: str,
    size: int,
    scratch: Path | None = None,
    how: str = "crop",
    *,
    private: bool = False,
) -> ImageSet:
    """One split of a data set of `datasets`: uint8 images `[N, 1 or 3, size, size]`.

    name: folder of `save_to_disk`, or what `datasets.load_dataset` takes; attribute: column of the labels, "" for
    `label` where there is one; how: `crop`, `pad` or `squash` of what is not square; private: label names must come
    from the column's type, for rows must not decide them.  Images are in the column `image` or `img`, or in the only
    one of images.  Without a test split every tenth row is kept for testing.  Raises DataError for what is
    missing or of another kind, DependencyError where the library is absent.
    """
    tables = _opened(name)
    if not len(tables[split]):
        raise DataError(f"no {split} rows in {name}", "at least one (of ten, where a tenth is kept)", _REMEDY)
    image, label = _image_column(name, tables["train"]), _label_column(name, tables["train"].column_names, attribute)
    _check_alike(name, tables["test"].column_names, (image, label))
    labels, classes = _labels(name, tables, split, label, private=private)
    images, reading = _pictures(name, tables[split].select_columns([image]), image, size, scratch, how)
    return ImageSet(images, labels, classes, reading=replace(reading, held_back=len(tables["test"])))


def _library() -> Any:
    try:
        found = import_module("datasets")
        _ = found.load_dataset, found.load_from_disk
    except (ImportError, AttributeError, RuntimeError, OSError) as error:
        raise DependencyError(
            f"datasets does not import ({error})", "Hugging Face's datasets", "pip install 'prismfl[hf]'"
        ) from None
    return found


def _opened(name: str) -> Mapping[str, _Table]:
    """Tables `train` and `test`."""
    library = _library()
    open_it: Callable[[str], Any] = library.load_from_disk if Path(name).is_dir() else library.load_dataset
    try:
        found = open_it(name)
    except Exception as error:  # whatever lies between a name and a server
        raise DataError(
            f"{name} does not load ({type(error).__name__}: {str(error)[:200]})", "a data set of images", _REMEDY
        ) from None
    if not isinstance(found, Mapping):
        return _parted(found)
    named = {split_of(split): table for split, table in found.items()}
    if "train" not in named:
        raise DataError(f"{name} has splits {', '.join(found)}", "a split named train", "rename one")
    test = named.get("test", named.get("val"))
    return _parted(named["train"]) if test is None else {"train": named["train"], "test": test}


def _parted(table: _Table) -> Mapping[str, _Table]:
    held = np.arange(len(table)) % 10 == 9
    return {"train": table.select(np.flatnonzero(~held)), "test": table.select(np.flatnonzero(held))}


def _image_column(name: str, table: _Table) -> str:
    usual = [one for one in _IMAGE_COLUMNS if one in table.column_names]
    marked = [one for one, kind in table.features.items() if type(kind).__name__ == "Image"]
    if not usual and len(marked) != 1:
        raise DataError(
            f"columns {', '.join(table.column_names)} in {name}", "a column of images: image or img", "rename one"
        )
    return (usual or marked)[0]


def _label_column(name: str, there: Sequence[str], asked: str) -> str | None:
    if asked and asked not in there:
        raise DataError(f"data.attribute = {asked!r} in {name}", f"one of {', '.join(there)}", "change data.attribute")
    return asked or ("label" if "label" in there else None)


def _check_alike(name: str, there: Sequence[str], needed: Sequence[str | None]) -> None:
    if lost := [column for column in needed if column and column not in there]:
        raise DataError(
            f"no column {', '.join(lost)} in {name}'s test split", "the columns of the train split", "add it"
        )


def _labels(
    name: str, tables: Mapping[str, _Table], split: str, column: str | None, *, private: bool
) -> tuple[Labels, tuple[str, ...]]:
    """Labels of a split, numbered over both splits together, and their names."""
    if column is None:
        return np.zeros(len(tables[split]), np.int64), ("",)
    values = {one: list(tables[one][column]) for one in tables}
    named = getattr(tables["train"].features[column], "names", None)
    if private and not named:
        raise DataError(
            f"column {column} of {name} with epsilon: its rows alone tell which classes there are",
            "a column of type ClassLabel, which names them",
            f"cast it before save_to_disk: class_encode_column({column!r})",
        )
    every = {value for one in values.values() for value in one if isinstance(value, int | str)}
    known = list(range(len(named))) if named else sorted(every, key=lambda value: (isinstance(value, str), value))
    number = {value: index for index, value in enumerate(known)}
    wrong = next((row for row, value in enumerate(values[split]) if not _is_known(value, number)), None)
    if wrong is not None:
        raise DataError(
            f"{column} of row {wrong} of {name}'s {split} split", "a class's number or name", "mend the row"
        )
    return np.array([number[value] for value in values[split]], np.int64), tuple(map(str, named or known))


def _is_known(value: Any, number: Mapping[Any, int]) -> bool:
    return isinstance(value, int | str) and value in number


def _pictures(
    name: str, table: _Table, column: str, size: int, scratch: Path | None, how: str
) -> tuple[Images, Reading]:
    def picture(row: int, look: bool) -> Picture:
        called = f"row {row} of {name}"
        try:
            value = table[row][column]
        except (OSError, ValueError, SyntaxError) as error:  # the library decodes here
            raise DataError(f"{called} does not decode ({error})", "a whole image", "replace or remove it") from None
        return _picture(value, called, size, how, look=look)

    return gather([partial(picture, row) for row in range(len(table))], size, scratch, threads=1)


def _picture(value: Any, name: str, size: int, how: str, *, look: bool) -> Picture:
    """An image as the library gives it: decoded, as bytes, or as an array `[H, W]` or `[H, W, 3]`."""
    if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
        return read_picture(value["bytes"], name, size, how, look=look)
    try:
        image = value if isinstance(value, Image.Image) else Image.fromarray(_array(value))
        return picture_of(image, size, how, look=look)
    except (OSError, ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{name} is no image ({error})", "an image, its bytes or uint8 pixels", "replace it") from None


def _array(value: Any) -> Images:
    found = np.asarray(value)
    if found.dtype.kind not in "ui" or found.size == 0 or found.min() < 0 or found.max() > 255:
        raise ValueError(f"{found.dtype} {list(found.shape)}")
    return found.astype(np.uint8)
