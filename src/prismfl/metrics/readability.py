"""How readable samples are: a classifier of real labelled images says how sure it is of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import rel_entr
from torch import Tensor, nn

from prismfl.data.datasets import ImageSet
from prismfl.errors import DataError
from prismfl.features.classifier import (
    POOL,
    Batch,
    one_thread,
    pixels_of,
    scaled,
    scores,
    small_network,
    train_classifier,
)
from prismfl.metrics.intervals import Estimate, estimate
from prismfl.seeding.philox import Purpose, Stream

SURE = 0.9
_ROUNDING = 1e-3  # how far a row of float32 probabilities may sum from 1
_RATE = 5e-3
_LEAST_STEPS, _MOST_STEPS = 200, 1400
_SIDE = 32  # pixels
_BLOCK = 1000  # images made smaller at a time
_UNITS = ((32, 5, 2), (64, 3, 2), (128, 3, 1), POOL, (128, 3, 1))
LEAST = 4  # samples: two splits of two


@dataclass(frozen=True)
class Readability:
    """What a classifier of real images says of samples.

    readable: share of samples with a largest class probability ≥ 0.9; confidence: mean of that
    probability; least_class: smallest share of samples that a class gets; label_imbalance: total
    variation distance of these shares from those of the test images' labels; is_classifier:
    inception score of the classifier's probabilities, with its interval over splits;
    label_agreement: share of samples that it gives the label they were made for (None where they
    were made for none).
    """

    readable: float
    confidence: float
    label_agreement: float | None
    class_shares: tuple[float, ...]
    least_class: float
    label_imbalance: float
    is_classifier: float
    is_classifier_over_splits: tuple[float, float]


class Classifier:
    """A small convolutional classifier, trained once on real labelled images, that sees 32 pixels a side at most.

    The same seed gives the same classifier on one machine.
    """

    def __init__(
        self,
        train: ImageSet,
        seed: int = 0,
        steps: int = 0,
        batch: int = 128,
        after: Callable[[float], object] = float,
    ) -> None:
        """Raises DataError for images of fewer than two classes.

        steps: of `batch` images; 0 for `steps_of`; after: told the loss of every step.
        """
        if len(train.classes) < 2:
            raise DataError(f"{len(train.classes)} classes", "at least 2", "readability needs labelled images")
        self.classes = len(train.classes)
        train, steps = replace(train, images=_small(train.images)), steps or steps_of(train)
        channels, size = train.images.shape[1], train.images.shape[-1]
        self.net = small_network(_UNITS, nn.BatchNorm2d, channels, size, self.classes, seed)
        draws = Stream(seed, Purpose.CLASSIFIER).torch_generator()
        optimiser = torch.optim.Adam(self.net.parameters(), _RATE)
        with one_thread():
            train_classifier(self.net, optimiser, _batches(train, batch, steps, draws), steps, after=after)

    def probabilities(self, images: NDArray[np.uint8], batch: int = 500) -> NDArray[np.float64]:
        """Class probabilities of uint8 `[n, C, H, W]`: float64 `[n, classes]`."""
        return np.asarray(scores(self.net, _small(images), batch).double().softmax(1).numpy(), np.float64)


def steps_of(train: ImageSet) -> int:
    """Steps that a classifier of images takes: one for two images (64 passes), 200 at least and 1,400 at most."""
    return min(_MOST_STEPS, max(_LEAST_STEPS, len(train) // 2))


def _small(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images uint8 `[n, C, H, W]`, larger ones averaged down to 32 pixels a side: as much is read, in a quarter."""
    if images.shape[-1] <= _SIDE:
        return images
    parts = (torch.from_numpy(images[start : start + _BLOCK]) for start in range(0, len(images), _BLOCK))
    return np.concatenate([F.interpolate(part.float(), (_SIDE, _SIDE), mode="area").round().byte() for part in parts])


def readability(
    classifier: Classifier, samples: NDArray[np.uint8], test: ImageSet, labels: NDArray[np.int64] | None = None
) -> Readability:
    """Readability of four or more samples uint8 `[n, C, H, W]`, whose classes should be as `test`'s.

    labels: int64 `[n]`, what the samples were made to show.  Raises DataError for fewer samples.
    """
    if len(samples) < LEAST:
        raise DataError(f"{len(samples)} samples", f"at least {LEAST}", "give more images")
    found = classifier.probabilities(samples)
    named, sure = found.argmax(1), found.max(1)
    shares = _shares(named, classifier.classes)
    score = inception_score(found, min(10, len(found) // 2))
    return Readability(
        float((sure >= SURE).mean()),
        float(sure.mean()),
        None if labels is None else float((named == labels).mean()),
        tuple(shares.tolist()),
        float(shares.min()),
        label_imbalance(shares, _shares(test.labels, len(test.classes))),
        score.mean,
        score.interval,
    )


def record(classifier: Classifier, test: ImageSet) -> dict[str, float]:
    """The classifier on real images that it was not trained on, by name of the figure.

    `test_accuracy`: share that it names rightly; `test_readable`: share that it finds readable.
    """
    found = classifier.probabilities(test.images)
    return {
        "test_accuracy": float((found.argmax(1) == test.labels).mean()),
        "test_readable": float((found.max(1) >= SURE).mean()),
    }


def inception_score(probabilities: NDArray[np.float64], splits: int = 10) -> Estimate:
    """Inception score of class probabilities float64 `[n, classes]`, 1 … classes, more is better.

    `exp(mean KL(p(y|x) ‖ mean p(y|x)))` (Salimans et al. 2016): the mean over `splits` parts of
    the images, drawn by a fixed permutation, and its t-interval.  Small parts score low: compare
    equal numbers of images.  Raises DataError for rows that are no probabilities, for fewer
    than two splits or fewer than two rows a split.
    """
    rows = probabilities
    if splits < 2 or rows.ndim != 2 or len(rows) < 2 * splits:
        raise DataError(
            f"probabilities {list(rows.shape)} for {splits} splits",
            "[n, classes] with at least 2 rows a split, and 2 splits",
            "give more images or fewer splits",
        )
    if not (np.isfinite(rows).all() and rows.min() >= 0 and np.abs(rows.sum(1) - 1).max() < _ROUNDING):
        raise DataError("rows that are no probabilities", "numbers from 0 that sum to 1", "pass logits through softmax")
    order = Stream(0, Purpose.SUBSETS).permutation(len(rows))
    parts = (rows[part] for part in np.array_split(order, splits))
    return estimate([float(np.exp(rel_entr(part, part.mean(0)).sum(1).mean())) for part in parts])


def label_imbalance(shares: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    """Total variation distance of class shares float64 `[classes]` from wanted ones: 0 … 1.

    `½ Σ |p - q|`: the share of samples that would have to change their class.
    Raises DataError for shares of different classes.
    """
    if shares.shape != wanted.shape:
        raise DataError(
            f"shares of {len(shares)} and of {len(wanted)} classes", "the same classes", "judge against the same data"
        )
    return float(np.abs(shares - wanted).sum() / 2)


def _shares(labels: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    return np.bincount(labels, minlength=classes) / len(labels)


def _batches(train: ImageSet, batch: int, steps: int, draws: torch.Generator) -> Iterator[Batch]:
    """Shuffled passes over the images, each image shifted anew.

    An eighth as many images again are spoilt, and no class is right for them: a network that
    sees only good images is as sure of noise (outlier exposure, Hendrycks et al. 2019).
    """
    targets = F.one_hot(torch.from_numpy(train.labels), len(train.classes)).float()
    for picked in _rows(len(train), batch, steps, draws):
        good = _shifted(torch.from_numpy(train.images[picked.numpy()]), draws)
        bad = _spoilt(good[: -(-batch // 8)], draws)
        unknown = torch.full((len(bad), targets.shape[1]), 1 / targets.shape[1])
        yield scaled(torch.cat((good, bad))), torch.cat((targets[picked], unknown))


def _spoilt(images: Tensor, draws: torch.Generator) -> Tensor:
    """Images uint8 `[n, C, H, W]` past reading: four fifths to all of each one's pixels are noise."""
    noise = torch.randint(256, images.shape, generator=draws, dtype=torch.uint8)
    share = 0.8 + 0.2 * torch.rand(len(images), 1, 1, 1, generator=draws)
    hit = torch.rand(len(images), 1, *images.shape[2:], generator=draws) < share
    return torch.where(hit, noise, images)


def _rows(count: int, batch: int, steps: int, draws: torch.Generator) -> Iterator[Tensor]:
    """Rows of `steps` batches, int64 `[batch]`: shuffled passes strung together, so that none is left out."""
    passes = -(-steps * batch // count)
    rows = torch.cat([torch.randperm(count, generator=draws) for _ in range(passes)])
    return iter(rows[: steps * batch].view(steps, batch))


def _shifted(images: Tensor, draws: torch.Generator) -> Tensor:
    """Each image `[n, C, side, side]` moved by up to a sixteenth, its border repeated: place is no clue."""
    side = images.shape[-1]
    reach = side // 16
    move = torch.randint(-reach, reach + 1, (2, len(images), 1), generator=draws)
    rows, columns = (torch.arange(side) + move).clamp(0, side - 1)
    return pixels_of(images, rows, columns)
