"""MD-GAN (Hardy, Le Merrer, Sericola 2019): one generator at the server, a discriminator at every client.

In each step the server makes two batches for every client.  The client trains its discriminator on one of them and on
its own images, and answers the other with the gradient of the generator's loss by its pixels; the server takes these
back through the generator, and one step of Adam by their mean.  Every epoch, so many steps as a client has batches,
clients hand their discriminators on to one another.

The server makes images for labels in the client's own shares, which it has to be told: of labels that a client never
saw its discriminator would teach that nothing is real.  There is no guarantee: feedback follows from single images.
"""

import time

import torch
from peers.common import (
    BATCH,
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

from prismfl.data.images import ImageSet

Draws = torch.Generator


class Held:
    """A discriminator and its Adam, which go from client to client together."""

    def __init__(self, task: Task) -> None:
        self.net = new_discriminator(task)
        self.adam = adam_of(self.net)


def train(task: Task, budget: Budget, epsilon: float = 0.0) -> Trained:
    """All steps of server and clients."""
    if epsilon:
        raise SystemExit("MD-GAN has no private form: leave --epsilons at 0")
    sites, server = task.clients, task.draws(len(task.clients))
    draws, counts = [task.draws(number) for number in range(len(sites))], [counts_of(mine) for mine in sites]
    held, weights, losses, swaps, done = [Held(task) for _ in sites], task.weights, list[float](), 0, 0
    of_generator, epoch = adam_of(weights), max(1, min(map(len, sites)) // BATCH)
    begun = time.monotonic()
    for step in budget.turns(budget.steps):
        of_generator.zero_grad()
        losses.append(0.0)
        for mine, own, shares, one in zip(sites, draws, counts, held, strict=True):
            losses[-1] += client_step(task, weights, mine, shares, one, own, server) / len(sites)
        of_generator.step()
        done = step + 1
        if done % epoch == 0:
            held, swaps = [held[place] for place in handed_on(len(sites), server).tolist()], swaps + 1
    pixels = BATCH * task.layout.channels * task.layout.size**2
    handed = sum(one.numel() for one in held[0].net.parameters())
    sent = FLOAT * (done * pixels + swaps * handed)
    return Trained(weights, done, time.monotonic() - begun, sent, losses[-100:])


def client_step(
    task: Task, weights: Tensor, mine: ImageSet, counts: Tensor, held: Held, own: Draws, server: Draws
) -> float:
    """Train the discriminator once, and add the client's part of the mean gradient; the generator's loss."""
    labels = labels_by(counts, 2 * BATCH, server)
    first, second = labels.split(BATCH)
    with torch.no_grad():
        known = made(task, weights, first, server)
    asked = made(task, weights, second, server)
    held.adam.zero_grad()
    (real_loss(held.net(*picked(mine, any_rows(mine, own)))) + fake_loss(held.net(known, first))).mean().backward()
    held.adam.step()
    loss, gradient = feedback(held.net, asked.detach(), second)
    # Of the mean over clients: each has its part of the sum.
    asked.backward(gradient / len(task.clients))
    return loss


def feedback(net: Discriminator, images: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    """The generator's loss of images, and its gradient by their pixels: all that a client sends in a step."""
    images = images.requires_grad_()
    loss = real_loss(net(images, labels)).mean()
    (gradient,) = torch.autograd.grad(loss, images)
    return float(loss.detach()), gradient


def handed_on(clients: int, draws: torch.Generator) -> Tensor:
    """Whose discriminator each client goes on with: a permutation that leaves none where it was, if there are two."""
    order = torch.randperm(clients, generator=draws)
    found = torch.empty_like(order)
    found[order] = order.roll(1)
    return found
