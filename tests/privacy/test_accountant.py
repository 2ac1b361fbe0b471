"""The ledger's figures against golden values and numerical integration, and what it refuses to read."""

import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as limited
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from prismfl.errors import DependencyError, PrivacyError
from prismfl.privacy.ledger import (
    Entry,
    calibrate,
    compose,
    epsilon_of,
    from_json,
    rounding_distance,
    summary_of,
    to_json,
    versions,
)

ENTRY = Entry(0, "gaussian", "exact", 9.8, 1e-5, 0.5, 0.001, 0.002, 0.0, 600, 1, 1000)


def delta_by_integral(multiplier, epsilon):
    """δ = ∫ max(0, p - e^ε p') of two normals one Δ apart, by quadrature over the loss's density."""
    mean, deviation = 1 / (2 * multiplier**2), 1 / multiplier
    scale = 1 / (deviation * math.sqrt(2 * math.pi))

    def integrand(loss):
        return -math.expm1(epsilon - loss) * scale * math.exp(-(((loss - mean) / deviation) ** 2) / 2)

    return quad(integrand, epsilon, epsilon + 40 * deviation, limit=200)[0]


# ---------------------------------------------------------------------------------------- figures


@pytest.mark.parametrize(
    ("epsilon", "delta", "multiplier"),
    [(9.8, 1e-5, 0.50816), (1.0, 1e-5, 3.73063), (3.0, 1e-5, 1.39059), (1.0, 1e-6, 4.22468)],
)
def test_golden_noise_multipliers(epsilon, delta, multiplier):
    assert calibrate(epsilon, delta) == pytest.approx(multiplier, rel=1e-4)
    assert epsilon_of(multiplier, delta) == pytest.approx(epsilon, rel=1e-3)


@limited(max_examples=10)
@given(st.floats(0.05, 15), st.floats(-12, -2).map(lambda power: 10**power))
def test_calibration_is_exact_and_inverts(epsilon, delta):
    multiplier = calibrate(epsilon, delta)
    assert epsilon_of(multiplier, delta) == pytest.approx(epsilon, rel=1e-6)
    assert delta_by_integral(multiplier, epsilon) == pytest.approx(delta, rel=1e-4)


@limited(max_examples=10)
@given(st.floats(0.1, 12), st.integers(1, 10**7), st.floats(1e5, 1e9))
def test_what_discrete_noise_costs_is_paid(epsilon, dimension, steps):
    """At the calibrated σ, δ of a Gaussian and the price of the sampler add up to no more than δ."""
    try:
        multiplier = calibrate(epsilon, 1e-5, dimension, steps)
    except PrivacyError:
        return
    slack = rounding_distance(dimension, multiplier * steps)
    assert multiplier >= calibrate(epsilon, 1e-5)
    assert delta_by_integral(multiplier, epsilon) + (1 + math.exp(epsilon)) * slack <= 1e-5 * (1 + 1e-6)
    assert epsilon_of(multiplier, 1e-5, slack) <= epsilon * (1 + 1e-9)


@pytest.mark.parametrize("scale", [3.0, 10.0, 40.0])
def test_the_bound_on_rounding_holds_numerically(scale):
    """In one dimension, where both distributions can be written down; the bound itself is for scales ≥ 1000."""
    k = np.arange(-int(12 * scale), int(12 * scale) + 1)
    discrete = np.exp(-(k**2) / (2 * scale**2))
    discrete /= discrete.sum()
    rounded = norm.cdf((k + 0.5) / scale) - norm.cdf((k - 0.5) / scale)
    chi = ((rounded - discrete) ** 2 / discrete)[discrete > 1e-250].sum()
    assert chi <= 1 / (100 * scale**4)
    assert abs(rounded - discrete).sum() / 2 <= math.sqrt(1 / 200) / scale**2


def test_coarse_noise_has_no_bound():
    with pytest.raises(PrivacyError, match="grid steps"):
        rounding_distance(10, 500)


def test_an_epsilon_that_the_sampler_cannot_pay_for_is_refused():
    with pytest.raises(PrivacyError, match="smaller ε"):
        calibrate(40, 1e-5, 10**6, 2**24)


@pytest.mark.parametrize(
    ("epsilon", "delta"), [(0, 1e-5), (-1, 1e-5), (math.inf, 1e-5), (math.nan, 1e-5), (1, 0), (1, 1)]
)
def test_impossible_figures_are_refused(epsilon, delta):
    with pytest.raises(PrivacyError, match="expected a number"):
        calibrate(epsilon, delta)


# ------------------------------------------------------------------------------------ composition


def entry_of(multiplier, **changes):
    return replace(ENTRY, noise_multiplier=multiplier, sigma=multiplier * ENTRY.sensitivity, **changes)


@given(st.lists(st.floats(0.3, 10), min_size=1, max_size=6))
@limited(max_examples=10)
def test_releases_of_one_store_compose_as_one_of_less_noise(multipliers):
    found = compose([entry_of(one) for one in multipliers])
    together = sum(one**-2 for one in multipliers) ** -0.5
    assert found.epsilon == pytest.approx(epsilon_of(together, 1e-5))
    assert found.releases == len(multipliers)


def test_composition_agrees_with_the_general_accountant():
    from dp_accounting import GaussianDpEvent
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(value_discretization_interval=1e-3)
    accountant.compose(GaussianDpEvent(2.0)).compose(GaussianDpEvent(3.0))
    found = compose([entry_of(2.0), entry_of(3.0)]).epsilon
    assert found == pytest.approx(accountant.get_epsilon(1e-5), rel=2e-3)


def test_clients_of_different_persons_compose_in_parallel():
    entries = [entry_of(2.0), entry_of(1.0, client=1), entry_of(1.5, client=1), entry_of(0.9, client=2)]
    found = compose(entries)
    assert (found.weakest, found.releases, found.clients) == (1, 2, 3)
    assert found.epsilon == compose(entries[1:3]).epsilon > compose(entries[3:]).epsilon


def test_a_person_at_several_clients_is_told_what_they_get():
    entries = [entry_of(2.0, client=client) for client in range(4)]
    assert compose(entries, clients_of_a_person=3).epsilon == pytest.approx(epsilon_of(2 / math.sqrt(3), 1e-5))
    assert compose(entries, clients_of_a_person=9).epsilon == pytest.approx(epsilon_of(1.0, 1e-5))


def test_many_alike_are_one_entry():
    assert compose([entry_of(2.0, count=4)]).epsilon == compose([entry_of(2.0)] * 4).epsilon


def test_slack_only_ever_costs():
    plain, slack = compose([entry_of(1.0)]), compose([entry_of(1.0, slack=1e-9)])
    assert plain.epsilon < slack.epsilon < plain.epsilon * 1.01
    with pytest.raises(PrivacyError):
        compose([entry_of(0.2, slack=1e-6)])


def test_nothing_released_is_no_guarantee():
    assert "no formal guarantee" in summary_of(())
    with pytest.raises(PrivacyError):
        compose(())


def test_a_summary_says_what_and_for_whom():
    assert "1e-05)" in summary_of([ENTRY]) and "one image" in summary_of([ENTRY])
    assert "up to 3 images" in summary_of([replace(ENTRY, images_per_person=3)])
    assert "fast sampler" in summary_of([replace(ENTRY, sampler="fast")])


# ----------------------------------------------------------------------------------------- reading


def test_entries_survive_json():
    entries = (replace(ENTRY, versions=versions()), replace(ENTRY, client=3, count=7))
    assert from_json(json.loads(json.dumps(to_json(entries)))) == entries


BAD = [
    {"epsilon": 0},
    {"epsilon": "9.8"},
    {"epsilon": math.nan},
    {"epsilon": True},
    {"delta": 0.0},
    {"delta": 1},
    {"noise_multiplier": -1.0},
    {"sigma": 1.0},
    {"sensitivity": math.inf},
    {"slack": -1e-9},
    {"images": 0},
    {"images": 600.0},
    {"client": -1},
    {"dimension": 0},
    {"count": 0},
    {"mechanism": "magic"},
    {"sampler": "none"},
    {"unit": "a batch"},
    {"adjacency": "friendship"},
    {"versions": ["opendp"]},
    {"versions": {"opendp": 16}},
    {"extra": 1},
]


@pytest.mark.parametrize("change", BAD, ids=str)
def test_entries_that_no_release_wrote_are_refused(change):
    with pytest.raises(PrivacyError, match="ledger entry"):
        from_json([to_json([ENTRY])[0] | change])


@pytest.mark.parametrize("values", [None, {}, "x", [None], [[]], [{}], [{"epsilon": 9.8}]], ids=str)
def test_what_is_no_ledger_is_refused(values):
    with pytest.raises(PrivacyError, match="ledger entry"):
        from_json(values)


def test_without_the_library_figures_are_refused_and_entries_still_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    epsilon_of.cache_clear()
    assert from_json(to_json([ENTRY])) == (ENTRY,)
    with pytest.raises(DependencyError, match="pip install dp-accounting"):
        compose([ENTRY])
