"""Image folders and zips: class folders or no classes, one folder a client, or one image folder a client."""

import functools
import glob
import lzma
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import NamedTuple

import numpy as np

from prismfl.data.images import Gallery, ImageSet, Labels, decode, is_bomb, read_file
from prismfl.errors import DataError

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}

_ZIP_DAMAGE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error,
    OSError, EOFError, ValueError, RuntimeError, NotImplementedError,
)  # fmt: skip


class _Entry(NamedTuple):
    """An image file: its path below the root (and the split), what it is called, how it is read."""

    path: PurePosixPath
    name: str
    read: Callable[[], bytes]


def load_folder(
    root: Path, split: str, per_client: bool, size: int, scratch: Path | None = None, people: str = ""
) -> ImageSet:
    """An image folder or zip: `[train|test/][class/]*.png`, or `client/[class/]*.png` as given.

    Classes are numbered over both splits together, so that a label means one thing; images without class
    folders are one class.  people: pattern of `people_of`.  Gives uint8 images `[N, 1 or 3, size, size]`.
    Raises DataError naming what is missing or damaged.
    """
    splits, marked = _by_split(_entries(root))
    _check_sorted(root, splits["train"] + splits["test"], per_client)
    if not marked and not per_client:
        splits = {name: _hold_out(splits["train"], name, people) for name in splits}
    if not splits[split]:
        raise DataError(f"no {split} images in {root}", "PNG or JPEG files in class folders", "check --data-dir")
    classes = {_owner_and_class(entry, per_client)[1] for part in splits.values() for entry in part}
    owner_names, names = zip(*(_owner_and_class(entry, per_client) for entry in splits[split]), strict=True)
    owners = np.unique(owner_names, return_inverse=True)[1] if per_client else None
    return _image_set(splits[split], names, classes, owners, size, scratch, people)


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


def load_clients(pattern: str, size: int, scratch: Path | None = None, people: str = "") -> ImageSet:
    """The training images of all folders and zips that a pattern matches, each of them one client's.

    Each is an image folder of its own, `[train/][class/]*.png`; classes of one name are one class.
    Gives uint8 images `[N, 1 or 3, size, size]` with owners, and people as `load_folder`.  Raises DataError as that.
    """
    entries, owners = list[_Entry](), list[int]()
    for client, root in enumerate(client_roots(pattern)):
        mine = _by_split(_entries(root))[0]["train"]
        if not mine:
            raise DataError(f"no train images in {root}", "a client's images", "remove it, or mend data.clients_from")
        _check_sorted(root, mine, per_client=False)
        entries += mine
        owners += [client] * len(mine)
    names = [_owner_and_class(entry, per_client=False)[1] for entry in entries]
    return _image_set(entries, names, set(names), np.array(owners, np.int64), size, scratch, people)


def _image_set(
    entries: list[_Entry],
    names: Sequence[str],
    classes: set[str],
    owners: Labels | None,
    size: int,
    scratch: Path | None,
    people: str,
) -> ImageSet:
    """Images of entries whose classes have these names, some of all `classes`."""
    persons = _people(entries, people)
    gallery = Gallery(len(entries), size, scratch)
    for entry in entries:
        gallery.add(decode(entry.read(), entry.name), entry.name)
    labels = np.searchsorted(sorted(classes), names).astype(np.int64)
    return ImageSet(gallery.images(), labels, tuple(sorted(classes)), owners, persons)


def _people(entries: list[_Entry], pattern: str) -> Labels | None:
    return people_of([str(entry.path) for entry in entries], pattern)


def _owner_and_class(entry: _Entry, per_client: bool) -> tuple[str, str]:
    """Client and class name by an entry's path; what it does not name is one shared empty name."""
    parents = entry.path.parts[:-1]
    return ("".join(parents[:1]), "".join(parents[1:2])) if per_client else ("", "/".join(parents))


def _check_sorted(root: Path, entries: list[_Entry], per_client: bool) -> None:
    """Raises DataError for files beside class folders of one client: what class they are of, nobody says."""
    named = [_owner_and_class(entry, per_client) for entry in entries]
    sorted_ones = {owner for owner, name in named if name}
    loose = sum(not name and owner in sorted_ones for owner, name in named)
    if loose:
        raise DataError(
            f"{loose} images beside the class folders of {root}",
            "all images in class folders, or none",
            "move them into a class folder, or out of the way",
        )


def _entries(root: Path) -> list[_Entry]:
    """The images below a root in name order, which is one order on every machine."""
    if root.is_dir():
        found = _files(root)
    elif root.is_file():
        found = _members(root)
    else:
        raise DataError(f"{root} does not exist", "an image folder or a zip", "check --data-dir")
    return sorted(found, key=lambda entry: entry.path.parts)


def _files(root: Path) -> Iterator[_Entry]:
    for path, _ in _walked(root, set()):
        if _is_image(path):
            below = PurePosixPath(path.relative_to(root).as_posix())
            yield _Entry(below, f"{root}/{below}", functools.partial(read_file, path))


def _walked(folder: Path, above: set[Path], linked: bool = False) -> Iterator[tuple[Path, bool]]:
    """Files below a folder, and whether a link led there.  Raises DataError for a link to nothing."""
    here = folder.resolve()
    if here in above:  # a link back to a folder that this one is in
        return
    for path in folder.iterdir():
        link = linked or path.is_symlink()
        if path.is_dir():
            yield from _walked(path, above | {here}, link)
        elif path.is_file():
            yield path, link
        elif link:
            raise DataError(f"{path}, a link that leads nowhere", "links to files or folders", "mend or remove it")


def links_out(root: Path) -> int:
    """How many files of a folder lie elsewhere, behind links that lead out of it."""
    if not root.is_dir():
        return 0
    top = root.resolve()
    return sum(link and not path.resolve().is_relative_to(top) for path, link in _walked(root, set()))


def _is_image(path: PurePath) -> bool:
    """By its suffix; files whose name begins with a dot are leftovers of file managers."""
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")


def _members(root: Path) -> Iterator[_Entry]:
    try:
        archive = zipfile.ZipFile(root)
    except _ZIP_DAMAGE as error:
        raise DataError(
            f"{root} is not a readable zip ({error})", "a whole zip file", "pack or fetch it anew"
        ) from None
    for name in archive.namelist():
        path = PurePosixPath(name)
        if _is_image(path):
            yield _Entry(path, f"{root}/{path}", functools.partial(_read_member, archive, root, name))


def _read_member(archive: zipfile.ZipFile, root: Path, name: str) -> bytes:
    try:
        about = archive.getinfo(name)
        if is_bomb(about.compress_size, about.file_size):
            raise ValueError(f"{about.compress_size} bytes that claim to be {about.file_size}")
        with archive.open(about) as file:
            return file.read(about.file_size + 1)
    except _ZIP_DAMAGE as error:
        raise DataError(f"{root}:{name} does not unpack ({error})", "a whole zip member", "pack the zip anew") from None


def _by_split(entries: list[_Entry]) -> tuple[dict[str, list[_Entry]], bool]:
    """Entries below `train/` and `test/` where the tree has nothing else; says whether it has."""
    tops = {entry.path.parts[0] if len(entry.path.parts) > 1 else "" for entry in entries}
    if not tops or not tops <= {"train", "test"}:
        return {"train": entries, "test": []}, False
    parted = {
        name: [e._replace(path=e.path.relative_to(name)) for e in entries if e.path.parts[0] == name]
        for name in ("train", "test")
    }
    return parted, True


def _hold_out(entries: list[_Entry], split: str, people: str) -> list[_Entry]:
    """Of a folder without splits, every tenth image in name order is kept for testing.

    With people, all images of every tenth person; of fewer than ten, of the last.
    """
    persons = _people(entries, people) if entries else None
    if persons is not None:
        every = min(10, int(persons.max()) + 1)
        if every == 1:
            raise DataError("images of one person", "of two at least, for one is held back", "mend --people")
        return [e for e, p in zip(entries, persons, strict=True) if (p % every == every - 1) == (split == "test")]
    return [e for i, e in enumerate(entries) if (i % 10 == 9) == (split == "test") or len(entries) < 10]


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
