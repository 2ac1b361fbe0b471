"""Train a feature network on public images and write it, BatchNorm folded, in half precision."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from prismfl.data.classes import select_classes
from prismfl.data.datasets import ImageSet
from prismfl.data.files import check_writable, write_atomic
from prismfl.errors import SettingError
from prismfl.features.classifier import Batch, pixels_of, scaled, scores, train_classifier
from prismfl.features.networks import ARCHITECTURE, FORMAT, FeatureNet, Vgg, fold, in_batches, load_features

_LEAST_SIZE = 8  # three poolings of the smallest network


@dataclass(frozen=True)
class Recipe:
    """How a feature network is trained; written into its file.

    `rate` is the peak of a linear warm-up and cosine fall; `grey` and `colour` are the shares
    of images turned grey and jittered, which make the features serve grey images too and nearly
    blind to colour.
    """

    epochs: int = 20
    batch: int = 128
    rate: float = 0.25
    momentum: float = 0.9
    decay: float = 5e-4
    smoothing: float = 0.1
    crop: int = 4
    grey: float = 0.3
    colour: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 2:
            raise SettingError(f"epochs {self.epochs}, batch {self.batch}", "epochs ≥ 1, batch ≥ 2", "raise them")
        if not 0 < self.rate < 100 or not 0 <= self.seed < 2**63:
            raise SettingError(f"rate {self.rate}, seed {self.seed}", "0 < rate < 100, 0 ≤ seed < 2^63", "change them")
        if not 0 <= self.colour <= 1 or not 0 <= self.grey <= 1:
            raise SettingError(f"colour {self.colour}, grey {self.grey}", "shares from 0 to 1", "change them")


def pretrain(
    train: ImageSet,
    test: ImageSet,
    recipe: Recipe,
    trained_on: str,
    out: Path,
    report: Callable[[str], None] = print,
    classes: str = "",
) -> float:
    """Train on `train`, write `out`, return the test accuracy of the written file (0 … 1).

    The file keeps float16 weights and, as metadata, the recipe, the accuracy, the classes and
    what it was trained on (`trained_on`, the number of images and their SHA-256).  classes: those
    to train on (see `select_classes`); the file then keeps the names of all as `all_classes`.
    """
    every = train.classes
    train, test = select_classes(train, classes), select_classes(test, classes)
    size = train.images.shape[-1]
    if size < _LEAST_SIZE:
        raise SettingError(f"images of {size} pixels", f"at least {_LEAST_SIZE}", "raise the size")
    check_writable(out)
    net = _fit(train, recipe, report)
    about = {
        "format": FORMAT,
        "architecture": ARCHITECTURE,
        "classes": list(train.classes),
        "all_classes": list(every),
        "trained_on": trained_on,
        "images": len(train),
        "recipe": asdict(recipe),
        "images_sha256": hashlib.sha256(train.images.tobytes()).hexdigest(),
        "size": size,
        "unit": _unit(net, train),
    }
    if train.classes != every:
        about["trained_on"] = (
            f"{trained_on}, {len(train.classes)} of its {len(every)} classes: {', '.join(train.classes)}"
        )
    half = {name: tensor.half().contiguous() for name, tensor in fold(net).items()}
    write_atomic(out, save_tensors(half, {"prismfl": json.dumps(about)}))
    about["test_accuracy"] = accuracy = evaluate(load_features(out).net, test)
    write_atomic(out, save_tensors(half, {"prismfl": json.dumps(about)}))
    return accuracy


def _fit(images: ImageSet, recipe: Recipe, report: Callable[[str], None]) -> Vgg:
    draws = torch.Generator().manual_seed(recipe.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)  # initialisation; everything after draws from `draws`
        net = Vgg(len(images.classes), norm=True)
    steps, losses = max(1, len(images) // recipe.batch), list[float]()
    optimiser = torch.optim.SGD(
        net.parameters(), recipe.rate, recipe.momentum, weight_decay=recipe.decay, nesterov=True
    )

    def after(loss: float) -> None:
        losses.append(loss)
        epoch, rest = divmod(len(losses), steps)
        if not rest:
            report(f"epoch {epoch}/{recipe.epochs}  loss {sum(losses[-steps:]) / steps:.4f}")

    batches, every = _batches(images, recipe, steps, draws), steps * recipe.epochs
    train_classifier(net, optimiser, batches, every, smoothing=recipe.smoothing, cycle_momentum=False, after=after)
    return net


def _batches(images: ImageSet, recipe: Recipe, steps: int, draws: torch.Generator) -> Iterator[Batch]:
    pixels, labels = torch.from_numpy(images.images), torch.from_numpy(images.labels)
    for _ in range(recipe.epochs):
        order = torch.randperm(len(images), generator=draws)
        for picked in order[: steps * recipe.batch].split(recipe.batch):
            yield augment(pixels[picked], recipe, draws), labels[picked]


def augment(images: Tensor, recipe: Recipe, draws: torch.Generator) -> Tensor:
    """Random flips, crops, colour and grey: uint8 `[B, C, H, W]` → float32 `[B, 3, H, W]` in [-1, 1]."""
    count, size = len(images), images.shape[-1]
    x = scaled(images).expand(-1, 3, -1, -1)
    flip = torch.rand(count, generator=draws) < 0.5
    x = torch.where(flip[:, None, None, None], x.flip(3), x)
    x = F.pad(x, (recipe.crop,) * 4, mode="reflect")
    top, left = torch.randint(0, 2 * recipe.crop + 1, (2, count), generator=draws)
    span = torch.arange(size)
    x = pixels_of(x, top[:, None] + span, left[:, None] + span)
    return _recolour(x, recipe, draws)


def _recolour(x: Tensor, recipe: Recipe, draws: torch.Generator) -> Tensor:
    """Gain and offset a channel for some images, grey (and of those, half inverted) for others."""
    count = len(x)
    gain = 1 + 0.4 * (torch.rand(count, 3, 1, 1, generator=draws) - 0.5)
    shift = 0.4 * (torch.rand(count, 3, 1, 1, generator=draws) - 0.5)
    picks = torch.rand(3, count, 1, 1, 1, generator=draws)
    x = torch.where(picks[0] < recipe.colour, x * gain + shift, x).clamp(-1, 1)
    grey = x.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    grey = torch.where(picks[2] < 0.5, -grey, grey)
    return torch.where(picks[1] < recipe.grey, grey, x)


def _unit(net: FeatureNet, train: ImageSet, most: int = 5000) -> float:
    """Root of the mean variance of pooled features over the first images, every class among them."""
    features = in_batches(lambda some: net.embed(scaled(some)), train.images[:: max(1, len(train) // most)], 250)
    return float(features.var(0).mean().sqrt())


def evaluate(net: nn.Module, data: ImageSet, batch: int = 250) -> float:
    """Share of images `[N, C, H, W]` that the network classifies rightly."""
    return float((scores(net, data.images, batch).argmax(1).numpy() == data.labels).mean())
