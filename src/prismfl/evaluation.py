"""All figures of a finished model against a data set."""

import tomllib
from pathlib import Path
from typing import Any

import numpy as np

from prismfl.config import Settings, settings_from
from prismfl.data.classes import select_classes
from prismfl.data.datasets import load_dataset
from prismfl.errors import DataError, ModelFileError, SettingError
from prismfl.metrics.frechet import fid, fid_embedded
from prismfl.metrics.readability import Classifier, readability
from prismfl.nets.features import load_features
from prismfl.nets.generator import check_device
from prismfl.nets.inception import load_inception
from prismfl.nets.overlap import overlap_note
from prismfl.sampling import labels_like, load

READABILITY_SAMPLES = 1000


def evaluate_model(
    path: Path,
    dataset: str = "",
    data_dir: str = "",
    samples: int = 10_000,
    seed: int = 0,
    inception: Path | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Distance and readability of a model file, by name of the figure.

    dataset, data_dir: what to judge against; a data set that needs a folder needs it here, for
    a model file names no folder of its maker.  Without dataset it is the model's own, and of its own
    data set the model's classes count.  Readability is of 1,000 samples and is left out where the data
    has a single class.  inception: the weights of the FID's Inception-v3, which add `fid` and
    `inception_sha256`.  `warnings` are there where a figure flatters.
    Raises PrismError subclasses for unusable files, data and numbers.
    """
    if samples < 2:
        raise SettingError(f"samples {samples}", "at least 2", "ask for more")
    check_device(device)
    judge = load_inception(inception) if inception is not None else None
    sampler = load(path, device)
    trained = _settings(path, sampler.model.settings)
    name = dataset or trained.data.dataset
    if name == "arrays":
        raise DataError("a model of a caller's arrays", "a data set to judge against", "pass --dataset and --data-dir")
    size = sampler.model.layout.size
    folder = Path(data_dir) if data_dir else None
    train, test = (load_dataset(name, folder, size, split, settings=trained.data) for split in ("train", "test"))
    if name == trained.data.dataset:
        train, test = (select_classes(part, trained.data.classes) for part in (train, test))
    if test.images.shape[1] != sampler.model.layout.channels:
        raise DataError(
            f"images of {test.images.shape[1]} channels",
            f"{sampler.model.layout.channels}, as the model makes",
            "judge against another data set",
        )
    same_labels = sampler.model.labels == train.classes
    labels = labels_like(test.labels, samples) if same_labels else None
    images = sampler.sample(samples, seed=seed, labels=labels)
    found: dict[str, Any] = {"samples": samples, "fid_embedded": fid_embedded(test.images, images, device=device)}
    if judge is not None:
        found |= {"fid": fid(test.images, images, judge, device=device), "inception_sha256": judge.sha256}
    if len(train.classes) > 1:
        turns = np.arange(READABILITY_SAMPLES) % len(train.classes) if same_labels else None
        shown = sampler.sample(READABILITY_SAMPLES, seed=seed)
        found |= vars(readability(Classifier(train), shown, test, turns))
    notes = overlap_note("the judge", load_features("judge").about, name, train.classes, "fid_embedded flatters")
    return found | {"ledger": list(sampler.model.ledger)} | ({"warnings": notes} if notes else {})


def _settings(path: Path, text: str) -> Settings:
    try:
        return settings_from(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, SettingError) as error:
        raise ModelFileError(
            f"settings inside {path} do not read ({error})", "those of a run", "fetch the file anew"
        ) from None
