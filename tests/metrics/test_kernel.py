"""`kid_judge` against sums written out and the library's own metric, and how it behaves."""

import sys

import numpy as np
import pytest
import torch
from torchmetrics.image.kid import KernelInceptionDistance

from prismfl.errors import DataError, DependencyError
from prismfl.metrics.distances import kernel_distance


def cloud(count, seed, shift=0.0, width=12):
    return (np.random.default_rng(seed).normal(0, 1, (count, width)) + shift).astype(np.float32)


def written_out(a, b):
    """Unbiased squared discrepancy, pair by pair."""

    def kernel(x, y):
        return (float(np.dot(x.astype(float), y.astype(float))) / len(x) + 1) ** 3

    within = [np.mean([kernel(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j]) for s in (a, b)]
    return sum(within) - 2 * np.mean([kernel(x, y) for x in a for y in b])


def test_the_mean_over_two_subsets_is_that_of_the_formula_written_out():
    """Of four rows a side there is one way to share out each side's subsets, up to order: it is searched for."""
    a, b = cloud(4, 0), cloud(4, 1, 0.5)
    pairs = [((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2))]
    possible = [
        np.mean([written_out(a[list(p)], b[list(q)]), written_out(a[list(r)], b[list(s)])])
        for p, r in [*pairs, *((r, p) for p, r in pairs)]
        for q, s in pairs
    ]
    assert np.isclose(possible, kernel_distance(a, b).mean, rtol=1e-6).any()


def test_the_librarys_metric_agrees_over_its_own_subsets():
    a, b = cloud(600, 0), cloud(600, 1, 0.3)
    extractor = torch.nn.Identity()
    metric = KernelInceptionDistance(feature=extractor, subsets=60, subset_size=60)
    metric.update(torch.from_numpy(a).double(), real=True)
    metric.update(torch.from_numpy(b).double(), real=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mean, spread = (float(x) for x in metric.compute())
    assert kernel_distance(a, b).mean == pytest.approx(mean, abs=4 * spread / 60**0.5)


def test_it_is_unbiased_and_its_interval_covers_nothing_where_there_is_nothing():
    found = [kernel_distance(cloud(100, 2 * seed), cloud(100, 2 * seed + 1)) for seed in range(200)]
    means = np.array([one.mean for one in found])
    assert abs(means.mean()) < 3 * means.std() / 200**0.5, "no bias"
    assert (means < 0).mean() > 0.3, "an unbiased estimate of nothing is often negative"
    covered = [one.interval[0] < 0 < one.interval[1] for one in found]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.04)


def test_it_grows_with_the_distance_and_is_symmetric():
    real = cloud(200, 0)
    found = [kernel_distance(real, cloud(200, 1, shift)).mean for shift in (0, 0.2, 0.5, 1)]
    assert found == sorted(found)
    fake = cloud(200, 1, 0.5)
    assert kernel_distance(real, fake).mean == pytest.approx(kernel_distance(fake, real).mean, rel=1e-9)


def test_sorted_sets_are_mixed_before_they_are_parted():
    """Halves far apart, sorted alike and against each other: parted in order, the subsets would differ."""
    low, high = cloud(100, 0, -2), cloud(100, 1, 2)
    real, fake = np.concatenate((low, high)), np.concatenate((cloud(100, 3, 2), cloud(100, 2, -2)))
    apart = kernel_distance(low, high).mean
    assert abs(kernel_distance(real, fake).mean) < 0.1 * apart


def test_sets_of_different_sizes_are_compared_and_nothing_is_drawn_from_global_state():
    before = torch.random.get_rng_state()
    one, again = (kernel_distance(cloud(300, 0), cloud(41, 1, 0.5)) for _ in range(2))
    assert one == again and one.mean > 0
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("real", "fake"), [(3, 9), (9, 3), (0, 0)])
def test_fewer_than_four_images_are_refused(real, fake):
    with pytest.raises(DataError, match=f"{real} real and {fake} generated images; expected at least 4"):
        kernel_distance(cloud(real, 0), cloud(fake, 1))


def test_a_missing_torchmetrics_is_named(monkeypatch):
    for name in [n for n in sys.modules if n.startswith("torchmetrics")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(DependencyError, match="torchmetrics does not import"):
        kernel_distance(cloud(9, 0), cloud(9, 1))
