"""Intervals hold what they promise, and scale and shift with their values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap, ttest_1samp

from prismfl.errors import SettingError
from prismfl.metrics.intervals import estimate, t_interval

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20)


@given(VALUES)
def test_it_equals_the_interval_of_a_t_test(values):
    found = ttest_1samp(values, 0).confidence_interval(0.95)
    if np.std(values) > 1e-6:  # of equal values the test makes no interval
        assert estimate(values).interval == pytest.approx((found.low, found.high), rel=1e-9, abs=1e-9)


@given(VALUES, st.floats(-5, 5), st.floats(0, 5))
def test_it_shifts_and_scales(values, shift, scale):
    moved = t_interval(np.array(values) * scale + shift)
    assert np.allclose(moved, t_interval(values) * scale + shift, atol=1e-6)


def test_it_covers_the_mean_nineteen_times_in_twenty():
    drawn = np.random.default_rng(0).normal(3, 2, (5, 4000))
    low, high = t_interval(drawn)
    assert low.shape == (4000,)
    assert ((low < 3) & (high > 3)).mean() == pytest.approx(0.95, abs=0.012)


def test_many_values_agree_with_the_bootstrap():
    values = np.random.default_rng(1).normal(0, 1, 400)
    other = bootstrap((values,), np.mean, rng=np.random.default_rng(2)).confidence_interval
    assert estimate(values).interval == pytest.approx((other.low, other.high), abs=0.02)


def test_equal_values_leave_no_doubt():
    assert estimate([2.0, 2.0, 2.0]).interval == (2.0, 2.0)


@pytest.mark.parametrize("values", [[], [1.0]])
def test_fewer_than_two_values_are_refused(values):
    with pytest.raises(SettingError, match=f"an interval of {len(values)} values"):
        estimate(values)
