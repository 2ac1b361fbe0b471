"""How images differ from each other: a short summary of each, and means of products of its entries.

Images may have the right features on average and be too much alike.  Means of y yᵀ, where y sums an image up in some
tens of numbers, also say how much images vary and what goes with what.  A search matches them once its images are near:
in directions in which real ones differ, of which the weaker count for more than their variance (y is turned to them and
divided by the fourth root of it).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prismfl.features.networks import FeatureNet
from prismfl.seeding.philox import Purpose, Stream

_WEIGHT = 0.0012  # of the squared error in means of products, relative to their square, per share of the views
_ONE = 0.5  # beside y: what is nearer to 1 leaves less of the norm to products of y, and says the mean more exactly
_FLOOR = 1e-3  # of the largest variance: directions of less are no directions
_NOISE = 1.1  # times the most negative variance, which is noise alone: what is above stands out of it


class Summary:
    """Maps of images → y, float32 `[B, size]` of norm ≤ 1.

    A map is averaged over its pixels and taken less what it is on public images on average; of that the direction
    counts.  A random matrix that everybody has takes all of them to `size` numbers, and keeps what lies between them
    (Johnson, Lindenstrauss 1984).  channels: of each layer's map.
    """

    def __init__(self, net: FeatureNet, layers: Sequence[int], channels: Sequence[int], size: int) -> None:
        known = [net.centres[layer] for layer in layers] if net.centres else []
        self.centres = known or [torch.zeros(count) for count in channels]
        normals = Stream(0, Purpose.SUMMARY).normals(sum(channels) * size)
        self.matrix = torch.from_numpy(normals).view(sum(channels), size) / (size * len(channels)) ** 0.5

    def to(self, device: str | torch.device) -> "Summary":
        """Move the public constants to a device; returns itself."""
        self.centres, self.matrix = [centre.to(device) for centre in self.centres], self.matrix.to(device)
        return self

    def __call__(self, maps: Sequence[Tensor]) -> Tensor:
        """y of maps `[B, C_j, H_j, W_j]`, one a layer."""
        means = [phi.float().mean((2, 3)) - centre for phi, centre in zip(maps, self.centres, strict=True)]
        found = torch.cat([F.normalize(mean) for mean in means], 1) @ self.matrix
        held: Tensor = found / found.norm(dim=1, keepdim=True).clamp(min=1)
        return held


def products_in(size: int) -> int:
    """Entries of `products` of so many numbers."""
    return (size + 1) * (size + 2) // 2


def products(y: Tensor) -> Tensor:
    """The products of every two entries of (½, y): `[B, d]` → float32 `[B, (d + 1)(d + 2) / 2]`, both of norm ≤ 1.

    Those with ½ tell the mean of y.  Inner products of such vectors are squares, of ¼ + ⟨y, y'⟩ but for a factor: two
    are never more than a right angle apart.
    """
    whole = torch.cat((torch.full_like(y[:, :1], _ONE), y), 1)
    rows, columns, scale = _triangle(y.shape[1] + 1, y.device)
    return whole[:, rows] * whole[:, columns] * scale


def shared_in(size: int) -> int:
    """Entries of `products` that are of y alone, the last ones."""
    return size * (size + 1) // 2


def _triangle(side: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and factors of a symmetric matrix's entries on and above the diagonal."""
    rows, columns = torch.triu_indices(side, side, device=device)
    return rows, columns, torch.where(rows == columns, 1.0, 2**0.5) / (1 + _ONE**2)


def _matrices(means: Tensor, size: int) -> Tensor:
    """Means of `products` `[G, …]` as symmetric matrices of those of (1, y), float64 `[G, d + 1, d + 1]`."""
    rows, columns, scale = _triangle(size + 1, means.device)
    found = means.new_zeros((len(means), size + 1, size + 1), dtype=torch.float64)
    found[:, rows, columns] = found[:, columns, rows] = means.double() / scale
    found[:, 0] /= _ONE
    found[:, :, 0] /= _ONE
    return found


@dataclass(frozen=True)
class Spread:
    """What images of a search are to differ by.

    Attributes:
        centres: float32 `[G, d]`, y of each label's images on average.
        directions: float32 `[d, d]`, what differences from them are multiplied by; columns of 0 for no direction.
        goal: float32 `[d, d]`, the mean over all images of the products of what that gives.
    """

    centres: Tensor
    directions: Tensor
    goal: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        """All of them."""
        return [self.centres, self.directions, self.goal]

    def distance(self, y: Tensor, labels: Tensor, *, unbiased: bool) -> Tensor:
        """The squared error of a batch's mean products, `y` `[B, d]` with labels int64 `[B]`: a scalar.

        unbiased: without what a batch's own size adds, see `FeatureMap.aims`.
        """
        z = (y - self.centres[labels]) @ self.directions
        found, share = z.T @ z / len(z), 1 - 1 / len(z) if unbiased else 1.0
        total = (found - share * self.goal).square().sum()
        return total - z.square().sum(1).square().sum() / len(z) ** 2 if unbiased else total


def spread_of(real: Tensor, target: Tensor, shares: Tensor, size: int, share: float) -> Spread:
    """What a search towards a target is to match.

    Args:
        real: means of `products` of real images, `[G, (d + 1)(d + 2) / 2]`, each label's sum over all images' number.
        target: what the search is towards, as many.
        shares: each label's share of the images, `[G]`.
        size: d.
        share: of the steps that see the view in which these are matched.
    """
    found, wanted, shares = _matrices(real, size), _matrices(target, size), shares.double()
    centres = found[:, 0, 1:] / shares.clamp(min=1e-12)[:, None]
    variances, vectors = torch.linalg.eigh(_within(found, centres, shares))
    floor = torch.maximum(_FLOOR * variances[-1], -_NOISE * variances[0])
    kept = variances > floor
    scales = torch.where(kept, variances.clamp(min=1e-12) ** -0.25, 0)
    square = variances[kept].sum().clamp(min=1e-12)  # of the products that real images come to
    directions = vectors * scales * (_WEIGHT / share / square) ** 0.25
    goal = directions.T @ _within(wanted, centres, shares) @ directions
    return Spread(centres.float(), directions.float(), goal.float())


def _within(matrices: Tensor, centres: Tensor, shares: Tensor) -> Tensor:
    """Products of differences from each label's centre, summed over labels: `[d, d]`."""
    crossed = matrices[:, 0, 1:, None] * centres[:, None]
    own = shares[:, None, None] * centres[:, :, None] * centres[:, None]
    return (matrices[:, 1:, 1:] - crossed - crossed.mT + own).sum(0)
