"""How readable samples are: a classifier of real labelled images says how sure it is of them."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from prismfl.data.datasets import ImageSet
from prismfl.errors import DataError
from prismfl.seeding import Purpose, Stream

SURE = 0.9


@dataclass(frozen=True)
class Readability:
    """What a classifier of real images says of samples.

    readable: share of samples with a largest class probability ≥ 0.9; least_class: smallest
    share of samples that a class gets; label_agreement: share of samples that it gives the label
    they were made for (None where they were made for none); test_accuracy, test_readable: the classifier on real
    test images.
    """

    readable: float
    least_class: float
    class_shares: tuple[float, ...]
    confidence: float
    test_accuracy: float
    test_readable: float
    label_agreement: float | None = None


class Classifier:
    """A small convolutional classifier, trained once on real labelled images."""

    def __init__(self, train: ImageSet, seed: int = 0, steps: int = 1200, batch: int = 64) -> None:
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
    """Readability of samples uint8 `[n, C, H, W]`, beside the classifier's record on `test`.

    labels: int64 `[n]`, what the samples were made to show.
    """
    fake, real = classifier.probabilities(samples), classifier.probabilities(test.images)
    shares = np.bincount(fake.argmax(1), minlength=classifier.classes) / len(fake)
    return Readability(
        float((fake.max(1) >= SURE).mean()),
        float(shares.min()),
        tuple(shares.tolist()),
        float(fake.max(1).mean()),
        float((real.argmax(1) == test.labels).mean()),
        float((real.max(1) >= SURE).mean()),
        None if labels is None else float((fake.argmax(1) == labels).mean()),
    )


def _scaled(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(images).float().div_(127.5).sub_(1)


def _network(channels: int, size: int, classes: int, seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * (size // 4) ** 2, 128),
            nn.ReLU(),
            nn.Linear(128, classes),
        )


def _fit(net: nn.Module, train: ImageSet, draws: torch.Generator, steps: int, batch: int) -> None:
    """Adam with a one-cycle rate; images are shifted by up to a sixteenth, so that place is no clue."""
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    labels, reach = torch.from_numpy(train.labels), train.images.shape[-1] // 16
    for _ in range(steps):
        picked = torch.randint(len(train), (batch,), generator=draws)
        move = torch.randint(-reach, reach + 1, (2,), generator=draws).tolist()
        x = _scaled(train.images[picked.numpy()]).roll(move, (2, 3))
        optimiser.zero_grad()
        F.cross_entropy(net(x), labels[picked]).backward()
        optimiser.step()
        schedule.step()
    net.eval()
