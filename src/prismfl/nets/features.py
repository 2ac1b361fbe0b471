"""Frozen public feature networks: one that training matches, a differently built one that judges.

Networks are trained with BatchNorm by `prismfl.pretrain`, which folds it into the convolutions;
what is loaded here has convolutions with biases only and nothing that depends on a batch.
"""

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from prismfl.errors import ModelFileError

FORMAT = "prismfl-features-1"
EMBEDDED = {"vgg": "vgg.safetensors", "judge": "judge.safetensors"}

# Channels of each 3×3 convolution; 0 is a 2×2 maximum pooling.
VGG_PLAN = (16, 0, 32, 64, 0, 64, 128, 0, 128, 192)
JUDGE_STEM, JUDGE_PLAN = 16, (48, 96, 160)


class ConvUnit(nn.Module):
    """A 3×3 (or 1×1) convolution with BatchNorm while training, with a bias once folded."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, *, norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=not norm)
        self.norm = nn.BatchNorm2d(outputs) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` → `[B, outputs, H', W']`; one channel serves for three equal ones."""
        conv = self.conv
        if x.shape[1] == 1 and conv.in_channels == 3:
            weight = conv.weight.sum(1, keepdim=True)
            x = F.conv2d(x, weight, conv.bias, conv.stride, conv.padding)
        else:
            x = conv(x)
        return x if self.norm is None else self.norm(x)


class FeatureNet(nn.Module):
    """What both networks share: `stages` gives the maps to match, `embed` one vector an image.

    unit: standard deviation of pooled features on the public images, which `embed` divides by.
    """

    width: int
    unit: float

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.width, self.unit = width, 1.0
        self.head = nn.Linear(width, classes)

    def stages(self, x: Tensor) -> list[Tensor]:
        """Images `[B, 1 or 3, H, W]` in [-1, 1] → activation maps `[B, C_j, H_j, W_j]`."""
        raise NotImplementedError

    def embed(self, x: Tensor) -> Tensor:
        """Images `[B, 1 or 3, H, W]` in [-1, 1] → penultimate features `[B, width]`, in units."""
        return self._pooled(x) / self.unit

    def _pooled(self, x: Tensor) -> Tensor:
        return self.stages(x)[-1].mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Class scores `[B, classes]`."""
        return self.head(self._pooled(x))  # type: ignore[no-any-return]


class Vgg(FeatureNet):
    """A small VGG: 3×3 convolutions, ReLU, maximum pooling; every ReLU output is a stage."""

    def __init__(self, classes: int = 10, *, norm: bool) -> None:
        super().__init__(classes, VGG_PLAN[-1])
        channels = [3, *(c for c in VGG_PLAN if c)]
        self.units = nn.ModuleList(ConvUnit(a, b, norm=norm) for a, b in pairwise(channels))

    def stages(self, x: Tensor) -> list[Tensor]:
        """See `FeatureNet.stages`: seven maps, all non-negative."""
        units, maps = iter(self.units), []
        for channels in VGG_PLAN:
            if not channels:
                x = F.max_pool2d(x, 2)
                continue
            x = F.relu(next(units)(x))
            maps.append(x)
        return maps


class Residual(nn.Module):
    """Two convolutions beside a 1×1 shortcut, the first with stride 2, SiLU after the sum."""

    def __init__(self, inputs: int, outputs: int, *, norm: bool) -> None:
        super().__init__()
        self.first = ConvUnit(inputs, outputs, stride=2, norm=norm)
        self.second = ConvUnit(outputs, outputs, norm=norm)
        self.short = ConvUnit(inputs, outputs, kernel=1, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, inputs, H, W]` → `[B, outputs, H/2, W/2]`."""
        short = self.short(F.avg_pool2d(x, 2))
        return F.silu(self.second(F.silu(self.first(x))) + short)


class Judge(FeatureNet):
    """A small residual network with strides and SiLU: no part in common with `Vgg`."""

    def __init__(self, classes: int = 10, *, norm: bool) -> None:
        super().__init__(classes, JUDGE_PLAN[-1])
        self.stem = ConvUnit(3, JUDGE_STEM, norm=norm)
        widths = (JUDGE_STEM, *JUDGE_PLAN)
        self.blocks = nn.ModuleList(Residual(a, b, norm=norm) for a, b in pairwise(widths))

    def stages(self, x: Tensor) -> list[Tensor]:
        """See `FeatureNet.stages`: the stem's map and three block outputs, signed."""
        maps = [F.silu(self.stem(x))]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return maps


ARCHITECTURES: dict[str, type[Vgg] | type[Judge]] = {"vgg": Vgg, "judge": Judge}


def fold(net: FeatureNet) -> dict[str, Tensor]:
    """State of the same network with every BatchNorm folded into its convolution (float32)."""
    state = {"head.weight": net.head.weight.detach(), "head.bias": net.head.bias.detach()}
    for name, unit in net.named_modules():
        if isinstance(unit, ConvUnit) and unit.norm is not None:
            norm = unit.norm.state_dict()
            gain = norm["weight"] / (norm["running_var"] + unit.norm.eps).sqrt()
            state[f"{name}.conv.weight"] = unit.conv.weight.detach() * gain[:, None, None, None]
            state[f"{name}.conv.bias"] = norm["bias"] - norm["running_mean"] * gain
    return state


@dataclass(frozen=True)
class LoadedNet:
    """A frozen network with where it came from: its file's SHA-256 and what it was trained on."""

    net: FeatureNet
    sha256: str
    about: dict[str, Any]


def load_features(source: str | Path) -> LoadedNet:
    """Load a feature network by embedded name (`vgg`, `judge`) or from a file of `pretrain`.

    Weights come back as float32, in evaluation mode, without gradients.
    Raises ModelFileError when the file is missing, damaged, or not a feature network.
    """
    raw = _file_bytes(source)
    try:
        state = load_tensors(raw)
        about = json.loads(_metadata(raw)["prismfl"])
        if about["format"] != FORMAT:
            raise KeyError(about["format"])
        net = ARCHITECTURES[about["architecture"]](len(about["classes"]), norm=False)
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
        return (resources.files("prismfl") / "weights" / EMBEDDED[str(source)]).read_bytes()
    try:
        return Path(source).read_bytes()
    except (OSError, ValueError) as error:
        raise ModelFileError(
            f"cannot read feature network {source} ({error})",
            f"{' or '.join(EMBEDDED)}, or a file",
            "check the name or path",
        ) from None
