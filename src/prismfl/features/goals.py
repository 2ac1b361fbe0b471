"""A target in the pieces in which a batch is matched with it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prismfl.features.summary import Spread


@dataclass(frozen=True)
class Goals:
    """A target in the pieces in which it is matched: `[G, d]` each, of consecutive numbers.

    units, squares: of maps and of their squares, a layer each, or one of all layers, where there are windows
    `[V, G, d]` of all views; means: of tones, in order.
    own: float32 `[G]`, how much of its images' own squares each label's sum is matched without; None: nothing.
    spread: how images are to differ; None: however they do.
    """

    units: list[Tensor]
    squares: list[Tensor]
    means: list[Tensor]
    own: Tensor | None = None
    spread: Spread | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """All of them."""
        more = [] if self.own is None else [self.own]
        return [*self.units, *self.squares, *self.means, *more, *(self.spread.tensors if self.spread else [])]

    def seen(self, view: Tensor | None) -> "Goals":
        """Those of one view, int64 `[1]`; None: where there is one alone."""
        if view is None:
            return self
        units, squares = ([one.index_select(0, view)[0] for one in parts] for parts in (self.units, self.squares))
        return replace(self, units=units, squares=squares)

    def of_maps(self, places: Sequence[int]) -> list[Tensor]:
        """What some layers' maps are matched with, one after the other, and what their squares are, if they are."""
        if len(self.units) == 1:
            return [*self.units, *self.squares]
        return [_joined([part[place] for place in places]) for part in (self.units, self.squares) if part]

    def joined(self) -> "Goals":
        """The same with all layers' maps as one, and all their squares."""
        return replace(self, units=[_joined(self.units)], squares=[_joined(self.squares)] if self.squares else [])


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), -1)
