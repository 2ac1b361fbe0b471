"""How a feature network is shown images, and what it hardly says of them: their tones and colours.

Images are scaled up by a whole factor and shifted by whole pixels.  A network that strides sees a grid of its own
strides.  A generator that is judged at one place alone paints that grid; shown a little elsewhere each time, it
cannot.  Both are done as two products with public matrices, which every device and precision has.

Unit vectors of a network's maps hardly say how bright or how strong in contrast an image is; tones and colours, cell
by cell, are bounded features of its pixels that do.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from prismfl.seeding.device import Tape

_SIDE = 16  # pixels a side that tones are taken of: images are averaged down to it
_MEANS, _CELLS = 8, 4  # cells a side, of means and of histograms
_LEVELS = 9  # of a histogram, from -1 to 1: each pixel counts for the two next to it


class Framing:
    """Images of `size` pixels a side, scaled up bilinearly, after shifts of at most `shift` pixels each way.

    What is shifted in is the border, repeated.  There are `turns` = (2 shift + 1)² shifts; number them row by row.
    """

    def __init__(self, size: int, factor: int = 1, shift: int = 0) -> None:
        self.factor, self.shift, self.each = factor, shift, 2 * shift + 1
        self.turns = self.each**2
        up = F.interpolate(torch.eye(size)[None], scale_factor=factor, mode="linear")[0].T
        steps = torch.arange(-shift, shift + 1)[:, None] + torch.arange(size)
        shifted = F.one_hot(steps.clamp(0, size - 1), size).float()
        self.matrices = up @ shifted  # [each, factor · size, size]

    def to(self, device: str | torch.device) -> "Framing":
        """Move the matrices to a device; returns itself."""
        self.matrices = self.matrices.to(device)
        return self

    def __call__(self, x: Tensor, turns: Tensor | None = None) -> Tensor:
        """`[B, C, H, W]` → `[B, C, factor · H, factor · W]`.

        turns: the number of the shift, int64 `[1]` for all images or `[B]`, one each; None: unshifted.
        """
        if self.factor == 1 and not self.shift:
            return x
        places = torch.full((1,), self.turns // 2, device=x.device) if turns is None else turns
        matrices = self.matrices.to(x.dtype)
        down, across = matrices[places // self.each], matrices[places % self.each]
        return down[:, None] @ (x @ across.mT[:, None])

    def drawn(self, draws: Tape) -> Tensor | None:
        """The number of a random shift, int64 `[1]`; None, and nothing is drawn, where there is one alone."""
        return (draws.uniforms(1) * self.turns).long() if self.shift else None


# ------------------------------------------------------------------------------------------- tones


def mean_colours(x: Tensor) -> Tensor:
    """Means of 8×8 cells, from 0 to 1: `[B, C, H, W]` in [-1, 1] → `[B, C · 64]` of norm ≤ 1, never below 0."""
    means = (1 + _averaged(x, _MEANS).flatten(1)) / 2
    found: Tensor = means / means.shape[1] ** 0.5
    return found


def tone_histograms(x: Tensor) -> Tensor:
    """Histograms of each channel and of brightness in 4×4 cells: `[B, d]` of norm ≤ 1, never below 0.

    x: `[B, C, H, W]` in [-1, 1].  A pixel's share of a level falls linearly to 0 at the next one, so a histogram
    sums to 1, and its norm is 1 at most; all of them together are divided by the root of their number.
    """
    small = _averaged(x, _SIDE)
    if small.shape[1] > 1:
        small = torch.cat((small, small.mean(1, keepdim=True)), 1)
    levels = torch.linspace(-1, 1, _LEVELS, device=x.device, dtype=x.dtype)
    shares = F.relu(1 - (small[:, :, None] - levels[:, None, None]).abs() * ((_LEVELS - 1) / 2))
    counts = _averaged(shares.flatten(1, 2), _CELLS).flatten(1)
    found: Tensor = counts / (small.shape[1] * _CELLS**2) ** 0.5
    return found


def _averaged(x: Tensor, side: int) -> Tensor:
    return F.avg_pool2d(x, x.shape[-1] // side) if x.shape[-1] > side else x
