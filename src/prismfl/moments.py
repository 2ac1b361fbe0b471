"""Moments of feature maps, and the squared distance of fake moments from a target.

With the kernel k(x, y) = ⟨ψ(x), ψ(y)⟩ of a feature vector ψ, the squared maximum mean discrepancy is the squared
distance of mean feature vectors (Gretton et al. 2012).  Here ψ stacks, for each layer, the unit vectors `f = φ / ‖φ‖`
and `g = φ² / ‖φ²‖` of its flattened map φ, and what tones and colours an image has in its cells
(`features/framing.py`), with weights w_j whose squares sum to 1, so that ‖ψ(x)‖ ≤ 1 for every image.

An image may be matched at shifts of some pixels (`features/framing.py`): real ones take all shifts in turn,
a batch of generated ones is shifted at random.  ψ(x) is then that of the shifted image: no norm grows.
And it may be matched in windows besides: ψ(x) then stacks what the network makes of the whole and of each window, each
times the root of its share p_v, Σ p_v = 1.  A batch is seen in one view, drawn with probability p_v: in expectation
its squared distance from that view's goal is the distance of the whole ψ.
Products of the entries of a summary may be part of ψ too (`features/summary.py`).  They are not matched as they are:
a search that has real images' moments beside its target matches them in directions that these tell.
Where images have labels, the kernel is that of pairs, k((x, y), (x', y')) = [y = y'] k(x, x'): ψ(x) stands in the
block of its label, 0 in the others, still of norm ≤ 1; the moments of n images are each label's sum divided by n.
Products of y with itself, which only count summed over labels, stand in the first block whatever the label: so noise
is added to them once and not once a label.
"""

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from prismfl.errors import DataError, SettingError
from prismfl.features.framing import Framing, mean_colours, tone_histograms
from prismfl.features.goals import Goals
from prismfl.features.networks import Activation, LoadedNet, rectify
from prismfl.features.summary import Spread, Summary, products, products_in, shared_in, spread_of
from prismfl.kernels.fused import fusible, matched
from prismfl.kernels.matching import UnitDistance, UnitMoments, own_label
from prismfl.kernels.replay import wait_for_device
from prismfl.settings.resolve import Matching

_AT_A_TIME = 64  # images that a network sees in one pass where each is seen in several windows
_PRODUCTS = 0.5  # of products of a summary in ψ, where first moments have 1
_PAIRS = 4  # images of a label in a batch from which on pairs alone are matched
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Target:
    """What a client's images contribute, and all that its search ever sees of them.

    Attributes:
        moments: float32 `[G · D]`, weighted, one block of D a label (G = 1 without labels).
        images: the number that they are the mean of.
        shares: each label's share of the images, float64 `[G]`.
        real: moments of real images, float32 `[G · D]`, where a search towards the target is to match how these differ.
    """

    moments: NDArray[np.float32]
    images: int
    shares: NDArray[np.float64] = field(default_factory=lambda: np.ones(1))
    real: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Block:
    """Consecutive entries of a vector ψ: how many, and their weight w_j in it.

    signed: whether some may be below 0; inner products of two such parts are not.
    """

    size: int
    weight: float
    signed: bool = False


def label_means(labels: Tensor, classes: int) -> Tensor:
    """Weights that average a batch within each label: int64 `[B]` → float32 `[max(1, classes), B]`."""
    groups = label_groups(labels, classes)
    return groups / groups.sum(1, keepdim=True).clamp_(min=1e-12)


def label_groups(labels: Tensor, classes: int) -> Tensor:
    """Weights that sum a batch by label over its size: int64 `[B]` → float32 `[classes, B]`; no classes: `[1, B]`."""
    if not classes:
        return torch.full((1, len(labels)), 1 / len(labels), device=labels.device)
    return own_label(labels, classes).T.float() / len(labels)


class FeatureMap:
    """Images → weighted moments ψ̄, through a frozen feature network.  Raises SettingError when a layer does not exist.

    Attributes:
        dimension: D, the entries of one group's moments: of maps, of squares of maps, tones, products of a summary.
        shared: the last of them, that stand in the first group's moments for all groups.
        blocks: which entries are what, in order; the norm of each block of a vector is at most its weight.

    Examples:
        >>> from prismfl.features.networks import load_features
        >>> features = FeatureMap(load_features("vgg"), Matching(), channels=1, size=16)
        >>> images, labels = np.zeros((4, 1, 16, 16), np.uint8), np.array([0, 0, 0, 1])
        >>> target = features.target(images, labels, classes=2)
        >>> target.moments.shape == (2 * features.dimension,), target.shares.tolist()
        (True, [0.75, 0.25])
        >>> float(distance(features.moments(-torch.ones(4, 1, 16, 16)), features.vectors(images).mean(0))) < 1e-9
        True
    """

    shared = 0

    def __init__(self, loaded: LoadedNet, matching: Matching, channels: int, size: int) -> None:
        self.net, self.matching, self.sha256 = loaded.net, matching, loaded.sha256
        self.framing = Framing(size, matching.scale, matching.shift, matching.windows)
        self._others: dict[str, FeatureMap] = {}  # in other precisions: made once, for every client
        self.layers = matching.layers or loaded.net.matched
        self.last = max(self.layers, default=None)
        blank = torch.zeros((1, channels, size, size))
        maps = self._stages(blank)
        self.layers = self.layers or tuple(range(len(maps)))
        if max(self.layers) >= len(maps):
            raise SettingError(f"layers {list(self.layers)}", f"numbers in 0 … {len(maps) - 1}", "match others")
        self.sizes = tuple(maps[layer][0].numel() for layer in self.layers)
        self.sides = tuple(phi.shape[-1] for phi in maps)  # of all stages, as they are matched
        second, tone, maps_in = matching.second_weight, matching.tone_weight, len(self.layers)
        self.seconds, self.tones = second > 0, tone > 0
        pairing = _PRODUCTS if matching.summary else 0.0
        share = 1 / (maps_in * (1 + second + tone + pairing))
        self.weights = tuple((share * part) ** 0.5 for part in (1.0, second, tone * maps_in / 2, pairing * maps_in))
        # Maps after ReLU and squares are never below 0.
        pairs = [(size, weight) for size in self.sizes for weight in self.weights[: 1 + self.seconds]]
        of_maps = [Block(size, weight * share**0.5) for share in self.framing.shares for size, weight in pairs]
        self.blocks = (*of_maps, *(Block(found.shape[1], self.weights[2]) for found in self._toned(blank)))
        self.summary: Summary | None = None
        if matching.summary:
            widths = [maps[layer].shape[1] for layer in self.layers]
            self.summary = Summary(self.net, self.layers, widths, matching.summary)
            self.blocks += (Block(products_in(matching.summary), self.weights[3], signed=True),)
            self.shared = shared_in(matching.summary)
        self.dimension = sum(block.size for block in self.blocks)

    def to(self, device: str) -> "FeatureMap":
        """Move the network to a device; returns itself."""
        self.net.to(device)
        self.framing.to(device)
        if self.summary is not None:
            self.summary.to(device)
        self._others = {}
        return self

    def in_precision(self, name: str) -> "FeatureMap":
        """The same map with a network that computes in `float32` or `bfloat16`; moments stay float32."""
        if name == "float32":
            return self
        if name not in self._others:
            found = copy.copy(self)
            found.net = copy.deepcopy(self.net).to(dtype=PRECISIONS[name])
            found.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            wait_for_device(next(found.net.parameters()).device)
            self._others[name] = found
        return self._others[name]

    def _stages(self, x: Tensor, activate: Activation = rectify, turns: Tensor | None = None) -> list[Tensor]:
        shown = self.framing(x, turns).contiguous(memory_format=torch.channels_last)
        return self.net.stages(shown, self.last, activate, self.matching.pool)

    def moments(self, x: Tensor, groups: Tensor | None = None, turns: Tensor | None = None) -> Tensor:
        """Sums of ψ of images `[B, C, H, W]` in [-1, 1]: float32 `[G · D]`, differentiable.

        groups: float32 `[G, B]`, each image's weight in each sum (`label_groups`); None: the mean.
        turns: the shifts at which whole images are seen, int64 `[1]` or `[B]`; None: as they are.
        """
        if groups is None:
            groups = torch.full((1, len(x)), 1 / len(x), device=x.device)
        parts, summaries = list[Tensor](), list[Tensor]()
        for maps, share in zip(self._views(x, turns), self.framing.shares, strict=True):
            for layer in self.layers:
                sums = UnitMoments.apply(_flat(maps[layer]).float(), groups)  # type: ignore[no-untyped-call]
                weights = [weight * share**0.5 for weight in self.weights[: 1 + self.seconds]]
                parts += [part * weight for part, weight in zip(sums, weights, strict=False)]
            if self.summary is not None and not summaries:  # of the first view, the whole
                summaries.append(self.summary([maps[layer] for layer in self.layers]))
        parts += [groups @ found for found in self._toned(x)]
        parts += [groups @ (products(y) * self.weights[3]) for y in summaries]
        return torch.cat(parts, 1).flatten()

    def _views(self, x: Tensor, turns: Tensor | None) -> Iterator[list[Tensor]]:
        """Maps of each view, of few images several views at a time: a pass has its price, however few it sees."""
        if not self.framing.windows:
            yield self._stages(x, turns=turns)
            return
        count, views = len(x), self.framing.seen(turns, len(x))
        for some in views.split(max(1, _AT_A_TIME // count)):
            maps = self._stages(x.repeat(len(some), 1, 1, 1), turns=some.flatten())
            yield from ([phi[at * count : (at + 1) * count] for phi in maps] for at in range(len(some)))

    def squared_distance(self, x: Tensor, labels: Tensor, goals: Goals, turns: Tensor | None = None) -> Tensor:
        """`distance` of the moments by label of images `[B, C, H, W]` from a target, in fewer passes: a scalar.

        With windows that of one view, whose expectation it is.  labels: int64 `[B]`, ascending; goals: as `split` makes
        them; turns: the shift or window, int64 `[1]`, as `Framing.drawn` draws it; None: the whole, as it is.
        """
        view = self.framing.view_of(turns)
        passing = _Passing(self, labels, goals.seen(view))
        maps = self._stages(x, passing.activate, turns)
        for layer in self.layers:
            passing.add_map(layer, maps[layer])
        for found in self._toned(x):
            passing.add_mean(found)
        if self.summary is not None and goals.spread is not None and not _is_window(view):
            passing.add_spread(self.summary([maps[layer] for layer in self.layers]), view)
        return passing.total()

    def aims(self, target: Tensor, shares: Tensor, batch: int) -> Goals:
        """Goals `[G · D]` at which a batch of labels in these shares, `[G]`, is to aim so that its expectation hits.

        Of n images' mean f̄, E‖f̄‖² is ‖E f‖² (n - 1)/n + E‖f‖²/n: descending ‖f̄ - t‖² overshoots, to images too
        much alike.  Without each image's own square, and with t (n - 1)/n, the least is where E f = t (it is the
        U-statistic of Gretton et al. 2012, lemma 6, up to a factor).  The own squares of unit vectors are constant.  Of
        few images of a label that would leave hardly any pair: there a part of it is done, as if there were four.
        """
        counts = (shares * batch).clamp(min=1e-9)
        own = (counts / _PAIRS).clamp(max=1)
        rows = target.view(len(shares), -1) * (1 - own / counts)[:, None].to(target.dtype)
        return replace(self.split(rows.flatten()), own=own.float())

    def spread(self, target: Tensor, real: Tensor, shares: Tensor) -> Spread | None:
        """How images are to differ, by a target and by real images' moments, `[G · D]` each; None without a summary."""
        if self.summary is None:
            return None
        size, rows = self.matching.summary, (len(shares), -1)
        wanted, found = (part.view(rows)[:, -products_in(size) :] / self.weights[3] for part in (target, real))
        return spread_of(found, wanted, shares, size, self.framing.shares[0])

    def split(self, target: Tensor) -> Goals:
        """Moments `[G · D]` as `squared_distance` takes them.

        A processor matches a layer at a time, while it is in a near cache; other devices all layers together.
        """
        parts = target.view(-1, self.dimension).split([block.size for block in self.blocks], 1)
        each, shares = 1 + self.seconds, self.framing.shares
        a_view = each * len(self.layers)
        end = a_view * len(shares)
        of_maps, means = parts[:end], parts[end : end + 2 * self.tones]
        # Each view by itself, whatever its share.
        views = [[part / p**0.5 for part, p in zip(of_maps[n::a_view], shares, strict=True)] for n in range(a_view)]
        blocks = [of[0].contiguous() if len(of) == 1 else torch.stack(of) for of in views]
        goals = Goals(blocks[::each], blocks[1::each] if self.seconds else [], [part.contiguous() for part in means])
        return goals if target.device.type == "cpu" else goals.joined()

    def _toned(self, x: Tensor) -> Iterator[Tensor]:
        """Weighted tones, `[B, d]` each."""
        if self.tones:
            yield mean_colours(x.float()) * self.weights[2]
            yield tone_histograms(x.float()) * self.weights[2]

    @torch.no_grad()
    def vectors(self, images: NDArray[np.uint8], first: int = 0) -> Tensor:
        """ψ of each of uint8 images `[B, C, H, W]`: float32 `[B, D]`, of norm ≤ 1 up to rounding.

        first: the number of the first of them in its set, which says at what shift it is seen.
        """
        x = torch.from_numpy(images).to(next(self.net.parameters()).device).float().div_(127.5).sub_(1)
        turns = self.turns_of(torch.arange(first, first + len(x), device=x.device))
        return self.moments(x, torch.eye(len(x), device=x.device), turns).view(len(x), -1)

    def turns_of(self, numbers: Tensor) -> Tensor:
        """At what shift images of a set are seen, by their numbers in it: all in turn, int64 `[B]`."""
        return numbers % self.framing.turns

    @torch.no_grad()
    def target(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64] | None = None, classes: int = 0, batch: int = 100
    ) -> Target:
        """The moments of a client's images, summed in double precision.

        Args:
            images: uint8 `[n, C, H, W]`.
            labels: int64 `[n]` below `classes`, where moments are kept by label.
            classes: number of labels, 0 for none.
            batch: images that are looked at together.

        Raises:
            DataError: when there is no image or a moment is not finite.
        """
        if not len(images):
            raise DataError("a client without images", "at least one image", "leave the client out")
        device = next(self.net.parameters()).device
        total = torch.zeros(max(1, classes) * self.dimension, dtype=torch.float64, device=device)
        tags = torch.zeros(len(images), dtype=torch.int64) if labels is None else torch.from_numpy(labels)
        for start in range(0, len(images), batch):
            part = torch.from_numpy(images[start : start + batch]).to(device)
            groups = label_groups(tags[start : start + batch].to(device), classes)
            turns = self.turns_of(torch.arange(start, start + len(part), device=device))
            total += self.moments(part.float().div_(127.5).sub_(1), groups, turns).double() * len(part)
        rows = total.view(-1, self.dimension)
        common = rows[:, self.dimension - self.shared :]  # of which the sum over labels is all that counts
        common[0] = common.sum(0)
        common[1:] = 0
        moments = (total / len(images)).float().cpu().numpy()
        if not np.isfinite(moments).all():
            raise DataError(
                "moments that are not finite", "finite features", "check the images and the feature network"
            )
        return Target(moments, len(images), label_shares(tags.numpy(), classes))

    def fingerprint(self) -> str:
        """Names this map: equal fingerprints give equal moments of equal images."""
        text = repr((self.sha256, self.sizes, self.matching))
        return hashlib.sha256(text.encode()).hexdigest()


class _Passing:
    """The squared distance of a batch, taken while the network makes the maps: the sum of `totals`.

    Where the kernels can, a layer is matched where its ReLU would be, in the same passes, and else afterwards.
    """

    def __init__(self, of: FeatureMap, labels: Tensor, goals: Goals) -> None:
        self.of, self.labels, self.goals = of, labels, goals
        self.places = {layer: place for place, layer in enumerate(of.layers)}
        self.scales = [weight / len(labels) for weight in of.weights[: 1 + of.seconds]]
        self.groups, self.stage = len(goals.units[0]), -1
        self.met, self.left, self.means = set[int](), dict[int, Tensor](), iter(goals.means)
        self.totals = list[Tensor]()

    def activate(self, x: Tensor, pool: bool) -> tuple[Tensor, Tensor]:
        """`rectify` of a stage, matched in passing where that can be."""
        self.stage += 1
        whole = self.stage in self.places and x.shape[-1] == self.of.sides[self.stage]
        return self._met(self.stage, x, rectify=True, pool=pool) if whole and fusible(x) else rectify(x, pool)

    def add_map(self, layer: int, phi: Tensor) -> None:
        """Match a map that was not matched in passing, or keep it for the end."""
        if layer not in self.met and fusible(phi):
            self._met(layer, phi, rectify=False)
        elif layer not in self.met:
            self.left[self.places[layer]] = _flat(phi)

    def add_mean(self, found: Tensor) -> None:
        """Match the sums by label of features `[B, d]`."""
        self.totals.append(distance(label_groups(self.labels, self.groups) @ found, next(self.means)))
        if (own := self.goals.own) is not None:
            self.totals.append(found.square().sum(1) @ own[self.labels] / -(len(found) ** 2))

    def add_spread(self, y: Tensor, view: Tensor | None) -> None:
        """Match how images differ, by their summaries `[B, d]`, where they are seen whole."""
        assert self.goals.spread is not None
        found = self.goals.spread.distance(y, self.labels, unbiased=self.goals.own is not None)
        self.totals.append(found if view is None else torch.where(view[0] == 0, found, 0))

    def total(self) -> Tensor:
        """The sum of all squared distances, a scalar."""
        if self.left:
            goals = self.goals.of_maps(list(self.left))
            found = UnitDistance.apply(self.labels, self.scales, goals, *self.left.values())  # type: ignore[no-untyped-call]
            self.totals.append(found)
        return torch.stack(self.totals).sum()

    def _met(self, layer: int, x: Tensor, *, rectify: bool, pool: bool = False) -> tuple[Tensor, Tensor]:
        goals = self.goals.of_maps([self.places[layer]])
        phi, found, goes_on = matched(x, self._starts, goals, self.scales, rectify=rectify, pool=pool)
        self.totals.append(found.sum())
        self.met.add(layer)
        return phi, goes_on

    @cached_property
    def _starts(self) -> Tensor:
        """The first image of each label, and the number of images: int64 `[G + 1]`."""
        counts = own_label(self.labels, self.groups).sum(0)
        return F.pad(counts.cumsum(0), (1, 0))


def _is_window(view: Tensor | None) -> bool:
    """Whether a processor sees a window of images: elsewhere what a view says is not waited for."""
    return view is not None and view.device.type == "cpu" and bool(view)


def _flat(maps: Tensor) -> Tensor:
    """`[B, C, H, W]` → `[B, H · W · C]`: free where it lies channels last, and the order is ours to choose."""
    return maps.permute(0, 2, 3, 1).flatten(1)


def label_shares(labels: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """Each label's share: float64 `[classes]`, or `[1]` without classes."""
    return np.bincount(labels, minlength=classes) / len(labels) if classes else np.ones(1)


def distance(moments: Tensor, target: Tensor) -> Tensor:
    """Squared MMD of the stacked kernel: `‖ψ̄_fake - ψ̄_real‖²`, a scalar."""
    return (moments - target).square().sum()
