"""Some classes of a data set alone."""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from prismfl.data.images import ImageSet
from prismfl.errors import DataError, SettingError


def select_classes(images: ImageSet, text: str) -> ImageSet:
    """The images of some classes, numbered anew from 0 in the order of the data set.

    text: names, numbers and ranges of numbers from 0, separated by commas (`0-4`, `cat, dog`,
    `1,3,5-7`); a name goes before a number; empty for all.
    Raises SettingError for a class that does not exist, DataError when no image is left.
    """
    if not text:
        return images
    return keep_classes(images, _chosen(images.classes, text))


def keep_classes(images: ImageSet, numbers: Sequence[int]) -> ImageSet:
    """The images of some classes by their numbers, numbered anew in this order.  Raises DataError for no image."""
    names = tuple(images.classes[number] for number in numbers)
    rows = np.flatnonzero(np.isin(images.labels, numbers))
    if not len(rows):
        raise DataError(
            f"no image of classes {', '.join(names)!r}", "at least one", "choose other classes, or check --data-dir"
        )
    anew = np.zeros(len(images.classes), np.int64)
    anew[list(numbers)] = np.arange(len(numbers))
    return replace(images.part(rows), labels=anew[images.labels[rows]], classes=names)


def present(images: ImageSet) -> ImageSet:
    """The same without the classes that have no image."""
    there = np.unique(images.labels)
    return images if len(there) == len(images.classes) else keep_classes(images, there.tolist())


def named_alike(images: ImageSet, names: tuple[str, ...]) -> ImageSet | None:
    """The images of classes of these names, numbered in their order; None where there are none."""
    if images.classes == names:
        return images
    number = {name: index for index, name in enumerate(names)}
    anew = np.array([number.get(name, -1) for name in images.classes], np.int64)[images.labels]
    rows = np.flatnonzero(anew >= 0)
    return replace(images.part(rows), labels=anew[rows], classes=names) if len(rows) else None


def select_names(names: tuple[str, ...], text: str) -> tuple[str, ...]:
    """What `select_classes` makes of the names of a data set's classes.  Raises SettingError."""
    return tuple(names[number] for number in _chosen(names, text)) if text else names


def _chosen(names: tuple[str, ...], text: str) -> list[int]:
    return sorted({number for part in text.split(",") for number in _numbers(part.strip(), names)})


def _numbers(part: str, names: tuple[str, ...]) -> range:
    if part in names:
        return range(names.index(part), names.index(part) + 1)
    bounds = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part)
    if bounds:
        first, last = int(bounds[1]), int(bounds[2] or bounds[1])
        if first <= last < len(names):
            return range(first, last + 1)
    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    raise SettingError(
        f"class {part!r}", f"numbers in 0 … {len(names) - 1}, ranges (0-4), or names of {shown}", "change the classes"
    )
