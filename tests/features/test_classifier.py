"""The one trainer: what it is given decides what it makes, and nothing else does."""

import numpy as np
import pytest
import torch
from torch import nn

from prismfl.features.classifier import POOL, pixels_of, scaled, scores, small_network, train_classifier

UNITS = ((8, 3, 2), (8, 3, 2), POOL)


def made_up(count=64, seed=0):
    """Bright and dark images uint8 `[count, 1, 16, 16]`, and which they are."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    return (rng.integers(0, 100, (count, 1, 16, 16)) + 150 * labels[:, None, None, None]).astype(np.uint8), labels


def trained(seed=0, steps=20, after=float):
    images, labels = (torch.from_numpy(part) for part in made_up())
    net = small_network(UNITS, nn.BatchNorm2d, 1, 16, 2, seed)
    batches = ((scaled(images), labels) for _ in range(steps))
    train_classifier(net, torch.optim.Adam(net.parameters(), 1e-2), batches, steps, after=after)
    return net


def test_a_classifier_learns_and_is_left_in_evaluation_mode():
    losses = []
    net, (images, labels) = trained(after=losses.append), made_up(50, 1)
    assert not net.training and len(losses) == 20 and losses[-1] < losses[0] / 2
    found = scores(net, images, batch=7)
    assert found.shape == (50, 2) and not found.requires_grad
    assert (found.argmax(1).numpy() == labels).mean() > 0.9


def test_the_seed_decides_and_the_callers_random_state_is_left_alone():
    before = torch.random.get_rng_state()
    one, same, other = (trained(seed).state_dict()["0.weight"] for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_the_rate_climbs_to_the_optimisers_own_and_falls():
    net, rates = small_network(UNITS, nn.BatchNorm2d, 1, 16, 2, 0), []
    optimiser = torch.optim.SGD(net.parameters(), 0.5)
    images, labels = (torch.from_numpy(part) for part in made_up())
    batches = ((scaled(images), labels) for _ in range(50) if rates.append(optimiser.param_groups[0]["lr"]) is None)
    train_classifier(net, optimiser, batches, 50, cycle_momentum=False)
    assert rates[0] == pytest.approx(0.5 / 25) and rates[9] == pytest.approx(0.5) and rates[-1] < 1e-4


@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_gives_its_own_pixels(channels):
    images = torch.arange(2 * channels * 16).view(2, channels, 4, 4)
    found = pixels_of(images, torch.tensor([[0, 1], [2, 3]]), torch.tensor([[1, 1, 2], [0, 3, 3]]))
    assert torch.equal(found[0], images[0][:, [0, 1]][:, :, [1, 1, 2]])
    assert torch.equal(found[1], images[1][:, [2, 3]][:, :, [0, 3, 3]])
