"""From settings to everything a simulation needs before its first round."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prismfl.data.classes import named_alike, present, select_classes, select_names
from prismfl.data.datasets import load_dataset, scaled
from prismfl.data.description import Description, describe
from prismfl.data.folder import client_roots
from prismfl.data.images import ImageSet, Reading, deal, in_channels
from prismfl.data.partition import partition
from prismfl.errors import DataError, PrivacyError, SettingError
from prismfl.features.matched import load_matched, overlap_note, overlaps, sibling_note
from prismfl.features.networks import LoadedNet
from prismfl.federation.agreement import Agreement, agree
from prismfl.federation.client import ClientKit, make_kit
from prismfl.generator.layout import SIZES
from prismfl.generator.network import check_device
from prismfl.moments import FeatureMap
from prismfl.privacy.pooled import noise_in_mean
from prismfl.privacy.release import check_sizes, covered_note, grid_of
from prismfl.run.environment import cores
from prismfl.search import precision_of, worth_compiling
from prismfl.settings.resolve import resolved
from prismfl.settings.schema import Settings

_TEST_EVERY = 10
_MOST_THREADS = 4  # of one search: more wait for each other
_MUCH_NOISE = 0.5  # of an image's norm: MNIST's digits are read at 0.4, photographs of 360 images are none at 1.3
_FEWEST_TEST = 2  # images that a distance can be measured on
_PLAIN_MOMENTS = (
    "warning: one-shot without epsilon: each client sends the exact moments of its images' features, label by label; "
    "nothing hides what they tell of single images, and of few images they tell much: set epsilon to protect them"
)


@dataclass(frozen=True)
class Prepared:
    """The agreement, what clients compute with, each client's labelled images, and the test images.

    clients: one image set each; test: None where there are no test images; described: what was read; warnings: what
    whoever runs this should know, a line each; noise: of ε, in the mean of all clients' moments, in an image's norm.
    The agreement names the feature network by its SHA-256.
    """

    agreement: Agreement
    kit: ClientKit
    clients: Sequence[ImageSet]
    test: ImageSet | None
    described: Description
    warnings: tuple[str, ...] = ()
    noise: float = 0.0


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
    train, test, described = _chosen(settings, train, test)
    if settings.privacy.epsilon and not settings.privacy.distances:
        test = None  # held-back images are private too, and no noise covers what is measured on them
    if test is not None and len(test) < _FEWEST_TEST:
        test = None
    _check_distance(settings)
    parts = partition(train, settings.data, settings.seed)
    channels, sizes = train.images.shape[1], list(map(len, parts))
    if settings.privacy.epsilon:
        sizes = _persons(settings, train, parts) or sizes
    settings = _on_this_machine(resolved(settings, channels, sum(sizes) / len(parts)))
    agreement, loaded = _agreed(settings, channels, train.classes)
    if settings.privacy.epsilon:
        check_sizes(settings.privacy, sizes)
    clients = deal(train, parts, _scratch(settings))
    # A simulator's searches share what was compiled once; of others each would compile anew.
    at_a_time = 1 if settings.federation.mode == "one-shot" else settings.federation.cohort or settings.data.clients
    steps = settings.federation.rounds * at_a_time * settings.search.local_steps
    kit = _kit(agreement, loaded, compiled=worth_compiling(settings.running.device, steps))
    noise = _noise(settings, kit.features, agreement.layout.classes, sizes, persons=train.people is not None)
    warnings = _warnings(settings, loaded, clients, test, described.held_back) + _drowned(noise)
    return Prepared(agreement, kit, clients, test, described, warnings, noise)


def _noise(settings: Settings, features: FeatureMap, classes: int, sizes: list[int], *, persons: bool) -> float:
    if not settings.privacy.epsilon:
        return 0.0
    summed = settings.federation.secure_sum
    return noise_in_mean(grid_of(features, classes), settings.privacy, sizes, persons=persons, summed=summed)


def _drowned(noise: float) -> tuple[str, ...]:
    if noise <= _MUCH_NOISE:
        return ()
    return (
        f"warning: the noise that epsilon takes is {noise:.2g} times an image's features, in the mean of all clients: "
        f"beyond {_MUCH_NOISE:g} little is recognisable; more images, a larger epsilon or --secure-sum have less of it",
    )


def _persons(settings: Settings, train: ImageSet, parts: Sequence[NDArray[np.int64]]) -> list[int]:
    """How many persons each client has, where they are known.  Raises SettingError for persons dealt by label."""
    if train.people is None:
        return []
    if settings.data.partition not in ("iid", "given"):
        raise SettingError(
            f"data.partition = {settings.data.partition!r} with epsilon and images whose persons are known",
            "iid, which deals whole persons, or given",
            "choose data.partition = 'iid'",
        )
    return [len(np.unique(train.people[part])) for part in parts]


def _on_this_machine(settings: Settings) -> Settings:
    """The settings with what follows from the machine written down."""
    running = settings.running
    # Half of the cores: threads that wait for one that others' work holds up cost three times what they gain.
    most = max(1, min(cores() // 2, _MOST_THREADS)) if settings.federation.mode == "one-shot" else 1
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
    clients = len(client_roots(settings.data.pattern))
    return replace(settings, data=replace(settings.data, clients=clients))


def _scratch(settings: Settings) -> Path | None:
    return Path(settings.running.cache_dir) if settings.running.cache_dir else None


def _warnings(
    settings: Settings, loaded: LoadedNet, clients: Sequence[ImageSet], test: ImageSet | None, held_back: int
) -> tuple[str, ...]:
    """What whoever starts the run should know, a line each."""
    name, private = settings.features.features, settings.privacy.epsilon > 0
    harm = "its public weights hold, unprotected, what was learnt of them"
    matched = f"the matched network {name}"
    found = overlap_note(matched, loaded.about, settings.data.dataset, clients[0].classes, harm)
    if test is not None and settings.running.distance_samples:
        found += sibling_note(settings.features.network)
    if held_back < _FEWEST_TEST and settings.data.partition != "given" and settings.running.distance_samples:
        found.append(f"note: too few images are held back ({held_back}) to measure a distance")
    if settings.federation.mode == "one-shot" and not private:
        found.append(_PLAIN_MOMENTS)
    if private:
        found += covered_note(settings.privacy, persons=clients[0].people is not None)
    return tuple(found)


def as_array(images: Any) -> Any:
    """A torch tensor as the array that it is, wherever it lies; all else as it came.  Raises DataError."""
    if not hasattr(images, "detach"):
        return images
    try:
        return images.detach().cpu().numpy()
    except (TypeError, RuntimeError) as error:
        raise DataError(f"a tensor that is no array ({error})", "a dense one of uint8", "convert it") from None


def for_arrays(settings: Settings, images: NDArray[np.uint8]) -> Settings:
    """Settings of a run on a caller's arrays: they say so, and their size fits the images."""
    size = settings.generator.size
    if not size and isinstance(images, np.ndarray) and images.ndim == 4:
        size = next((one for one in SIZES if one >= max(images.shape[2:])), SIZES[-1])
    data, generator = replace(settings.data, dataset="arrays"), replace(settings.generator, size=size)
    return replace(settings, data=data, generator=generator)


def _check_distance(settings: Settings) -> None:
    if settings.running.distance_samples == 1:
        raise SettingError("running.distance_samples = 1", "0, or at least 2 samples", "set it to 0")


def _load(settings: Settings) -> tuple[ImageSet, ImageSet | None]:
    data, given = settings.data, settings.data.partition == "given"
    folder, scratch = Path(data.place) if data.place else None, _scratch(settings)
    load = partial(
        load_dataset, data.dataset, folder, settings.pixels, settings=data, scratch=scratch, private=_private(settings)
    )
    train = load("train", per_client=given)
    if given or train.reading.held_back == 0:
        return train, None  # every image belongs to a client
    return train, load("test")


def _private(settings: Settings) -> bool:
    return settings.privacy.epsilon > 0


def _chosen(
    settings: Settings, train: ImageSet, test: ImageSet | None
) -> tuple[ImageSet, ImageSet | None, Description]:
    """The images of the run's classes, in the run's channels, and what they are.

    Classes without images to train on go, unless ε is set: then one image would decide whether there is one.
    """
    private, scratch, held_back = _private(settings), _scratch(settings), 0
    train = select_classes(train, settings.data.classes)
    train = train if private else present(train)
    train = replace(train, images=in_channels(train.images, settings.channels, scratch))
    if test is not None:
        chosen = named_alike(test, select_names(test.classes, settings.data.classes))
        held_back, test = (0, None) if chosen is None else (len(chosen), named_alike(chosen, train.classes))
    if test is not None:
        test = replace(test, images=in_channels(test.images, train.images.shape[1], scratch))
    measured = 0 if test is None else len(test)
    about = describe(train, measured, settings.data.fit, test=test, private=private, untrained=held_back - measured)
    return train, test, about


def _given(images: Any, labels: Any, settings: Settings) -> tuple[ImageSet, ImageSet]:
    """Arrays of a caller as training and test images."""
    images, tags = as_array(images), as_array(labels)
    _check_images(images)
    tags = np.zeros(len(images), np.int64) if labels is None else np.asarray(tags)
    if tags.shape != (len(images),) or not np.issubdtype(tags.dtype, np.integer) or tags.min() < 0:
        raise DataError(f"labels {tags.dtype} {list(tags.shape)}", f"integers ≥ 0 [{len(images)}]", "convert them")
    names, tags = np.unique(tags, return_inverse=True)
    held, scratch = np.arange(len(images)) % _TEST_EVERY == _TEST_EVERY - 1, _scratch(settings)
    classes = ("",) if labels is None else tuple(map(str, names))
    raw = ImageSet(images, tags.astype(np.int64), classes)
    whole = scaled(raw, settings.pixels, scratch, settings.data.fit)
    train, test = deal(whole, [np.flatnonzero(~held), np.flatnonzero(held)], scratch)
    return train, replace(test, reading=Reading())  # all were read at once


def _check_images(images: Any) -> None:
    """Raises DataError, with what to do, for what are no images of a run."""
    shape: tuple[int, ...] = getattr(images, "shape", ())
    kind = getattr(images, "dtype", type(images).__name__)
    usable = isinstance(images, np.ndarray) and len(shape) == 4 and kind == np.uint8
    if not usable or shape[1] not in (1, 3) or len(images) < _TEST_EVERY or min(shape) < 1:
        raise DataError(
            f"images {kind} {list(shape)}", f"uint8 [N, 1 or 3, H, W] with N ≥ {_TEST_EVERY}", _remedy(images, shape)
        )


def _remedy(images: Any, shape: tuple[int, ...]) -> str:
    """What makes usable images of others, where that is plain."""
    if not isinstance(images, np.ndarray):
        return "pass an array or a tensor: np.stack(images)"
    if len(shape) == 4 and shape[1] not in (1, 3) and shape[3] in (1, 3):
        return "put channels second: images.transpose(0, 3, 1, 2), of a tensor permute"
    if len(shape) == 3:
        return "give grey images their channel: images[:, None]"
    if images.dtype.kind == "f":
        return "convert them: (images * 255).round().astype(np.uint8) where they are from 0 to 1"
    return "convert them" if len(shape) == 4 and len(images) >= _TEST_EVERY else "pass more images, of that shape"
