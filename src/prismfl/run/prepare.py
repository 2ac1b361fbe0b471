"""From settings to everything a simulation needs before its first round."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prismfl.data.classes import select_classes, select_names
from prismfl.data.datasets import load_dataset
from prismfl.data.folder import client_roots
from prismfl.data.images import ImageSet, deal, fit, in_channels
from prismfl.data.partition import partition
from prismfl.data.people import uncovered
from prismfl.errors import DataError, PrivacyError, SettingError
from prismfl.features.matched import load_matched
from prismfl.features.networks import LoadedNet
from prismfl.features.overlap import overlap_note, overlaps, sibling_note
from prismfl.federation.agreement import Agreement, agree
from prismfl.federation.client import ClientKit, make_kit
from prismfl.generator.layout import SIZES
from prismfl.generator.network import check_device
from prismfl.moments import FeatureMap
from prismfl.privacy.release import check_sizes
from prismfl.run.environment import cores
from prismfl.search import precision_of, worth_compiling
from prismfl.settings.resolve import resolved
from prismfl.settings.schema import Settings

_TEST_EVERY = 10
_MOST_THREADS = 4  # of one search: more wait for each other
_PLAIN_MOMENTS = (
    "warning: one-shot without epsilon: each client sends the exact moments of its images' features, label by label; "
    "nothing hides what they tell of single images, and of few images they tell much: set epsilon to protect them"
)


@dataclass(frozen=True)
class Prepared:
    """The agreement, what clients compute with, each client's labelled images, and the test images.

    clients: one image set each; test: None where there are no test images; warnings: what whoever
    runs this should know, a line each.  The agreement names the feature network by its SHA-256.
    """

    agreement: Agreement
    kit: ClientKit
    clients: Sequence[ImageSet]
    test: ImageSet | None
    warnings: tuple[str, ...] = ()


def prepare(
    settings: Settings, images: NDArray[np.uint8] | None = None, labels: NDArray[np.int64] | None = None
) -> Prepared:
    """Load, split and check everything.  Raises PrismError subclasses before any training.

    Where the settings leave the number of clients open, those of the agreement have it.
    images: uint8 `[N, C, H, W]` with labels int64 `[N]` instead of the settings' data set.
    """
    check_device(settings.running.device)
    settings, scratch = counted(settings), _scratch(settings)
    size = settings.pixels
    test: ImageSet | None
    if images is not None:
        train, test = _given(images, labels, size, scratch)
    elif labels is not None or settings.data.dataset == "arrays":
        raise DataError("no images", "the arrays of the run", "pass images, and labels if there are any")
    else:
        train, test = _load(settings, size)
    train = _chosen(train, settings)
    test = None if test is None else _chosen(test, settings)
    if settings.privacy.epsilon and not settings.privacy.distances:
        test = None  # held-back images are private too, and no noise covers what is measured on them
    _check_test(settings, train, test)
    parts = partition(train, settings.data, settings.seed)
    channels = train.images.shape[1]
    settings = _on_this_machine(resolved(settings, channels, len(train) / len(parts)))
    loaded = load_matched(settings.features)
    if settings.privacy.epsilon:
        _check_private(settings, loaded, train.classes, [len(part) for part in parts])
    agreement = agree(settings, channels, train.classes, loaded.sha256)
    features = FeatureMap(loaded, agreement.matching, agreement.layout.channels, agreement.layout.size)
    clients = deal(train, parts, scratch)
    warnings = _warnings(settings, loaded, clients, test)
    return Prepared(agreement, make_kit(agreement, features, compiled=_compiled(settings)), clients, test, warnings)


def _on_this_machine(settings: Settings) -> Settings:
    """The settings with what follows from the machine written down."""
    running = settings.running
    most = min(cores(), _MOST_THREADS) if settings.federation.mode == "one-shot" else 1
    found = replace(
        running,
        precision=precision_of(running.precision, running.device),
        client_threads=running.client_threads or most,
    )
    return replace(settings, running=found)


def _compiled(settings: Settings) -> bool:
    """Whether the run's steps are compiled: a simulator's searches share what was compiled once."""
    clients = 1 if settings.federation.mode == "one-shot" else settings.federation.cohort or settings.data.clients
    steps = settings.federation.rounds * clients * settings.search.local_steps
    return worth_compiling(settings.running.device, steps)


def _check_private(settings: Settings, loaded: LoadedNet, classes: tuple[str, ...], sizes: list[int]) -> None:
    """What would void the guarantee, before a feature is computed.  Raises PrivacyError."""
    _check_overlap(settings, loaded, classes)
    check_sizes(settings.privacy, sizes)


def _check_overlap(settings: Settings, loaded: LoadedNet, classes: tuple[str, ...]) -> None:
    if overlaps(loaded.about, settings.data.dataset, classes):
        raise PrivacyError(
            f"the matched network {settings.features.features}, trained on {loaded.about['trained_on']}",
            "one that never saw the private images, for nothing protects what its weights hold of them",
            "match another network, or random",
        )


def agree_on(settings: Settings, channels: int, classes: tuple[str, ...]) -> Agreement:
    """The agreement of clients on other machines, of their classes before `data.classes` chooses among them.

    It names the feature network by its SHA-256.  Raises PrismError subclasses, PrivacyError for a
    feature network that may have seen the private images.
    """
    names = select_names(classes, settings.data.classes)
    settings = _on_this_machine(resolved(settings, channels))
    loaded = load_matched(settings.features)
    if settings.privacy.epsilon:
        _check_overlap(settings, loaded, names)
    return agree(settings, channels, names, loaded.sha256)


def site_kit(agreement: Agreement) -> ClientKit:
    """What one client computes with.  Raises ModelFileError for another feature network than was agreed on."""
    check_device(agreement.settings.running.device)
    loaded, layout = load_matched(agreement.settings.features), agreement.layout
    return make_kit(agreement, FeatureMap(loaded, agreement.matching, layout.channels, layout.size))


def counted(settings: Settings) -> Settings:
    """The settings with the number of clients, where a pattern of folders gives it.  Raises DataError."""
    if settings.data.clients:
        return settings
    clients = len(client_roots(settings.data.clients_from))
    return replace(settings, data=replace(settings.data, clients=clients))


def _scratch(settings: Settings) -> Path | None:
    return Path(settings.running.cache_dir) if settings.running.cache_dir else None


def _warnings(
    settings: Settings, loaded: LoadedNet, clients: Sequence[ImageSet], test: ImageSet | None
) -> tuple[str, ...]:
    """What whoever starts the run should know, a line each."""
    name, dataset = f"the matched network {settings.features.features}", settings.data.dataset
    classes = clients[0].classes
    harm = "its public weights hold, unprotected, what was learnt of them"
    found = overlap_note(name, loaded.about, dataset, classes, harm)
    if test is not None and settings.running.distance_samples:
        found += sibling_note(settings.features.features)
    if settings.federation.mode == "one-shot" and not settings.privacy.epsilon:
        found.append(_PLAIN_MOMENTS)
    if settings.privacy.epsilon:
        found += uncovered(clients, settings.privacy.images_per_person)
    return tuple(found)


def for_arrays(settings: Settings, images: NDArray[np.uint8]) -> Settings:
    """Settings of a run on a caller's arrays: they say so, and their size fits the images."""
    size = settings.generator.size
    if not size and isinstance(images, np.ndarray) and images.ndim == 4:
        size = next((one for one in SIZES if one >= max(images.shape[2:])), SIZES[-1])
    return replace(
        settings, data=replace(settings.data, dataset="arrays"), generator=replace(settings.generator, size=size)
    )


def _check_test(settings: Settings, train: ImageSet, test: ImageSet | None) -> None:
    if test is not None and len(test) and test.labels.max() >= len(train.classes):
        raise DataError(
            f"a test label {test.labels.max()} and {len(train.classes)} labels in training",
            "test images of trained labels",
            "check the two splits",
        )
    asked = settings.running.distance_samples
    if test is not None and asked and min(asked, len(test)) < 2:
        raise SettingError(
            f"running.distance_samples = {asked} with {len(test)} test images",
            "0, or at least 2 of each",
            "set it to 0",
        )


def _load(settings: Settings, size: int) -> tuple[ImageSet, ImageSet | None]:
    data, given, scratch = settings.data, settings.data.partition == "given", _scratch(settings)
    folder = Path(data.data_dir) if data.data_dir else None
    train = load_dataset(data.dataset, folder, size, "train", per_client=given, settings=data, scratch=scratch)
    if given:
        return train, None  # every image belongs to a client
    return train, load_dataset(data.dataset, folder, size, "test", settings=data, scratch=scratch)


def _chosen(whole: ImageSet, settings: Settings) -> ImageSet:
    """The images of the run's classes, in the run's channels."""
    found = select_classes(whole, settings.data.classes)
    return replace(found, images=in_channels(found.images, settings.generator.channels, _scratch(settings)))


def _usable(images: NDArray[np.uint8]) -> bool:
    if not isinstance(images, np.ndarray) or images.ndim != 4 or images.dtype != np.uint8:
        return False
    return images.shape[1] in (1, 3) and len(images) >= _TEST_EVERY and min(images.shape) >= 1


def _given(
    images: NDArray[np.uint8], labels: NDArray[np.int64] | None, size: int, scratch: Path | None
) -> tuple[ImageSet, ImageSet]:
    """Arrays of a caller as training and test images."""
    if not _usable(images):
        raise DataError(
            f"images {getattr(images, 'dtype', type(images).__name__)} {list(getattr(images, 'shape', ()))}",
            f"uint8 [N, 1 or 3, H, W] with N ≥ {_TEST_EVERY}",
            "convert them",
        )
    tags = np.zeros(len(images), np.int64) if labels is None else np.asarray(labels)
    if tags.shape != (len(images),) or not np.issubdtype(tags.dtype, np.integer) or tags.min() < 0:
        raise DataError(f"labels {tags.dtype} {list(tags.shape)}", f"integers ≥ 0 [{len(images)}]", "convert them")
    names, tags = np.unique(tags, return_inverse=True)
    classes = tuple(str(name) for name in names)
    held = np.arange(len(images)) % _TEST_EVERY == _TEST_EVERY - 1
    whole = ImageSet(fit(images, size, scratch), tags.astype(np.int64), classes)
    train, test = deal(whole, [np.flatnonzero(~held), np.flatnonzero(held)], scratch)
    return train, test
