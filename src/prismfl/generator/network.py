"""The ResNet generator as a pure forward over a layout: no modules, no state of its own."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from prismfl.errors import SettingError
from prismfl.generator.layout import Layout
from prismfl.kernels.doubling import convolved_doubling, doubling_kernel
from prismfl.kernels.fused import norm_relu, plus_doubled
from prismfl.seeding.philox import Purpose, Stream

EPSILON = 1e-5


@dataclass(frozen=True)
class Statistics:
    """BatchNorm means and variances, one flat float32 vector each, in the order of `layout.norms`."""

    mean: NDArray[np.float32]
    var: NDArray[np.float32]


class _Norm:
    """Walks through the BatchNorms of one forward; normalises by the batch or by given statistics.

    With `momentum` the batch normalises and the given statistics move towards it.
    """

    def __init__(self, layout: Layout, mean: Tensor | None, var: Tensor | None, momentum: float | None) -> None:
        self.parts: Iterator[tuple[Tensor | None, Tensor | None]]
        if mean is None or var is None:
            self.parts = iter([(None, None)] * len(layout.norms))
        else:
            self.parts = iter(zip(mean.split(layout.norms), var.split(layout.norms), strict=True))
        self.batch = mean is None or momentum is not None
        self.momentum = momentum or 0.0

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised with ReLU, and x itself for whoever else takes it (see `norm_relu`)."""
        mean, var = next(self.parts)
        if mean is None:
            return norm_relu(x, EPSILON)
        return F.relu(F.batch_norm(x, mean, var, training=self.batch, momentum=self.momentum, eps=EPSILON)), x


def layer_views(layout: Layout, flat: Tensor) -> dict[str, Tensor]:
    """Each layer's weights as a view of the flat vector `[N]`.

    Cut in one piece of work: the gradient of slices would be a vector of N for each, and their sum.
    """
    parts = flat.split([layer.count for layer in layout.layers])
    return {layer.name: part.view(layer.shape) for layer, part in zip(layout.layers, parts, strict=True)}


def generate(
    layout: Layout,
    flat: Tensor,
    latents: Tensor,
    *,
    labels: Tensor | None = None,
    mean: Tensor | None = None,
    var: Tensor | None = None,
    momentum: float | None = None,
) -> Tensor:
    """Images in [-1, 1], `[B, C, H, W]`, from weights `[N]` and latents `[B, latent]`, all of one dtype.

    labels: int64 `[B]`, needed where the layout has classes: they shift the maps (see `Layout`).
    mean, var: float32 `[sum(norms)]`; without them BatchNorm uses the batch.
    """
    weights, norm = layer_views(layout, flat), _Norm(layout, mean, var, momentum)
    count = latents.shape[0]
    x = (latents @ weights["input"].flatten(1)).view(count, layout.widths[0], 4, 4)
    if layout.classes:
        x = x + weights["input.label"][labels]
    # Channels last: doubling and the convolutions of few channels take a third less time so.
    x = x.contiguous(memory_format=torch.channels_last)
    for index in range(len(layout.widths) - 1):
        shift = weights[f"block{index}.label"][labels] if layout.classes else None
        x = _block(x, weights, f"block{index}", norm, shift)
    return torch.tanh(F.conv2d(norm(x)[0], _laid_out(weights["output"]), padding=1))


def _block(x: Tensor, weights: dict[str, Tensor], name: str, norm: _Norm, shift: Tensor | None) -> Tensor:
    """Upsampling residual block `[B, C, H, W]` → `[B, C / 2, 2H, 2W]`.

    The 1×1 shortcut and the labels' shift `[B, C / 2]` commute with nearest-neighbour upsampling, so they are
    computed at the small size.
    """
    h, x = norm(x)
    h = convolved_doubling(h, _laid_out(doubling_kernel(weights[f"{name}.first"])))
    h = F.conv2d(norm(h)[0], _laid_out(weights[f"{name}.second"]), padding=1)
    return plus_doubled(h, F.conv2d(x, weights[f"{name}.short"]), shift)


def _laid_out(kernel: Tensor) -> Tensor:
    """A kernel in the order in which a GPU's convolutions read it, which else each of them would put it into."""
    return kernel.contiguous(memory_format=torch.channels_last) if kernel.device.type == "cuda" else kernel


def check_device(device: str) -> None:
    """Raise SettingError unless torch can compute on the device and read back."""
    try:
        torch.zeros(1, device=device).add_(1).cpu().item()
    except (RuntimeError, AssertionError, ImportError, NotImplementedError) as error:
        why = "torch knows no such device" if "device string" in str(error) else "torch cannot compute on it here"
        there = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        there += ["mps"] if torch.backends.mps.is_available() else []
        names = " or ".join(["cpu", *there])
        raise SettingError(f"running.device = {device!r}: {why}", names, "name a device that is here") from None


def label_turns(layout: Layout, count: int) -> Tensor:
    """Labels that take turns, 0 … classes - 1 and again: int64 `[count]` (all 0 without classes)."""
    return torch.arange(count) % max(1, layout.classes)


def latent_batch(layout: Layout, stream: Stream, count: int) -> Tensor:
    """Latents of a public stream: float32 `[count, latent]`, equal on every machine."""
    return torch.from_numpy(stream.normals(count * layout.latent)).view(count, layout.latent)


@torch.no_grad()
def recompute_statistics(layout: Layout, flat: Tensor, seed: int, batches: int = 8, batch: int = 256) -> Statistics:
    """BatchNorm statistics of a finished network from `batches` × `batch` public latents.

    They need no data, so they never travel in training (Purpose.STATISTICS, seed).
    """
    device = flat.device
    mean, var = torch.zeros(sum(layout.norms), device=device), torch.zeros(sum(layout.norms), device=device)
    latents = latent_batch(layout, Stream(seed, Purpose.STATISTICS), batches * batch).to(device)
    labels = label_turns(layout, len(latents)).to(device)
    for index, (part, tags) in enumerate(zip(latents.split(batch), labels.split(batch), strict=True)):
        generate(layout, flat, part, labels=tags, mean=mean, var=var, momentum=1 / (index + 1))
    return Statistics(mean.cpu().numpy(), var.cpu().numpy())


@torch.no_grad()
def render(
    layout: Layout,
    flat: Tensor,
    statistics: Statistics,
    latents: Tensor,
    labels: Tensor | None = None,
    batch: int = 250,
) -> NDArray[np.uint8]:
    """Finished images: uint8 `[n, C, H, W]` from latents `[n, latent]`, `batch` at a time."""
    device = flat.device
    mean = torch.from_numpy(statistics.mean).to(device)
    var = torch.from_numpy(statistics.var).to(device)
    found = np.empty((len(latents), layout.channels, layout.size, layout.size), np.uint8)
    for start in range(0, len(latents), batch):
        part = slice(start, start + batch)
        x = generate(
            layout,
            flat,
            latents[part].to(device),
            labels=None if labels is None else labels[part].to(device),
            mean=mean,
            var=var,
        )
        found[part] = x.add_(1).mul_(127.5).round_().clamp_(0, 255).byte().cpu().numpy()
    return found
