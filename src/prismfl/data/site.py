"""The images of one client on a machine of its own, which nobody else ever loads."""

import glob
from dataclasses import replace
from pathlib import Path

import numpy as np

from prismfl.data.classes import keep_classes, present, select_classes
from prismfl.data.datasets import ImageSet, load_dataset
from prismfl.data.folder import load_clients
from prismfl.data.images import in_channels
from prismfl.data.partition import partition
from prismfl.errors import ClientError, DataError
from prismfl.settings.schema import Settings


def load_site(settings: Settings, folder: Path | None, client: int, scratch: Path | None = None) -> ImageSet:
    """A client's own training images, uint8 `[n, 1 or 3, size, size]`, with its own class names.

    With partition `given`, everything in `folder` (an image folder, a zip, or files of a known data
    set) is the client's; else `folder` holds a whole public data set, and the client takes its part
    of it as a simulation deals it.  Raises DataError, SettingError.
    """
    found = _loaded(settings, folder, client, scratch)
    return replace(found, images=in_channels(found.images, settings.channels, scratch))


def _loaded(settings: Settings, folder: Path | None, client: int, scratch: Path | None) -> ImageSet:
    data, private = settings.data, settings.privacy.epsilon > 0
    if data.partition == "given" and data.dataset == "folder":
        if folder is None or not folder.exists():
            raise DataError(f"no image folder or zip {folder or ''}", "the client's own images", "check --data-dir")
        found = load_clients(glob.escape(str(folder)), settings.pixels, scratch, data, private=private)
        return replace(found, owners=None)
    name, size = data.dataset, settings.pixels
    whole = load_dataset(name, folder, size, "train", settings=data, scratch=scratch, private=private)
    if data.partition == "given":
        return whole if private else present(whole)
    chosen = select_classes(whole, data.classes)
    chosen = chosen if private else present(chosen)
    return chosen.part(partition(chosen, data, settings.seed)[client])


def conform(mine: ImageSet, settings: Settings, classes: tuple[str, ...], channels: int) -> ImageSet:
    """The images with labels numbered and in as many channels as all clients agreed.

    classes: of all clients together, before `data.classes` chooses among them.  Raises ClientError
    for images that came after the agreement and do not fit it, DataError when none is left.
    """
    missing = sorted(set(mine.classes) - set(classes))
    if missing:
        raise ClientError(
            f"{len(missing)} classes that were not agreed on",
            "images of the agreed classes",
            "put back the images that were there when the run began",
        )
    numbers = np.array([classes.index(name) for name in mine.classes], np.int64)
    whole = replace(mine, images=in_channels(mine.images, channels), labels=numbers[mine.labels], classes=classes)
    return whole if settings.data.partition != "given" else select_classes(whole, settings.data.classes)


def named_classes(classes: str) -> tuple[str, ...]:
    """The class names of a choice that has nothing but names, sorted; none where it has numbers or ranges."""
    named = sorted({part.strip() for part in classes.split(",")} - {""})
    return () if any(part.replace("-", "").isdigit() for part in named) else tuple(named)


def reported(mine: ImageSet, settings: Settings) -> tuple[str, ...]:
    """The class names that a client tells: where the settings name classes, no others than those."""
    named = named_classes(settings.data.classes) if settings.data.partition == "given" else ()
    return tuple(name for name in mine.classes if name in named or not named)


def only(mine: ImageSet, names: tuple[str, ...]) -> ImageSet:
    """The images of some of the client's own classes.  Raises DataError when none is left."""
    if not names:
        raise DataError(
            "images of none of the classes that the run names",
            "folders of these names",
            "check the folders, or ask for a run without --classes where there are none",
        )
    return keep_classes(mine, [mine.classes.index(name) for name in names])
