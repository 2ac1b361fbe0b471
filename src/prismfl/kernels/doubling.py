"""Nearest-neighbour doubling, then a 3×3 convolution, as one transposed convolution of stride 2.

Doubling is a transposed convolution with a 2×2 box; convolved with the (flipped) kernel it takes four products an
output where doubling first would take nine.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prismfl.kernels.joined import joined, parted, together

_SIDE, _CHANNELS = 4, 512  # maps at most so wide and at least so deep are multiplied as matrices


def doubling_kernel(kernel: Tensor) -> Tensor:
    """The 4×4 kernel of the transposed convolution: `[O, I, 3, 3]` → `[I, O, 4, 4]`."""
    return by_sums(kernel) if kernel.device.type == "cuda" else by_products(kernel)


def by_products(kernel: Tensor) -> Tensor:
    """A 3×3 kernel flipped and convolved with a 2×2 box, channels last: `[O, I, 3, 3]` → `[I, O, 4, 4]`."""
    found: Tensor = _Spread.apply(kernel)  # type: ignore[no-untyped-call]
    return found


def by_sums(kernel: Tensor) -> Tensor:
    """The same in one pass: a GPU takes longer for a product of nine columns."""
    return F.avg_pool2d(kernel.flip(2, 3), 2, stride=1, padding=1, divisor_override=1).transpose(0, 1)


class _Spread(torch.autograd.Function):
    """`by_products` in the order in which the library's convolutions read kernels and write their gradients.

    Kernels are turned over as matrices: axis by axis that takes the library five times as long.
    """

    @staticmethod
    def forward(_: Any, kernel: Tensor) -> Tensor:
        out, into = kernel.shape[:2]
        taps = kernel.reshape(out, -1).t().contiguous().view(into, 9, out)
        spread = _spread(kernel.device, kernel.dtype).t().expand(into, 16, 9)
        return torch.bmm(spread, taps).view(into, 4, 4, out).permute(0, 3, 1, 2)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        into, out = gradient.shape[:2]
        columns = gradient.permute(0, 2, 3, 1).reshape(into, 16, out)
        taps = torch.bmm(_spread(gradient.device, gradient.dtype).expand(into, 9, 16), columns)
        return taps.view(into * 9, out).t().contiguous().view(out, into, 3, 3)


@cache  # on its device, or every step would wait for the copy
def _spread(device: torch.device, dtype: torch.dtype) -> Tensor:
    """What flips a 3×3 kernel and convolves it with a 2×2 box, as a matrix: `[9, 16]`."""
    one = torch.zeros(3, 4)
    for tap in range(3):
        one[2 - tap, tap : tap + 2] = 1
    return torch.kron(one, one).to(device=device, dtype=dtype)


def convolved_doubling(x: Tensor, kernel: Tensor) -> Tensor:
    """The transposed convolution: `[B, I, H, W]` → `[B, O, 2H, 2W]`.

    kernel: `[I, O, 4, 4]`, as of `doubling_kernel`.
    """
    if x.device.type == "cpu" and x.shape[3] <= _SIDE and x.shape[1] >= _CHANNELS:
        found: Tensor = _Multiplied.apply(x, kernel)  # type: ignore[no-untyped-call]
        return found
    images = together(x, most=8)
    if images == 1:
        return F.conv_transpose2d(x, kernel, stride=2, padding=1)
    made = F.conv_transpose2d(joined(x, images), kernel, stride=2, padding=1)
    return parted(made, 2 * x.shape[3], images, gap=2)


class _Multiplied(torch.autograd.Function):
    """The same as one product of matrices, whose sixteen columns a pixel are summed where they overlap.

    The library's convolution of such maps takes half as long again, in float32 and bfloat16.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor) -> Tensor:
        (count, into, high, wide), out = x.shape, kernel.shape[1]
        pixels = x.permute(0, 2, 3, 1).reshape(-1, into)
        taps = kernel.permute(0, 2, 3, 1).reshape(into, -1)
        columns = (pixels @ taps).view(count, high, wide, 4, 4, out)
        exact = torch.promote_types(x.dtype, torch.float32)  # rounded once, not with each of four terms
        made = x.new_zeros(count, 2 * high + 2, 2 * wide + 2, out, dtype=exact)
        for row in range(4):
            for column in range(4):
                made[:, row : row + 2 * high : 2, column : column + 2 * wide : 2] += columns[:, :, :, row, column]
        ctx.save_for_backward(pixels, taps)
        return made[:, 1:-1, 1:-1].to(x.dtype).contiguous().permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        pixels, taps = ctx.saved_tensors
        (count, out, high, wide), into = gradients[0].shape, len(taps)
        around = F.pad(gradients[0].permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        columns = around.unfold(1, 4, 2).unfold(2, 4, 2).permute(0, 1, 2, 4, 5, 3).reshape(len(pixels), -1)
        to_x = (columns @ taps.t()).view(count, high // 2, wide // 2, into).permute(0, 3, 1, 2)
        return to_x, (pixels.t() @ columns).view(into, 4, 4, out).permute(0, 3, 1, 2)
