"""Train on synthetic, test on real: what a classifier learns from generated images alone.

The classifier, its augmentation and its number of steps are fixed, for grey and for colour images; no real image
trains it, and none chooses anything.  Its accuracy on real test images says what the generated ones are worth to
somebody who has no others (Esteban, Hyland, Rätsch 2017).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from prismfl.data.datasets import ImageSet
from prismfl.errors import DataError
from prismfl.features.classifier import POOL, Batch, one_thread, scaled, scores, small_network, train_classifier
from prismfl.metrics.distances import enough
from prismfl.seeding.philox import Purpose, Stream

LEAST = 10  # images, of either kind
_BATCH, _RATE, _DECAY, _SMOOTHING = 128, 4e-3, 1e-2, 0.1
# Augmentation, at most: radians of turn and shear; shares of the size; of the side; of the range of greys; σ of noise.
_TURN, _ZOOM, _SHIFT, _CONTRAST, _NOISE = 0.2, 0.12, 0.08, 0.25, 0.1


@dataclass(frozen=True)
class _Plan:
    """A classifier (see `small_network`), its steps of 128 images each, and whether half of these are mirrored."""

    units: tuple[tuple[int, int, int], ...]
    steps: int
    mirrored: bool


# Photographs take a wider network, more passes, and may be mirrored; signs and garments may not.
_GREY = _Plan(((24, 5, 2), (48, 3, 2), (64, 3, 1), POOL), 800, False)
_COLOUR = _Plan(((32, 5, 2), (64, 3, 1), (96, 3, 2), (128, 3, 1), POOL), 2000, True)


@dataclass(frozen=True)
class Worth:
    """How a classifier of given images does on real test images: accuracy, and that of each class.

    class_accuracies: None for a class without test images.
    """

    accuracy: float
    class_accuracies: tuple[float | None, ...]


def worth(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    test: ImageSet,
    seed: int = 0,
    steps: int = 0,
    after: Callable[[float], object] = float,
) -> Worth:
    """Train on images uint8 `[n, C, H, W]` with labels int64 `[n]`, test on real ones.

    steps: of 128 images; 0 for `steps_of`; after: told the loss of every step.
    The same seed gives the same figures on one machine with one number of threads.
    Raises DataError for fewer than ten images, or labels that are none of the test images' classes.
    """
    check(images, labels, test)
    classes = len(test.classes)
    draws = Stream(seed, Purpose.CLASSIFIER, round=1).torch_generator()
    plan = _GREY if images.shape[1] == 1 else _COLOUR
    seed_of_weights = int(torch.randint(2**31, (), generator=draws))
    # Normalised by the image alone: statistics of generated images are not those of real ones.
    net = small_network(
        plan.units, partial(nn.GroupNorm, 4), images.shape[1], images.shape[-1], classes, seed_of_weights
    )
    optimiser = torch.optim.AdamW(net.parameters(), _RATE, weight_decay=_DECAY)
    steps = steps or plan.steps
    batches = _batches(images, labels, plan, steps, draws)
    with one_thread():
        train_classifier(net, optimiser, batches, steps, smoothing=_SMOOTHING, after=after)
    return accuracies(scores(net, test.images).argmax(1).numpy(), test)


def check(images: NDArray[np.uint8], labels: NDArray[np.int64], test: ImageSet) -> None:
    """Raises DataError for fewer than ten images, or labels int64 `[n]` that are none of the test images' classes."""
    classes = len(test.classes)
    enough(test.images, images, LEAST)
    if labels.shape != (len(images),) or labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"labels {list(labels.shape)} up to {labels.max()}", f"0 … {classes - 1}", "mend the labels")


def accuracies(named: NDArray[np.int64], test: ImageSet) -> Worth:
    """How often test images are named as what they are, int64 `[n]`: in all, and by class."""
    right = named == test.labels
    parts = (right[test.labels == one] for one in range(len(test.classes)))
    return Worth(float(right.mean()), tuple(float(part.mean()) if len(part) else None for part in parts))


def steps_of(images: NDArray[np.uint8]) -> int:
    """Steps that a classifier of images uint8 `[n, C, H, W]` takes: 800 of grey ones, 2,000 of colour ones."""
    return (_GREY if images.shape[1] == 1 else _COLOUR).steps


def _batches(
    images: NDArray[np.uint8], labels: NDArray[np.int64], plan: _Plan, steps: int, draws: torch.Generator
) -> Iterator[Batch]:
    """Images at random, each changed anew every time."""
    every, named = scaled(torch.from_numpy(images)), torch.from_numpy(labels)
    for _ in range(steps):
        picked = torch.randint(len(every), (_BATCH,), generator=draws)
        given = _mirrored(every[picked], draws) if plan.mirrored else every[picked]
        yield _changed(given, draws), named[picked]


def _mirrored(images: Tensor, draws: torch.Generator) -> Tensor:
    """Images `[B, C, H, W]`, about half of them left to right."""
    turned = torch.rand(len(images), 1, 1, 1, generator=draws) < 0.5
    return torch.where(turned, images.flip(3), images)


def _changed(images: Tensor, draws: torch.Generator) -> Tensor:
    """Images `[B, C, H, W]` turned, sheared, zoomed, shifted, with another contrast and some noise.

    A generator's images are less varied than real ones; without this a classifier learns their ways alone.
    """
    count = len(images)

    def upto(most: float) -> Tensor:
        return (2 * torch.rand(count, generator=draws) - 1) * most

    turn, shear, wide, high = upto(_TURN), upto(_TURN), 1 + upto(_ZOOM), 1 + upto(_ZOOM)
    rows = (wide * turn.cos(), shear - turn.sin(), 2 * upto(_SHIFT)), (turn.sin(), high * turn.cos(), 2 * upto(_SHIFT))
    where = F.affine_grid(torch.stack([torch.stack(row, 1) for row in rows], 1), list(images.shape), False)
    moved = F.grid_sample(images, where, padding_mode="border", align_corners=False)
    factor, offset = 1 + upto(_CONTRAST), upto(_CONTRAST / 2)
    noise = torch.randn(images.shape, generator=draws) * torch.rand(count, 1, 1, 1, generator=draws)
    return moved * factor[:, None, None, None] + offset[:, None, None, None] + _NOISE * noise
