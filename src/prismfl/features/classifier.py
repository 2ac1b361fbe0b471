"""The one trainer of classifiers: of feature networks, and of those that metrics judge samples by.

It stands among the features because metrics may import from here, and features nothing from there.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from prismfl.features.networks import in_batches

POOL = (0, 2, 2)  # in place of a convolution: the largest of each 2×2 pixels

# Labels int64 `[B]`, or probabilities float32 `[B, classes]`, of images float32 `[B, C, H, W]` in [-1, 1].
Batch = tuple[Tensor, Tensor]


@contextmanager
def one_thread() -> Iterator[None]:
    """One processor thread for small networks: two that wait for each other at every layer lose all on a busy machine.

    Measured on two cores: 0.05 s a step of a readability classifier on one thread, busy or idle; on two 0.03 s idle,
    0.15 to 1 s busy.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train_classifier(
    net: nn.Module,
    optimiser: torch.optim.Optimizer,
    batches: Iterable[Batch],
    steps: int,
    *,
    smoothing: float = 0.0,
    cycle_momentum: bool = True,
    after: Callable[[float], object] = float,
) -> None:
    """Fit a classifier to batches by cross entropy, then put it in evaluation mode.

    The rate climbs from a 25th of the optimiser's own to it in a fifth of the steps, and falls to nothing by a cosine.

    Args:
        net: takes images to class scores.
        optimiser: of the network's parameters; its rate is the peak.
        batches: `steps` of them, made as they are asked for.
        steps: how many.
        smoothing: share of each label that is spread over all classes.
        cycle_momentum: whether momentum (Adam's β₁) falls while the rate climbs.
        after: told the loss of every step.
    """
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, optimiser.defaults["lr"], total_steps=steps, pct_start=0.2, cycle_momentum=cycle_momentum
    )
    for x, wanted in batches:
        loss = F.cross_entropy(net(_fast(x)), wanted, label_smoothing=smoothing)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        after(loss.item())
    net.eval()


def scores(net: nn.Module, images: NDArray[np.uint8], batch: int = 500) -> Tensor:
    """Class scores float32 `[n, classes]` of images uint8 `[n, C, H, W]`."""
    return in_batches(lambda some: net(_fast(scaled(some))), images, batch)


def small_network(
    units: Sequence[tuple[int, int, int]],
    norm: Callable[[int], nn.Module],
    channels: int,
    size: int,
    classes: int,
    seed: int,
) -> nn.Sequential:
    """Convolutions, each with a norm and ReLU, and a linear layer of what is left of an image.

    units: channels, kernel and stride of each convolution, or `POOL`; together they make an image 8 times smaller;
    norm: makes the norm of that many channels; channels, size: of the images.  The seed decides the weights, and the
    caller's random state is left alone.
    """
    parts: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for outputs, kernel, stride in units:
            if not outputs:
                parts.append(nn.MaxPool2d(kernel, stride))
                continue
            conv = nn.Conv2d(channels, outputs, kernel, stride, kernel // 2, bias=False)
            parts += [conv, norm(outputs), nn.ReLU()]
            channels = outputs
        net = nn.Sequential(*parts, nn.Flatten(), nn.Linear(channels * (size // 8) ** 2, classes))
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def scaled(images: Tensor) -> Tensor:
    """Images uint8 of any shape as float32 in [-1, 1]."""
    return images.float().div_(127.5).sub_(1)


def pixels_of(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Of each image `[B, C, H, W]` rows int64 `[B, h]` and columns int64 `[B, w]` of its own: `[B, C, h, w]`."""
    each = torch.arange(len(images))[:, None, None]
    # Indices around a slice put their axes first: [B, h, w, C].
    return images[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _fast(x: Tensor) -> Tensor:
    """Channels last: three times as fast on a processor."""
    return x.contiguous(memory_format=torch.channels_last)
