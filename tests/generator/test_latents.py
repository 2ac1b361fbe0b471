"""Latents of a batch: each as normal as any, together more even than independent ones."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from prismfl.generator.latents import by_sums, orthogonal, spread_normals
from prismfl.seeding.device import Tape
from prismfl.seeding.philox import Purpose, Stream


def batches(many, count, dimension, seed=3):
    """Many batches of latents, one after another: float32 `[many, count, dimension]`."""
    tape = Tape(Stream(seed, Purpose.SEARCH, 1, 2))
    return torch.stack([spread_normals(tape, count, dimension) for _ in range(many)])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32))
def test_any_batch_of_any_dimension_is_pairs_of_opposites(count, dimension, seed):
    (found,) = batches(1, count, dimension, seed)
    assert found.shape == (count, dimension) and found.dtype == torch.float32 and found.isfinite().all()
    assert torch.equal(found[1::2], -found[: count - count % 2 : 2])


@pytest.mark.parametrize(("count", "dimension"), [(32, 64), (64, 64), (7, 12), (5, 3), (4, 1)])
def test_each_latent_is_standard_normal(count, dimension):
    found = batches(6000 // dimension, count, dimension)
    for row in (0, count - 1):
        assert stats.kstest(found[:, row].flatten().numpy(), "norm").pvalue > 1e-3
        assert stats.kstest(found[:, row].square().sum(1).numpy(), "chi2", (dimension,)).pvalue > 1e-3


def test_a_latents_entries_are_uncorrelated():
    rows = batches(3000, 8, 16)[:, 2].double()
    off = (rows.T @ rows / len(rows) - torch.eye(16, dtype=torch.float64)).abs()
    assert off.max() < 5 / 3000**0.5 * 2**0.5


def test_products_as_sums_are_products():
    one, other = (torch.randn(3, n, m, generator=torch.manual_seed(n)) for n, m in ((4, 7), (7, 5)))
    torch.testing.assert_close(by_sums(one, other), one @ other)


@pytest.mark.parametrize(("count", "dimension"), [(32, 64), (128, 64), (6, 12)])
def test_pairs_of_a_block_are_nearly_orthogonal(count, dimension):
    (found,) = batches(1, count, dimension)
    block = torch.nn.functional.normalize(found[::2][: min(count // 2, dimension // 4)])
    cosines = (block @ block.T - torch.eye(len(block))).abs()
    assert cosines.max() < 0.02


def test_means_over_a_batch_are_nearer_to_the_expectation():
    """Of odd functions without error; of a network of one layer with less variance than of independent normals."""
    direction = torch.from_numpy(np.random.default_rng(0).normal(size=(64, 40)).astype(np.float32)) / 8
    spread, plain = batches(400, 32, 64), torch.randn(400, 32, 64, generator=torch.manual_seed(0))
    assert (spread.pow(3) @ direction).mean(1).abs().max() < 1e-4
    means = [torch.relu(one @ direction + 0.3).mean(1) for one in (spread, plain)]
    size = direction.double().norm(dim=0).numpy()
    wanted = torch.from_numpy(0.3 * stats.norm.cdf(0.3 / size) + size * stats.norm.pdf(0.3 / size))
    errors = [(mean - wanted).double() for mean in means]
    assert errors[0].square().mean() < 0.45 * errors[1].square().mean()
    assert errors[0].mean(0).abs().max() < 5 * float(errors[0].std(0).max()) / 20


def test_rows_that_are_nothing_stay_finite():
    assert orthogonal(torch.zeros(2, 3, 8)).isfinite().all()
