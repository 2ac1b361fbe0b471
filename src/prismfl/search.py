"""Local mask search: (θ, target, plan, draws) → θ_k.  It never sees images or raw moments."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prismfl.features.goals import Goals
from prismfl.features.moving import MovingResidual
from prismfl.generator.latents import spread_normals
from prismfl.generator.layout import Layout
from prismfl.generator.masks import integers_of, masked_weights, score_gradient, scores_of
from prismfl.generator.network import generate
from prismfl.kernels.fused import adam_step, flat_floats
from prismfl.kernels.replay import Programs, Repeated
from prismfl.moments import PRECISIONS, FeatureMap, Target, distance, label_groups
from prismfl.seeding.device import Tape
from prismfl.settings.resolve import SearchPlan, first_rate, masks_searched
from prismfl.settings.schema import Settings

# Gradients of single scores are as small as 1e-9: Adam's usual 1e-8 would drown them.
_TINY = 1e-16
_AGAIN = 0.5  # of the rate where θ goes on from the mask before
_BETA2 = 0.999  # Adam's second decay
_MOVING_RATE = 0.1  # of the moving average of the residual, in root-mean-square residuals
_BFLOAT16 = "_is_avx512_bf16_supported"
_WORTH_COMPILING = 40_000  # steps in which what a compiler takes is gained back (docs/research/speed.md)


@dataclass(frozen=True)
class Memory:
    """What Adam keeps between two searches of a client.

    Attributes:
        first: means of gradients by the scores, float32 `[N]`.
        second: means of their squares, float32 `[N]`.
        steps: that are behind them.
    """

    first: NDArray[np.float32]
    second: NDArray[np.float32]
    steps: int = 0


@dataclass(frozen=True)
class SearchResult:
    """What a local search came to.

    Attributes:
        q: θ_k · 65536, uint16 `[N]`.
        loss: mean squared distance over the steps.
        memory: Adam's, for the client's next search; None where each begins anew.
        finite: whether all numbers were; otherwise the search diverged.
    """

    q: NDArray[np.uint16]
    loss: float
    memory: Memory | None
    finite: bool = True


def rate_at(settings: Settings, round_index: int) -> float:
    """Learning rate of a round: half a cosine from the first to `final_rate` of it, of each mask anew.

    The first rate of a mask that goes on from another is half as large.

    Args:
        settings: resolved ones.
        round_index: from 0.

    Examples:
        >>> from prismfl.settings.resolve import resolved
        >>> from prismfl.settings.toml import settings_from
        >>> settings = resolved(settings_from({"federation": {"rounds": 3}}), channels=1)
        >>> [round(rate_at(settings, turn), 2) for turn in range(3)]
        [1.0, 0.65, 0.3]
    """
    _, first, rounds = phase_of(settings, round_index)
    done = (round_index - first) / max(1, rounds - 1)
    low = settings.search.final_rate
    highest = first_rate(settings) * (_AGAIN if first else 1)
    return highest * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def phase_of(settings: Settings, round_index: int) -> tuple[int, int, int]:
    """Which mask of an ensemble a round searches: its number, its first round, and its rounds.

    Args:
        settings: resolved ones.
        round_index: from 0.

    Examples:
        >>> from prismfl.settings.toml import settings_from
        >>> settings = settings_from({"federation": {"rounds": 5, "mode": "one-shot"}, "search": {"ensemble": 2}})
        >>> [phase_of(settings, turn) for turn in range(5)]
        [(0, 0, 2), (0, 0, 2), (1, 2, 3), (1, 2, 3), (1, 2, 3)]
    """
    rounds, masks = settings.federation.rounds, masks_searched(settings)
    ends = [rounds * (mask + 1) // masks for mask in range(masks)]
    mask = min(sum(end <= round_index for end in ends), masks - 1)
    first = ends[mask - 1] if mask else 0
    return mask, first, ends[mask] - first


def precision_of(name: str, device: str) -> str:
    """`auto` as what it stands for on a device: `bfloat16` where the processor multiplies it, else `float32`.

    Examples:
        >>> precision_of("float32", "cpu"), precision_of("auto", "cpu") in ("bfloat16", "float32")
        ('float32', True)
    """
    if name != "auto":
        return name
    # A private name of torch: where it is gone, the exact precision is a safe answer.
    told = torch.cuda.is_bf16_supported if device.startswith("cuda") else getattr(torch.cpu, _BFLOAT16, bool)
    return "bfloat16" if told() else "float32"


def worth_compiling(device: str, steps: int) -> bool:
    """Whether compiling the step of a run of so many local steps gains more time than it takes."""
    return device.startswith("cuda") and steps >= _WORTH_COMPILING


@contextmanager
def processor_threads(count: int) -> Iterator[None]:
    """So many processor threads inside, as many as before after it: what a search finds depends on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def local_search(
    layout: Layout,
    weights: Tensor,
    features: FeatureMap,
    q: NDArray[np.uint16],
    target: Target,
    plan: SearchPlan,
    rate: float,
    draws: Tape,
    memory: Memory | None = None,
) -> SearchResult:
    """Step 2 of a round: search from θ = q / 65536 for a mask whose images have the target's moments.

    Each of `plan.local_steps` steps draws a mask and latents from `draws`, and takes a step of Adam on the
    scores down the squared MMD, straight through the draw (PRISM's local update).  Same inputs, threads
    and machine: same bytes out.

    Args:
        layout: the generator's shape.
        weights: frozen ones, float32 `[N]`, on the device that computes.
        features: the map that images are matched by.
        q: θ · 65536, uint16 `[N]`.
        target: moments of the client's images.
        plan: what one search does, see `settings.resolve.plan_of`.
        rate: Adam's step on the scores, see `rate_at`.
        draws: public randomness of the round and client.
        memory: Adam's, of the client's last search; None begins anew.

    Returns:
        θ_k, the mean loss, and Adam's memory.

    Examples:
        >>> from prismfl.features.networks import load_features
        >>> from prismfl.generator.layout import Layout, frozen_weights
        >>> from prismfl.moments import FeatureMap
        >>> from prismfl.seeding.device import Tape
        >>> from prismfl.seeding.philox import Purpose, Stream
        >>> from prismfl.settings.resolve import Matching, SearchPlan
        >>> layout = Layout(size=16, channels=1, width=2, latent=8)
        >>> weights = torch.from_numpy(frozen_weights(layout, 0).copy())
        >>> features = FeatureMap(load_features("vgg"), Matching(layers=(0, 1)), channels=1, size=16)
        >>> target = features.target(np.zeros((10, 1, 16, 16), np.uint8))
        >>> q, plan = np.full(layout.count, 32768, np.uint16), SearchPlan(local_steps=2, batch_size=4)
        >>> result = local_search(layout, weights, features, q, target, plan, 0.1, Tape(Stream(0, Purpose.SEARCH)))
        >>> result.finite, result.q.shape == q.shape, bool((result.q != q).any())
        (True, True, True)
    """
    return _station(layout, weights, features, target, plan, draws).search(q, target, rate, draws, memory)


class _Station:
    """Where searches take place, one after another, in tensors that stay: on a GPU one recorded step serves them all.

    searcher: its target and draws are of the sizes and the seed of those that searches come with.
    """

    def __init__(self, searcher: "Searcher", programs: Programs | None) -> None:
        self.searcher, self.plan, self.device = searcher, searcher.plan, searcher.weights.device
        count = searcher.layout.count
        self.adam = _Adam(self.plan.beta1, count, self.device)
        self.scores = torch.zeros(count, device=self.device)
        self.rate = torch.zeros((), dtype=torch.float64, device=self.device)
        # Of one entry, not a scalar: torch's compiler drops sums into double scalars where it takes them for numbers.
        self.total = torch.zeros(1, dtype=torch.float64, device=self.device)
        told = [self.scores, self.rate, self.total, *self.adam.tensors, *searcher.tensors]
        # A moving average counts its own steps, outside of tensors.
        self.repeated = Repeated(self._step, told, programs, recorded=self.plan.loss != "moving")

    def search(
        self, q: NDArray[np.uint16], target: Target, rate: float, draws: Tape, memory: Memory | None
    ) -> SearchResult:
        """One client's search.  Nothing waits for the device before all steps are taken."""
        self.searcher.turn_to(target, draws)
        self.adam.load(memory)
        self.scores.copy_(scores_of(q, self.device))
        self.rate.fill_(rate)
        self.total.zero_()
        self.repeated.take(self.plan.local_steps)
        draws.follow(self.searcher.draws)
        loss = float(self.total / self.plan.local_steps)
        finite = math.isfinite(loss) and bool(self.adam.first.isfinite().all())
        kept = self.adam.memory() if self.plan.keeps_adam else None
        return SearchResult(integers_of(self.scores), loss, kept, finite)

    def _step(self) -> None:
        gradient, loss = self.searcher.gradient(torch.sigmoid(self.scores))
        self.adam.step(self.scores, gradient, self.rate)
        self.total.add_(loss)


_here = threading.local()  # a thread's own station: its tensors are in use while it searches
_programs: "WeakKeyDictionary[FeatureMap, dict[Any, Programs]]" = WeakKeyDictionary()


def _reusable(device: torch.device) -> bool:
    """Whether a search of another client pays for keeping tensors: what is recorded there can be replayed."""
    return device.type != "cpu"


def _station(
    layout: Layout, weights: Tensor, features: FeatureMap, target: Target, plan: SearchPlan, draws: Tape
) -> _Station:
    """A new station; on a GPU this thread's last one, where it was for the same world."""
    spread = target.real is not None
    world = layout, plan, draws.stream.seed, draws.stream.purpose, weights.data_ptr(), spread
    kept: tuple[Any, FeatureMap, _Station] | None = getattr(_here, "station", None)
    if kept is not None and kept[0] == world and kept[1] is features:
        return kept[2]
    stays = _reusable(weights.device) and plan.loss != "moving"  # a moving average begins anew
    plain = plan.compiled
    mine = Tape(draws.stream, draws.device, plain=plain, common=draws.common) if stays else draws
    programs = _programs.setdefault(features, {}).setdefault(world, {}) if plain else None
    station = _Station(Searcher(layout, weights, features, target, plan, mine), programs)
    if stays:
        _here.station = world, features, station
    return station


class Searcher:
    """One client's loss and its gradient by the scores: what a step of `local_search` computes."""

    def __init__(
        self, layout: Layout, weights: Tensor, features: FeatureMap, target: Target, plan: SearchPlan, draws: Tape
    ) -> None:
        self.layout, self.plan, self.draws = layout, plan, draws
        precision = precision_of(plan.precision, weights.device.type)
        self.weights, self.dtype = weights, PRECISIONS[precision]
        self.features = features.in_precision(precision)
        self.target = torch.tensor(target.moments, device=weights.device)
        self.shares = torch.tensor(target.shares, device=weights.device)
        self.goals = self._aims(target.real)
        self.moving = MovingResidual(self.target, _MOVING_RATE)
        self.tensors = [*self.goals.tensors, self.shares, *draws.tensors]

    def turn_to(self, target: Target, draws: Tape) -> None:
        """Another client's target and draws, in the tensors that are there."""
        self.target.copy_(torch.from_numpy(target.moments))
        self.shares.copy_(torch.from_numpy(target.shares))
        for mine, theirs in zip(self.goals.tensors, self._aims(target.real).tensors, strict=True):
            mine.copy_(theirs)
        self.draws.follow(draws)

    def _aims(self, real: NDArray[np.float32] | None) -> Goals:
        if self.plan.loss == "unbiased":
            goals = self.features.aims(self.target, self.shares, self.plan.batch_size)
        else:
            goals = self.features.split(self.target)
        if real is None:
            return goals
        spread = self.features.spread(self.target, torch.from_numpy(real).to(self.target.device), self.shares)
        return replace(goals, spread=spread)

    def gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient by the scores `[N]` and the squared distance of one batch, a scalar.

        A soft mask's is exact: θ itself scales the weights, and nothing is drawn.
        """
        if self.plan.mask == "soft":
            flat = (self.weights * theta).to(self.dtype).requires_grad_()
        else:
            flat = masked_weights(self.weights, theta, self.draws, self.dtype)
        loss, measured = self.losses(flat)
        (weight_gradient,) = torch.autograd.grad(loss, flat)
        return score_gradient(weight_gradient, self.weights, theta), measured.detach()

    def losses(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """What is descended, and the squared distance, of a batch made with weights `[N]`."""
        size = self.plan.batch_size
        latents = spread_normals(self.draws, size, self.layout.latent)
        labels = batch_labels(self.shares, size, self.draws).sort().values
        images = generate(self.layout, flat.to(self.dtype), latents.to(self.dtype), labels=labels)
        turns = self.features.framing.drawn(self.draws)
        if self.plan.loss != "moving":
            measured = self.features.squared_distance(images, labels, self.goals, turns)
            return measured, measured
        moments = self.features.moments(images, label_groups(labels, self.layout.classes), turns)
        return self.moving.loss(moments), distance(moments, self.target)


def batch_labels(shares: Tensor, count: int, draws: Tape) -> Tensor:
    """Labels of a batch by systematic sampling, each label's number within 1 of its share.

    The order of labels is shuffled first, so that none is favoured.

    Args:
        shares: each label's, float64 `[G]` of sum 1.
        count: how many.
        draws: public randomness.

    Returns:
        int64 `[count]`.

    Examples:
        >>> from prismfl.seeding.philox import Purpose, Stream
        >>> shares = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
        >>> batch_labels(shares, 8, Tape(Stream(0, Purpose.SEARCH))).bincount().tolist()
        [4, 2, 2]
    """
    order = draws.order(len(shares))
    edges = shares[order].cumsum(0)
    points = (torch.arange(count, dtype=torch.float64, device=shares.device) + draws.uniforms(1)) * (edges[-1] / count)
    return order[torch.searchsorted(edges, points, right=True).clamp_(max=len(shares) - 1)]


class _Adam:
    """Adam (Kingma, Ba 2015) on a client's scores, `[N]`."""

    def __init__(self, beta1: float, count: int, device: torch.device) -> None:
        self.betas = beta1, _BETA2
        self.steps = torch.zeros((), dtype=torch.float64, device=device)
        self.first, self.second = (torch.zeros(count, device=device) for _ in range(2))
        self.tensors = [self.steps, self.first, self.second]

    def load(self, memory: Memory | None) -> None:
        """Go on from what a client keeps, or begin anew."""
        if memory is None:
            for one in self.tensors:
                one.zero_()
            return
        self.steps.fill_(memory.steps)
        self.first.copy_(torch.from_numpy(memory.first))
        self.second.copy_(torch.from_numpy(memory.second))

    def step(self, scores: Tensor, gradient: Tensor, rate: Tensor) -> None:
        """Move the scores in place by one step of size `rate`, float64."""
        self.steps += 1
        beta1, beta2 = self.betas
        if flat_floats(scores, gradient):
            steps = int(self.steps)
            by = float(rate) / (1 - beta1**steps)
            adam_step(scores, gradient, self.first, self.second, self.betas, by, 1 - beta2**steps, _TINY)
            return
        self.first.lerp_(gradient, 1 - beta1)
        self.second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        # As numbers on the device, which a recorded step computes anew each time.
        length, correction = (1 - beta**self.steps for beta in self.betas)
        root = (self.second / correction.float()).sqrt_().add_(_TINY)
        scores.sub_(self.first / root * (rate / length).float())

    def memory(self) -> Memory:
        """The moments as NumPy arrays."""
        first, second = (kept.to("cpu", copy=True).numpy() for kept in (self.first, self.second))
        return Memory(first, second, int(self.steps))
