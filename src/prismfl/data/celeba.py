"""CelebA: aligned faces, their published split, and one attribute as the label."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from prismfl.data.decoding import Picture, gather, read_picture
from prismfl.data.images import ImageSet, read_file
from prismfl.errors import DataError

_CROP = 160  # pixels of the middle, as the paper takes
_PARTITIONS = {"train": "0", "test": "2"}  # 1 is for validation
_SPLIT_LIST, _ATTRIBUTE_LIST, _FACES = "list_eval_partition.txt", "list_attr_celeba.txt", "img_align_celeba"


def load_celeba(root: Path, split: str, attribute: str, size: int, scratch: Path | None = None) -> ImageSet:
    """One split of CelebA, the middle 160 pixels scaled: uint8 images `[N, 3, size, size]`.

    Label 1 has the attribute, label 0 has not.  Raises DataError naming what is missing,
    damaged or unknown.
    """
    names = _names_of_split(root / _SPLIT_LIST, split)
    marked = _marked(root / _ATTRIBUTE_LIST, attribute)
    unknown = next((name for name in names if name not in marked), None)
    if unknown is not None:
        raise DataError(f"no attributes of {unknown} in {root / _ATTRIBUTE_LIST}", "a line an image", "fetch it anew")
    folder = root / _FACES if (root / _FACES).is_dir() else root
    _check_there(folder, names)
    images, reading = gather([partial(_face, folder / name, size) for name in names], size, scratch, grey=False)
    labels = np.array([marked[name] for name in names], np.int64)
    return ImageSet(images, labels, (f"not_{attribute}", attribute), reading=reading)


def _face(path: Path, size: int, look: bool) -> Picture:
    face = read_picture(read_file(path), str(path), size, middle=_CROP, look=look)
    if min(face.sides) < _CROP:
        raise DataError(
            f"{path} has {face.sides[0]}×{face.sides[1]} pixels", f"at least {_CROP}×{_CROP}", "fetch CelebA's own"
        )
    return face


def _check_there(folder: Path, names: list[str]) -> None:
    """One look at the folder before hours of decoding; names with a path in them are not in it."""
    there = {path.name for path in folder.iterdir()}
    missing = [name for name in names if name not in there]
    if missing:
        raise DataError(
            f"{folder / missing[0]} is missing ({len(missing)} of {len(names)} are)",
            f"every image of {_SPLIT_LIST}",
            "unpack img_align_celeba.zip there",
        )


def _names_of_split(path: Path, split: str) -> list[str]:
    """Files of a split, ascending."""
    found, seen = list[str](), set[str]()
    for number, words in enumerate(_lines(path), 1):
        if len(words) != 2 or words[1] not in ("0", "1", "2"):
            raise _damaged(path, number, "a file's name and 0, 1 or 2")
        if words[0] in seen:
            raise _damaged(path, number, "an image that no line before names")
        seen.add(words[0])
        if words[1] == _PARTITIONS[split]:
            found.append(words[0])
    if not found:
        raise DataError(f"{path} names no {split} images", f"some in partition {_PARTITIONS[split]}", "fetch it anew")
    return sorted(found)


def _marked(path: Path, attribute: str) -> dict[str, bool]:
    """Whether each file has the attribute."""
    lines = list(_lines(path))
    if len(lines) < 2 or len(lines[0]) != 1 or lines[0][0] != str(len(lines) - 2):
        raise _damaged(path, 1, f"the number of images, {max(0, len(lines) - 2)}")
    names, found = lines[1], {}
    if attribute not in names:
        raise DataError(f"data.attribute = {attribute!r}", f"one of {', '.join(names)}", "change data.attribute")
    column = names.index(attribute) + 1
    for number, words in enumerate(lines[2:], 3):
        if len(words) != len(names) + 1 or words[column] not in ("1", "-1"):
            raise _damaged(path, number, f"a file's name and {len(names)} times 1 or -1")
        found[words[0]] = words[column] == "1"
    return found


def _lines(path: Path) -> Iterator[list[str]]:
    """Words of each line that has any."""
    try:
        text = read_file(path).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text ({error.reason})", "a list of CelebA's", "fetch it anew") from None
    return (line.split() for line in text.splitlines() if line.strip())


def _damaged(path: Path, line: int, expected: str) -> DataError:
    return DataError(f"line {line} of {path}", expected, "fetch it anew")
