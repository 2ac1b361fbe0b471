"""What all peers share: data, generator, discriminator, budget, and how samples are measured.

The generator is the one whose mask prismfl searches, with weights that are trained; they begin as the frozen ones.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from prismfl.data.datasets import load_dataset
from prismfl.data.images import ImageSet, deal
from prismfl.data.partition import partition
from prismfl.generator.layout import Layout, frozen_weights
from prismfl.generator.network import generate, latent_batch, recompute_statistics, render
from prismfl.generator.pictures import image_grid, save_picture
from prismfl.generator.sampling import labels_like
from prismfl.metrics.distances import Reference
from prismfl.metrics.synthetic import worth
from prismfl.seeding.philox import Purpose, Stream
from prismfl.settings.schema import Data

BATCH = 64
DELTA = 1e-5
LATENT = 64
# Of Adam (Radford, Metz, Chintala 2016).  The generator's weights begin several times larger than theirs: at their rate
# it falls behind its discriminator in the first hundreds of steps.
DISCRIMINATOR_RATE, GENERATOR_RATE, BETAS = 2e-4, 1e-3, (0.5, 0.999)
FLOAT = 4  # bytes
_ROWS = 8  # of a grid


@dataclass(frozen=True)
class Budget:
    """Steps of each client, and seconds of all of them together on this machine: whichever ends first."""

    steps: int
    seconds: float

    def turns(self, steps: int) -> Iterator[int]:
        """Numbers of steps, from 0, as long as there is time for one more like the last."""
        begun = before = time.monotonic()
        for step in range(steps):
            now = time.monotonic()
            if now - begun + (now - before) >= self.seconds:
                return
            yield step
            before = now


@dataclass(frozen=True)
class Trained:
    """A peer's generator weights float32 `[N]`, and what they took.

    steps: that each client took; seconds: of all of them; sent: bytes that each client sent; losses: of the
    generator's last steps.
    """

    weights: Tensor
    steps: int
    seconds: float
    sent: int
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Task:
    """One data set dealt to clients, and the shape of the generator.

    clients: images of each; test: what samples are measured against; seed: of the split, of weights and of all draws.
    """

    data: str
    layout: Layout
    clients: list[ImageSet]
    test: ImageSet
    seed: int

    @cached_property
    def reference(self) -> Reference:
        """The test images as the judge sees them."""
        return Reference(self.test)

    @property
    def weights(self) -> Tensor:
        """Weights to begin with: float32 `[N]`, to be trained."""
        return torch.from_numpy(frozen_weights(self.layout, self.seed).copy()).requires_grad_()

    def draws(self, number: int = 0) -> torch.Generator:
        """Random numbers of one client or of whoever else has a number."""
        return torch.Generator().manual_seed(1000 * self.seed + number)


def load_task(name: str, folder: Path | None, seed: int, asked: Data, size: int = 32, width: int = 16) -> Task:
    """A data set from its own folder, dealt as prismfl does for the same seed.  asked: how it is dealt."""
    train, test = (load_dataset(name, folder, size, split) for split in ("train", "test"))
    layout = Layout(size, train.images.shape[1], width, LATENT, len(train.classes))
    return Task(name, layout, list(deal(train, partition(train, asked, seed), None)), test, seed)


# ---------------------------------------------------------------------------------------- networks


class Discriminator(nn.Module):
    """Logits of images `[B, C, H, W]` with labels: convolutions of stride 2, and a projection (Miyato, Koyama 2018).

    It has no normalisation: of a batch's statistics no image's gradient could be told apart.
    """

    def __init__(self, layout: Layout, width: int = 32) -> None:
        super().__init__()
        halvings = layout.size.bit_length() - 3  # down to 4×4
        widths = [layout.channels, *(width << power for power in range(halvings))]
        self.maps = nn.ModuleList(nn.Conv2d(before, after, 4, 2, 1) for before, after in pairwise(widths))
        self.score = nn.Linear(16 * widths[-1], 1)
        self.classes = nn.Embedding(layout.classes, 16 * widths[-1])
        nn.init.normal_(self.classes.weight, 0, 0.02)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Logits `[B]` of images in [-1, 1]."""
        for layer in self.maps:
            x = F.leaky_relu(layer(x), 0.2)
        flat = x.flatten(1)
        return self.score(flat)[:, 0] + (flat * self.classes(labels)).sum(1)


def new_discriminator(task: Task) -> Discriminator:
    """The same for every client of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        return Discriminator(task.layout)


def adam_of(network: Tensor | nn.Module) -> torch.optim.Adam:
    """The optimiser of a generator's weights, or of a discriminator."""
    if isinstance(network, Tensor):
        return torch.optim.Adam([network], GENERATOR_RATE, BETAS)
    return torch.optim.Adam(network.parameters(), DISCRIMINATOR_RATE, BETAS)


def real_loss(logits: Tensor) -> Tensor:
    """-log D, of logits `[B]`."""
    return F.softplus(-logits)


def fake_loss(logits: Tensor) -> Tensor:
    """-log(1 - D), of logits `[B]`."""
    return F.softplus(logits)


def scaled(images: NDArray[np.uint8]) -> Tensor:
    """Images in [-1, 1], float32 of the same shape."""
    return torch.from_numpy(images).float() / 127.5 - 1


def picked(mine: ImageSet, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Images in [-1, 1] and labels of rows `[B]`."""
    return scaled(mine.images[rows.numpy()]), torch.from_numpy(mine.labels[rows.numpy()])


def any_rows(mine: ImageSet, draws: torch.Generator) -> Tensor:
    """Rows of a batch, drawn at random: `[64]`."""
    return torch.randint(len(mine), (BATCH,), generator=draws)


def counts_of(mine: ImageSet) -> Tensor:
    """Images of each label: float32 `[classes]`."""
    return torch.from_numpy(np.bincount(mine.labels, minlength=len(mine.classes))).float()


def labels_by(counts: Tensor, count: int, draws: torch.Generator) -> Tensor:
    """Labels drawn in the shares of counts `[classes]`: int64 `[count]`."""
    return torch.multinomial(counts, count, replacement=True, generator=draws)


def made(task: Task, weights: Tensor, labels: Tensor, draws: torch.Generator) -> Tensor:
    """Images in [-1, 1] of fresh latents, one a label."""
    latents = torch.randn(len(labels), task.layout.latent, generator=draws)
    return generate(task.layout, weights, latents, labels=labels)


# --------------------------------------------------------------------------------------- measuring


def samples_of(task: Task, weights: Tensor, labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """A sample for each label int64 `[n]`: uint8 `[n, C, H, W]`, with statistics of public latents."""
    weights = weights.detach()
    statistics = recompute_statistics(task.layout, weights, task.seed)
    latents = latent_batch(task.layout, Stream(task.seed, Purpose.LATENT), len(labels))
    return render(task.layout, weights, statistics, latents, torch.from_numpy(labels))


def wanted_labels(task: Task, count: int) -> NDArray[np.int64]:
    """Labels that samples are measured by, in the shares of the test images': int64 `[count]`."""
    return labels_like(task.test.labels, count)


def measure(task: Task, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> dict[str, float]:
    """Distance of samples from the test images, and what a classifier learns of the samples alone."""
    found = {"fid_judge": task.reference.distance(images)}
    return found | {"taught": worth(images, labels, task.test, task.seed).accuracy}


def save_grid(images: NDArray[np.uint8], labels: NDArray[np.int64], path: Path) -> None:
    """The first samples of each label in a column of its own, as a PNG."""
    columns = [images[labels == label][:_ROWS] for label in np.unique(labels)]
    rows = min(map(len, columns))
    shown = np.stack([column[:rows] for column in columns], 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(image_grid(shown.reshape(-1, *images.shape[1:]), len(columns)), path)
