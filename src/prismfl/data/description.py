"""What was read, in one line that is said before training, and in a file for whoever looks later."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from prismfl.data.images import ImageSet, Reading

_MOST_CLASSES, _MOST_KINDS = 12, 5  # that a line names
_FITTED = {"crop": "centre-cropped", "pad": "padded to squares", "squash": "squashed to squares"}


@dataclass(frozen=True)
class Description:
    """What was read of a run's data.

    Attributes:
        images: all of them, those held back included.
        held_back: images that are not trained on, for measuring.
        persons: whose they are, where that is known, those held back included; 0 where it is not.
        persons_held_back: whose images are not trained on.
        classes: their names; one that is empty where there are none.
        counts: images of each class; none with epsilon, for then they are private.
        channels: 1 or 3.
        size: pixels a side that they were brought to.
        fit: what was made of those that are not square.
        reading: what else the reader met.
        private: whether epsilon is set: then of what follows from single images nothing is told.
        untrained: images that were to measure classes that training lacks, left out.
    """

    images: int
    held_back: int
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    channels: int
    size: int
    fit: str
    reading: Reading
    private: bool = False
    untrained: int = 0
    persons: int = 0
    persons_held_back: int = 0

    @property
    def of_persons(self) -> bool:
        """Whether epsilon protects whole persons: then how many images there are is private, and these are counted."""
        return self.private and self.persons > 0

    def line(self) -> str:
        """One line, as `402 images, 3 classes (cat 134, dog 134, ship 134), colour, 48 → 32 px, 40 held back`."""
        parts = [self._counts(), *self._classes(), "grey" if self.channels == 1 else "colour"]
        parts += [self._pixels(), *self._done()]
        if self.of_persons:
            return ", ".join([*parts, f"{self.persons_held_back or 'none'} of them held back", *self._skipped()])
        parts.append(f"{self.held_back or 'none'} held back")
        if self.untrained:
            parts.append(f"{self.untrained} of classes that training lacks left out")
        if self.reading.left_out:
            parts.append(f"{self.reading.left_out} of other splits left out")
        return ", ".join([*parts, *self._skipped()])

    def _counts(self) -> str:
        if self.of_persons:
            return f"images of {_counted(self.persons, 'person')}"
        return _counted(self.images, "image") + f" of {_counted(self.persons, 'person')}" * (self.persons > 0)

    def _classes(self) -> list[str]:
        if self.classes in ((), ("",)):
            return ["no classes"]
        names = [_shown(name) for name in self.classes[:_MOST_CLASSES]]
        shown = [f"{name} {count}" for name, count in zip(names, self.counts, strict=False)] or names
        more = ", …" * (len(self.classes) > _MOST_CLASSES)
        return [f"{_counted(len(self.classes), 'class', 'classes')} ({', '.join(shown)}{more})"]

    def _pixels(self) -> str:
        sides = [] if self.private else sorted(set(self.reading.sides))
        if not sides or sides == [(self.size, self.size)]:
            return f"{self.size} px"
        return f"{' … '.join(dict.fromkeys(map(_sides, self.reading.sides)))} → {self.size} px"

    def _done(self) -> list[str]:
        """What was done to images: to how many, unless that is private."""
        reading = self.reading
        if self.private:
            return [f"{_FITTED[self.fit]} where not square"] if reading.sides else []
        found = [_FITTED[self.fit] if reading.oblong else ""]
        found += [f"{reading.turned} turned upright" if reading.turned else ""]
        found += [f"{reading.transparent} transparent ones on white" if reading.transparent else ""]
        found += [f"{reading.elsewhere} behind links that lead outside" if reading.elsewhere else ""]
        return [part for part in found if part]

    def _skipped(self) -> list[str]:
        kinds = Counter(why for _, why in self.reading.skipped)
        if not kinds:
            return []
        shown = ", ".join(kind for kind, _ in kinds.most_common(_MOST_KINDS)) + ", …" * (len(kinds) > _MOST_KINDS)
        return [f"{_counted(len(self.reading.skipped), 'file')} skipped ({shown})"]

    def as_json(self) -> dict[str, Any]:
        """The same as JSON, names of files left out; with epsilon without what is private."""
        found: dict[str, Any] = {"line": self.line()}
        if not self.of_persons:
            found |= {"images": self.images, "held_back": self.held_back}
        if self.persons:
            found |= {"persons": self.persons, "persons_held_back": self.persons_held_back}
        found |= {"classes": list(self.classes), "channels": self.channels, "size": self.size, "fit": self.fit}
        reading = self.reading
        if not self.of_persons:
            found |= {"left_out": reading.left_out + self.untrained}
        found |= {"skipped": dict(Counter(why for _, why in reading.skipped).most_common())}
        if self.private:
            return found
        names = ("oblong", "turned", "transparent", "elsewhere")
        found |= {"counts": list(self.counts), "sides": [list(sides) for sides in reading.sides]}
        return found | {name: getattr(reading, name) for name in names}


def _counted(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def _shown(name: str) -> str:
    """A class's name on a terminal; one that is empty is of images beside others that have a class."""
    return (name if name.isprintable() else ascii(name)) or "(none)"


def _sides(sides: tuple[int, int]) -> str:
    return str(sides[0]) if sides[0] == sides[1] else f"{sides[0]}×{sides[1]}"


def describe(
    train: ImageSet, held_back: int, fit: str, *, test: ImageSet | None = None, private: bool, untrained: int = 0
) -> Description:
    """What was read, of the images to train on and those held back.

    train, test: uint8 images `[N, C, size, size]`; held_back: images, also where `test` is not used; private: whether
    epsilon is set.
    """
    counts = np.bincount(train.labels, minlength=len(train.classes))
    if test is not None:
        counts = counts + np.bincount(test.labels, minlength=len(train.classes))
    tested = test.units if test is not None and test.people is not None else 0
    return Description(
        images=len(train) + held_back + untrained,
        held_back=held_back,
        classes=train.classes,
        counts=() if private else tuple(counts.tolist()),
        channels=train.images.shape[1],
        size=train.images.shape[2],
        fit=fit,
        reading=merged(train.reading, test.reading if test is not None else Reading()),
        private=private,
        untrained=untrained,
        persons=train.units + tested if train.people is not None else 0,
        persons_held_back=tested,
    )


def merged(one: Reading, two: Reading) -> Reading:
    """What was met on the way to two splits of one data set: files that are not read are those of the first."""
    sides = sorted({*one.sides, *two.sides}, key=lambda sides: (sides[0] * sides[1], sides))
    return Reading(
        tuple(dict.fromkeys([*sides[:1], *sides[-1:]])),
        one.oblong + two.oblong,
        one.turned + two.turned,
        one.transparent + two.transparent,
        one.elsewhere + two.elsewhere,
        one.left_out,
        one.skipped,
        one.held_back,
    )
