"""Whose image a file is, told by its name; nothing but numbers comes of the names."""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from prismfl.data.images import ImageSet, Labels
from prismfl.errors import DataError


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


def uncovered(sets: Iterable[ImageSet], covered: int) -> list[str]:
    """A warning where a person has more images at one client than ε covers; none where nobody is known."""
    most = max((int(np.bincount(one.people).max()) for one in sets if one.people is not None), default=0)
    if most <= covered:
        return []
    return [
        f"warning: epsilon covers {covered} of a person's images at one client, and one person has {most}: "
        f"privacy.images_per_person = {most} covers all of them, with more noise"
    ]
