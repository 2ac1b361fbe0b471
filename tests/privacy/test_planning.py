"""Plans: noise for a guarantee, the guarantee of a noise, and one the inverse of the other."""

import math

import pytest
from hypothesis import given
from hypothesis import settings as limited
from hypothesis import strategies as st

from prismfl.errors import PrivacyError
from prismfl.privacy.ledger import calibrate, compose
from prismfl.privacy.planning import at_clients, plans
from prismfl.privacy.release import NORM, Grid, _planned

DELTA = 1e-5


def test_a_plan_is_what_a_release_then_does():
    from prismfl.settings.schema import Privacy

    (found,) = plans([600], DELTA, 1000, epsilon=3.0, images_per_person=2)
    grid = Grid(1000, float(NORM), 0.0, 0)
    entry, _ = _planned(grid, Privacy(epsilon=3.0, images_per_person=2), 600, 0, persons=False)
    assert entry.sigma == pytest.approx(found.sigma, rel=1e-6)
    assert entry.sensitivity == pytest.approx(found.sensitivity) == pytest.approx(2 * math.sqrt(2) / 600)
    assert compose([entry]).epsilon == pytest.approx(found.epsilon, rel=1e-6)


@limited(max_examples=10)
@given(st.floats(0.2, 12), st.integers(2, 50_000), st.integers(1, 5))
def test_noise_and_guarantee_are_inverse(epsilon, size, most):
    (found,) = plans([size], DELTA, 10, epsilon=epsilon, images_per_person=most)
    (back,) = plans([size], DELTA, 10, sigma=found.sigma, images_per_person=most)
    assert back.epsilon == pytest.approx(epsilon, rel=1e-6)
    assert found.noise_to_signal == pytest.approx(found.sigma * math.sqrt(10))


def test_one_person_at_more_clients_gets_less():
    found = plans([600, 600, 600], DELTA, 10, epsilon=1.0)
    one, two, three = (at_clients(found, clients, DELTA) for clients in (1, 2, 3))
    assert one == pytest.approx(1.0) and one < two < three < 3
    assert calibrate(three, DELTA) == pytest.approx(found[0].noise_multiplier / math.sqrt(3))


@pytest.mark.parametrize(
    ("sizes", "words", "says"),
    [
        ([600], {}, "one of the two"),
        ([600], {"epsilon": 1.0, "sigma": 1.0}, "one of the two"),
        ([600], {"epsilon": -1.0}, "ε = -1.0"),
        ([600], {"sigma": -1.0}, "σ = -1.0"),
        ([1], {"epsilon": 1.0}, "at least 2 images"),
        ([100_000], {"epsilon": 1.0}, "δ below 1 / images"),
        ([600], {"epsilon": 1.0, "images_per_person": 0}, "0 images a person"),
    ],
)
def test_impossible_plans_are_refused(sizes, words, says):
    with pytest.raises(PrivacyError, match=says):
        plans(sizes, DELTA, 10, **words)


def test_a_person_is_at_no_more_clients_than_there_are():
    with pytest.raises(PrivacyError, match="1 … 1"):
        at_clients(plans([600], DELTA, 10, epsilon=1.0), 2, DELTA)
