"""Precision, recall, density and coverage against the `prdc` package and sums written out, and how they behave."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from prismfl.errors import DataError
from prismfl.metrics import distances
from prismfl.metrics.distances import Neighbourhoods, balls, compare


def cloud(count, seed, shift=0.0, width=8, scale=1.0):
    return (np.random.default_rng(seed).normal(0, scale, (count, width)) + shift).astype(np.float32)


def figures(real, fake):
    return compare(balls(real), balls(fake))


def by_prdc(real, fake):
    """Published by the authors of density and coverage."""
    compute = pytest.importorskip("prdc").compute_prdc
    found = compute(real, fake, distances.NEIGHBOURS)
    return Neighbourhoods(*(float(found[name]) for name in ("precision", "recall", "density", "coverage")))


def by_trees(real, fake):
    """The definitions with scikit-learn's neighbour search, in double precision."""
    real, fake = real.astype(float), fake.astype(float)
    trees = {
        name: NearestNeighbors(n_neighbors=5, algorithm="ball_tree").fit(x) for name, x in (("r", real), ("f", fake))
    }
    real_radii, fake_radii = trees["r"].kneighbors()[0][:, -1], trees["f"].kneighbors()[0][:, -1]
    gaps = np.linalg.norm(real[:, None] - fake[None], axis=2)
    inside = gaps < real_radii[:, None]
    return Neighbourhoods(
        inside.any(0).mean(),
        (gaps < fake_radii[None]).any(1).mean(),
        inside.sum(0).mean() / 5,
        inside.any(1).mean(),
    )


@pytest.mark.parametrize("other", [by_prdc, by_trees])
@pytest.mark.parametrize(("count", "shift"), [((40, 60), 0.0), ((70, 30), 0.7), ((7, 7), 0.2), ((50, 50), 5.0)])
def test_it_equals_an_independent_computation(other, count, shift):
    real, fake = cloud(count[0], 0), cloud(count[1], 1, shift)
    assert vars(figures(real, fake)) == pytest.approx(vars(other(real, fake)), abs=1e-9)


@given(st.integers(6, 40), st.integers(6, 40), st.integers(0, 10**6), st.floats(0, 2))
def test_it_equals_trees_on_any_clouds(real, fake, seed, shift):
    a, b = cloud(real, seed), cloud(fake, seed + 1, shift)
    assert vars(figures(a, b)) == pytest.approx(vars(by_trees(a, b)), abs=1e-9)


def test_chunks_do_not_matter(monkeypatch):
    real, fake = cloud(700, 0), cloud(500, 1, 0.3)
    whole = figures(real, fake)
    monkeypatch.setattr(distances, "CHUNK_MB", 0.1)
    assert figures(real, fake) == whole


def test_the_same_set_scores_best():
    real = cloud(200, 0)
    found = figures(real, real)
    assert (found.precision_judge, found.recall_judge, found.coverage_judge) == (1, 1, 1)
    assert found.density_judge == pytest.approx(1, abs=0.01)


def test_alike_sets_score_high():
    found = figures(cloud(1000, 0), cloud(1000, 1))
    assert found.coverage_judge > 0.9 and found.density_judge == pytest.approx(1, abs=0.15)


def test_lost_modes_are_seen_by_recall_and_coverage_alone():
    real = np.concatenate((cloud(200, 0, -10), cloud(200, 1, 10)))
    found = figures(real, cloud(400, 2, 10))
    assert found.precision_judge > 0.7 and found.density_judge > 0.7
    assert found.recall_judge < 0.55 and found.coverage_judge < 0.55


def test_one_image_over_and_over_is_precise_and_covers_nothing():
    real = cloud(300, 0)
    found = figures(real, np.repeat(real[:1], 300, axis=0))
    assert found.precision_judge == 1
    assert found.recall_judge < 0.05 and found.coverage_judge < 0.1


def test_noise_is_seen_by_precision_and_density():
    real = cloud(300, 0)
    found = figures(real, cloud(300, 1, scale=6))
    assert found.precision_judge < 0.1 and found.density_judge < 0.1


def test_ten_thousand_images_a_side_take_bounded_memory():
    real, fake = cloud(10_000, 0, width=4), cloud(10_000, 1, width=4)
    tracemalloc.start()
    figures(real, fake)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6


def test_of_more_images_ten_thousand_are_taken_from_all_over(monkeypatch):
    monkeypatch.setattr(distances, "MOST", 50)
    rows = np.arange(400, dtype=np.float32)[:, None]
    kept = balls(rows).rows[:, 0]
    assert len(kept) == 50 and kept.min() < 100 and kept.max() > 300 and np.array_equal(kept, balls(rows).rows[:, 0])


@pytest.mark.parametrize(("count"), [0, 5])
def test_fewer_than_six_images_are_refused(count):
    with pytest.raises(DataError, match=f"{count} real and {count} generated images; expected at least 6"):
        balls(cloud(count, 0))
