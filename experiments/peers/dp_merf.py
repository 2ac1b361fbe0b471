"""DP-MERF (Harder, Adamczewski, Park 2021): a noisy mean of random Fourier features, and a generator that matches it.

An image's features, cosines and sines of random projections, are of norm 1; times its label's unit vector they still
are.  Their mean over m images moves by 2 / m at most where one is replaced.  It is released once, with noise of the
analytic Gaussian mechanism; then the generator descends the squared distance to it, and makes as many images as all
clients of the other peers do together, in larger batches, as published.

As published one holder has all images: `train`.  `train_federated` has a release of each client instead, and the mean
of these by numbers of images, so that no one holds others' images.  The guarantee is (ε, δ) for one image replaced by
any other with its label, the number of images public: prismfl's unit.  The length of the kernel is the median distance
of some images, as published, and outside of ε, as published.  Noise is torch's, in floating point, seeded by the
system: good for figures, not for use.
"""

import math
import time
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from peers.common import BATCH, DELTA, FLOAT, Budget, Task, Trained, labels_by, made, picked
from torch import Tensor

from prismfl.data.images import ImageSet
from prismfl.privacy.ledger import calibrate

FEATURES = 10_000  # half of them cosines
RATE = 1e-2
LARGE = 8 * BATCH  # images of a step
_MEDIAN_OF = 1000  # images
_CHUNK = 1000


def pooled(task: Task) -> Task:
    """The same with all images at one holder."""
    first = task.clients[0]
    images = np.concatenate([mine.images for mine in task.clients])
    labels = np.concatenate([mine.labels for mine in task.clients])
    return replace(task, clients=[ImageSet(images, labels, first.classes)])


def train(task: Task, budget: Budget, epsilon: float = 0.0) -> Trained:
    """One holder of all images, as published."""
    return replace(_trained(pooled(task), budget, epsilon, len(task.clients)), sent=0)


def train_federated(task: Task, budget: Budget, epsilon: float = 0.0) -> Trained:
    """A release of every client, and a server that learns from their mean."""
    return _trained(task, budget, epsilon, len(task.clients))


def _trained(task: Task, budget: Budget, epsilon: float, clients: int) -> Trained:
    """clients: whose steps the generator takes."""
    draws, begun = task.draws(), time.monotonic()
    projections = torch.randn(task.layout.channels * task.layout.size**2, FEATURES // 2, generator=draws)
    projections /= median_distance(task, draws)
    sizes = torch.tensor([len(mine) for mine in task.clients]).float()
    each = torch.stack([release(mine, projections, epsilon) for mine in task.clients])
    target, prepared = torch.tensordot(sizes / sizes.sum(), each, 1), time.monotonic() - begun
    weights, losses, done, counts = task.weights, list[float](), 0, torch.ones(task.layout.classes)
    adam = torch.optim.Adam([weights], RATE)
    for step in replace(budget, seconds=budget.seconds - prepared).turns(budget.steps * clients * BATCH // LARGE):
        adam.zero_grad()
        labels = labels_by(counts, LARGE, draws)
        found = summed(made(task, weights, labels, draws), labels, projections, task.layout.classes) / LARGE
        loss = (found - target).square().sum()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
        done = step + 1
    seconds = time.monotonic() - begun
    return Trained(weights, done * LARGE // (BATCH * clients), seconds, FLOAT * target.numel(), losses[-100:])


def release(mine: ImageSet, projections: Tensor, epsilon: float) -> Tensor:
    """The mean embedding of a holder's images `[classes, features]`, with the noise that ε asks for; 0: without."""
    rows, found = torch.arange(len(mine)), torch.zeros(len(mine.classes), FEATURES)
    for some in rows.split(_CHUNK):
        found += summed(*picked(mine, some), projections, len(mine.classes))
    found /= len(mine)
    if not epsilon:
        return found
    draws = torch.Generator()
    draws.seed()  # noise that protects must not follow from a public seed
    return found + noise_of(epsilon, len(mine)) * torch.randn(found.shape, generator=draws)


def noise_of(epsilon: float, images: int) -> float:
    """σ of each entry of a release of so many images."""
    return calibrate(epsilon, DELTA) * 2 / images


def summed(images: Tensor, labels: Tensor, projections: Tensor, classes: int) -> Tensor:
    """Sums of the features of images `[B, C, H, W]` by label: `[classes, features]`."""
    return F.one_hot(labels, classes).float().T @ features(images, projections)


def features(images: Tensor, projections: Tensor) -> Tensor:
    """Random Fourier features of norm 1: `[B, features]` (Rahimi, Recht 2007)."""
    angles = images.flatten(1) @ projections
    return torch.cat((angles.cos(), angles.sin()), 1) / math.sqrt(projections.shape[1])


def median_distance(task: Task, draws: torch.Generator) -> float:
    """The median distance of pairs of some images in [-1, 1], a few of each client's."""
    each = -(-_MEDIAN_OF // len(task.clients))
    some = [picked(mine, torch.randint(len(mine), (each,), generator=draws))[0] for mine in task.clients]
    return float(torch.pdist(torch.cat(some).flatten(1)).median())
