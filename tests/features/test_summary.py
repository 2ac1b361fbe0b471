"""How images differ: what a summary is, what is kept of its products, and what a batch is pulled towards."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prismfl.features.efficientnet import EfficientNetLite, _rectified, load_lite
from prismfl.features.networks import load_features
from prismfl.features.summary import products, products_in, spread_of
from prismfl.moments import FeatureMap
from prismfl.settings.resolve import Matching

SIZE = 6


def summaries(count, seed=0, share=0.3):
    """Numbers of norm below 1 whose entries go with each other, about a mean of their own."""
    draws, always = (torch.Generator().manual_seed(one) for one in (seed, 9))
    mixed = torch.randn(count, SIZE, generator=draws) @ torch.randn(SIZE, SIZE, generator=always)
    return 0.3 + share * 0.1 * mixed


def by_label(y, labels, classes):
    groups = torch.eye(classes)[labels].T / len(y)
    return groups @ products(y), groups.sum(1).double()


vectors = st.lists(st.floats(-1, 1, width=32), min_size=SIZE, max_size=SIZE)


@given(vectors, vectors)
def test_products_are_no_longer_than_one_and_never_more_than_a_right_angle_apart(one, two):
    both = torch.tensor([one, two])
    both = both / both.norm(dim=1, keepdim=True).clamp(min=1)
    found = products(both)
    assert found.shape == (2, products_in(SIZE))
    assert float(found.norm(dim=1).max()) <= 1 + 1e-6
    assert float(found[0] @ found[1]) >= -1e-6


@pytest.mark.parametrize("classes", [1, 3])
def test_the_goal_is_how_images_of_a_label_differ_in_directions_of_their_own(classes):
    y, labels = summaries(300), torch.arange(300) % classes
    y = y + 0.1 * labels[:, None]
    means, shares = by_label(y, labels, classes)
    found = spread_of(means, means, shares, SIZE, share=1.0)
    centred = y - torch.stack([y[labels == label].mean(0) for label in range(classes)])[labels]
    covariance = (centred.T @ centred / len(y)).double()
    torch.testing.assert_close((found.centres[labels] + centred), y, atol=1e-4, rtol=0)
    goal = (found.directions.T @ covariance.float() @ found.directions).double()
    torch.testing.assert_close(found.goal.double(), goal, atol=1e-5, rtol=1e-3)
    # Each direction has the root of its variance, and none goes with another.
    roots = torch.linalg.eigvalsh(covariance).sqrt()
    torch.testing.assert_close(goal.diag() / goal.diag().sum(), roots / roots.sum(), atol=1e-4, rtol=1e-3)
    assert float((goal - goal.diag().diag()).abs().max()) < 1e-3 * float(goal.max())


def test_without_bias_a_batch_of_the_same_images_is_at_no_distance_on_average_and_of_likes_farther():
    y = summaries(4000)
    means, shares = by_label(y, torch.zeros(4000, dtype=torch.int64), 1)
    found = spread_of(means, means, shares, SIZE, share=1.0)
    size = float(found.goal.square().sum())

    def apart(pictures, unbiased):
        batches = pictures.split(16)
        tags = torch.zeros(16, dtype=torch.int64)
        # What does not depend on the batch is left out of what is descended; here it is put back.
        whole = size * (1 - 1 / 16) ** 2 - size * (1 - 1 / 16) if unbiased else 0.0
        return np.mean([float(found.distance(batch, tags, unbiased=unbiased)) - whole for batch in batches]) / size

    alike = found.centres + 0.7 * (y - found.centres)
    assert abs(apart(y, unbiased=True)) < 0.03 < 0.2 < apart(y, unbiased=False)
    assert apart(alike, unbiased=True) > 0.15


def test_directions_that_do_not_stand_out_of_noise_are_left_out():
    y = summaries(1000, share=1.0)
    means, shares = by_label(y, torch.zeros(1000, dtype=torch.int64), 1)
    clean = spread_of(means, means, shares, SIZE, share=1.0)
    noise = torch.randn(means.shape, generator=torch.Generator().manual_seed(1))
    kept = []
    for scale in (0.0, 0.01, 10.0):
        noisy = means + scale * noise
        found = spread_of(noisy, noisy, shares, SIZE, share=1.0)
        kept.append(int((found.directions.abs().sum(0) > 0).sum()))
        assert bool(torch.isfinite(torch.cat([part.flatten() for part in found.tensors])).all())
    assert kept[0] == int((clean.directions.abs().sum(0) > 0).sum()) > kept[1] > 0 and kept[2] <= SIZE // 2


# ------------------------------------------------------------------------------- beside a network


@pytest.fixture(scope="module")
def mapped():
    return FeatureMap(load_features("vgg"), Matching(layers=(0, 3), shift=1, windows=2, summary=SIZE), 1, 16)


def noise(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 1, 16, 16), dtype=np.uint8)


def goals_of(mapped, target):
    moments = torch.from_numpy(target.moments)
    found = mapped.spread(moments, moments, torch.from_numpy(target.shares))
    return replace(mapped.split(moments), spread=found)


def test_vectors_have_norm_one_at_most_and_their_mean_is_the_target(mapped):
    pictures = noise(20)
    found = mapped.vectors(pictures)
    assert found.shape == (20, mapped.dimension) and float(found.norm(dim=1).max()) <= 1 + 1e-5
    np.testing.assert_allclose(found.mean(0).numpy(), mapped.target(pictures).moments, atol=1e-5)
    assert [block.signed for block in mapped.blocks[-2:]] == [False, True]
    plain = FeatureMap(load_features("vgg"), Matching(layers=(0, 3), shift=1, windows=2), 1, 16)
    rest = found[:, : -products_in(SIZE)]
    np.testing.assert_allclose(rest / rest.norm(dim=1, keepdim=True), plain.vectors(pictures), atol=1e-5)


def test_images_too_much_alike_are_farther_and_pulled_apart(mapped):
    pictures = noise(64)
    real = torch.from_numpy(pictures).float() / 127.5 - 1
    goals, tags = goals_of(mapped, mapped.target(pictures)), torch.zeros(64, dtype=torch.int64)

    def more(x, turns=None):
        whole, without = (mapped.squared_distance(x, tags, g, turns) for g in (goals, replace(goals, spread=None)))
        return whole - without

    alike = (real.mean(0) + 0.5 * (real - real.mean(0))).requires_grad_()
    assert more(alike).item() > 3 * more(real).item()
    (gradient,) = torch.autograd.grad(more(alike), alike)
    assert (gradient * (real - alike)).sum().item() < 0  # down it, towards the real ones
    # In a window nothing is added: products are of whole images.
    assert float(more(real, torch.tensor([mapped.framing.turns]))) == 0


def test_both_precisions_and_few_images_at_a_time_agree(mapped):
    pictures = noise(10, 3)
    one, two = mapped.target(pictures), mapped.target(pictures, batch=3)
    np.testing.assert_allclose(one.moments, two.moments, atol=1e-6)
    x = torch.from_numpy(pictures).float() / 127.5 - 1
    exact, coarse = mapped.moments(x), mapped.in_precision("bfloat16").moments(x.bfloat16())
    count = products_in(SIZE)
    torch.testing.assert_close(coarse[-count:], exact[-count:], atol=0.02, rtol=0)


def test_what_public_images_are_on_average_is_that_of_relu6_of_normals():
    net = load_lite("efficientnet-lite0").net
    assert isinstance(net, EfficientNetLite) and [len(centre) for centre in net.centres[:2]] == [32, 32]
    assert len(net.centres) == 18 and len(net.centres[-1]) == 1280
    rng, norm = np.random.default_rng(0), nn.BatchNorm2d(1)
    for gain, bias in [(1.0, 0.5), (3.0, 5.0), (-0.2, -0.1), (1e-30, 2.0)]:
        nn.init.constant_(norm.weight, gain)
        nn.init.constant_(norm.bias, bias)
        drawn = (bias + gain * rng.normal(size=200_000)).clip(0, 6).mean()
        assert float(_rectified(norm.weight.detach(), norm.bias.detach())[0]) == pytest.approx(drawn, abs=0.01)
