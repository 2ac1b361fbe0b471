"""How readable samples are: a classifier of real labelled images says how sure it is of them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from prismfl.data.datasets import ImageSet
from prismfl.errors import DataError
from prismfl.metrics.diversity import inception_score, label_imbalance
from prismfl.seeding.philox import Purpose, Stream

SURE = 0.9
RATE = 5e-3
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


@dataclass(frozen=True)
class Record:
    """The classifier on real test images: share it names rightly, and share that it finds readable."""

    test_accuracy: float
    test_readable: float


class Classifier:
    """A small convolutional classifier, trained once on real labelled images.

    The same seed gives the same classifier on one machine with one number of threads.
    """

    def __init__(self, train: ImageSet, seed: int = 0, steps: int = 1400, batch: int = 128) -> None:
        """Raises DataError for images of fewer than two classes."""
        if len(train.classes) < 2:
            raise DataError(f"{len(train.classes)} classes", "at least 2", "readability needs labelled images")
        self.classes = len(train.classes)
        self.net = _network(train.images.shape[1], train.images.shape[-1], self.classes, seed)
        _fit(self.net, train, Stream(seed, Purpose.CLASSIFIER).torch_generator(), steps, batch)

    @torch.no_grad()
    def probabilities(self, images: NDArray[np.uint8], batch: int = 500) -> NDArray[np.float64]:
        """Class probabilities of uint8 `[n, C, H, W]`: float64 `[n, classes]`."""
        parts = [self.net(_scaled(images[start : start + batch])) for start in range(0, len(images), batch)]
        return np.asarray(torch.cat(parts).double().softmax(1).numpy(), np.float64)


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


def record(classifier: Classifier, test: ImageSet) -> Record:
    """How the classifier does on real images that it was not trained on."""
    found = classifier.probabilities(test.images)
    return Record(float((found.argmax(1) == test.labels).mean()), float((found.max(1) >= SURE).mean()))


def _shares(labels: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    return np.bincount(labels, minlength=classes) / len(labels)


def _scaled(images: NDArray[np.uint8]) -> Tensor:
    # Channels last: three times as fast on a processor.
    return torch.from_numpy(images).float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)


def _network(channels: int, size: int, classes: int, seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            *_unit(channels, 32, 5, 2),
            *_unit(32, 64, 3, 2),
            *_unit(64, 128),
            nn.MaxPool2d(2),
            *_unit(128, 128),
            nn.Flatten(),
            nn.Linear(128 * (size // 8) ** 2, classes),
        )
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _unit(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return conv, nn.BatchNorm2d(outputs), nn.ReLU()


def _fit(net: nn.Module, train: ImageSet, draws: torch.Generator, steps: int, batch: int) -> None:
    """Adam with a one-cycle rate on shuffled passes over the images, each image shifted anew.

    An eighth as many images again are spoilt, and no class is right for them: a network that
    sees only good images is as sure of noise (outlier exposure, Hendrycks et al. 2019).
    """
    optimiser = torch.optim.Adam(net.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps, pct_start=0.2)
    targets = F.one_hot(torch.from_numpy(train.labels), len(train.classes)).float()
    for picked in _batches(len(train), batch, steps, draws):
        good = _shifted(train.images[picked.numpy()], draws)
        bad = _spoilt(good[: -(-batch // 8)], draws)
        wanted = torch.cat((targets[picked], torch.full((len(bad), targets.shape[1]), 1 / targets.shape[1])))
        optimiser.zero_grad()
        F.cross_entropy(net(_scaled(np.concatenate((good, bad)))), wanted).backward()
        optimiser.step()
        schedule.step()
    net.eval()


def _spoilt(images: NDArray[np.uint8], draws: torch.Generator) -> NDArray[np.uint8]:
    """Images uint8 `[n, C, H, W]` past reading: four fifths to all of each one's pixels are noise."""
    noise = torch.randint(256, images.shape, generator=draws, dtype=torch.uint8).numpy()
    share = 0.8 + 0.2 * torch.rand(len(images), 1, 1, 1, generator=draws)
    hit = torch.rand(len(images), 1, *images.shape[2:], generator=draws) < share
    return np.where(hit.numpy(), noise, images)


def _batches(count: int, batch: int, steps: int, draws: torch.Generator) -> Iterator[Tensor]:
    """Rows of `steps` batches, int64 `[batch]`: shuffled passes strung together, so that none is left out."""
    passes = -(-steps * batch // count)
    rows = torch.cat([torch.randperm(count, generator=draws) for _ in range(passes)])
    return iter(rows[: steps * batch].view(steps, batch))


def _shifted(images: NDArray[np.uint8], draws: torch.Generator) -> NDArray[np.uint8]:
    """Each image moved by up to a sixteenth, its border repeated: place is no clue."""
    count, _, side, _ = images.shape
    reach = side // 16
    move = torch.randint(-reach, reach + 1, (2, count, 1), generator=draws).numpy()
    rows, columns = (np.arange(side) + move).clip(0, side - 1)
    # Advanced indices around a slice put their axes first: [n, side, side, C].
    found = images[np.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return found.transpose(0, 3, 1, 2)
