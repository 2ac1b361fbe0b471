"""How others measure: how many samples, what is trained on them, what chooses, and where ours differs.

`dpimagebench` is the benchmark of Gong et al. (CCS 2025): 60,000 samples, of which 55,000 train a classifier and 5,000
choose the epoch; its accuracy on all real test images counts, the mean of a ResNet, a wide ResNet and a ResNeXt.  It
may also choose by private images that were held back, with noise that ε pays for; here only samples choose.

`prism` is what Seo et al. (ICLR 2025) report: distance and neighbourhoods of 10,000 samples.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from prismfl.data.images import ImageSet
from prismfl.features.classifier import scaled
from prismfl.features.networks import in_batches
from prismfl.metrics import synthetic
from prismfl.metrics.residual import initialised, resnet, resnext, wide_resnet
from prismfl.seeding.philox import Purpose, Stream

SAMPLES = {"dpimagebench": 60_000, "prism": 10_000}
SMALL = "small"
CLASSIFIERS = (SMALL, "resnet", "wideresnet", "resnext")
_CHOOSE = 12  # one of so many samples chooses the epoch: 5,000 of 60,000
_SMALL_PASSES, _SMALL_BATCH = 10, 128
_AVERAGE = 0.9999  # of weights over steps, whose average is what is tested


@dataclass(frozen=True)
class Recipe:
    """How the benchmark trains a classifier, of grey images or of colour.

    epochs, batch: passes and images a step; rate: of Adam, or where `momentum` is set of SGD with weight decay 5e-4;
    every: epochs after which the rate falls to a fifth; nets: by name, of channels and classes.
    """

    epochs: int
    batch: int
    rate: float
    momentum: float
    every: int
    nets: dict[str, Callable[[int, int], nn.Module]]

    def optimiser(self, net: nn.Module) -> torch.optim.Optimizer:
        """Over all of a network's weights."""
        if self.momentum:
            return torch.optim.SGD(net.parameters(), self.rate, momentum=self.momentum, weight_decay=5e-4)
        return torch.optim.Adam(net.parameters(), self.rate)


GREY = Recipe(50, 256, 0.01, 0.0, 20, {"resnet": resnet, "wideresnet": wide_resnet, "resnext": resnext})
COLOUR = Recipe(
    200,
    126,
    0.1,
    0.9,
    60,
    {
        "resnet": lambda channels, classes: resnet(channels, classes, 164),
        "wideresnet": lambda channels, classes: wide_resnet(channels, classes, 28, 10),
        "resnext": lambda channels, classes: resnext(channels, classes, 28, widen=10),
    },
)


def recipe_of(channels: int) -> Recipe:
    """What the benchmark does with images of so many channels."""
    return GREY if channels == 1 else COLOUR


def steps_of(name: str, count: int, channels: int) -> int:
    """Steps that a classifier of `count` samples takes."""
    if name == SMALL:
        return _SMALL_PASSES * count // _SMALL_BATCH
    recipe = recipe_of(channels)
    return recipe.epochs * len(range(0, count - count // _CHOOSE, recipe.batch))


def taught(
    name: str,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    test: ImageSet,
    seed: int = 0,
    device: str = "cpu",
    after: Callable[[float], object] = float,
    recipe: Recipe | None = None,
) -> synthetic.Worth:
    """What a classifier of these samples alone does on real test images.

    Args:
        name: one of `CLASSIFIERS`; `small` is `synthetic`'s own network, with its augmentation, in ten passes over all
            samples, and nothing to choose.
        images: samples, uint8 `[n, C, H, W]`.
        labels: that they were made by, int64 `[n]`.
        test: real images.
        seed: of weights, order and dropout.
        device: torch's.
        after: told the loss of every step.
        recipe: None for the benchmark's.

    Raises:
        DataError: for fewer than ten images, or labels that are none of the test images' classes.
    """
    if name == SMALL:
        steps = steps_of(name, len(images), images.shape[1])
        return synthetic.worth(images, labels, test, seed, steps, after=after)
    synthetic.check(images, labels, test)
    recipe, place = recipe or recipe_of(images.shape[1]), torch.device(device)
    net = initialised(lambda: recipe.nets[name](images.shape[1], len(test.classes)), seed).to(place)
    net = _chosen(net, recipe, images, labels, seed, place, after)
    return synthetic.accuracies(_named(net, test.images, place).numpy(), test)


def _chosen(
    net: nn.Module,
    recipe: Recipe,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    seed: int,
    place: torch.device,
    after: Callable[[float], object],
) -> nn.Module:
    """The averaged weights of the epoch that names most of the samples that were kept apart as they were made."""
    order = Stream(seed, Purpose.CLASSIFIER, round=2).permutation(len(images))
    apart, rows = order[: len(order) // _CHOOSE], order[len(order) // _CHOOSE :]
    optimiser = recipe.optimiser(net)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, recipe.every, 0.2)
    average = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(_AVERAGE), use_buffers=True
    )
    best, kept = -1.0, copy.deepcopy(average.module)
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # dropout's
        for epoch in range(recipe.epochs):
            _pass(net, average, optimiser, recipe.batch, images[rows], labels[rows], seed, epoch, place, after)
            schedule.step()
            right = float((_named(average.module, images[apart], place).numpy() == labels[apart]).mean())
            if right >= best:
                best, kept = right, copy.deepcopy(average.module)
    return kept


def _pass(
    net: nn.Module,
    average: torch.optim.swa_utils.AveragedModel,
    optimiser: torch.optim.Optimizer,
    batch: int,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    seed: int,
    epoch: int,
    place: torch.device,
    after: Callable[[float], object],
) -> None:
    net.train()
    order = Stream(seed, Purpose.CLASSIFIER, round=3 + epoch).permutation(len(images))
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        x, wanted = scaled(torch.from_numpy(images[rows])).to(place), torch.from_numpy(labels[rows]).to(place)
        loss = F.cross_entropy(net(x), wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        average.update_parameters(net)
        after(loss.item())


def _named(net: nn.Module, images: NDArray[np.uint8], place: torch.device) -> Tensor:
    net.eval()
    return in_batches(lambda some: net(scaled(some).to(place)).argmax(1).cpu(), images, 500)
