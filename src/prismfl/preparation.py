"""From settings to everything a simulation needs before its first round."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from prismfl.config import Settings
from prismfl.data.datasets import ImageSet, fit, load_dataset
from prismfl.data.partition import partition
from prismfl.errors import DataError, SettingError
from prismfl.federation import Agreement, ClientKit, agree, make_kit
from prismfl.layout import Layout
from prismfl.mmd import FeatureMap
from prismfl.nets.features import load_features

_TEST_EVERY = 10


@dataclass(frozen=True)
class Prepared:
    """The agreement, what clients compute with, each client's images, and the test images.

    images: one uint8 `[n_k, C, S, S]` a client; test: None where there are no test images.
    """

    agreement: Agreement
    kit: ClientKit
    images: Sequence[NDArray[np.uint8]]
    test: ImageSet | None


def prepare(
    settings: Settings, images: NDArray[np.uint8] | None = None, labels: NDArray[np.int64] | None = None
) -> Prepared:
    """Load, split and check everything.  Raises PrismError subclasses before any training.

    images: uint8 `[N, C, H, W]` with labels int64 `[N]` instead of the settings' data set.
    """
    _check_device(settings.output.device)
    size = agree(settings, 1).layout.size
    if images is None:
        train, test = _load(settings, size)
    else:
        train, test = _given(images, labels, size)
    agreement = agree(settings, train.images.shape[1])
    parts = partition(train, settings.data, settings.seed)
    features = _feature_map(settings, agreement.layout)
    return Prepared(agreement, make_kit(agreement, features), [train.images[part] for part in parts], test)


def _feature_map(settings: Settings, layout: Layout) -> FeatureMap:
    loaded = load_features(settings.features.features)
    return FeatureMap(loaded, settings.features, layout.channels, layout.size)


def _load(settings: Settings, size: int) -> tuple[ImageSet, ImageSet | None]:
    data = settings.data
    folder = Path(data.data_dir) if data.data_dir else None
    train = load_dataset(data.dataset, folder, size, "train", per_client=data.partition == "given")
    if data.partition == "given":
        return train, None  # every image belongs to a client
    return train, load_dataset(data.dataset, folder, size, "test")


def _given(images: NDArray[np.uint8], labels: NDArray[np.int64] | None, size: int) -> tuple[ImageSet, ImageSet]:
    """Arrays of a caller as training and test images."""
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[1] not in (1, 3) or len(images) < _TEST_EVERY:
        raise DataError(
            f"images {images.dtype} {list(images.shape)}",
            f"uint8 [N, 1 or 3, H, W] with N ≥ {_TEST_EVERY}",
            "convert them",
        )
    tags = np.zeros(len(images), np.int64) if labels is None else np.asarray(labels)
    if tags.shape != (len(images),) or not np.issubdtype(tags.dtype, np.integer) or tags.min() < 0:
        raise DataError(f"labels {tags.dtype} {list(tags.shape)}", f"integers ≥ 0 [{len(images)}]", "convert them")
    classes = tuple(str(label) for label in range(int(tags.max()) + 1))
    held = np.arange(len(images)) % _TEST_EVERY == _TEST_EVERY - 1
    scaled, tags = fit(images, size), tags.astype(np.int64)
    return ImageSet(scaled[~held], tags[~held], classes), ImageSet(scaled[held], tags[held], classes)


def _check_device(device: str) -> None:
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingError(
            f"output.device = {device!r} ({reason})", "a device that torch can use here", "try cpu or cuda"
        ) from None
