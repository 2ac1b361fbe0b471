"""Scores, keep-probabilities and masks of frozen weights, with the straight-through gradient."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prismfl.seeding.device import Tape

ONE = 65536  # keep-probabilities travel and rest as q / 65536


def scores_of(q: NDArray[np.uint16], device: torch.device | str = "cpu") -> Tensor:
    """Scores `logit(q / 65536)` of integer keep-probabilities, computed on a device: float32 `[N]`.

    q = 0 stands for half a step, so that every score is finite.
    """
    theta = torch.from_numpy(q.astype(np.int32)).to(device).double().clamp_(min=0.5) / ONE
    return torch.logit(theta).float()


def integers_of(scores: Tensor) -> NDArray[np.uint16]:
    """Keep-probabilities `sigmoid(s)` rounded to `q / 65536`, q in 1 … 65535: uint16 `[N]`."""
    q = torch.sigmoid(scores.double()).mul_(ONE).round_().clamp_(1, ONE - 1)
    halves = (q - ONE / 2).to(torch.int16).cpu().numpy()  # half the bytes to fetch from a device
    return halves.view(np.uint16) ^ np.uint16(ONE // 2)


def masked_weights(weights: Tensor, theta: Tensor, draws: Tape, dtype: torch.dtype = torch.float32) -> Tensor:
    """`W ⊙ M` with `M ~ Bernoulli(θ)`, a new leaf that takes gradients: `[N]` of a dtype."""
    return (weights * (draws.masks(len(theta)) < theta)).to(dtype).requires_grad_()


def score_gradient(weight_gradient: Tensor, weights: Tensor, theta: Tensor) -> Tensor:
    """Gradient of the loss by the scores, straight through the draw: float32 `[N]`.

    `dL/dM = dL/d(W ⊙ M) · W` stands for `dL/dθ` (Bengio et al. 2013), and `dθ/ds = θ(1 - θ)`.
    """
    return (weight_gradient.to(weights.dtype) * weights).mul_(theta).mul_(1 - theta)


def mask_of(q: NDArray[np.uint16], uniform: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """`M = [u < q]`, an exact Bernoulli(q / 65536) sample for uniform 16-bit u: bool `[N]`."""
    return uniform < q
