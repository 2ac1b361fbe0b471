"""Frozen public feature networks: what they share, and the small one that comes with the project.

Networks are trained with BatchNorm by `prismfl.features.pretrain`, which folds it into the convolutions;
what is loaded here has convolutions with biases only and nothing that depends on a batch.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from prismfl.errors import ModelFileError
from prismfl.kernels.fused import tripled
from prismfl.kernels.joined import convolved
from prismfl.kernels.replay import wait_for_device

Activation = Callable[[Tensor, bool], tuple[Tensor, Tensor]]

FORMAT, ARCHITECTURE = "prismfl-features-1", "vgg"
EMBEDDED = {"vgg": "vgg.safetensors"}

# Channels of each 3×3 convolution; 0 is a 2×2 maximum pooling.
VGG_PLAN = (16, 0, 32, 64, 0, 64, 128, 0, 128, 192)

NORM_PARTS = ("weight", "bias", "running_mean", "running_var")  # of a BatchNorm


class Conv3(nn.Conv2d):
    """A 3×3 convolution with a border of zeros, of small maps many images at a time."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, inputs, H, W]` → `[B, outputs, H, W]`."""
        return convolved(x, self.weight, self.bias)


class ConvUnit(nn.Module):
    """A 3×3 convolution with BatchNorm while training, with a bias once folded."""

    def __init__(self, inputs: int, outputs: int, *, norm: bool) -> None:
        super().__init__()
        self.conv = Conv3(inputs, outputs, bias=not norm)
        self.norm = nn.BatchNorm2d(outputs) if norm else None
        self._dense: tuple[tuple[int, torch.dtype, torch.device], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` → `[B, outputs, H', W']`; one channel serves for three equal ones."""
        if x.shape[1] == 1 and self.conv.in_channels == 3:
            # Three times the products of one channel, in a third of the time: convolutions of one are no fast case.
            x = tripled(x)
        frozen_on_four = x.shape[2:] == (2, 2) and not self.conv.weight.requires_grad
        x = self._on_four(x) if frozen_on_four else self.conv(x)
        return x if self.norm is None else self.norm(x)

    def _on_four(self, x: Tensor) -> Tensor:
        """A convolution of 2×2 pixels as one matrix product, which takes a tenth of its time."""
        images, outputs = len(x), self.conv.out_channels
        rows = x.permute(0, 2, 3, 1).flatten(1)
        found = rows @ self._matrix()
        if self.conv.bias is not None:
            found = found + self.conv.bias.repeat(4)
        return found.view(images, 2, 2, outputs).permute(0, 3, 1, 2)

    def _matrix(self) -> Tensor:
        """Takes four pixels of all channels to four: `[4 · inputs, 4 · outputs]`, kept until the weights change."""
        weight = self.conv.weight
        made_of = weight._version, weight.dtype, weight.device
        if self._dense is None or self._dense[0] != made_of:
            pixels = [(row, column) for row in range(2) for column in range(2)]
            taps = [[weight[:, :, 1 + a - c, 1 + b - d].T for c, d in pixels] for a, b in pixels]
            matrix = torch.cat([torch.cat(row, 1) for row in taps])
            wait_for_device(weight.device)
            self._dense = made_of, matrix
        return self._dense[1]


def rectify(x: Tensor, pool: bool) -> tuple[Tensor, Tensor]:
    """The ReLU of what a convolution gave `[B, C, H, W]`, and what goes on: the same, or where `pool` the largest of
    each 2×2 pixels of it."""
    phi = F.relu(x)
    return phi, F.max_pool2d(phi, 2) if pool else phi


def averaged(phi: Tensor, most: int) -> Tensor:
    """A map `[B, C, H, W]` averaged down to a side of at most `most`; 0 for any."""
    return F.avg_pool2d(phi, phi.shape[-1] // most) if most and phi.shape[-1] > most else phi


@torch.no_grad()
def in_batches(function: Callable[[Tensor], Tensor], images: NDArray[np.uint8], batch: int) -> Tensor:
    """What a function makes of images uint8 `[n, C, H, W]`, some at a time, on the processor: `[n, …]`."""
    starts = range(0, max(1, len(images)), batch)
    return torch.cat([function(torch.from_numpy(images[start : start + batch])).cpu() for start in starts])


class FeatureNet(nn.Module):
    """What all networks share: `stages` gives the maps to match, `embed` one vector an image.

    unit: standard deviation of pooled features on the public images, which `embed` divides by; matched: numbers of the
    maps that are matched where nothing else is asked for, none for all; centres: what each channel of each map is on
    the public images on average, `[C_j]` each, where that is known.
    """

    width: int
    unit: float
    matched: tuple[int, ...] = ()
    centres: tuple[Tensor, ...] = ()

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.unit = width, 1.0

    def walk(self, x: Tensor, activate: Activation = rectify, most: int = 0) -> Iterator[Tensor]:
        """Images as in `stages` → the maps one after another, each computed when it is asked for.

        activate: makes each map of what its convolution gives, in networks whose maps end in ReLU; others ignore it;
        see `rectify`; most: maps are averaged down to a side of at most this (0: any), which networks may do while they
        make them.
        """
        raise NotImplementedError

    def stages(self, x: Tensor, last: int | None = None, activate: Activation = rectify, most: int = 0) -> list[Tensor]:
        """Images `[B, 1 or 3, H, W]` in [-1, 1] → activation maps `[B, C_j, H_j, W_j]`.

        last: number of the last map wanted, from 0; no later one is computed; activate, most: see `walk`.
        """
        wanted = count() if last is None else range(last + 1)
        return [found for _, found in zip(wanted, self.walk(x, activate, most), strict=False)]

    def embed(self, x: Tensor) -> Tensor:
        """Images `[B, 1 or 3, H, W]` in [-1, 1] → penultimate features `[B, width]`, in units."""
        return self._pooled(x) / self.unit

    def _pooled(self, x: Tensor) -> Tensor:
        return self.stages(x)[-1].mean((2, 3))


class HeadlessVgg(FeatureNet):
    """3×3 convolutions, ReLU and maximum pooling; every ReLU output is a stage.

    plan: channels of each convolution, 0 for a maximum pooling; norm: with BatchNorm, as while training, or biases.
    """

    def __init__(self, plan: Sequence[int], *, norm: bool = False) -> None:
        super().__init__(plan[-1])
        channels = [3, *(c for c in plan if c)]
        self.plan, self.units = tuple(plan), nn.ModuleList(ConvUnit(a, b, norm=norm) for a, b in pairwise(channels))

    def walk(self, x: Tensor, activate: Activation = rectify, most: int = 0) -> Iterator[Tensor]:
        """See `FeatureNet.walk`: one map a convolution, all non-negative; grey is three equal channels."""
        units = iter(self.units)
        for channels, following in zip(self.plan, (*self.plan[1:], 1), strict=True):
            if channels:
                phi, x = activate(next(units)(x), not following)
                yield averaged(phi, most)


class Vgg(HeadlessVgg):
    """The small VGG that comes with the project, with the linear head that it was trained with."""

    def __init__(self, classes: int = 10, *, norm: bool) -> None:
        head = nn.Linear(VGG_PLAN[-1], classes)  # made first: a seed has always given it the first draws
        super().__init__(VGG_PLAN, norm=norm)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Class scores `[B, classes]`."""
        return self.head(self._pooled(x))  # type: ignore[no-any-return]


def fold(net: Vgg) -> dict[str, Tensor]:
    """State of the same network with every BatchNorm folded into its convolution (float32)."""
    state = {"head.weight": net.head.weight.detach(), "head.bias": net.head.bias.detach()}
    for name, unit in net.named_modules():
        if isinstance(unit, ConvUnit) and unit.norm is not None:
            weight, bias = folded(unit.conv.weight.detach(), None, unit.norm.state_dict(), unit.norm.eps)
            state |= {f"{name}.conv.weight": weight, f"{name}.conv.bias": bias}
    return state


def folded(weight: Tensor, bias: Tensor | None, norm: Mapping[str, Tensor], eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """A convolution's weight `[O, I, k, k]` and bias `[O]` with the BatchNorm after it folded in.

    norm: its `NORM_PARTS`, `[O]` each.
    """
    gain = norm["weight"] / (norm["running_var"] + eps).sqrt()
    mean = norm["running_mean"] if bias is None else norm["running_mean"] - bias
    return weight * gain[:, None, None, None], norm["bias"] - mean * gain


@dataclass(frozen=True)
class LoadedNet:
    """A frozen network with where it came from.

    Attributes:
        net: in evaluation mode, without gradients.
        sha256: of its file.
        about: `architecture` and `trained_on` at least; see `overlaps` for what else says something.
    """

    net: FeatureNet
    sha256: str
    about: dict[str, Any]


def load_features(source: str | Path) -> LoadedNet:
    """Load a feature network by embedded name (`vgg`) or from a file of `pretrain`.

    Args:
        source: the name or the file.

    Returns:
        The network with float32 weights, in evaluation mode, without gradients.

    Raises:
        ModelFileError: when the file is missing, damaged, or not a feature network.

    Examples:
        >>> loaded = load_features("vgg")
        >>> [tuple(phi.shape[1:]) for phi in loaded.net.stages(torch.zeros(1, 1, 16, 16), last=1)]
        [(16, 16, 16), (32, 8, 8)]
    """
    raw = _file_bytes(source)
    try:
        state = load_tensors(raw)
        about = json.loads(_metadata(raw)["prismfl"])
        if (about["format"], about["architecture"]) != (FORMAT, ARCHITECTURE):
            raise KeyError(about["format"], about["architecture"])
        net = Vgg(len(about["classes"]), norm=False)
        net.unit = float(about["unit"])
        if not 0 < net.unit < float("inf"):
            raise ValueError(f"unit {net.unit}")
        net.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    except (SafetensorError, KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ModelFileError(
            f"{source} is not a usable feature network ({type(error).__name__}: {error})",
            f"a {FORMAT} file",
            "make one with `prismfl pretrain`",
        ) from None
    net.eval().requires_grad_(False)
    return LoadedNet(net, hashlib.sha256(raw).hexdigest(), about)


def _metadata(raw: bytes) -> dict[str, str]:
    """The metadata of safetensors bytes: eight bytes of length, then that much JSON."""
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return dict(header["__metadata__"])


def _file_bytes(source: str | Path) -> bytes:
    if source in EMBEDDED:
        return (resources.files("prismfl.features") / "weights" / EMBEDDED[str(source)]).read_bytes()
    try:
        return Path(source).read_bytes()
    except (OSError, ValueError) as error:
        raise ModelFileError(
            f"cannot read feature network {source} ({error})",
            f"{' or '.join(EMBEDDED)}, or a file",
            "check the name or path",
        ) from None
