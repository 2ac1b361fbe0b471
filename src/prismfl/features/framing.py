"""How a feature network is shown images, and what it hardly says of them: their tones and colours.

Images are scaled up by a whole factor and shifted by whole pixels.  A network that strides sees a grid of its own
strides.  A generator that is judged at one place alone paints that grid; shown a little elsewhere each time, it
cannot.  Windows of half a side, scaled up twice as much, show it what the whole image hides: how sharp it is.  All is
done as two products with public matrices, which every device and precision has.

Unit vectors of a network's maps hardly say how bright or how strong in contrast an image is; tones and colours, cell
by cell, are bounded features of its pixels that do.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from prismfl.seeding.device import Tape

WHOLE = 0.25  # share of the steps, and of what is matched, that the whole image has beside windows
_SIDE = 16  # pixels a side that tones are taken of: images are averaged down to it
_MEANS, _CELLS = 8, 4  # cells a side, of means and of histograms
_LEVELS = 9  # of a histogram, from -1 to 1: each pixel counts for the two next to it


class Framing:
    """Images of `size` pixels a side, scaled up bilinearly: whole, after shifts of at most `shift` pixels each way; or
    windows of half a side, `windows` by `windows` of them at even steps, scaled up twice as much.

    What is shifted in is the border, repeated.  There are `turns` = (2 shift + 1)² shifts; they are numbered row by
    row, and after them the windows, row by row.  The attribute `windows` is how many these are in all.
    """

    def __init__(self, size: int, factor: int = 1, shift: int = 0, windows: int = 0) -> None:
        self.factor, self.shift, self.windows, each = factor, shift, windows**2, 2 * shift + 1
        self.turns = each**2
        steps = torch.arange(-shift, shift + 1)[:, None] + torch.arange(size)
        shifted = F.one_hot(steps.clamp(0, size - 1), size).float()
        whole, side = _enlarging(size, factor) @ shifted, factor * size
        large = _enlarging(size, 2 * factor)
        cuts = [large[start : start + side] for start in _starts(side, windows)]
        self.matrices = torch.cat((whole, torch.stack(cuts))) if cuts else whole  # [each + windows, side, size]
        down, across = _by_rows(each, 0), _by_rows(windows, each)
        self.places = torch.cat((down, across), 1)  # int64 [2, turns + windows²]: matrices of rows, and of columns

    @property
    def shares(self) -> list[float]:
        """How much each view counts, the whole image first: they sum to 1."""
        return [WHOLE] + [(1 - WHOLE) / self.windows] * self.windows if self.windows else [1.0]

    def to(self, device: str | torch.device) -> "Framing":
        """Move the matrices to a device; returns itself."""
        self.matrices, self.places = self.matrices.to(device), self.places.to(device)
        return self

    def __call__(self, x: Tensor, turns: Tensor | None = None) -> Tensor:
        """`[B, C, H, W]` → `[B, C, factor · H, factor · W]`.

        turns: the number of the shift or window, int64 `[1]` for all images or `[B]`, one each; None: unshifted.
        """
        if self.factor == 1 and not self.shift and not self.windows:
            return x
        numbers = torch.full((1,), self.turns // 2, device=x.device) if turns is None else turns
        matrices, (rows, columns) = self.matrices.to(x.dtype), self.places[:, numbers]
        down, across = matrices[rows], matrices[columns]
        return down[:, None] @ (x @ across.mT[:, None])

    def drawn(self, draws: Tape) -> Tensor | None:
        """The number of a random shift or window, int64 `[1]`; None, and nothing is drawn, where there is one alone."""
        if not self.shift and not self.windows:
            return None
        drawn = draws.uniforms(1)
        if not self.windows:
            return (drawn * self.turns).long()
        window = self.turns + ((drawn - WHOLE) * (self.windows / (1 - WHOLE))).long().clamp_(max=self.windows - 1)
        return torch.where(drawn < WHOLE, (drawn * (self.turns / WHOLE)).long().clamp_(max=self.turns - 1), window)

    def view_of(self, turns: Tensor | None) -> Tensor | None:
        """Which view a shift or window is, 0 for the whole image, int64 `[1]`; None for the only one there is."""
        if not self.windows:
            return None
        zero = self.places.new_zeros(1)
        return zero if turns is None else (turns - (self.turns - 1)).clamp_(min=0)

    def seen(self, turns: Tensor | None, count: int) -> Tensor:
        """Shifts and windows in which so many images are seen, int64 `[V, count]`; turns: of the whole, as they are."""
        whole = self.places.new_full((1,), self.turns // 2) if turns is None else turns
        windows = [self.window(number) for number in range(self.windows)]
        return torch.stack([one.expand(count) for one in (whole, *windows)])

    def window(self, number: int) -> Tensor:
        """The number of a window, from 0, among all shifts and windows: int64 `[1]`."""
        return torch.full((1,), self.turns + number, device=self.places.device)


def _enlarging(size: int, factor: int) -> Tensor:
    """Scales `size` pixels up bilinearly: `[factor · size, size]`."""
    return F.interpolate(torch.eye(size)[None], scale_factor=factor, mode="linear")[0].T


def _starts(side: int, windows: int) -> list[int]:
    """Where windows of so many pixels begin in an image of twice as many."""
    return [side * place // max(1, windows - 1) for place in range(windows)]


def _by_rows(each: int, first: int) -> Tensor:
    """Matrices of rows and of columns of a square of places, row by row: int64 `[2, each²]`."""
    places = torch.arange(each**2)
    return first + torch.stack((places // max(1, each), places % max(1, each)))


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
