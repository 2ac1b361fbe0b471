"""Image folders and zips: class folders or no classes, one folder a client, or one image folder a client."""

import glob
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prismfl.data.decoding import Picture, gather, read_picture
from prismfl.data.images import ImageSet, Labels
from prismfl.data.tree import Entry, Folder, Tree, look_into, split_of
from prismfl.errors import DataError
from prismfl.settings.schema import Data

_HOLD_OUT = 10  # every so many images, or persons, one is kept for measuring
_NO_TREE = Tree((), frozenset())


class _Parts(NamedTuple):
    """A data set's images: to train on, held back, and neither."""

    train: Tree
    test: Tree
    left_out: int = 0


def load_folder(
    root: Path,
    split: str,
    per_client: bool,
    size: int,
    scratch: Path | None = None,
    data: Data | None = None,
    *,
    private: bool = False,
) -> ImageSet:
    """An image folder or zip: `[TOP/][train|val|test/][CLASS/]*.png`, or one folder of these a client, as given.

    Classes are numbered over all splits together, so that a label means one thing; images without class
    folders are one class.  data: pattern of `people_of`, what is made of images that are not square, and the number of
    clients; private: empty class folders are classes too, for one image must not make a class.  Gives uint8 images
    `[N, 1 or 3, size, size]`.  Raises DataError naming what is missing, damaged or ambiguous.
    """
    data, tree = data or Data(), look_into(root)
    if per_client:
        return _of_clients(root, tree, split, size, scratch, data, private=private)
    whole = _without_top(tree)
    _check_inner(root, whole)
    parts = _held_out(_by_split(root, whole), data.people)
    _check_sorted(root, parts.train + parts.test)
    _check_no_clients(root, parts.train)
    entries = list((parts.train if split == "train" else parts.test).entries)
    if not entries:
        raise _nothing(root, split, tree)
    classes = _classes(parts.train + parts.test, private=private)
    found = _image_set(entries, [_class_of(entry) for entry in entries], classes, None, size, scratch, data)
    reading = replace(found.reading, left_out=parts.left_out, skipped=tree.skipped, held_back=len(parts.test.entries))
    return replace(found, reading=reading)


def client_roots(pattern: str) -> list[Path]:
    """The folders and zips that a pattern (`sites/*`) matches, by name.  Raises DataError for none."""
    try:
        matched = sorted(map(Path, glob.glob(str(Path(pattern).expanduser()))))  # noqa: PTH207 (its own takes no root)
        found = [path for path in matched if path.is_dir() or path.suffix.lower() == ".zip"]
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"pattern {pattern!r} ({error})", "one like 'sites/*'", "mend data.clients_from") from None
    if not found:
        raise DataError(
            f"no folder or zip matches {pattern!r}", "one image folder or zip a client", "mend data.clients_from"
        )
    return found


def load_clients(
    pattern: str, size: int, scratch: Path | None = None, data: Data | None = None, *, private: bool = False
) -> ImageSet:
    """The training images of all folders and zips that a pattern matches, each of them one client's.

    Each is an image folder of its own, as of `load_folder`; classes of one name are one class.
    Gives uint8 images `[N, 1 or 3, size, size]` with owners, and people as `load_folder`.  Raises DataError as that.
    """
    roots = [(root, look_into(root)) for root in client_roots(pattern)]
    return _shared(roots, size, scratch, data or Data(), private=private)


def _of_clients(
    root: Path, tree: Tree, split: str, size: int, scratch: Path | None, data: Data, *, private: bool
) -> ImageSet:
    """One folder of clients' folders, perhaps below a split's."""
    if len(tree.tops) == 1 and data.clients != 1 and () not in tree.folders:
        tree = _without_top(tree)
    parts = _by_split(root, tree)
    mine = parts.train if split == "train" else parts.test
    if not mine.entries:
        raise _nothing(root, split, tree)
    if loose := sum(len(entry.path) == 1 for entry in mine.entries):
        raise DataError(
            f"{loose} images beside the clients' folders of {root}", "each in its client's", "move them into one"
        )
    clients = [(root / name, mine.below(name)) for name in mine.tops]
    found = _shared([one for one in clients if one[1].entries], size, scratch, data, private=private)
    left_out = found.reading.left_out + parts.left_out + len(parts.test.entries)
    return replace(found, reading=replace(found.reading, left_out=left_out, skipped=tree.skipped))


def _shared(
    roots: Sequence[tuple[Path, Tree]], size: int, scratch: Path | None, data: Data, *, private: bool
) -> ImageSet:
    """The training images of clients, each with a tree of its own."""
    entries, owners, classes, left_out = list[Entry](), list[int](), set[str](), 0
    for client, (root, tree) in enumerate(roots):
        whole = _without_top(tree)
        _check_inner(root, whole)
        parts = _by_split(root, whole)
        if not parts.train.entries:
            raise DataError(f"no train images in {root}", "a client's images", "remove it, or mend data.clients_from")
        _check_sorted(root, parts.train)
        entries += parts.train.entries
        owners += [client] * len(parts.train.entries)
        classes |= _classes(parts.train, private=private)
        left_out += parts.left_out + len(parts.test.entries)
    names = [_class_of(entry) for entry in entries]
    found = _image_set(entries, names, classes, np.array(owners, np.int64), size, scratch, data)
    skipped = tuple((f"{root}/{path}", why) for root, tree in roots for path, why in tree.skipped)
    return replace(found, reading=replace(found.reading, left_out=left_out, skipped=skipped, held_back=0))


def _image_set(
    entries: Sequence[Entry],
    names: Sequence[str],
    classes: set[str],
    owners: Labels | None,
    size: int,
    scratch: Path | None,
    data: Data,
) -> ImageSet:
    """Images of entries whose classes have these names, some of all `classes`."""
    persons = _people(entries, data.people)
    images, reading = gather([partial(_picture, entry, size, data.fit) for entry in entries], size, scratch)
    labels = np.searchsorted(sorted(classes), names).astype(np.int64)
    reading = replace(reading, elsewhere=sum(entry.elsewhere for entry in entries))
    return ImageSet(images, labels, tuple(sorted(classes)), owners, persons, reading)


def _picture(entry: Entry, size: int, how: str, look: bool) -> Picture:
    return read_picture(entry.read(), entry.name, size, how, look=look)


def _people(entries: Sequence[Entry], pattern: str) -> Labels | None:
    return people_of(["/".join(entry.path) for entry in entries], pattern)


# --------------------------------------------------------------------------------- what folders mean


def _class_of(entry: Entry) -> str:
    """The name of an entry's class: the folders that it is in, and nothing where it is in none."""
    return "/".join(entry.path[:-1])


def _classes(tree: Tree, *, private: bool) -> set[str]:
    """Names of classes: of those that have images, or where nobody may know that, of folders alone."""
    named = {"/".join(folder) for folder in tree.folders} if private else set[str]()
    return named | {_class_of(entry) for entry in tree.entries}


def _without_top(tree: Tree) -> Tree:
    """What is in the one folder at the top that holds the class or split folders, as programs pack it."""
    tops = tree.tops
    if len(tops) != 1 or () in tree.folders or split_of(tops[0]):
        return tree
    return tree.below(tops[0]) if any(len(folder) > 1 for folder in _without_images(tree).folders) else tree


def _by_split(root: Path, tree: Tree) -> _Parts:
    """The images by the splits that folders at the top name, whatever the case; without a train folder all of them.

    Raises DataError where it is open what is what.
    """
    named = {top: split_of(top) for top in tree.tops if split_of(top)}
    others = [top for top in tree.tops if top not in named] + ["images"] * (() in tree.folders)
    deep = any(len(folder) > 1 and folder[0] in named for folder in tree.folders)
    if others and "train" in named.values() and deep:
        first = next(top for top, split in named.items() if split == "train")
        raise DataError(
            f"{', '.join(others[:5])} beside {', '.join(named)} in {root}",
            "folders of splits (train, val, test), or class folders",
            f"move what is neither elsewhere, or read {root}/{first} alone",
        )
    if others or not named:  # a class may be called train
        return _Parts(_without_images(tree), _NO_TREE)
    train, test, val = (
        tree.below(*(top for top, split in named.items() if split == one)) for one in ("train", "test", "val")
    )
    train, test, val = map(_without_images, (train, test, val))
    return _Parts(train, test, len(val.entries)) if test.entries else _Parts(train, val)


def _held_out(parts: _Parts, people: str) -> _Parts:
    """Where no folder of a split holds images back, every tenth in name order; of fewer than ten, none.

    With people, all images of every tenth person; of fewer than ten, of the last.
    """
    entries = parts.train.entries
    if parts.test.entries or not entries:
        return parts
    persons = _people(entries, people)
    if persons is None:
        held = np.arange(len(entries)) % _HOLD_OUT == _HOLD_OUT - 1
    else:
        every = min(_HOLD_OUT, int(persons.max()) + 1)
        if every == 1:
            raise DataError("images of one person", "of two at least, for one is held back", "mend --people")
        held = persons % every == every - 1
    train, test = (
        replace(parts.train, entries=tuple(entry for entry, out in zip(entries, held, strict=True) if out == wanted))
        for wanted in (False, True)
    )
    return parts._replace(train=train, test=test)


def _without_images(tree: Tree) -> Tree:
    """The same where every class folder has its images in a folder `images`, which says nothing."""
    inner = {folder[-1].lower() if len(folder) > 1 else "" for folder in tree.folders}
    if inner not in ({"images"}, {"image"}, {"img"}):
        return tree
    entries = tuple(entry._replace(path=entry.path[:-2] + entry.path[-1:]) for entry in tree.entries)
    return replace(tree, entries=entries, folders=frozenset(folder[:-1] for folder in tree.folders))


def _check_sorted(root: Path, tree: Tree) -> None:
    """Raises DataError for files beside class folders: what class they are of, nobody says."""
    loose = sum(len(entry.path) == 1 for entry in tree.entries)
    if loose and loose < len(tree.entries):
        raise DataError(
            f"{loose} images beside the class folders of {root}",
            "all images in class folders, or none",
            "move them into a class folder, or out of the way",
        )


def _check_inner(root: Path, tree: Tree) -> None:
    """Raises DataError for folders of splits inside class folders, where their images would be other classes."""

    def around(*splits: str) -> set[Folder]:
        """Folders in which one is called so."""
        found = set[Folder]()
        for folder in tree.folders:
            found |= {folder[:at] for at, name in enumerate(folder) if at and split_of(name) in splits}
        return found

    both = sorted(around("train") & around("test", "val"))
    if both:
        raise DataError(
            f"folders of splits inside {len(both)} folders of {root}, as {'/'.join(both[0])}",
            "folders of splits outside the class folders: train/CLASS, test/CLASS",
            "move them, or where each is a client's pass --partition given",
        )


def _check_no_clients(root: Path, tree: Tree) -> None:
    """Raises DataError for folders that have folders of the same names in them: are they classes, or clients?"""
    inside: dict[Folder, set[str]] = {}
    for folder in tree.folders:
        if len(folder) > 1:
            inside.setdefault(folder[1:], set()).add(folder[0])
    tops = sorted(set().union(*(tops for tops in inside.values() if len(tops) > 1)))
    if tops:
        shown = ", ".join(tops[:3]) + ", …" * (len(tops) > 3)
        raise DataError(
            f"{len(tops)} folders ({shown}) in {root} that have folders of the same names in them",
            "class folders, or a folder a client",
            "pass --partition given where each is a client's; name the inner ones apart where they are classes",
        )


def _nothing(root: Path, split: str, tree: Tree) -> DataError:
    kinds = sorted({why for _, why in tree.skipped})
    others = f", but {len(tree.skipped)} other files ({', '.join(kinds[:5])})" if kinds else ""
    if split == "test" and tree.entries:
        kept = "a folder test or val, or at least ten images, of which one is held back"
        return DataError(f"no test images in {root}", kept, "add some")
    return DataError(f"no {split} images in {root}{others}", "image files, in class folders or not", "check --data-dir")


def people_of(names: Sequence[str], pattern: str) -> Labels | None:
    """The number of each name's person: int64 `[N]`, by sorted distinct match; None without a pattern.

    names: paths within a folder or zip; pattern: its one group, or else the whole match, is who it is.
    Raises DataError with how many names have no match, and none of them.
    """
    if not pattern:
        return None
    found = [_person(re.search(pattern, name)) for name in names]
    missing = sum(not person for person in found)
    if missing:
        raise DataError(
            f"{missing} of {len(names)} file names in which data.people finds nobody",
            "a match in the name of every image",
            "change --people, or move these images elsewhere",
        )
    return np.asarray(np.unique(np.array(found), return_inverse=True)[1], np.int64).reshape(-1)


def _person(match: re.Match[str] | None) -> str:
    """Who a match names; "" for nobody, as where a group took no part."""
    if match is None:
        return ""
    return (match[1] if match.re.groups else match[0]) or ""
