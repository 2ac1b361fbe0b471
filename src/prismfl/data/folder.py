"""Image folders and zips: class folders or no classes, one folder a client, or one image folder a client."""

import glob
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prismfl.data.decoding import Picture, gather, read_picture
from prismfl.data.images import ImageSet, Labels
from prismfl.data.medical import opened, thinned
from prismfl.data.persons import numbered, person_in, told_by_tables
from prismfl.data.tree import Entry, Folder, Tree, look_into, split_of
from prismfl.errors import DataError
from prismfl.settings.schema import Data

_HOLD_OUT = 10  # every so many images, or persons, one is kept for measuring
_NO_TREE = Tree((), frozenset())
NO_CLASSES = "none"  # what data.attribute says of folders that are no classes


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
    folders are one class.  data: who is in which image, what is made of images that are not square, how medical ones
    are read, and the number of clients; private: empty class folders are classes too, for one image must not make a
    class.  Gives uint8 images `[N, 1 or 3, size, size]`.  Raises DataError for what is missing, damaged or ambiguous.
    """
    data = data or Data()
    tree = _tree(root, data)
    if per_client:
        return _of_clients(root, tree, split, size, scratch, data, private=private)
    parts = _held_out(_parts(root, tree, data), data.people, private=private)
    entries = list((parts.train if split == "train" else parts.test).entries)
    if not entries:
        raise _nothing(root, split, tree)
    classes = _classes(parts.train + parts.test, private=private)
    names = [_class_of(entry) for entry in entries]
    found = _image_set(entries, names, classes, None, size, scratch, data, private=private)
    reading = replace(found.reading, left_out=parts.left_out, skipped=tree.skipped, held_back=len(parts.test.entries))
    return replace(found, reading=reading)


def client_roots(pattern: str) -> list[Path]:
    """The folders and zips that a pattern (`sites/*`) matches, by name.  Raises DataError for none."""
    try:
        matched = sorted(map(Path, glob.glob(str(Path(pattern).expanduser()))))  # noqa: PTH207 (its own takes no root)
        found = [path for path in matched if path.is_dir() or path.suffix.lower() == ".zip"]
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"pattern {pattern!r} ({error})", "one like 'sites/*'", "mend data.data_dir") from None
    if not found:
        raise DataError(
            f"no folder or zip matches {pattern!r}", "one image folder or zip a client", "mend data.data_dir"
        )
    return found


def load_clients(
    pattern: str, size: int, scratch: Path | None = None, data: Data | None = None, *, private: bool = False
) -> ImageSet:
    """The training images of all folders and zips that a pattern matches, each of them one client's.

    Each is an image folder of its own, as of `load_folder`; classes of one name are one class.
    Gives uint8 images `[N, 1 or 3, size, size]` with owners, and people as `load_folder`.  Raises DataError as that.
    """
    data = data or Data()
    roots = [(root, _tree(root, data)) for root in client_roots(pattern)]
    return _shared(roots, size, scratch, data, private=private)


def _parts(root: Path, tree: Tree, data: Data) -> _Parts:
    """The images of each split, whose folders are classes unless `data` says that they are none.  Raises DataError."""
    whole = _without_top(tree)
    if data.attribute == NO_CLASSES:
        parts = _by_split(root, whole)
        return _thinned(parts._replace(train=_flat(parts.train), test=_flat(parts.test)), data)
    _check_inner(root, whole)
    parts = _thinned(_by_split(root, whole), data)
    _check_sorted(root, parts.train + parts.test)
    _check_no_clients(root, parts.train)
    _check_no_persons(root, parts.train)
    return parts


def _thinned(parts: _Parts, data: Data) -> _Parts:
    """Of series of medical images those that count, by each person's alone."""
    train, test = (
        replace(tree, entries=thinned(tree.entries, data.slices, lambda entry: person_in(entry, data.people)))
        for tree in (parts.train, parts.test)
    )
    return parts._replace(train=train, test=test)


def _flat(tree: Tree) -> Tree:
    """The same images in no folder; their order stays."""
    entries = tuple(entry._replace(path=("/".join(entry.path),)) for entry in tree.entries)
    return replace(tree, entries=entries, folders=frozenset({()}), leaves=frozenset({()}))


def _tree(root: Path, data: Data) -> Tree:
    """What lies there, an entry an image, with the persons that files or tables tell."""
    return told_by_tables(root, opened(look_into(root), data.slices, data.window), data.people)


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
        parts = _parts(root, tree, data)
        if not parts.train.entries:
            raise DataError(f"no train images in {root}", "a client's images", "remove it, or mend data.data_dir")
        entries += parts.train.entries
        owners += [client] * len(parts.train.entries)
        classes |= _classes(parts.train, private=private)
        left_out += parts.left_out + len(parts.test.entries)
    names = [_class_of(entry) for entry in entries]
    found = _image_set(entries, names, classes, np.array(owners, np.int64), size, scratch, data, private=private)
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
    *,
    private: bool,
) -> ImageSet:
    """Images of entries whose classes have these names, some of all `classes`."""
    persons = numbered(entries, data.people, private=private)
    images, reading = gather([partial(_picture, entry, size, data.fit) for entry in entries], size, scratch)
    labels = np.searchsorted(sorted(classes), names).astype(np.int64)
    reading = replace(reading, elsewhere=sum(entry.elsewhere for entry in entries))
    return ImageSet(images, labels, tuple(sorted(classes)), owners, persons, reading)


def _picture(entry: Entry, size: int, how: str, look: bool) -> Picture:
    if entry.picture is not None:
        return entry.picture(size, how, look)
    return read_picture(entry.read(), entry.name, size, how, look=look)


# --------------------------------------------------------------------------------- what folders mean


def _class_of(entry: Entry) -> str:
    """The name of an entry's class: the folders that it is in, and nothing where it is in none."""
    return "/".join(entry.path[:-1])


def _classes(tree: Tree, *, private: bool) -> set[str]:
    """Names of classes: of those that have images, or where nobody may know that, of folders alone.

    Raises DataError for images that are in none of these.
    """
    if not private:
        return {_class_of(entry) for entry in tree.entries}
    if loose := sum(entry.path[:-1] not in tree.leaves for entry in tree.entries):
        raise DataError(
            f"{loose} images beside folders, with epsilon: they would say that there is a class",
            "images in folders without folders, which say it themselves",
            "move them, or pass --attribute none where folders are no classes",
        )
    return {"/".join(leaf) for leaf in tree.leaves}


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


def _held_out(parts: _Parts, people: str, *, private: bool) -> _Parts:
    """Where no folder of a split holds images back, every tenth in name order; of fewer than ten, none.

    With people, all images of every tenth person; of fewer than ten, of the last.
    """
    entries = parts.train.entries
    if parts.test.entries or not entries:
        return parts
    persons = numbered(entries, people, private=private)
    count = 0 if persons is None else int(persons.max()) + 1
    if persons is None or (count == 1 and not people and not private):  # one scan is a data set too
        held = np.arange(len(entries)) % _HOLD_OUT == _HOLD_OUT - 1
    elif count == 1:
        raise DataError(
            "images of one person", "of two at least, for one is held back", "mend --people, or add persons"
        )
    else:
        held = persons % min(_HOLD_OUT, count) == min(_HOLD_OUT, count) - 1
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
    folders, leaves = (frozenset(folder[:-1] for folder in some) for some in (tree.folders, tree.leaves))
    return replace(tree, entries=entries, folders=folders, leaves=leaves)


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
            "pass --partition given where each is a client's, or --attribute none where folders are no classes; name "
            "the inner ones apart where they are",
        )


def _check_no_persons(root: Path, tree: Tree) -> None:
    """Raises DataError for folders of scans of one person each, whose names would be classes: some are who they are."""
    inside: dict[Folder, set[str]] = {}
    for entry in tree.entries:
        if entry.picture is not None and entry.person:
            inside.setdefault(entry.path[:-1], set()).add(entry.person)
    if len(inside) > 1 and all(len(persons) == 1 for persons in inside.values()):
        raise DataError(
            f"{len(inside)} folders in {root} with scans of one person each",
            "class folders, of several persons each",
            "pass --attribute none where folders are no classes",
        )


def _nothing(root: Path, split: str, tree: Tree) -> DataError:
    kinds = sorted({why for _, why in tree.skipped})
    others = f", but {len(tree.skipped)} other files ({', '.join(kinds[:5])})" if kinds else ""
    if split == "test" and tree.entries:
        kept = "a folder test or val, or at least ten images, of which one is held back"
        return DataError(f"no test images in {root}", kept, "add some")
    return DataError(f"no {split} images in {root}{others}", "image files, in class folders or not", "check --data-dir")
