"""Every data set by its name, scaled to the run's pixels."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from prismfl.data.celeba import load_celeba
from prismfl.data.cifar import load_cifar10
from prismfl.data.folder import load_clients, load_folder
from prismfl.data.hub import load_hub
from prismfl.data.idx import IDX_FAMILIES, load_idx
from prismfl.data.images import ImageSet, fit
from prismfl.errors import DataError
from prismfl.settings.schema import Data

__all__ = ["DATASETS", "IDX_FAMILIES", "ImageSet", "load_dataset"]

DATASETS = ("digits", *IDX_FAMILIES, "cifar10", "celeba", "folder", "hf")


def load_dataset(
    name: str,
    data_dir: Path | None,
    size: int,
    split: str,
    *,
    per_client: bool = False,
    settings: Data | None = None,
    scratch: Path | None = None,
    private: bool = False,
) -> ImageSet:
    """Load one split of a data set, scaled to `size` × `size` pixels.

    name: one of `DATASETS`; split: `train` or `test`; per_client: the top folders of a
    `folder` data set are clients ("as given"); settings: attribute, columns, what is made of images that are not
    square, the pattern that names persons, and that of each client's own folder (then without data_dir, and for `train`
    only); scratch: where images beyond `images.LARGE` bytes are kept; private: classes follow from what is public
    alone.  Returns uint8 images `[N, C, size, size]`.  Raises DataError when anything is missing, damaged, empty or
    ambiguous, DependencyError where an optional library is.
    """
    details = settings or Data()
    if split not in ("train", "test"):
        raise DataError(f"split {split!r}", "train or test", "name one of the two")
    if name == "digits":
        found = _digits(split)
    elif name == "folder" and per_client and details.pattern:
        found = load_clients(details.pattern, size, scratch, details, private=private)
    elif data_dir is None:
        raise DataError(f"no folder for data set {name!r}", "a folder", "pass --data-dir DIR")
    else:
        found = _from_folder(name, data_dir, size, split, per_client, details, scratch, private=private)
    return scaled(found, size, scratch, details.fit)


def scaled(found: ImageSet, size: int, scratch: Path | None, how: str) -> ImageSet:
    """The images in squares of `size` pixels, with what was read where nobody looked at each.  how: as `squared`."""
    sides = (found.images.shape[3], found.images.shape[2])
    reading = found.reading
    if not reading.sides:
        reading = replace(reading, sides=(sides,), oblong=len(found) * (sides[0] != sides[1]))
    return replace(found, images=fit(found.images, size, scratch, how), reading=reading)


def _from_folder(
    name: str,
    folder: Path,
    size: int,
    split: str,
    per_client: bool,
    details: Data,
    scratch: Path | None,
    *,
    private: bool,
) -> ImageSet:
    if name in IDX_FAMILIES:
        return load_idx(folder, name, split, private=private)
    if name == "cifar10":
        return load_cifar10(folder, split)
    if name == "celeba":
        return load_celeba(folder, split, details.attribute or "Male", size, scratch)
    if name == "folder":
        return load_folder(folder, split, per_client, size, scratch, details, private=private)
    if name == "hf":
        return load_hub(str(folder), split, details.attribute, size, scratch, details.fit, private=private)
    raise DataError(f"data set {name!r}", f"one of {', '.join(DATASETS)}", "name one of these")


def _digits(split: str) -> ImageSet:
    """Scikit-learn's 1,797 scanned digits, 8×8; every fifth is kept for testing."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = np.clip(np.round(pixels * (255 / 16)), 0, 255).astype(np.uint8).reshape(-1, 1, 8, 8)
    test = np.arange(len(images)) % 5 == 4
    keep = test if split == "test" else ~test
    return ImageSet(images[keep], labels[keep].astype(np.int64), tuple("0123456789"))
