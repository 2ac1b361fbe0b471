"""How a feature network is shown images: scaled up by a whole factor, and shifted by whole pixels.

A network that strides sees a grid of its own strides.  A generator that is judged at one place alone paints that
grid; shown a little elsewhere each time, it cannot.  Both are done as two products with public matrices, which every
device and precision has.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from prismfl.seeding.device import Tape


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
