"""The paper's mechanism: noise of the right size is applied, whatever the search found, and counted."""

import math

import numpy as np
import pytest
from scipy.stats import chi2

from prismfl.config import Privacy
from prismfl.privacy import theta
from prismfl.privacy.accountant import calibrate, compose
from prismfl.privacy.theta import HIGH, LOW, noised, planned

PRIVACY = Privacy(epsilon=9.8, delta=1e-5, mechanism="theta", noise="fast")


def test_all_rounds_together_keep_the_promise():
    entry, _ = planned(PRIVACY, 1_000_000, 500, 600, 2)
    assert entry.noise_multiplier == pytest.approx(calibrate(9.8, 1e-5) * math.sqrt(500), rel=1e-3)
    together = compose([entry] * 500)
    assert 9.79 < together.epsilon <= 9.8
    assert (entry.client, entry.mechanism, entry.count) == (2, "gaussian-theta", 1)
    exact = planned(Privacy(epsilon=9.8, delta=1e-5, mechanism="theta"), 1_000_000, 500, 600, 2)[0]
    assert exact.slack > 0 and compose([exact] * 500).epsilon <= 9.8


def test_the_noise_that_the_papers_setting_needs():
    """A million keep-probabilities in [0.1, 0.9], at ε = 9.8: σ of one release, and of each of 500 rounds."""
    assert planned(PRIVACY, 10**6, 1, 600, 0)[0].sigma == pytest.approx(406, rel=0.01)
    assert planned(PRIVACY, 10**6, 500, 600, 0)[0].sigma == pytest.approx(9_090, rel=0.01)


def test_two_stores_are_no_farther_apart_than_the_sensitivity():
    low, high = np.zeros(100, np.uint16), np.full(100, 65_535, np.uint16)
    entry, _ = planned(PRIVACY, 100, 1, 600, 0)
    apart = np.linalg.norm(low.clip(LOW, HIGH).astype(float) - high.clip(LOW, HIGH)) / 65_536
    assert apart == pytest.approx(entry.sensitivity)


@pytest.mark.parametrize("sampler", ["exact", "fast"])
def test_noise_is_applied_and_clipped(sampler):
    q = np.full(2_000, 32_768, np.uint16)
    found = noised(q, 2_000, sampler)
    assert found.dtype == np.uint16 and found.min() >= LOW and found.max() <= HIGH
    square = (((found.astype(float) - 32_768) / 2_000) ** 2).sum()
    assert chi2.ppf(1e-5, 2_000) < square < chi2.ppf(1 - 1e-5, 2_000)
    assert not np.array_equal(found, noised(q, 2_000, sampler))
    drowned = noised(np.array([0, 65_535] * 1_000, np.uint16), 10**8, sampler)
    assert np.isin(drowned, (LOW, HIGH)).mean() > 0.99 and 0.4 < (drowned == LOW).mean() < 0.6


def test_what_is_found_is_clipped_before_the_noise(monkeypatch):
    seen = []
    monkeypatch.setattr(theta, "noisy", lambda values, *_: seen.append(values) or values)
    noised(np.array([0, 30_000, 65_535], np.uint16), 10, "fast")
    assert seen[0].tolist() == [LOW, 30_000, HIGH]
