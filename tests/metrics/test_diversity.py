"""Inception score and label imbalance against the library and written-out sums, and at their ends."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.image.inception import InceptionScore

from prismfl.errors import DataError
from prismfl.metrics.readability import inception_score, label_imbalance


def some(count, classes, seed, sharp=1.0):
    logits = np.random.default_rng(seed).normal(0, sharp, (count, classes))
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_it_agrees_with_the_librarys_over_its_own_splits():
    rows = some(2000, 10, 0, 2.0)
    metric = InceptionScore(feature=torch.nn.Identity(), splits=10)
    metric.update(torch.from_numpy(np.log(rows)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mean, _ = metric.compute()
    assert inception_score(rows).mean == pytest.approx(float(mean), rel=0.01)


@given(st.integers(0, 10**6), st.integers(2, 6), st.floats(0.1, 20))
def test_two_splits_of_equal_rows_are_the_formula_of_entropies(seed, classes, sharp):
    """`KL = H(mean) - mean H`: the other way of writing it; repeats make all splits alike."""
    rows = some(3, classes, seed, sharp)
    tiled = np.repeat(rows, 200, axis=0)
    marginal = rows.mean(0)
    entropies = -(rows * np.log(rows + 1e-300)).sum(1)
    expected = np.exp(-(marginal * np.log(marginal + 1e-300)).sum() - entropies.mean())
    assert inception_score(tiled, 2).mean == pytest.approx(expected, rel=0.05)


@given(st.integers(0, 10**6), st.integers(2, 12), st.floats(0.1, 20))
def test_it_lies_between_one_and_the_number_of_classes(seed, classes, sharp):
    found = inception_score(some(60, classes, seed, sharp))
    assert 1 - 1e-9 <= found.mean <= classes + 1e-9


def test_its_ends():
    sure = np.eye(10)[np.arange(1000) % 10]
    assert inception_score(sure).mean == pytest.approx(10, rel=0.06), "all classes, each sure"
    assert inception_score(np.full((100, 10), 0.1)).mean == pytest.approx(1), "nothing is sure"
    assert inception_score(np.eye(10)[np.zeros(100, int)]).mean == pytest.approx(1), "one class"
    half = inception_score(np.eye(10)[np.arange(1000) % 5]).mean
    assert half == pytest.approx(5, rel=0.03), "half of the classes lost"


def test_the_order_of_classes_in_the_set_does_not_matter_much():
    """Samples come by label; splits of neighbours, or of every tenth, would hold one class each."""
    turns = np.eye(10)[np.arange(1000) % 10]
    assert inception_score(turns[np.argsort(np.arange(1000) % 10)]).mean > 9


@pytest.mark.parametrize("splits", [1, 0, -3])
def test_fewer_than_two_splits_are_refused(splits):
    with pytest.raises(DataError, match=f"for {splits} splits; expected .* 2 splits"):
        inception_score(some(30, 3, 0), splits)


@pytest.mark.parametrize(
    "rows", [np.ones((30, 3)), np.full((30, 3), np.nan), np.tile([1.5, -0.5], (30, 1)), np.zeros((30, 2))]
)
def test_what_is_no_probability_is_refused(rows):
    with pytest.raises(DataError, match="no probabilities"):
        inception_score(rows)


@pytest.mark.parametrize("shape", [(0, 3), (19, 3), (30,)])
def test_too_few_rows_are_refused(shape):
    with pytest.raises(DataError, match="at least 2 rows a split"):
        inception_score(np.full(shape, 1 / 3))


SHARES = st.lists(st.integers(0, 50), min_size=4, max_size=4).filter(any).map(lambda n: np.array(n) / sum(n))


@given(SHARES, SHARES)
def test_imbalance_is_a_distance_and_the_greatest_gap_of_any_set_of_classes(p, q):
    found = label_imbalance(p, q)
    gaps = [abs((p - q)[[bool(set_ >> i & 1) for i in range(4)]].sum()) for set_ in range(16)]
    assert found == pytest.approx(max(gaps), abs=1e-12) and 0 <= found <= 1 + 1e-12
    assert found == label_imbalance(q, p) and label_imbalance(p, p) == 0


def test_shares_of_different_classes_are_refused():
    with pytest.raises(DataError, match="shares of 2 and of 3 classes"):
        label_imbalance(np.ones(2) / 2, np.ones(3) / 3)
