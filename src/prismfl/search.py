"""Local mask search: (θ, target, settings, draws) → θ_k.  It never sees images or raw moments."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prismfl.config import Search
from prismfl.layout import Layout
from prismfl.mmd import PRECISIONS, FeatureMap, MovingResidual, Target, distance, label_groups
from prismfl.nets.generator import generate
from prismfl.nets.masked import integers_of, masked_weights, score_gradient, scores_of

# Gradients of single scores are as small as 1e-9: Adam's usual 1e-8 would drown them.
_TINY = 1e-16
_BFLOAT16 = "_is_avx512_bf16_supported"


@dataclass(frozen=True)
class Memory:
    """Adam's moments, float32 `[N]` each, and the number of steps behind them."""

    first: NDArray[np.float32]
    second: NDArray[np.float32]
    steps: int = 0


@dataclass(frozen=True)
class Found:
    """Result of a local search: θ_k as integers uint16 `[N]`, the mean loss, Adam's memory."""

    q: NDArray[np.uint16]
    loss: float
    memory: Memory


def rate_at(settings: Search, round_index: int, rounds: int) -> float:
    """Learning rate of a round: half a cosine from `learning_rate` to `final_rate` of it."""
    done = round_index / max(1, rounds - 1)
    low = settings.final_rate
    return settings.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def precision_of(name: str, device: str) -> str:
    """`auto` as what it stands for on a device: `bfloat16` where the processor multiplies it, else `float32`."""
    if name != "auto":
        return name
    # A private name of torch: where it is gone, the exact precision is a safe answer.
    told = torch.cuda.is_bf16_supported if device.startswith("cuda") else getattr(torch.cpu, _BFLOAT16, bool)
    return "bfloat16" if told() else "float32"


def local_search(
    layout: Layout,
    weights: Tensor,
    features: FeatureMap,
    q: NDArray[np.uint16],
    target: Target,
    settings: Search,
    rate: float,
    draws: torch.Generator,
    memory: Memory | None = None,
) -> Found:
    """Search from θ = q / 65536 for `local_steps` steps of Adam on the scores.

    weights: frozen, float32 `[N]`; q: uint16 `[N]`; target moments `[D]`.  A step draws a mask
    and latents from `draws`, and descends the squared MMD straight through the draw (paper,
    local step).  Same inputs, threads and machine: same bytes out.
    """
    searcher = Searcher(layout, weights, features, target, settings, draws)
    adam = _Adam(settings, layout, weights.device, memory)
    start, total = scores_of(q).to(weights.device), 0.0
    scores = start.clone()
    for _ in range(settings.local_steps):
        gradient, loss = searcher.gradient(torch.sigmoid(scores))
        adam.step(scores, gradient, rate)
        if settings.hold:
            scores.lerp_(start, min(1.0, settings.hold * rate))
        total += loss
    return Found(_within_reach(integers_of(scores), q, settings.reach), total / settings.local_steps, adam.memory())


def _within_reach(found: NDArray[np.uint16], q: NDArray[np.uint16], reach: float) -> NDArray[np.uint16]:
    """θ_k no further than `reach` from θ: beyond it, a flip would be improbable and so dear to send."""
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
        draws: torch.Generator,
    ) -> None:
        self.layout, self.settings, self.draws = layout, settings, draws
        precision = precision_of(settings.precision, weights.device.type)
        self.weights, self.dtype = weights, PRECISIONS[precision]
        self.features = features.in_precision(precision)
        self.target = torch.from_numpy(target.moments).to(weights.device)
        self.blocks = self.features.split(self.target)
        self.shares = torch.from_numpy(target.shares)
        self.moving = MovingResidual(self.target, settings.moving_rate)

    def gradient(self, theta: Tensor) -> tuple[Tensor, float]:
        """Gradient by the scores `[N]` and the squared distance of one batch."""
        flat = masked_weights(self.weights, theta, self.draws)
        loss, measured = self.losses(flat)
        (weight_gradient,) = torch.autograd.grad(loss, flat)
        return score_gradient(weight_gradient, self.weights, theta, self.settings.gradient), float(measured.detach())

    def losses(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """What is descended, and the squared distance, of a batch made with weights `[N]`."""
        size, device = self.settings.batch_size, flat.device
        latents = torch.randn(size, self.layout.latent, generator=self.draws).to(device)
        labels = batch_labels(self.shares, size, self.draws).sort().values.to(device)
        images = generate(self.layout, flat.to(self.dtype), latents.to(self.dtype), labels=labels)
        if self.settings.loss == "squared":
            measured = self.features.squared_distance(images, labels, self.blocks)
            return measured, measured
        moments = self.features.moments(images, label_groups(labels, self.layout.classes))
        return self.moving.loss(moments), distance(moments, self.target)


def batch_labels(shares: Tensor, count: int, draws: torch.Generator) -> Tensor:
    """Labels of a batch by systematic sampling: int64 `[count]`, each label's number within 1 of its share.

    shares: float64 `[G]` of sum 1.  The order of labels is shuffled first, so that none is favoured.
    """
    order = torch.randperm(len(shares), generator=draws)
    edges = shares[order].cumsum(0)
    points = (torch.arange(count, dtype=torch.float64) + torch.rand((), generator=draws)) * (edges[-1] / count)
    return order[torch.searchsorted(edges, points, right=True).clamp_(max=len(shares) - 1)]


class _Adam:
    """Adam (Kingma, Ba 2015) on one flat vector."""

    def __init__(self, settings: Search, layout: Layout, device: torch.device, memory: Memory | None) -> None:
        self.betas, self.steps = (settings.beta1, settings.beta2), 0
        self.counts = [layer.count for layer in layout.layers] if settings.scale == "layer" else []
        self.first, self.second = (torch.zeros(layout.count, device=device) for _ in range(2))
        if memory is not None:
            self.steps = memory.steps
            self.first.copy_(torch.from_numpy(memory.first))
            self.second.copy_(torch.from_numpy(memory.second))

    def step(self, scores: Tensor, gradient: Tensor, rate: float) -> None:
        """Move the scores in place by one step of size `rate`."""
        self.steps += 1
        beta1, beta2 = self.betas
        self.first.lerp_(gradient, 1 - beta1)
        self.second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        size = rate / (1 - beta1**self.steps)
        root = (self._variances() / (1 - beta2**self.steps)).sqrt_().add_(_TINY)
        scores.addcdiv_(self.first, root, value=-size)

    def _variances(self) -> Tensor:
        """What steps are divided by, squared: each entry's second moment, or its layer's mean of them."""
        if not self.counts:
            return self.second
        means = [part.mean().expand(len(part)) for part in self.second.split(self.counts)]
        return torch.cat(means)

    def memory(self) -> Memory:
        """Adam's moments as NumPy arrays."""
        return Memory(self.first.cpu().numpy(), self.second.cpu().numpy(), self.steps)
