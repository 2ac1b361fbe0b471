"""Residual classifiers as benchmarks train them: ResNet, wide ResNet and ResNeXt, of small images.

He et al. (CVPR 2016), Zagoruyko and Komodakis (BMVC 2016), Xie et al. (CVPR 2017).  Each has three stages, of which the
second and the third halve the sides, and a linear layer of the mean over places.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Residual(nn.Module):
    """A path and a shortcut, added; `before`: norm and ReLU of what both see, else ReLU of their sum."""

    def __init__(self, path: nn.Module, shortcut: nn.Module, before: nn.Module | None = None) -> None:
        super().__init__()
        self.path, self.shortcut, self.before = path, shortcut, before

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` → `[B, C', H', W']`."""
        if self.before is None:
            return F.relu(self.path(x) + self.shortcut(x))
        seen = self.before(x)
        kept = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(seen)
        return self.path(seen) + kept  # type: ignore[no-any-return]


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int, *, norm: bool) -> nn.Module:
    if inputs == outputs and stride == 1:
        return nn.Identity()
    return nn.Sequential(_conv(inputs, outputs, 1, stride), *([nn.BatchNorm2d(outputs)] if norm else []))


def _plain(inputs: int, outputs: int, stride: int) -> nn.Module:
    path = nn.Sequential(
        _conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs), nn.ReLU(), _conv(outputs, outputs),
        nn.BatchNorm2d(outputs),
    )  # fmt: skip
    return _Residual(path, _shortcut(inputs, outputs, stride, norm=True))


def _wide(inputs: int, outputs: int, stride: int, dropout: float = 0.3) -> nn.Module:
    path = nn.Sequential(
        _conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs), nn.ReLU(), nn.Dropout(dropout),
        _conv(outputs, outputs),
    )  # fmt: skip
    before = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
    return _Residual(path, _shortcut(inputs, outputs, stride, norm=False), before)


def _grouped(inputs: int, outputs: int, stride: int, groups: int, widen: int) -> nn.Module:
    inner = groups * outputs // widen
    path = nn.Sequential(
        _conv(inputs, inner, 1), nn.BatchNorm2d(inner), nn.ReLU(),
        _conv(inner, inner, 3, stride, groups), nn.BatchNorm2d(inner), nn.ReLU(),
        _conv(inner, outputs, 1), nn.BatchNorm2d(outputs),
    )  # fmt: skip
    return _Residual(path, _shortcut(inputs, outputs, stride, norm=True))


def _stages(
    channels: int,
    classes: int,
    stem: int,
    widths: tuple[int, int, int],
    blocks: int,
    block: Callable[..., nn.Module],
    *,
    norm_last: bool = False,
) -> nn.Module:
    """A stem, three stages of so many blocks, and the linear layer; norm_last: where blocks begin with their norm."""
    parts: list[nn.Module] = [_conv(channels, stem)]
    parts += [] if norm_last else [nn.BatchNorm2d(stem), nn.ReLU()]
    inputs = stem
    for place, width in enumerate(widths):
        for number in range(blocks):
            parts.append(block(inputs, width, 2 if place and not number else 1))
            inputs = width
    parts += [nn.BatchNorm2d(inputs), nn.ReLU()] if norm_last else []
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def resnet(channels: int, classes: int, depth: int = 110) -> nn.Module:
    """A ResNet of 6n + 2 layers, of images `[B, channels, H, W]`."""
    return _stages(channels, classes, 16, (16, 32, 64), (depth - 2) // 6, _plain)


def wide_resnet(channels: int, classes: int, depth: int = 40, widen: int = 4) -> nn.Module:
    """A wide ResNet of 6n + 4 layers, with dropout of 0.3, of images `[B, channels, H, W]`."""
    widths = (16 * widen, 32 * widen, 64 * widen)
    return _stages(channels, classes, 16, widths, (depth - 4) // 6, _wide, norm_last=True)


def resnext(channels: int, classes: int, depth: int = 29, groups: int = 8, widen: int = 4) -> nn.Module:
    """A ResNeXt of 9n + 2 layers, of images `[B, channels, H, W]`."""
    widths = (64 * widen, 128 * widen, 256 * widen)

    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        return _grouped(inputs, outputs, stride, groups, widen)

    return _stages(channels, classes, 64, widths, (depth - 2) // 9, block)


def initialised(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network whose weights the seed decides (He et al. 2015); the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = make()
        for part in net.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    return net
