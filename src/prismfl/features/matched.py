"""The network that a run matches, by its settings, and whether it was trained on images held to be private."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from prismfl.errors import SettingError
from prismfl.features.efficientnet import JUDGE, LITES, load_lite
from prismfl.features.networks import LoadedNet, load_features
from prismfl.features.vgg19 import load_vgg19, random_vgg
from prismfl.settings.schema import Features

# How what a network was trained on may spell a data set, without blanks, hyphens and underscores.
SPELLINGS = {"fmnist": ("fmnist", "fashionmnist"), "kmnist": ("kmnist", "kuzushijimnist")}


def load_matched(settings: Features) -> LoadedNet:
    """The feature network that the settings name; `auto` must have been resolved (`settings.resolve.named`).

    Raises SettingError for weights of a network that takes none and for a judge, ModelFileError
    for an unusable file.
    """
    name, weights = settings.network, settings.weights
    if settings.features == JUDGE:
        raise SettingError(
            f"features.features = {settings.features!r}, a judge",
            "a network that no metric uses",
            "match another: a distance in a matched network says nothing",
        )
    if name == "vgg19":
        return load_vgg19(weights)
    if name in LITES:
        return load_lite(name, weights)
    if name == "file":
        return load_features(weights)
    if weights:
        raise SettingError(
            f"features.features = {settings.features!r}",
            "no file: only vgg19 and efficientnet-lite0 take published weights",
            "name one of these before it, or leave the file out",
        )
    return random_vgg() if name == "random" else load_features(name)


def overlaps(about: Mapping[str, Any], dataset: str, classes: Sequence[str] = ()) -> bool:
    """Whether images of a data set (by its name in the settings) may have trained a network.

    about: a network's own account: `trained_on`, a text; `classes`, the classes that it was
    trained on; `all_classes`, those that the images came from, where it was not all of them.
    classes: names of the private classes, none for all.  Other classes of the same data set are
    other images; but that is said only of private classes whose names the network's account knows.
    A folder's or a caller's images have no known name: of these it says no.
    """
    if not _names(str(about.get("trained_on", "")), dataset):
        return False
    known, seen, mine = (set(names) for names in (about.get("all_classes", ()), about.get("classes", ()), classes))
    return not (mine and mine <= known and not mine & seen)


def _names(text: str, dataset: str) -> bool:
    """Whether a text names a data set, as one word or as two neighbours (`CIFAR 10`)."""
    if dataset in ("folder", "arrays"):
        return False
    words = re.findall(r"[a-z0-9]+", re.sub(r"[-_]", "", text.lower()))
    found = {*words, *(first + second for first, second in pairwise(words))}
    return not found.isdisjoint(SPELLINGS.get(dataset, (dataset,)))


def sibling_note(matched: str) -> list[str]:
    """One warning where training matches a near relation of the judge, else none."""
    if matched != "efficientnet-lite0":
        return []
    return [
        f"the judge, {JUDGE}, is a sibling of the matched network {matched}: deeper and wider, of the same family,"
        " trained on the same images: its distances flatter"
    ]


def overlap_note(name: str, about: Mapping[str, Any], dataset: str, classes: Sequence[str], harm: str) -> list[str]:
    """One warning where a network's training images are the private ones, else none."""
    if not overlaps(about, dataset, classes):
        return []
    return [f"warning: {name} was trained on {about['trained_on']}, the data set of this run: {harm}"]
