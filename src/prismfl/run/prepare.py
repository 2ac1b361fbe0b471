"""From settings to everything a simulation needs before its first round."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prismfl.data.classes import select_classes, select_names
from prismfl.data.datasets import load_dataset
from prismfl.data.folder import client_roots, links_out
from prismfl.data.images import ImageSet, deal, fit, in_channels
from prismfl.data.partition import partition, uncovered
from prismfl.errors import DataError, PrivacyError, SettingError
from prismfl.features.matched import load_matched, overlap_note, overlaps, sibling_note
from prismfl.features.networks import LoadedNet
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
    settings = counted(settings)
    test: ImageSet | None
    if images is not None:
        train, test = _given(images, labels, settings)
    elif labels is not None or settings.data.dataset == "arrays":
        raise DataError("no images", "the arrays of the run", "pass images, and labels if there are any")
    else:
        train, test = _load(settings)
    train = _chosen(train, settings)
    test = None if test is None else _chosen(test, settings)
    if settings.privacy.epsilon and not settings.privacy.distances:
        test = None  # held-back images are private too, and no noise covers what is measured on them
    _check_test(settings, train, test)
    parts = partition(train, settings.data, settings.seed)
    channels = train.images.shape[1]
    settings = _on_this_machine(resolved(settings, channels, len(train) / len(parts)))
    agreement, loaded = _agreed(settings, channels, train.classes)
    if settings.privacy.epsilon:
        check_sizes(settings.privacy, [len(part) for part in parts])
    clients = deal(train, parts, _scratch(settings))
    warnings = _warnings(settings, loaded, clients, test)
    # A simulator's searches share what was compiled once; of others each would compile anew.
    at_a_time = 1 if settings.federation.mode == "one-shot" else settings.federation.cohort or settings.data.clients
    steps = settings.federation.rounds * at_a_time * settings.search.local_steps
    kit = _kit(agreement, loaded, compiled=worth_compiling(settings.running.device, steps))
    return Prepared(agreement, kit, clients, test, warnings)


def _on_this_machine(settings: Settings) -> Settings:
    """The settings with what follows from the machine written down."""
    running = settings.running
    most = min(cores(), _MOST_THREADS) if settings.federation.mode == "one-shot" else 1
    precision = precision_of(running.precision, running.device)
    threads = running.client_threads or most
    return replace(settings, running=replace(running, precision=precision, client_threads=threads))


def _agreed(settings: Settings, channels: int, classes: tuple[str, ...]) -> tuple[Agreement, LoadedNet]:
    """The agreement and the matched network.  Raises PrivacyError for one that voids the guarantee of ε."""
    loaded = load_matched(settings.features)
    if settings.privacy.epsilon and overlaps(loaded.about, settings.data.dataset, classes):
        raise PrivacyError(
            f"the matched network {settings.features.features}, trained on {loaded.about['trained_on']}",
            "one that never saw the private images, for nothing protects what its weights hold of them",
            "match another network, or random",
        )
    return agree(settings, channels, classes, loaded.sha256), loaded


def _kit(agreement: Agreement, loaded: LoadedNet, *, compiled: bool = False) -> ClientKit:
    layout = agreement.layout
    features = FeatureMap(loaded, agreement.matching, layout.channels, layout.size)
    return make_kit(agreement, features, compiled=compiled)


def agree_on(settings: Settings, channels: int, classes: tuple[str, ...]) -> Agreement:
    """The agreement of clients on other machines, of their classes before `data.classes` chooses among them.

    It names the feature network by its SHA-256.  Raises PrismError subclasses, PrivacyError for a
    feature network that may have seen the private images.
    """
    names, settings = select_names(classes, settings.data.classes), resolved(settings, channels)
    return _agreed(_on_this_machine(settings), channels, names)[0]


def site_kit(agreement: Agreement) -> ClientKit:
    """What one client computes with.  Raises ModelFileError for another feature network than was agreed on."""
    check_device(agreement.settings.running.device)
    return _kit(agreement, load_matched(agreement.settings.features))


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
    name, private = settings.features.features, settings.privacy.epsilon > 0
    harm = "its public weights hold, unprotected, what was learnt of them"
    matched = f"the matched network {name}"
    found = overlap_note(matched, loaded.about, settings.data.dataset, clients[0].classes, harm)
    if test is not None and settings.running.distance_samples:
        found += sibling_note(name)
    if settings.federation.mode == "one-shot" and not private:
        found.append(_PLAIN_MOMENTS)
    if elsewhere := sum(map(links_out, _roots(settings))):
        found.append(f"note: {elsewhere} files of the data lie elsewhere, behind links that lead out of its folder")
    if private:
        found += uncovered(clients, settings.privacy.images_per_person)
    return tuple(found)


def _roots(settings: Settings) -> list[Path]:
    """Folders of images that a run reads."""
    data = settings.data
    if data.clients_from:
        return client_roots(data.clients_from)
    return [Path(data.data_dir)] if data.dataset == "folder" and data.data_dir else []


def for_arrays(settings: Settings, images: NDArray[np.uint8]) -> Settings:
    """Settings of a run on a caller's arrays: they say so, and their size fits the images."""
    size = settings.generator.size
    if not size and isinstance(images, np.ndarray) and images.ndim == 4:
        size = next((one for one in SIZES if one >= max(images.shape[2:])), SIZES[-1])
    data, generator = replace(settings.data, dataset="arrays"), replace(settings.generator, size=size)
    return replace(settings, data=data, generator=generator)


def _check_test(settings: Settings, train: ImageSet, test: ImageSet | None) -> None:
    if test is None:
        return
    if len(test) and test.labels.max() >= len(train.classes):
        got = f"a test label {test.labels.max()} and {len(train.classes)} labels in training"
        raise DataError(got, "test images of trained labels", "check the two splits")
    asked = settings.running.distance_samples
    if asked and min(asked, len(test)) < 2:
        got = f"running.distance_samples = {asked} with {len(test)} test images"
        raise SettingError(got, "0, or at least 2 of each", "set it to 0")


def _load(settings: Settings) -> tuple[ImageSet, ImageSet | None]:
    data, given = settings.data, settings.data.partition == "given"
    folder, scratch = Path(data.data_dir) if data.data_dir else None, _scratch(settings)
    name, size = data.dataset, settings.pixels
    train = load_dataset(name, folder, size, "train", per_client=given, settings=data, scratch=scratch)
    if given:
        return train, None  # every image belongs to a client
    return train, load_dataset(data.dataset, folder, size, "test", settings=data, scratch=scratch)


def _chosen(whole: ImageSet, settings: Settings) -> ImageSet:
    """The images of the run's classes, in the run's channels."""
    found = select_classes(whole, settings.data.classes)
    return replace(found, images=in_channels(found.images, settings.generator.channels, _scratch(settings)))


def _given(
    images: NDArray[np.uint8], labels: NDArray[np.int64] | None, settings: Settings
) -> tuple[ImageSet, ImageSet]:
    """Arrays of a caller as training and test images."""
    shape: tuple[int, ...] = getattr(images, "shape", ())
    usable = isinstance(images, np.ndarray) and len(shape) == 4 and images.dtype == np.uint8
    if not usable or shape[1] not in (1, 3) or len(images) < _TEST_EVERY or min(shape) < 1:
        raise DataError(
            f"images {getattr(images, 'dtype', type(images).__name__)} {list(shape)}",
            f"uint8 [N, 1 or 3, H, W] with N ≥ {_TEST_EVERY}",
            "convert them",
        )
    tags = np.zeros(len(images), np.int64) if labels is None else np.asarray(labels)
    if tags.shape != (len(images),) or not np.issubdtype(tags.dtype, np.integer) or tags.min() < 0:
        raise DataError(f"labels {tags.dtype} {list(tags.shape)}", f"integers ≥ 0 [{len(images)}]", "convert them")
    names, tags = np.unique(tags, return_inverse=True)
    held, scratch = np.arange(len(images)) % _TEST_EVERY == _TEST_EVERY - 1, _scratch(settings)
    whole = ImageSet(fit(images, settings.pixels, scratch), tags.astype(np.int64), tuple(map(str, names)))
    train, test = deal(whole, [np.flatnonzero(~held), np.flatnonzero(held)], scratch)
    return train, test
