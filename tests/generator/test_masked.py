"""Exact Bernoulli draws, scores and integers as each other's inverse, and the straight-through gradient."""

import numpy as np
import pytest
import torch

from prismfl.generator.masks import integers_of, mask_of, masked_weights, score_gradient, scores_of
from prismfl.seeding.device import Tape
from prismfl.seeding.philox import Purpose, Stream


def test_scores_and_integers_are_inverse_for_every_value():
    every = np.arange(1, 65536).astype(np.uint16)
    scores = scores_of(every)
    assert scores.dtype == torch.float32
    np.testing.assert_array_equal(integers_of(scores), every)
    assert (scores.diff() > 0).all()


def test_the_score_of_zero_is_finite_and_comes_back_inside_the_range():
    score = scores_of(np.array([0], np.uint16))
    assert torch.isfinite(score).all()
    assert score < scores_of(np.array([1], np.uint16))
    assert integers_of(score).tolist() == [1]


def test_extreme_scores_stay_inside_the_range():
    extreme = integers_of(torch.tensor([-1e30, -50.0, 0.0, 50.0, 1e30]))
    assert extreme.tolist() == [1, 1, 32768, 65535, 65535]
    assert extreme.dtype == np.uint16


@pytest.mark.parametrize("q", [0, 1, 656, 32768, 64880, 65535])
def test_the_mask_is_an_exact_bernoulli_sample(q):
    every = np.arange(65536).astype(np.uint16)
    assert mask_of(np.full(65536, q, np.uint16), every).sum() == q


def test_masked_weights_keep_each_weight_with_its_probability():
    theta = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0]).repeat(20_000)
    weights = torch.full_like(theta, -0.25)
    flat = masked_weights(weights, theta, Tape(Stream(1, Purpose.SEARCH)))
    assert set(flat.detach().unique().tolist()) <= {-0.25, 0.0}
    shares = (flat.detach() != 0).view(-1, 5).float().mean(0)
    torch.testing.assert_close(shares, torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0]), atol=0.018, rtol=0)
    assert shares[0] == 0
    assert shares[4] == 1
    assert flat.is_leaf
    assert flat.requires_grad


def test_masked_weights_repeat_themselves_from_an_equal_generator():
    theta, weights = torch.full((1000,), 0.5), torch.ones(1000)
    once, again, other = (masked_weights(weights, theta, Tape(Stream(s, Purpose.SEARCH))) for s in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_gradient_is_that_of_autograd_straight_through_the_draw():
    rng = torch.Generator().manual_seed(3)
    scores = torch.randn(50, generator=rng, dtype=torch.float64).requires_grad_()
    weights = torch.randn(50, generator=rng, dtype=torch.float64)
    mixing = torch.randn(7, 50, generator=rng, dtype=torch.float64)
    uniform = torch.rand(50, generator=rng, dtype=torch.float64)

    def loss(flat):
        return (mixing @ flat).tanh().square().sum()

    theta = torch.sigmoid(scores)
    mask = (uniform < theta).double() + theta - theta.detach()
    loss(weights * mask).backward()

    flat = (weights * (uniform < theta)).detach().requires_grad_()
    (weight_gradient,) = torch.autograd.grad(loss(flat), flat)
    torch.testing.assert_close(score_gradient(weight_gradient, weights, theta.detach()), scores.grad)
    assert scores.grad.abs().sum() > 0
