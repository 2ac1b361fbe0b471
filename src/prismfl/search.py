"""Local mask search: (θ, target, settings, draws) → θ_k.  It never sees images or raw moments."""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prismfl.config import Search, Settings
from prismfl.layout import Layout
from prismfl.mmd import PRECISIONS, FeatureMap, Goals, MovingResidual, Target, batch_groups, distance, label_groups
from prismfl.nets.fused import adam_step, flat_floats
from prismfl.nets.generator import generate, generate_many
from prismfl.nets.latents import spread_normals
from prismfl.nets.masked import integers_of, masked_weights, score_gradient, scores_of
from prismfl.nets.replay import Programs, Repeated
from prismfl.nets.tape import Tape
from prismfl.seeding import Purpose, Stream

# Gradients of single scores are as small as 1e-9: Adam's usual 1e-8 would drown them.
_TINY = 1e-16
_BFLOAT16 = "_is_avx512_bf16_supported"
_ROOM = 2**30  # bytes that a batch of clients may take of a processor's memory
_COPIES = 8  # of each map and weight that a step holds at its peak
_TRIED, _TRIAL_STEPS = 4, 20  # clients that are timed together, and steps of theirs
_WORTH_COMPILING = 40_000  # steps in which what a compiler takes is gained back (docs/speed.md)


@dataclass(frozen=True)
class Memory:
    """Adam's moments, float32 `[N]` each, and the number of steps behind them."""

    first: NDArray[np.float32]
    second: NDArray[np.float32]
    steps: int = 0


@dataclass(frozen=True)
class Found:
    """Result of a local search: θ_k as integers uint16 `[N]`, the mean loss, Adam's memory unless it begins anew.

    finite: whether all numbers were; otherwise the search diverged.
    """

    q: NDArray[np.uint16]
    loss: float
    memory: Memory | None
    finite: bool = True


def rate_at(settings: Settings, round_index: int) -> float:
    """Learning rate of a round: half a cosine from the first to `final_rate` of it."""
    done = round_index / max(1, settings.federation.rounds - 1)
    low = settings.search.final_rate
    return settings.first_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def precision_of(name: str, device: str) -> str:
    """`auto` as what it stands for on a device: `bfloat16` where the processor multiplies it, else `float32`."""
    if name != "auto":
        return name
    # A private name of torch: where it is gone, the exact precision is a safe answer.
    told = torch.cuda.is_bf16_supported if device.startswith("cuda") else getattr(torch.cpu, _BFLOAT16, bool)
    return "bfloat16" if told() else "float32"


def compile_of(settings: Search, device: str, searches: int) -> str:
    """`compile` as it stands for a run of so many searches: `on` where it gains more time than it takes."""
    if settings.compile != "auto":
        return settings.compile
    return "on" if device.startswith("cuda") and searches * settings.local_steps >= _WORTH_COMPILING else "off"


def batching_of(
    settings: Search, layout: Layout, features: FeatureMap, weights: Tensor, clients: int
) -> tuple[str, int]:
    """`batching` and `batch_clients` as they stand for a run: `none` or `vmap`, and clients in one batch.

    `auto` is `none` on a processor and where steps are compiled, for there batches gained a tenth at most
    (docs/decisions.md), and elsewhere what a short measurement with a few of the round's clients found faster.
    """
    most = min(clients, settings.batch_clients or _clients_in_room(settings, layout, features, weights.device))
    if settings.batching != "auto":
        return settings.batching, most
    open_to_both = weights.device.type != "cpu" and settings.compile != "on" and most > 1
    faster = open_to_both and faster_together(layout, weights, features, settings, most)
    return ("vmap" if faster else "none"), most


def _clients_in_room(settings: Search, layout: Layout, features: FeatureMap, device: torch.device) -> int:
    """Clients whose searches together take a share of the memory: a rule of thumb, on the large side."""
    room = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else _ROOM
    maps = sum(features.sizes) + 6 * layout.widths[-1] * layout.size**2
    return max(1, room // (4 * (_COPIES * settings.batch_size * maps + _COPIES * layout.count)))


def faster_together(layout: Layout, weights: Tensor, features: FeatureMap, settings: Search, clients: int) -> bool:
    """Whether a few clients search together in less time than one after another, here and now."""
    many, trial = min(clients, _TRIED), replace(settings, local_steps=_TRIAL_STEPS, compile="off", adam="reset")
    classes = max(1, layout.classes)
    nothing = Target(np.zeros(classes * features.dimension, np.float32), 1, np.full(classes, 1 / classes))
    q = np.full(layout.count, 32768, np.uint16)
    draws = [Tape(Stream(0, Purpose.SEARCH, 0, client), weights.device) for client in range(many)]

    def together() -> None:
        search_many(layout, weights, features, [q] * many, [nothing] * many, trial, 1.0, draws, [None] * many)

    def alone() -> None:
        local_search(layout, weights, features, q, nothing, trial, 1.0, draws[0])

    return _seconds(together) < many * _seconds(alone)


def _seconds(search: Callable[[], None]) -> float:
    """Least time of a search, after one that makes what is made once."""
    found = []
    for _ in range(3):
        begun = time.perf_counter()
        search()
        found.append(time.perf_counter() - begun)
    return min(found[1:])


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
    settings: Search,
    rate: float,
    draws: Tape,
    memory: Memory | None = None,
) -> Found:
    """Search from θ = q / 65536 for `local_steps` steps of Adam on the scores.

    weights: frozen, float32 `[N]`; q: uint16 `[N]`; target moments `[D]`.  A step draws a mask
    and latents from `draws`, and descends the squared MMD straight through the draw (paper,
    local step).  Same inputs, threads and machine: same bytes out.
    """
    station = _station(False, layout, weights, features, [target], settings, [draws])
    return station.search([q], [target], rate, [draws], [memory])[0]


def search_many(
    layout: Layout,
    weights: Tensor,
    features: FeatureMap,
    qs: Sequence[NDArray[np.uint16]],
    targets: Sequence[Target],
    settings: Search,
    rate: float,
    draws: Sequence[Tape],
    memories: Sequence[Memory | None],
) -> list[Found]:
    """`local_search` of K clients as one batch: what each would find alone, up to rounding.

    The clients share frozen weights and feature network; each has its own θ, target, Adam and tape, from
    which it draws the same numbers in the same order as it would alone.
    """
    station = _station(True, layout, weights, features, targets, settings, draws)
    return station.search(qs, targets, rate, draws, memories)


class _Station:
    """Where searches take place, one after another, in tensors that stay: on a GPU one recorded step serves them all.

    targets, draws: of the sizes and the seed of those that searches come with.
    """

    def __init__(
        self,
        searcher: "Searcher | BatchSearcher",
        layout: Layout,
        settings: Search,
        device: torch.device,
        clients: int,
        programs: Programs | None,
    ) -> None:
        self.searcher, self.settings, self.device = searcher, settings, device
        self.adam = _Adam(settings, layout, device, clients)
        self.start, self.scores = (torch.zeros(clients, layout.count, device=device) for _ in range(2))
        self.rate = torch.zeros((), dtype=torch.float64, device=device)
        self.total = torch.zeros(clients, dtype=torch.float64, device=device)
        told = [self.start, self.scores, self.rate, self.total, *self.adam.tensors, *searcher.tensors]
        # A moving average counts its own steps, outside of tensors.
        self.repeated = Repeated(self._step, told, programs, recorded=settings.loss == "squared")

    def search(
        self,
        qs: Sequence[NDArray[np.uint16]],
        targets: Sequence[Target],
        rate: float,
        draws: Sequence[Tape],
        memories: Sequence[Memory | None],
    ) -> list[Found]:
        """One search of each client.  Nothing waits for the device before all steps are taken."""
        self.searcher.turn_to(targets, draws)
        self.adam.load(memories)
        for row, q in enumerate(qs):
            self.start[row].copy_(scores_of(q, self.device))
        self.scores.copy_(self.start)
        self.rate.fill_(rate)
        self.total.zero_()
        self.repeated.take(self.settings.local_steps)
        for mine, theirs in zip(self.searcher.tapes, draws, strict=True):
            theirs.follow(mine)
        losses = (self.total / self.settings.local_steps).tolist()
        return [self._found(row, q, losses[row]) for row, q in enumerate(qs)]

    def _step(self) -> None:
        gradient, loss = self.searcher.gradient(torch.sigmoid(self.scores).view(self.searcher.shape))
        self.adam.step(self.scores, gradient.view_as(self.scores), self.rate)
        if self.settings.hold:
            self.scores.lerp_(self.start, (self.rate * self.settings.hold).clamp_(max=1).float())
        self.total.add_(loss)

    def _found(self, row: int, q: NDArray[np.uint16], loss: float) -> Found:
        shrunk = _shrunk(integers_of(self.scores[row]), q, self.settings.shrinkage)
        found = _within_reach(shrunk, q, self.settings.reach)
        finite = math.isfinite(loss) and bool(self.adam.first[row].isfinite().all())
        return Found(found, loss, None if self.settings.adam == "reset" else self.adam.memory(row), finite)


_here = threading.local()  # a thread's own station: its tensors are in use while it searches
_programs: "WeakKeyDictionary[FeatureMap, dict[Any, Programs]]" = WeakKeyDictionary()


def _reusable(device: torch.device) -> bool:
    """Whether a search of another client pays for keeping tensors: what is recorded there can be replayed."""
    return device.type != "cpu"


def _station(
    together: bool,
    layout: Layout,
    weights: Tensor,
    features: FeatureMap,
    targets: Sequence[Target],
    settings: Search,
    draws: Sequence[Tape],
) -> _Station:
    """A new station; on a GPU this thread's last one, where it was for the same world."""
    stream = draws[0].stream
    world = layout, settings, together, len(targets), stream.seed, stream.purpose, weights.data_ptr()
    kept: tuple[Any, FeatureMap, _Station] | None = getattr(_here, "station", None)
    if kept is not None and kept[0] == world and kept[1] is features:
        return kept[2]
    stays = _reusable(weights.device) and settings.loss == "squared"  # a moving average begins anew
    plain = settings.compile == "on"
    mine = [Tape(one.stream, one.device, plain=plain, common=one.common) for one in draws] if stays else draws
    searcher: Searcher | BatchSearcher
    if together:
        searcher = BatchSearcher(layout, weights, features, targets, settings, mine)
    else:
        searcher = Searcher(layout, weights, features, targets[0], settings, mine[0])
    programs = _programs.setdefault(features, {}).setdefault(world, {}) if settings.compile == "on" else None
    station = _Station(searcher, layout, settings, weights.device, len(targets), programs)
    if stays:
        _here.station = world, features, station
    return station


def _shrunk(found: NDArray[np.uint16], q: NDArray[np.uint16], by: float) -> NDArray[np.uint16]:
    """θ_k nearer to θ by `by`, and θ where it was nearer than that, uint16 `[N]`: soft thresholding (Donoho 1995).

    Short moves are mostly noise, and say so little that their flips are not worth their bits.
    """
    if not by:
        return found
    most, begun = round(by * 65536), q.astype(np.int64)
    taken: NDArray[np.int64] = np.clip(found - begun, -most, most)
    return (found - taken).astype(np.uint16)


def _within_reach(found: NDArray[np.uint16], q: NDArray[np.uint16], reach: float) -> NDArray[np.uint16]:
    """θ_k no further than `reach` from θ: beyond it, a flip would be improbable and so dear to send."""
    if reach >= 1:
        return found
    most = round(reach * 65536)
    return np.clip(
        found, np.maximum(q.astype(np.int64) - most, 1), np.minimum(q.astype(np.int64) + most, 65535)
    ).astype(np.uint16)


class Searcher:
    """One client's loss and its gradient by the scores."""

    def __init__(
        self,
        layout: Layout,
        weights: Tensor,
        features: FeatureMap,
        target: Target,
        settings: Search,
        draws: Tape,
    ) -> None:
        self.layout, self.settings, self.draws = layout, settings, draws
        precision = precision_of(settings.precision, weights.device.type)
        self.weights, self.dtype = weights, PRECISIONS[precision]
        self.features = features.in_precision(precision)
        self.target = torch.tensor(target.moments, device=weights.device)
        self.goals = self.features.split(self.target)
        self.shares = torch.tensor(target.shares, device=weights.device)
        self.moving = MovingResidual(self.target, settings.moving_rate)
        self.shape, self.tapes = (layout.count,), (draws,)
        self.tensors = [*self.goals.tensors, self.shares, *draws.tensors]

    def turn_to(self, targets: Sequence[Target], draws: Sequence[Tape]) -> None:
        """Another client's target and draws, in the tensors that are there."""
        self.target.copy_(torch.from_numpy(targets[0].moments))
        _turn(self.goals, self.features.split(self.target))
        self.shares.copy_(torch.from_numpy(targets[0].shares))
        self.draws.follow(draws[0])

    def gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient by the scores `[N]` and the squared distance of one batch, a scalar."""
        flat = masked_weights(self.weights, theta, self.draws, self.dtype)
        loss, measured = self.losses(flat)
        (weight_gradient,) = torch.autograd.grad(loss, flat)
        return score_gradient(weight_gradient, self.weights, theta, self.settings.gradient), measured.detach()

    def losses(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """What is descended, and the squared distance, of a batch made with weights `[N]`."""
        latents, labels = _inputs(self.layout, self.settings, self.shares, self.draws)
        images = generate(self.layout, flat.to(self.dtype), latents.to(self.dtype), labels=labels)
        if self.settings.loss == "squared":
            measured = self.features.squared_distance(images, labels, self.goals)
            return measured, measured
        moments = self.features.moments(images, label_groups(labels, self.layout.classes))
        return self.moving.loss(moments), distance(moments, self.target)


class BatchSearcher:
    """The losses of K clients and their gradients by the scores, as one batch; see `search_many`."""

    def __init__(
        self,
        layout: Layout,
        weights: Tensor,
        features: FeatureMap,
        targets: Sequence[Target],
        settings: Search,
        draws: Sequence[Tape],
    ) -> None:
        self.layout, self.settings, self.draws = layout, settings, draws
        precision = precision_of(settings.precision, weights.device.type)
        self.weights, self.dtype = weights, PRECISIONS[precision]
        self.features = features.in_precision(precision)
        self.targets = torch.stack([torch.from_numpy(one.moments) for one in targets]).to(weights.device)
        self.goals = self.features.split(self.targets)
        self.shares = torch.stack([torch.from_numpy(one.shares) for one in targets]).to(weights.device)
        self.moving = [MovingResidual(target, settings.moving_rate) for target in self.targets]
        self.shape, self.tapes = (len(targets), layout.count), tuple(draws)
        self.tensors = [*self.goals.tensors, self.shares, *(one for tape in draws for one in tape.tensors)]

    def turn_to(self, targets: Sequence[Target], draws: Sequence[Tape]) -> None:
        """Other clients' targets and draws, in the tensors that are there."""
        for row, (target, theirs) in enumerate(zip(targets, draws, strict=True)):
            self.targets[row].copy_(torch.from_numpy(target.moments))
            self.shares[row].copy_(torch.from_numpy(target.shares))
            self.draws[row].follow(theirs)
        _turn(self.goals, self.features.split(self.targets))

    def gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients by the scores `[K, N]` and the squared distances of one batch each, `[K]`."""
        uniform, latents, labels = self._draw()
        flats = (self.weights * (uniform < theta)).requires_grad_()
        images = generate_many(self.layout, flats.to(self.dtype), latents.to(self.dtype), labels)
        losses, measured = self._losses(images.flatten(0, 1), labels)
        # No client's loss depends on another's weights: the gradient of the sum is that of each.
        (weight_gradient,) = torch.autograd.grad(losses.sum(), flats)
        return score_gradient(weight_gradient, self.weights, theta, self.settings.gradient), measured.detach()

    def _draw(self) -> tuple[Tensor, ...]:
        """Uniforms `[K, N]`, latents `[K, B, latent]` and labels `[K, B]`, each client's from its own tape."""
        rows = [
            (draws.masks(len(self.weights)), *_inputs(self.layout, self.settings, shares, draws))
            for draws, shares in zip(self.draws, self.shares, strict=True)
        ]
        return tuple(torch.stack(parts) for parts in zip(*rows, strict=True))

    def _losses(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What is descended, and the squared distances, `[K]` each."""
        if self.settings.loss == "squared":
            measured = self.features.squared_distances(images, labels, self.goals)
            return measured, measured
        moments = self.features.moments(images, batch_groups(labels, self.layout.classes)).view(len(labels), -1)
        losses = [moving.loss(mine) for moving, mine in zip(self.moving, moments, strict=True)]
        return torch.stack(losses), (moments - self.targets).square().sum(1)


def _turn(goals: Goals, to: Goals) -> None:
    for mine, theirs in zip(goals.tensors, to.tensors, strict=True):
        mine.copy_(theirs)


def _inputs(layout: Layout, settings: Search, shares: Tensor, draws: Tape) -> tuple[Tensor, Tensor]:
    """Latents `[B, latent]` and labels `[B]`, ascending."""
    size = settings.batch_size
    spread = settings.latents == "spread"
    latents = spread_normals(draws, size, layout.latent) if spread else draws.normals(size, layout.latent)
    return latents, batch_labels(shares, size, draws).sort().values


def batch_labels(shares: Tensor, count: int, draws: Tape) -> Tensor:
    """Labels of a batch by systematic sampling: int64 `[count]`, each label's number within 1 of its share.

    shares: float64 `[G]` of sum 1.  The order of labels is shuffled first, so that none is favoured.
    """
    order = draws.order(len(shares))
    edges = shares[order].cumsum(0)
    points = (torch.arange(count, dtype=torch.float64, device=shares.device) + draws.uniforms(1)) * (edges[-1] / count)
    return order[torch.searchsorted(edges, points, right=True).clamp_(max=len(shares) - 1)]


class _Adam:
    """Adam (Kingma, Ba 2015) on a client's scores each, `[K, N]`."""

    def __init__(self, settings: Search, layout: Layout, device: torch.device, clients: int) -> None:
        self.betas = settings.first_decay, settings.beta2
        self.steps = torch.zeros(clients, dtype=torch.float64, device=device)
        self.counts = [layer.count for layer in layout.layers] if settings.scale == "layer" else []
        self.first, self.second = (torch.zeros(clients, layout.count, device=device) for _ in range(2))
        self.tensors = [self.steps, self.first, self.second]

    def load(self, memories: Sequence[Memory | None]) -> None:
        """Go on from what clients keep, or begin anew."""
        for row, memory in enumerate(memories):
            self.steps[row] = memory.steps if memory else 0
            for into, kept in ((self.first, memory and memory.first), (self.second, memory and memory.second)):
                if kept is None:
                    into[row].zero_()
                else:
                    into[row].copy_(torch.from_numpy(kept))

    def step(self, scores: Tensor, gradients: Tensor, rate: Tensor) -> None:
        """Move the scores `[K, N]` in place by one step of size `rate`, float64."""
        self.steps += 1
        # A kernel takes all rows or none: they are of one kind.
        if self.counts or not all(self._stepped(scores[row], gradients[row], row, rate) for row in range(len(scores))):
            self._step_all(scores, gradients, rate)

    def _stepped(self, scores: Tensor, gradient: Tensor, row: int, rate: Tensor) -> bool:
        """One client's step in one pass, where there is a kernel for it."""
        if not flat_floats(scores, gradient):
            return False
        (beta1, beta2), steps = self.betas, int(self.steps[row])
        lengths, moments = float(rate) / (1 - beta1**steps), (self.first[row], self.second[row])
        return adam_step(scores, gradient, *moments, self.betas, lengths, 1 - beta2**steps, _TINY)

    def _step_all(self, rows: Tensor, gradient: Tensor, rate: Tensor) -> None:
        beta1, beta2 = self.betas
        self.first.lerp_(gradient, 1 - beta1)
        self.second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        # As numbers on the device, which a recorded step computes anew each time.
        lengths, corrections = (1 - beta ** self.steps[:, None] for beta in self.betas)
        root = (self._variances() / corrections.float()).sqrt_().add_(_TINY)
        rows.sub_(self.first / root * (rate / lengths).float())

    def _variances(self) -> Tensor:
        """What steps are divided by, squared: each entry's second moment, or its layer's mean of them."""
        if not self.counts:
            return self.second
        means = [part.mean(1, keepdim=True).expand_as(part) for part in self.second.split(self.counts, 1)]
        return torch.cat(means, 1)

    def memory(self, row: int) -> Memory:
        """A client's moments as NumPy arrays."""
        first, second = (kept[row].to("cpu", copy=True).numpy() for kept in (self.first, self.second))
        return Memory(first, second, int(self.steps[row]))
