"""Inception-v3 as the Fréchet inception distance has it: TensorFlow's network of December 2015.

Szegedy et al., "Rethinking the Inception architecture for computer vision", CVPR 2016.  Names and
shapes are those of the weights that the packages torch-fidelity and pytorch-fid publish.  It differs from
later Inception-v3 networks in averages that leave the border out, a maximum in the last block,
1008 classes, and TensorFlow 1's way of scaling images.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from prismfl.features.networks import in_batches
from prismfl.features.weightsfile import load_weights

SIZE, POOLED, CLASSES = 299, 2048, 1008

_EXPECTED = "weights of the FID's Inception-v3 (names as in weights-inception-2015-12-05-6726825d.pth)"
_REMEDY = "fetch them with `prismfl fetch-weights inception`"


class Conv(NamedTuple):
    """One named convolution of a block: its kernel is (height, width); without `same` it has stride 2, no padding."""

    name: str
    outputs: int
    kernel: tuple[int, int]
    same: bool = True


class BasicConv(nn.Module):
    """A convolution without bias, BatchNorm (ε = 0.001), ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int = 1, *, pad: bool = True
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if pad else 0
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, inputs, H, W]` → `[B, outputs, H', W']`."""
        return F.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """Chains of convolutions side by side and a pooled branch, joined by channels.

    Chains that begin alike share what they have in common.  pool: `average` or `maximum`, at stride 1 and
    before a 1×1 convolution of `pooled` channels, or `halve`: a maximum at stride 2, alone.
    """

    def __init__(self, inputs: int, chains: Sequence[Sequence[Conv]], pool: str, pooled: int = 0) -> None:
        super().__init__()
        self.pool, self.chains = pool, [[conv.name for conv in chain] for chain in chains]
        for chain in chains:
            for before, conv in zip((inputs, *(one.outputs for one in chain)), chain, strict=False):
                if not hasattr(self, conv.name):
                    step = 1 if conv.same else 2
                    self.add_module(conv.name, BasicConv(before, conv.outputs, conv.kernel, step, pad=conv.same))
        self.branch_pool = BasicConv(inputs, pooled, (1, 1)) if pooled else nn.Identity()
        self.width = sum(chain[-1].outputs for chain in chains) + (pooled or inputs)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, inputs, H, W]` → `[B, width, H', W']`."""
        done: dict[str, Tensor] = {}
        ends = []
        for chain in self.chains:
            y = x
            for name in chain:
                y = done[name] = done[name] if name in done else getattr(self, name)(y)
            ends.append(y)
        return torch.cat((*ends, self.branch_pool(self._pooled(x))), 1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "halve":
            return F.max_pool2d(x, 3, 2)
        if self.pool == "maximum":
            return F.max_pool2d(x, 3, 1, 1)
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _chain(name: str, *convs: tuple[int, int, int], halve: bool = False) -> list[Conv]:
    """Convolutions (outputs, height, width) one after another, numbered from 1; the last one may halve sides."""
    return [
        Conv(f"{name}_{number}", outputs, (height, width), not (halve and number == len(convs)))
        for number, (outputs, height, width) in enumerate(convs, 1)
    ]


def _block_a(inputs: int, pooled: int) -> Block:
    double = _chain("branch5x5", (48, 1, 1), (64, 5, 5))
    triple = _chain("branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3))
    return Block(inputs, [[Conv("branch1x1", 64, (1, 1))], double, triple], "average", pooled)


def _block_b(inputs: int) -> Block:
    triple = _chain("branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3), halve=True)
    return Block(inputs, [[Conv("branch3x3", 384, (3, 3), same=False)], triple], "halve")


def _block_c(inputs: int, inner: int) -> Block:
    short = _chain("branch7x7", (inner, 1, 1), (inner, 1, 7), (192, 7, 1))
    long = _chain("branch7x7dbl", (inner, 1, 1), (inner, 7, 1), (inner, 1, 7), (inner, 7, 1), (192, 1, 7))
    return Block(inputs, [[Conv("branch1x1", 192, (1, 1))], short, long], "average", 192)


def _block_d(inputs: int) -> Block:
    short = _chain("branch3x3", (192, 1, 1), (320, 3, 3), halve=True)
    long = _chain("branch7x7x3", (192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3), halve=True)
    return Block(inputs, [short, long], "halve")


def _block_e(inputs: int, pool: str) -> Block:
    short, long = _chain("branch3x3", (384, 1, 1)), _chain("branch3x3dbl", (448, 1, 1), (384, 3, 3))
    forks = [
        [*chain, Conv(f"{name}{side}", 384, kernel)]
        for chain, name in ((short, "branch3x3_2"), (long, "branch3x3dbl_3"))
        for side, kernel in (("a", (1, 3)), ("b", (3, 1)))
    ]
    return Block(inputs, [[Conv("branch1x1", 320, (1, 1))], *forks], pool, 192)


class Inception(nn.Module):
    """The whole network, in evaluation mode: uint8 images → 2048 pooled features → 1008 class scores.

    sha256: of the file that its weights came from.
    """

    sha256: str = ""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = BasicConv(3, 32, (3, 3), 2, pad=False)
        self.Conv2d_2a_3x3 = BasicConv(32, 32, (3, 3), pad=False)
        self.Conv2d_2b_3x3 = BasicConv(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = BasicConv(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = BasicConv(80, 192, (3, 3), pad=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _block_a(192, 32), _block_a(256, 64), _block_a(288, 64)
        self.Mixed_6a = _block_b(288)
        self.Mixed_6b, self.Mixed_6c = _block_c(768, 128), _block_c(768, 160)
        self.Mixed_6d, self.Mixed_6e = _block_c(768, 160), _block_c(768, 192)
        self.Mixed_7a = _block_d(768)
        self.Mixed_7b, self.Mixed_7c = _block_e(1280, "average"), _block_e(2048, "maximum")
        self.fc = nn.Linear(POOLED, CLASSES)
        self.eval()

    def pooled(self, images: Tensor) -> Tensor:
        """Images uint8 `[B, 1 or 3, H, W]` → float32 `[B, 2048]`; grey serves as three equal channels."""
        x = (resize(images.float()) - 128) / 128
        x = self.Conv2d_1a_3x3(x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last))
        x = F.max_pool2d(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(x)), 3, 2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
        for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            x = getattr(self, f"Mixed_{name}")(x)
        return x.mean((2, 3))

    def logits(self, pooled: Tensor, *, bias: bool = True) -> Tensor:
        """Class scores `[B, 1008]` of pooled features; the Inception score takes them without the bias."""
        return F.linear(pooled, self.fc.weight, self.fc.bias if bias else None)

    def features(self, images: NDArray[np.uint8], batch: int = 50) -> NDArray[np.float32]:
        """Pooled features of uint8 images `[n, 1 or 3, H, W]`, in batches: float32 `[n, 2048]`."""
        device = self.fc.weight.device
        return in_batches(lambda some: self.pooled(some.to(device)), images, batch).numpy()


def resize(x: Tensor, size: int = SIZE) -> Tensor:
    """Bilinear scaling as TensorFlow 1 did it: float32 `[B, C, H, W]` → `[B, C, size, size]`.

    Pixel i of the result lies at i · H / size of the source: corners, not centres, are aligned at the
    top left; there is no antialiasing; beyond the last pixel the last one is repeated.
    """
    return _along(_along(x, 3, size), 2, size)


def _along(x: Tensor, axis: int, size: int) -> Tensor:
    """Scale one axis.  Sums in this order, in float32, are those of TensorFlow's own kernel."""
    pixels = x.shape[axis]
    place = torch.arange(size, device=x.device).float() * torch.tensor(pixels / size, dtype=torch.float32)
    low = place.long().clamp_(max=pixels - 1)
    share = (place - low).view([-1 if one == axis else 1 for one in range(4)])
    first = x.index_select(axis, low)
    return first + (x.index_select(axis, (low + 1).clamp_(max=pixels - 1)) - first) * share


def load_inception(path: Path) -> Inception:
    """The network with the weights of a file.  Raises ModelFileError when it does not hold just these.

    A BatchNorm's count of batches may be there or not.
    """
    net = Inception()
    net.sha256 = load_weights(net, path, _EXPECTED, _REMEDY)
    return net
