"""Train on synthetic, test on real: what a classifier learns of generated images alone.

The classifier, its augmentation and its number of steps are fixed; no real image trains it, and none
chooses anything.  Its accuracy on real test images says what the generated ones are worth to somebody who
has no others (Esteban, Hyland, Rätsch 2017: TSTR).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from prismfl.data.images import ImageSet
from prismfl.errors import DataError
from prismfl.metrics.embedding import enough
from prismfl.seeding import Purpose, Stream

LEAST = 10  # images, of either kind
STEPS = 800  # of 128 images: ten passes over 10,000
_BATCH, _RATE, _SMOOTHING = 128, 4e-3, 0.1
_TURN, _ZOOM, _SHIFT = 0.2, 0.12, 0.08  # at most: radians, share of the size, share of the side
_NOISE, _CONTRAST = 0.1, 0.25


@dataclass(frozen=True)
class Worth:
    """Accuracy of a classifier of given images on real test images: of all, and of each class (NaN-free).

    class_accuracies: a class without test images has None.
    """

    accuracy: float
    class_accuracies: tuple[float | None, ...]


def worth(
    images: NDArray[np.uint8], labels: NDArray[np.int64], test: ImageSet, seed: int = 0, steps: int = STEPS
) -> Worth:
    """Train on images uint8 `[n, C, H, W]` with labels int64 `[n]`, test on real ones.

    The same seed gives the same figures on one machine with one number of threads.
    Raises DataError for fewer than ten images, or labels that the test images do not have.
    """
    classes = len(test.classes)
    enough(test.images, images, LEAST)
    if labels.shape != (len(images),) or labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"labels {list(labels.shape)} up to {labels.max()}", f"0 … {classes - 1}", "mend the labels")
    draws = Stream(seed, Purpose.CLASSIFIER, round=1).torch_generator()
    net = _network(images.shape[1], images.shape[-1], classes, draws)
    _fit(net, images, labels, draws, steps)
    right = _named(net, test.images) == test.labels
    each = tuple(
        float(right[test.labels == one].mean()) if (test.labels == one).any() else None for one in range(classes)
    )
    return Worth(float(right.mean()), each)


def _network(channels: int, size: int, classes: int, draws: torch.Generator) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=draws)))
        net = nn.Sequential(
            *_unit(channels, 32, 5, 2),
            *_unit(32, 64, 3, 2),
            *_unit(64, 96, 3, 1),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(96 * (size // 8) ** 2, classes),
        )
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _unit(inputs: int, outputs: int, kernel: int, stride: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return conv, nn.BatchNorm2d(outputs), nn.ReLU()
