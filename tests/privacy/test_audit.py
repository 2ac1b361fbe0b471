"""The audit finds planted bugs, bounds honest releases well, and seldom accuses them."""

import math
from dataclasses import replace

import numpy as np
import pytest

from prismfl.errors import DataError, SettingError
from prismfl.privacy import release
from prismfl.privacy.audit import (
    IMAGES,
    audit_release,
    audit_training,
    chance,
    many_runs,
    many_runs_if_gaussian,
    one_run,
)
from prismfl.privacy.release import Grid, noisy_sums
from prismfl.settings.schema import Privacy

ONE = Privacy(epsilon=1.0, delta=1e-5, noise="fast")
TEN = replace(ONE, epsilon=9.8)
RUNS, CANARIES = 40_000, 2_000


# -------------------------------------------------------------------------------- planted bugs


def noise_discarded(patch):
    patch.setattr(release, "noisy", lambda sums, *_: sums)


def half_the_noise(patch, real=release.noisy):
    patch.setattr(release, "noisy", lambda sums, scale, sampler: real(sums, scale // 2, sampler))


def sensitivity_off_by_n(patch):
    patch.setattr(Grid, "sensitivity", property(lambda _: math.sqrt(2) * release.NORM / IMAGES))


def a_second_release(patch, real=release.noisy):
    """Two are handed out, and whoever holds both adds them up."""
    patch.setattr(
        release, "noisy", lambda sums, scale, sampler: real(sums, scale, sampler) + real(sums, scale, sampler)
    )


def noise_from_a_public_seed(patch):
    def seeded(count, scale):
        return np.rint(np.random.default_rng(0).normal(0.0, scale, count)).astype(np.int64)

    patch.setattr(release, "_rounded", seeded)


BUGS = [noise_discarded, half_the_noise, sensitivity_off_by_n, a_second_release, noise_from_a_public_seed]


@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_found(monkeypatch, plant):
    plant(monkeypatch)
    found = audit_release(ONE, RUNS, CANARIES)
    assert found.broken, found


@pytest.mark.parametrize("plant", [noise_discarded, half_the_noise, sensitivity_off_by_n], ids=lambda p: p.__name__)
def test_gross_bugs_are_found_whatever_the_noise_is(monkeypatch, plant):
    plant(monkeypatch)
    assert audit_release(ONE, 200_000, CANARIES).many_runs > 1.0


def test_noise_that_was_discarded_is_found_in_one_run(monkeypatch):
    noise_discarded(monkeypatch)
    assert audit_release(TEN, 100, 5_000).one_run > 4.0
    assert audit_release(ONE, 100, 5_000).one_run > 1.0


# ------------------------------------------------------------------------------ honest releases


@pytest.mark.parametrize("privacy", [ONE, TEN], ids=["one", "ten"])
def test_the_better_test_bounds_an_honest_release_by_a_third_at_least(privacy):
    found = audit_release(privacy, RUNS, 5_000)
    assert max(found.many_runs_if_gaussian, found.one_run) >= privacy.epsilon / 3, found
    assert found.many_runs_if_gaussian >= 0.7 * privacy.epsilon and found.fresh


def test_of_twenty_honest_audits_at_most_three_accuse():
    found = [audit_release(ONE, 4_000, 1_000, seed=turn) for turn in range(20)]
    assert all(one.fresh for one in found)
    for name in ("many_runs", "many_runs_if_gaussian", "one_run"):
        assert sum(getattr(one, name) > 1.0 for one in found) <= 3


def test_exact_noise_is_audited_as_well():
    found = audit_release(replace(TEN, noise="exact"), 2_000, 1_000)
    assert not found.broken and found.many_runs_if_gaussian > 5


# --------------------------------------------------------------------------------------- bounds


def test_no_difference_is_no_privacy_lost():
    same = np.random.default_rng(0).normal(size=4_000)
    assert many_runs(same[::2], same[1::2], 1e-5) < 0.3
    assert many_runs_if_gaussian(same[::2], same[1::2], 1e-5) < 0.3
    assert one_run(50, 100, 1_000, 0.0) == 0.0


def test_a_clear_difference_bounds_by_the_number_of_runs():
    """Without one error in N, ε is at least log(N / 4) or so, and no more can be said."""
    found = many_runs(np.full(2_000, 2.0) + np.arange(2_000) * 1e-6, np.arange(2_000) * 1e-6, 0.0)
    assert math.log(1_000 / 5) < found < math.log(1_000)


def test_bounds_of_one_run_are_those_of_coins():
    """Randomised response at ε: right guesses are exactly Binomial, and rejected as such."""
    assert one_run(1_000, 1_000, 1_000, 0.0) == pytest.approx(-math.log(0.05 ** (-1 / 1000) - 1), rel=1e-6)
    assert chance(731, 1_000, 1_000, 1.0, 0.0) == pytest.approx(0.5, abs=0.03)
    rng = np.random.default_rng(0)
    above = [one_run(int(rng.binomial(500, 1 / (1 + math.exp(-2.0)))), 500, 500, 0.0) > 2.0 for _ in range(50)]
    assert sum(above) <= 8


def test_delta_only_ever_weakens_a_bound():
    bounds = [one_run(480, 500, 5_000, delta) for delta in (0.0, 1e-7, 1e-6, 1e-5)]
    assert bounds == sorted(bounds, reverse=True) and bounds[0] > bounds[-1]


@pytest.mark.parametrize("numbers", [(3, 2, 10), (2, 11, 10), (-1, 2, 10), (0, 0, 10)])
def test_impossible_guesses_are_refused(numbers):
    with pytest.raises(SettingError, match="guesses"):
        one_run(*numbers, 0.0)


def test_too_few_runs_are_refused():
    with pytest.raises(SettingError, match="at least 20"):
        audit_release(ONE, 10, 100)
    with pytest.raises(DataError):
        noisy_sums([], 100, ONE)


# --------------------------------------------------------------------------------- whole training


def test_a_training_that_copies_its_images_is_found(feature_map, blobs):
    found = audit_training(lambda images: images, blobs, feature_map, ONE, 40)
    assert found.many_runs > 1.0 and found.many_runs_if_gaussian > 1.0


def test_a_training_that_takes_nothing_of_its_images_is_not_accused(feature_map, blobs):
    rng = np.random.default_rng(0)
    found = audit_training(lambda _: blobs[rng.integers(0, 30, 10)], blobs, feature_map, ONE, 40)
    assert found.many_runs < 0.5 and found.many_runs_if_gaussian < 1.5
    with pytest.raises(SettingError, match="3 training runs"):
        audit_training(lambda images: images, blobs, feature_map, ONE, 3)
