"""VGG networks without a head: torchvision's VGG-19, and one of random convolutions.

VGG-19: Simonyan, Zisserman, "Very deep convolutional networks for large-scale image recognition",
ICLR 2015, configuration E; layers are numbered as in torchvision's `vgg19` and `vgg19_bn`.
"""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prismfl.data.fetch import WEIGHTS
from prismfl.errors import SettingError
from prismfl.features.networks import NORM_PARTS, VGG_PLAN, Activation, HeadlessVgg, LoadedNet, folded, rectify
from prismfl.features.weightsfile import State, load_weights
from prismfl.seeding.philox import Purpose, Stream

# Channels of each 3×3 convolution; 0 is a 2×2 maximum pooling.  A pooling at the end has no stage.
VGG19_PLAN = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512, 512, 512, 512)

# Of ImageNet's images in [0, 1], channel by channel, as torchvision's networks are fed.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_EXPECTED = "VGG-19 in torchvision's layout (.pth or .safetensors)"
_REMEDY = "fetch one with `prismfl fetch-weights vgg19`"


class ImageNetVgg(HeadlessVgg):
    """A VGG for images in [-1, 1] that are first taken to [0, 1], less ImageNet's mean, over its deviation."""

    gain: Tensor
    shift: Tensor

    def __init__(self, plan: Sequence[int]) -> None:
        super().__init__(plan)
        mean, std = (torch.tensor(one).view(3, 1, 1) for one in (IMAGENET_MEAN, IMAGENET_STD))
        self.register_buffer("gain", 0.5 / std, persistent=False)
        self.register_buffer("shift", (0.5 - mean) / std, persistent=False)

    def walk(self, x: Tensor, activate: Activation = rectify, most: int = 0) -> Iterator[Tensor]:
        """See `HeadlessVgg.walk`."""
        scaled = x * self.gain + self.shift  # one channel becomes three, which differ from here on
        return super().walk(scaled.contiguous(memory_format=torch.channels_last), activate, most)


# --------------------------------------------------------------------------------------- VGG-19


def load_vgg19(weights: str) -> LoadedNet:
    """VGG-19 from a local file in torchvision's layout, `vgg19` or `vgg19_bn` (told apart by its names).

    BatchNorm is folded into the convolutions; the classifier, if the file has one, is left out.
    Raises SettingError when no file is named, ModelFileError when it is missing or not a VGG-19.
    """
    if not weights:
        raise SettingError("features.features = 'vgg19'", f"vgg19:FILE with {_EXPECTED}", _REMEDY + " and name it")
    net, layout = ImageNetVgg(VGG19_PLAN), "vgg19"

    def renamed(state: State) -> State:
        nonlocal layout
        layout = "vgg19_bn" if "features.1.running_mean" in state else "vgg19"
        return _renamed(state, layout == "vgg19_bn")

    sha256 = load_weights(net, Path(weights), _EXPECTED, _REMEDY, renamed)
    return LoadedNet(net, sha256, {"architecture": "vgg19", "layout": layout, "trained_on": _origin(layout, sha256)})


def _origin(layout: str, sha256: str) -> str:
    """What published weights were trained on; of any other file it is not known."""
    return "ImageNet (ILSVRC 2012)" if sha256.startswith(WEIGHTS[layout].digits) else ""


def _renamed(state: State, norm: bool) -> State:
    """Torchvision's names turned into ours, BatchNorm folded, the classifier left out; other names stay."""
    left = {name: tensor for name, tensor in state.items() if not name.startswith("classifier.")}
    found: State = {}
    for unit, place in enumerate(conv_places(VGG19_PLAN, norm)):
        weight, bias = (left.pop(f"features.{place}.{part}") for part in ("weight", "bias"))
        if norm:
            weight, bias = folded(weight, bias, {key: left.pop(f"features.{place + 1}.{key}") for key in NORM_PARTS})
        found |= {f"units.{unit}.conv.weight": weight, f"units.{unit}.conv.bias": bias}
    return left | found


def conv_places(plan: Sequence[int], norm: bool) -> list[int]:
    """Torchvision's numbers of the convolutions: ReLU, BatchNorm and poolings count as layers."""
    places, place = [], 0
    for channels in plan:
        if channels:
            places.append(place)
        place += (3 if norm else 2) if channels else 1
    return places


# --------------------------------------------------------------------------- random convolutions


def random_vgg() -> LoadedNet:
    """The small VGG's plan with Kaiming normals that were never trained: nothing to disclose.

    Weights are public normals times `sqrt(2 / fan_in)`, the same on every machine; biases are 0
    (He et al., "Delving deep into rectifiers", ICCV 2015).
    """
    net, digest = HeadlessVgg(VGG_PLAN), hashlib.sha256()
    channels = [3, *(c for c in VGG_PLAN if c)]
    for layer, (inputs, outputs) in enumerate(pairwise(channels)):
        normals = Stream(0, Purpose.FEATURES, layer).normals(outputs * inputs * 9)
        weight = (normals * np.float32((2 / (inputs * 9)) ** 0.5)).reshape(outputs, inputs, 3, 3)
        digest.update(weight.astype("<f4").tobytes())
        parts = {"conv.weight": torch.from_numpy(weight), "conv.bias": torch.zeros(outputs)}
        net.units[layer].load_state_dict(parts)
    net.eval().requires_grad_(False)
    return LoadedNet(net, digest.hexdigest(), {"architecture": "random", "trained_on": ""})
