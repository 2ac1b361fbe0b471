"""What lies in a folder or a zip: images, the folders that may be classes, and what is not read."""

import functools
import lzma
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from prismfl.data.decoding import Picture, is_dicom, is_nifti, is_picture
from prismfl.data.images import is_bomb, read_file
from prismfl.errors import DataError

# What folders of splits are called, as `train`, `Testing`, `val2017` or `valid_set`.
_SPLIT = re.compile(
    r"(train(?:ing)?|test(?:ing)?|val(?:id(?:ation)?)?)(?:[ _-]?(?:set|split|images?|data|\d{4}))?", re.I
)
_LONGEST_LINK = 1024  # bytes
_DICOM_AT, _DICOM_MARK = 128, b"DICM"
_HEAD = _DICOM_AT + len(_DICOM_MARK)  # bytes
_TABLE = "people.csv"  # says whose image each file is

_ZIP_DAMAGE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error,
    OSError, EOFError, ValueError, RuntimeError, NotImplementedError,
)  # fmt: skip

Folder = tuple[str, ...]  # a folder's path, from the root


class Entry(NamedTuple):
    """An image file: its path from the root, what it is called, how it is read, and whether it lies elsewhere.

    medical: whether it is DICOM or NIfTI, and not opened yet; of one that was, an entry an image: picture gives it, and
    file is the path; person: whose it is, where that is known; series: of a single DICOM image, its series and number.
    """

    path: Folder
    name: str
    read: Callable[[], bytes]
    elsewhere: bool = False
    medical: bool = False
    picture: Callable[[int, str, bool], Picture] | None = None
    file: Folder = ()
    person: str = ""
    series: tuple[str, int] | None = None


@dataclass(frozen=True)
class Tree:
    """Images below a point, in name order, which is one order on every machine.

    folders: those that hold images, or nothing at all; skipped: files that are not read, and why; tables: files that
    say whose images these are; leaves: folders without a folder in them, which no image decides.
    """

    entries: tuple[Entry, ...]
    folders: frozenset[Folder]
    skipped: tuple[tuple[str, str], ...] = ()
    tables: tuple[Entry, ...] = ()
    leaves: frozenset[Folder] = frozenset()

    @property
    def tops(self) -> list[str]:
        """The folders at the top, by name."""
        return sorted({folder[0] for folder in self.folders if folder})

    def below(self, *names: str) -> "Tree":
        """What lies below some top folders, as if they were one and the root."""
        entries = sorted((e._replace(path=e.path[1:]) for e in self.entries if e.path[0] in names), key=_place)
        inside, leaves = (
            frozenset(folder[1:] for folder in some if folder and folder[0] in names)
            for some in (self.folders, self.leaves)
        )
        return Tree(tuple(e for e in entries if e.path), inside, self.skipped, leaves=leaves)

    def __add__(self, other: "Tree") -> "Tree":
        entries, leaves = self.entries + other.entries, self.leaves | other.leaves
        return Tree(entries, self.folders | other.folders, self.skipped + other.skipped, leaves=leaves)


def _place(entry: Entry) -> Folder:
    return entry.path


def split_of(name: str) -> str:
    """Which split a folder's name says: `train`, `test` or `val`; nothing of any other name."""
    match = _SPLIT.fullmatch(name)
    return "" if match is None else next(one for one in ("train", "test", "val") if match[1].lower().startswith(one))


class _Met(NamedTuple):
    """A file or folder on the way: `read` where it is a file that may be an image; `why` where it is not read."""

    path: Folder
    read: Callable[[], bytes] | None = None
    why: str = ""
    elsewhere: bool = False
    medical: bool = False


def look_into(root: Path) -> Tree:
    """Everything in a folder or a zip.  Raises DataError for what is neither, and for links to nothing.

    What has a name that begins with a dot, or `__MACOSX`, is a program's leftover: such folders are not looked into.
    """
    if root.is_dir():
        met = list(_walked(root))
    elif root.is_file():
        met = list(_members(root))
    else:
        why = "is neither a folder nor a file" if root.exists() else "does not exist"
        raise DataError(f"{root} {why}", "an image folder or a zip", "check --data-dir")
    entries, folders, filled, skipped = list[Entry](), set[Folder](), set[Folder](), list[tuple[str, str]]()
    tables = list[Entry]()
    for one in met:
        filled |= {one.path[:-1]} if one.why != "hidden" else set()
        if one.read is None and not one.why:
            folders.add(one.path)
        elif one.read is None:
            skipped.append(("/".join(one.path), one.why))
        else:
            among = tables if one.path[-1].lower() == _TABLE else entries
            among.append(Entry(one.path, f"{root}/{'/'.join(one.path)}", one.read, one.elsewhere, one.medical))
    hold = {entry.path[:-1] for entry in entries}
    leaves = frozenset(folders - {folder[:-1] for folder in folders}) or frozenset({()})
    named = frozenset(hold | (folders - filled))
    return Tree(tuple(sorted(entries, key=_place)), named, tuple(sorted(skipped)), tuple(tables), leaves)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _judged(path: Folder, read: Callable[[], bytes], head: Callable[[], bytes], elsewhere: bool = False) -> _Met:
    """A file, to be read where its suffix is a picture's; head: gives its first bytes."""
    suffix = PurePosixPath(path[-1]).suffix.lower()
    if is_picture(suffix) or path[-1].lower() == _TABLE:
        return _Met(path, read, "", elsewhere)
    nameless = not suffix or suffix[1:].isdigit()  # as of files whose name is a number with points
    if is_nifti(path[-1]) or is_dicom(path[-1]) or (nameless and _begins_as_dicom(head)):
        return _Met(path, read, "", elsewhere, medical=True)
    return _Met(path, None, suffix if re.fullmatch(r"\.[a-z0-9]{1,8}", suffix) else "no suffix")


def _begins_as_dicom(head: Callable[[], bytes]) -> bool:
    try:
        return head()[_DICOM_AT:] == _DICOM_MARK
    except (OSError, DataError):  # it was not going to be read
        return False


def _hidden(path: Folder, *, is_folder: bool = False) -> Iterator[_Met]:
    """A leftover, worth a word where images may be in it."""
    if is_folder or is_picture(PurePosixPath(path[-1]).suffix):
        yield _Met(path, None, "hidden")


# ----------------------------------------------------------------------------------------- folders


def _walked(root: Path) -> Iterator[_Met]:
    try:
        yield from _inside(root, (), root.resolve(), frozenset(), elsewhere=False)
    except OSError as error:
        raise DataError(
            f"cannot look into {error.filename or root} ({error.strerror or error})", "readable folders", "check them"
        ) from None


def _inside(place: Path, path: Folder, root: Path, above: frozenset[Path], *, elsewhere: bool) -> Iterator[_Met]:
    """Files and folders below a place, links followed but for those back to a folder that it is in."""
    above |= {place.resolve()}
    with os.scandir(place) as listing:
        found = list(listing)
    for one in found:
        below, linked, lies = (*path, one.name), one.is_symlink(), Path(one.path)
        if _is_hidden(one.name):
            yield from _hidden(below, is_folder=lies.is_dir())
            continue
        if linked and not lies.exists():  # or leads to itself
            raise DataError(f"{one.path}, a link that leads nowhere", "links to files or folders", "mend or remove it")
        real = lies.resolve() if linked else lies
        outside = not real.is_relative_to(root) if linked else elsewhere
        if one.is_dir() and real in above:
            continue
        if one.is_dir():
            yield _Met(below)
            yield from _inside(lies, below, root, above, elsewhere=outside)
        elif one.is_file():
            _check_no_text(lies)
            yield _judged(below, functools.partial(read_file, lies), functools.partial(_head, lies), outside)


def _check_no_text(path: Path) -> None:
    """Raises DataError for a link that a program wrote as text, as git does where there are none: a folder is lost."""
    if path.suffix or path.stat().st_size > _LONGEST_LINK:
        return
    text = read_file(path)
    if b"\0" not in text and b"\n" not in text and text and _is_folder_beside(path, text):
        raise DataError(
            f"{path}, a link that is written as text", "a link to a folder, or the folder", "copy what it names there"
        )


def _is_folder_beside(path: Path, text: bytes) -> bool:
    try:
        return (path.parent / os.fsdecode(text)).is_dir()
    except OSError:  # no name that a folder can have
        return False


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)


# ------------------------------------------------------------------------------------------- zips


def _members(root: Path) -> Iterator[_Met]:
    """Members are read where they lie and written nowhere, whatever their names claim."""
    try:
        archive = zipfile.ZipFile(root)
    except _ZIP_DAMAGE as error:
        raise DataError(
            f"{root} is not a readable zip ({error})", "a whole zip file", "pack or fetch it anew"
        ) from None
    # Of one name the last counts, as when it is unpacked.
    members = {_path_of(about.filename): about for about in archive.infolist()}
    folders = {path[:count] for path in members for count in range(1, len(path))}
    for path in folders | {path for path, about in members.items() if _is_folder(about)}:
        if path and not any(map(_is_hidden, path)):
            yield _Met(path)
    for path, about in members.items():
        if path in folders or _is_folder(about) or not path:
            continue
        if any(map(_is_hidden, path)):
            yield from _hidden(path)
        elif stat.S_ISLNK(about.external_attr >> 16):
            yield _Met(path, None, "a link in a zip")
        else:
            read = functools.partial(_read_member, archive, root, about)
            yield _judged(path, read, functools.partial(_read_member, archive, root, about, _HEAD))


def _is_folder(about: zipfile.ZipInfo) -> bool:
    return about.filename.endswith(("/", "\\"))


def _path_of(name: str) -> Folder:
    """A member's path; some programs for Windows write `\\` for `/`."""
    return tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", ".", ".."))


def _read_member(archive: zipfile.ZipFile, root: Path, about: zipfile.ZipInfo, most: int = 0) -> bytes:
    """most: bytes, 0 for all of them."""
    try:
        if is_bomb(about.compress_size, about.file_size):
            raise ValueError(f"{about.compress_size} bytes that claim to be {about.file_size}")
        with archive.open(about) as file:
            return file.read(most or about.file_size + 1)
    except _ZIP_DAMAGE as error:
        name = about.filename
        raise DataError(f"{root}:{name} does not unpack ({error})", "a whole zip member", "pack the zip anew") from None
