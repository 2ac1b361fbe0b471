"""The public uniforms: each client's exactly uniform, stratified ones spread over the cohort."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismfl.seeding import Purpose, Stream
from prismfl.wire import draws
from prismfl.wire.draws import uniforms


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(0, 2**32), st.integers(0, 50))
def test_stratified_shifts_are_distinct_multiples_of_a_share(cohort, seed, turn):
    cohort_draws = np.array([uniforms("stratified", seed, turn, 7 * r, r, cohort, 3) for r in range(cohort)])
    shifts = (cohort_draws.astype(int) - cohort_draws[0].astype(int)) % 65536
    assert (shifts == shifts[:, :1]).all()
    assert len(set(shifts[:, 0])) == cohort
    for column in cohort_draws.T:
        gaps = np.diff(np.sort(column.astype(int)))
        assert (np.abs(np.append(gaps, 65536 - gaps.sum()) - 65536 / cohort) < 1).all()


@pytest.mark.parametrize("cohort", [1, 2, 3, 10])
def test_one_clients_stratified_draw_is_exactly_uniform(monkeypatch, cohort):
    class Every:
        """A stream whose halves are each value once."""

        def __init__(self, seed, purpose, round=0, client=0):
            self.real = Stream(seed, purpose, round, client)

        def halves(self, count):
            return np.arange(count).astype(np.uint16)

        def permutation(self, count):
            return self.real.permutation(count)

    monkeypatch.setattr(draws, "Stream", Every)
    for rank in range(cohort):
        found = uniforms("stratified", 3, 1, rank, rank, cohort, 65536)
        np.testing.assert_array_equal(np.sort(found), np.arange(65536))


def test_independent_draws_are_the_clients_own_stream():
    found = uniforms("independent", 3, 2, 5, 0, 9, 100)
    np.testing.assert_array_equal(found, Stream(3, Purpose.MASK, 2, 5).halves(100))
    assert found.dtype == np.uint16
    # Neither rank nor the size of the cohort has a say.
    np.testing.assert_array_equal(found, uniforms("independent", 3, 2, 5, 7, 8, 100))


def test_the_order_of_shifts_changes_from_round_to_round():
    firsts = set()
    for turn in range(30):
        one, other = (uniforms("stratified", 0, turn, 0, rank, 4, 1) for rank in (0, 1))
        firsts.add(int((one - other)[0]))
    assert len(firsts) > 1


@pytest.mark.parametrize("kind", ["stratified", "independent"])
def test_draws_differ_between_rounds_and_seeds(kind):
    mine = uniforms(kind, 1, 1, 0, 0, 2, 4000)
    for other in (uniforms(kind, 1, 2, 0, 0, 2, 4000), uniforms(kind, 2, 1, 0, 0, 2, 4000)):
        assert abs(np.corrcoef(mine, other)[0, 1]) < 0.08


def test_stratified_masks_of_a_cohort_are_less_noisy_and_unbiased():
    theta, cohort, noise = 0.3, 10, {}
    for kind in ("stratified", "independent"):
        means = [
            np.mean([uniforms(kind, 5, turn, c, c, cohort, 500) < theta * 65536 for c in range(cohort)], 0)
            for turn in range(20)
        ]
        assert np.mean(means) == pytest.approx(theta, abs=0.01)
        noise[kind] = np.var(means)
    assert noise["independent"] == pytest.approx(theta * (1 - theta) / cohort, rel=0.1)
    assert noise["stratified"] < 0.1 * noise["independent"]


def test_nothing_to_draw_gives_nothing():
    for kind in ("stratified", "independent"):
        assert uniforms(kind, 0, 0, 0, 0, 2, 0).shape == (0,)
