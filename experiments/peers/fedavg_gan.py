"""FedAvg of a conditional GAN (McMahan et al. 2017), and with ε the same with private discriminators.

In each round every client trains generator and discriminator from the server's, and the server averages both by the
clients' numbers of images.  Adam's moments stay at the client, as prismfl's do.

With ε each client trains its discriminator by DP-SGD (Abadi et al. 2016; of GANs: Xie et al. 2018).  Images are drawn
by Poisson sampling.  The gradient of a pair, one real image and one made without knowing the batch, is clipped, the
clipped ones are summed, Gaussian noise is added, and Adam takes the sum over the expected size of a batch.  The
generator sees images through the discriminator alone, and through counts of labels that are noised once: which labels
it is to make.  All else is post-processing.

The guarantee has prismfl's unit: one image of one client, replaced by any other with its label; the number of images
is public.  It is (ε, δ) of each client's whole training against all others and the server, who see every average;
images of different clients are different ones, so that no ε adds up over clients.  Published figures are often of
images added or removed, for which the same noise has a smaller ε.  Noise is torch's, in floating point, seeded by the
system: good for figures, not for use.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import dp_accounting
import torch
from dp_accounting import NeighboringRelation
from dp_accounting.pld import PLDAccountant
from peers.common import (
    BATCH,
    DELTA,
    FLOAT,
    Budget,
    Discriminator,
    Task,
    Trained,
    adam_of,
    any_rows,
    counts_of,
    fake_loss,
    labels_by,
    made,
    new_discriminator,
    picked,
    real_loss,
)
from torch import Tensor
from torch.func import functional_call, grad, vmap

from prismfl.data.images import ImageSet

Labelled = tuple[Tensor, Tensor]  # images in [-1, 1] and labels

CLIP = 1.0
LOCAL_STEPS = 10  # a round, as in the yardstick
CRITIC = 4  # with ε: steps of the discriminator for one of the generator (Bie, Kamath, Zhang 2023)
COUNT_NOISE = 30.0  # σ of each label's count, which one image changes by one
_INTERVAL = 1e-3  # of the accountant's grid, which rounds ε up: finer is slower, and 0.1 % nearer at ε = 1


@dataclass
class Client:
    """What stays at a client between rounds.

    counts: of images by label, with ε noised; noise: σ over the clipping norm, 0 without ε; critic: steps of the
    discriminator for one of the generator.
    """

    mine: ImageSet
    counts: Tensor
    draws: torch.Generator
    weights: Tensor
    discriminator: Discriminator
    noise: float
    critic: int

    def __post_init__(self) -> None:
        self.of_generator, self.of_discriminator = adam_of(self.weights), adam_of(self.discriminator)


# ----------------------------------------------------------------------------------------- privacy


def spent(noise: float, rate: float, steps: int) -> float:
    """ε at δ = 1e-5 of so many steps with Poisson sampling, replace-one (numerically, by privacy loss distributions).

    noise: σ over the clipping norm; rate: the chance of an image to be in a batch.
    """
    accountant = PLDAccountant(NeighboringRelation.REPLACE_ONE, value_discretization_interval=_INTERVAL)
    return float(accountant.compose(event(noise, rate, steps)).get_epsilon(DELTA))


def event(noise: float, rate: float, steps: int) -> dp_accounting.DpEvent:
    """What a whole training releases of a client."""
    one = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
    counts = dp_accounting.GaussianDpEvent(COUNT_NOISE)
    return dp_accounting.ComposedDpEvent([counts, dp_accounting.SelfComposedDpEvent(one, steps)])


def noised(counts: Tensor, draws: torch.Generator) -> Tensor:
    """Counts of labels with noise; what could be noise alone is 0, unless all could."""
    found = counts + COUNT_NOISE * torch.randn(counts.shape, generator=draws)
    kept = torch.where(found > 4 * COUNT_NOISE, found, 0)
    return kept if kept.any() else torch.ones_like(counts)


@lru_cache
def noise_for(epsilon: float, rate: float, steps: int) -> float:
    """The noise multiplier with which a whole training spends ε and no more; 0 without ε."""
    if not epsilon:
        return 0.0
    return float(
        dp_accounting.calibrate_dp_mechanism(
            lambda: PLDAccountant(NeighboringRelation.REPLACE_ONE, value_discretization_interval=_INTERVAL),
            lambda noise: event(noise, rate, steps),
            epsilon,
            DELTA,
            dp_accounting.LowerEndpointAndGuess(0.3, 1.0),
            tol=1e-3,
        )
    )


def poisson(mine: ImageSet, draws: torch.Generator) -> Tensor:
    """Rows of a batch, each image in it by itself with one chance: `[B]`, 64 of them in the mean."""
    return torch.nonzero(torch.rand(len(mine), generator=draws) < sampling_rate(mine))[:, 0]


def sampling_rate(mine: ImageSet) -> float:
    """The chance of an image to be in a batch."""
    return min(1.0, BATCH / len(mine))


def private_gradients(
    discriminator: Discriminator, real: Labelled, fake: Labelled, noise: float, draws: torch.Generator
) -> list[Tensor]:
    """Clipped, summed, noised gradients of the discriminator over the expected batch; of no images noise alone."""
    parameters = {name: one.detach() for name, one in discriminator.named_parameters()}

    def loss(weights: dict[str, Tensor], real: Labelled, fake: Labelled) -> Tensor:
        pair = torch.stack((real[0], fake[0])), torch.stack((real[1], fake[1]))
        logits = functional_call(discriminator, weights, pair)
        return real_loss(logits[0]) + fake_loss(logits[1])

    sums = {name: torch.zeros_like(one) for name, one in parameters.items()}
    if len(real[0]):
        each = vmap(grad(loss), (None, 0, 0))(parameters, real, fake)
        norms = sum(one.flatten(1).square().sum(1) for one in each.values()).sqrt()
        shares = (CLIP / norms.clamp(min=1e-12)).clamp(max=1)
        sums = {name: torch.tensordot(shares, one, 1) for name, one in each.items()}
    drawn = (noise * CLIP * torch.randn(one.shape, generator=draws) for one in sums.values())
    return [(one + extra) / BATCH for one, extra in zip(sums.values(), drawn, strict=True)]


# ---------------------------------------------------------------------------------------- training


def train(task: Task, budget: Budget, epsilon: float = 0.0) -> Trained:
    """All rounds of all clients."""
    rounds, losses, done = budget.steps // LOCAL_STEPS, list[float](), 0
    sites = [client_of(task, number, epsilon, rounds * LOCAL_STEPS) for number in range(len(task.clients))]
    weights, theirs = task.weights.detach(), state_of(sites[0].discriminator)
    shares = torch.tensor([len(site.mine) for site in sites]).double()
    shares, begun = (shares / shares.sum()).float(), time.monotonic()
    for turn in budget.turns(rounds):
        for site in sites:
            losses += local_steps(task, site, weights, theirs, turn)
        weights = averaged(shares, [site.weights.detach() for site in sites])
        theirs = averaged(shares, [state_of(site.discriminator) for site in sites])
        done = turn + 1
    sent = done * FLOAT * (len(weights) + len(theirs))
    return Trained(weights, done * LOCAL_STEPS, time.monotonic() - begun, sent, losses[-100:])


def client_of(task: Task, number: int, epsilon: float, steps: int) -> Client:
    """A client before its first round."""
    mine = task.clients[number]
    noise = noise_for(epsilon, sampling_rate(mine), steps)
    draws, counts = task.draws(number), counts_of(mine)
    if epsilon:
        draws.seed()  # noise that protects must not follow from a public seed
        counts = noised(counts, draws)
    return Client(mine, counts, draws, task.weights, new_discriminator(task), noise, CRITIC if epsilon else 1)


def local_steps(task: Task, site: Client, weights: Tensor, theirs: Tensor, turn: int) -> list[float]:
    """One client's steps from the server's networks; the generator's losses."""
    with torch.no_grad():
        site.weights.copy_(weights)
        torch.nn.utils.vector_to_parameters(theirs, site.discriminator.parameters())
    losses = []
    for step in range(turn * LOCAL_STEPS, (turn + 1) * LOCAL_STEPS):
        discriminator_step(task, site)
        if (step + 1) % site.critic == 0:
            losses.append(generator_step(task, site))
    return losses


def discriminator_step(task: Task, site: Client) -> None:
    """One step of Adam on real and made images; these know the batch's size and labels neither."""
    net, draws = site.discriminator, site.draws
    rows = poisson(site.mine, draws) if site.noise else any_rows(site.mine, draws)
    real, made_for = picked(site.mine, rows), labels_by(site.counts, BATCH, draws)
    with torch.no_grad():
        fake = made(task, site.weights, made_for, draws), made_for
    site.of_discriminator.zero_grad()
    if site.noise:
        # By its row, so that no image's partner depends on which others were drawn.
        found = private_gradients(net, real, tuple(one[rows % BATCH] for one in fake), site.noise, draws)
        for one, gradient in zip(net.parameters(), found, strict=True):
            one.grad = gradient
    else:
        (real_loss(net(*real)) + fake_loss(net(*fake))).mean().backward()
    site.of_discriminator.step()


def generator_step(task: Task, site: Client) -> float:
    """One step of Adam towards what the discriminator takes for real; its loss."""
    labels = labels_by(site.counts, BATCH, site.draws)
    site.of_generator.zero_grad()
    logits = site.discriminator(made(task, site.weights, labels, site.draws), labels)
    loss = real_loss(logits).mean()
    loss.backward()
    site.of_generator.step()
    return float(loss.detach())


def state_of(net: Discriminator) -> Tensor:
    """A discriminator's weights `[M]`."""
    return torch.nn.utils.parameters_to_vector(net.parameters()).detach().clone()


def averaged(shares: Tensor, each: Sequence[Tensor]) -> Tensor:
    """The mean of vectors by the clients' shares."""
    return shares @ torch.stack(list(each))
