"""Whose image each is: by a pattern in file names, a table of files, or what a file says of itself."""

import csv
import io
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from prismfl.data.images import Labels, read_file
from prismfl.data.tree import Entry, Folder, Tree
from prismfl.errors import DataError
from prismfl.settings.check import is_table

_MEND = "mend it, or give the file another name than people.csv"
_HEADS = ({"file", "person"}, {"filename", "person"}, {"image", "person"})  # of a table's first line, if it has one


def told_by_tables(root: Path, tree: Tree, people: str = "") -> Tree:
    """A tree whose images are of the persons that a table names, where there is one.

    A table has two columns, a file and a person, and says it of all files below its own folder; of one that has another
    name `people` is the path, from the root or from anywhere.  Raises DataError for images there that it does not name.
    """
    tables = [(table.path[:-1], table.read()) for table in tree.tables]
    if is_table(people):
        elsewhere = Path(os.path.expanduser(people))  # noqa: PTH111 (which leaves a user that is none as it is)
        inside = root / people if root.is_dir() else elsewhere
        tables = [((), read_file(inside if inside.is_file() else elsewhere))]
    elif people:  # a pattern goes before tables that happen to lie there
        return tree
    if not tables:
        return tree
    named: dict[Folder, str] = {}
    for folder, raw in tables:
        for number, path, person in _rows(raw):
            if named.setdefault((*folder, *path), person) != person:
                raise DataError(
                    f"line {number} of the table of persons, another person for a file that a line before names",
                    "one person a file: who appear in one image together count as one",
                    _MEND,
                )
    entries = tuple(entry._replace(person=_of(entry, named)) for entry in tree.entries)
    said = [entry for entry in entries if any(_file(entry)[: len(folder)] == folder for folder, _ in tables)]
    if missing := sum(not entry.person for entry in said):
        raise DataError(
            f"{missing} of {len(said)} images that the table of persons does not name",
            "a line 'file,person' for each image, with paths from the table's folder",
            "add these lines, or move these images elsewhere",
        )
    return replace(tree, entries=entries)


def _of(entry: Entry, named: dict[Folder, str]) -> str:
    """Of a file with many images, the file's; the path from the table's folder, or where it says no more, the name."""
    path = _file(entry)
    found = named.get(path, "")
    for above in range(len(path) - 1):
        found = found or named.get((*path[:above], path[-1]), "")
    return found


def _file(entry: Entry) -> Folder:
    return entry.file or entry.path


def _rows(raw: bytes) -> list[tuple[int, Folder, str]]:
    """Lines' numbers, paths and persons of a table.  Raises DataError, which names neither."""
    wanted = "lines 'file,person' in UTF-8"
    try:
        text = raw.decode("utf-8-sig")
        first = text.split("\n", 1)[0]
        lines = [row for row in csv.reader(io.StringIO(text), delimiter=max(",;\t", key=first.count)) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        got = f"a table of persons that does not read ({type(error).__name__})"
        raise DataError(got, wanted, _MEND) from None
    found, columns = list[tuple[int, Folder, str]](), (0, 1)
    for number, row in enumerate(lines, 1):
        cells = [cell.strip() for cell in row]
        heads = [cell.lower() for cell in cells]
        if number == 1 and any(names <= set(heads) for names in _HEADS):
            person = heads.index("person")
            columns = next(at for at, head in enumerate(heads) if head in ("file", "filename", "image")), person
            continue
        if max(columns) >= len(cells) or not all(cells[column] for column in columns):
            raise DataError(f"line {number} of the table of persons, without a file and a person", wanted, _MEND)
        path = PurePosixPath(cells[columns[0]].replace("\\", "/"))
        found.append((number, tuple(part for part in path.parts if part not in (".", "/")), cells[columns[1]]))
    return found


def numbered(entries: Sequence[Entry], pattern: str, *, private: bool = False) -> Labels | None:
    """The number of each image's person: int64 `[N]`, by the sorted names; None where nobody knows.

    pattern: goes before what entries say; private: whether epsilon is set, which persons that only some images tell
    cannot serve.  Raises DataError.
    """
    if pattern and not is_table(pattern):
        return people_of(["/".join(entry.path) for entry in entries], pattern)
    missing = sum(not entry.person for entry in entries)
    if entries and not missing:
        return _by_name(entry.person for entry in entries)
    scans = any(entry.picture is not None for entry in entries)  # of which a person has many
    if private and (missing < len(entries) or scans):
        raise DataError(
            f"{missing} of {len(entries)} images that do not tell whose they are, beside others that do, or scans",
            "a person for every image, where epsilon is set",
            "name them in people.csv, or by --people PATTERN",
        )
    return None


def person_in(entry: Entry, pattern: str) -> str:
    """Whose an image is, as `numbered` takes it: nothing where nobody knows."""
    if pattern and not is_table(pattern):
        return _person(re.search(pattern, "/".join(entry.path)))
    return entry.person


def _by_name(names: Iterable[str]) -> Labels:
    return np.asarray(np.unique(np.array(list(names)), return_inverse=True)[1], np.int64).reshape(-1)


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
    return _by_name(found)


def _person(match: re.Match[str] | None) -> str:
    """Who a match names; "" for nobody, as where a group took no part."""
    if match is None:
        return ""
    return (match[1] if match.re.groups else match[0]) or ""
