"""The published loss: a moving average of what generated moments lack."""

import torch
from torch import Tensor


class MovingResidual:
    """The paper's moving average: Adam steps towards the residual of the moments.

    The loss is `2⟨v, target - ψ̄_fake⟩`, with v following `target - ψ̄_fake` by Adam (generative feature matching
    networks, dos Santos et al. 2019): v averages over many batches, so that a small batch does not decide the
    direction alone.  rate: step of v, in root-mean-square entries of the first residual.
    """

    def __init__(self, target: Tensor, rate: float) -> None:
        self.target, self.rate, self.step = target, rate, 0
        self.value, self.scale = torch.zeros_like(target), 0.0
        self.first, self.second = torch.zeros_like(target), torch.zeros_like(target)

    def loss(self, moments: Tensor) -> Tensor:
        """A scalar whose gradient is that of the squared distance with v for the residual."""
        difference = self.target - moments
        residual = difference.detach()
        if self.step:
            self._follow(residual)
        else:
            self.value.copy_(residual)
            self.scale = self.rate * float(residual.square().mean().sqrt())
        self.step += 1
        return 2 * torch.dot(self.value, difference)

    def _follow(self, residual: Tensor) -> None:
        gradient = self.value - residual
        self.first.lerp_(gradient, 0.1)
        self.second.lerp_(gradient.square(), 0.001)
        root = (self.second / (1 - 0.999**self.step)).sqrt_().add_(1e-20)
        self.value.addcdiv_(self.first, root, value=-self.scale / (1 - 0.9**self.step))
