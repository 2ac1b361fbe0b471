"""The public draws: each client's exactly uniform, a cohort's spread evenly, entries dealt in parts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismfl.seeding.philox import Purpose, Stream
from prismfl.wire import uniforms as draws
from prismfl.wire.uniforms import Draws, baseline, stretches

KINDS = ("stratified", "independent")


def drawn(kind, seed, turn, client, rank, cohort, count):
    return Draws(kind, ((count, 1),), seed, turn, cohort).uniforms(client, rank)


# ------------------------------------------------------------------------------------------ uniforms


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(0, 2**32), st.integers(0, 50))
def test_stratified_shifts_are_distinct_multiples_of_a_share(cohort, seed, turn):
    cohort_draws = np.array([drawn("stratified", seed, turn, 7 * r, r, cohort, 3) for r in range(cohort)])
    shifts = (cohort_draws.astype(int) - cohort_draws[0].astype(int)) % 65536
    assert (shifts == shifts[:, :1]).all()
    assert len(set(shifts[:, 0])) == cohort
    for column in cohort_draws.T:
        gaps = np.diff(np.sort(column.astype(int)))
        assert (np.abs(np.append(gaps, 65536 - gaps.sum()) - 65536 / cohort) < 1).all()


class Every(Stream):
    """A stream whose halves are each value once."""

    def halves(self, count):
        return np.arange(count).astype(np.uint16)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cohort", [1, 2, 3, 10, 32767])
def test_one_clients_mask_is_an_exact_bernoulli_draw(monkeypatch, kind, cohort):
    """A client's u takes each of 65,536 values once, so that q of them are below q."""
    monkeypatch.setattr(draws, "Stream", Every)
    seed = 2**40 + cohort  # of no other test: what is kept of a stream is kept by its seed
    for rank in sorted({0, cohort // 2, cohort - 1}):
        found = drawn(kind, seed, 1, rank, rank, cohort, 65536)
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(np.sort(found), np.arange(65536))
        for q in (0, 1, 656, 30001, 65535):
            assert int((found < q).sum()) == q


def test_independent_draws_are_the_clients_own_stream():
    found = drawn("independent", 3, 2, 5, 0, 9, 100)
    np.testing.assert_array_equal(found, Stream(3, Purpose.MASK, 2, 5).halves(100))
    assert found.dtype == np.uint16
    # Neither rank nor the size of the cohort has a say.
    np.testing.assert_array_equal(found, drawn("independent", 3, 2, 5, 7, 8, 100))


def test_the_order_of_shifts_changes_from_round_to_round():
    firsts = set()
    for turn in range(30):
        one, other = (drawn("stratified", 0, turn, 0, rank, 4, 1) for rank in (0, 1))
        firsts.add(int((one - other)[0]))
    assert len(firsts) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_draws_differ_between_rounds_and_seeds(kind):
    mine = drawn(kind, 1, 1, 0, 0, 2, 4000)
    for other in (drawn(kind, 1, 2, 0, 0, 2, 4000), drawn(kind, 2, 1, 0, 0, 2, 4000)):
        assert abs(np.corrcoef(mine, other)[0, 1]) < 0.08


def test_a_caller_cannot_change_what_another_one_is_given():
    for kind in KINDS:
        first = drawn(kind, 6, 0, 1, 1, 2, 50)
        before = first.copy()
        first[:] = 0
        np.testing.assert_array_equal(drawn(kind, 6, 0, 1, 1, 2, 50), before)
    with pytest.raises(ValueError, match="read-only"):
        Draws("stratified", ((50, 3),), 6, 0, 2).dealt()[:] = 0


@pytest.mark.parametrize("cohort", [2, 3, 10, 37])
def test_the_noise_of_a_cohorts_mean_mask_is_what_theory_says(cohort):
    """Over uniform θ a mean of K masks varies by 1/(6K²) when stratified, by 1/(6K) when independent."""
    count, rounds = 4000, 15
    theta = np.random.default_rng(cohort).integers(0, 65536, count).astype(np.uint16)
    for kind, wanted in (("stratified", 1 / (6 * cohort**2)), ("independent", 1 / (6 * cohort))):
        off = [
            np.mean([drawn(kind, 5, turn, c, c, cohort, count) < theta for c in range(cohort)], 0) - theta / 65536
            for turn in range(rounds)
        ]
        assert np.mean(np.square(off)) == pytest.approx(wanted, rel=0.05)
        # Unbiased: five standard deviations of the mean of them all.
        assert abs(np.mean(off)) < 5 * (wanted / (count * rounds)) ** 0.5


def test_stratified_masks_of_a_cohort_are_less_noisy_and_unbiased():
    theta, cohort, noise = 0.3, 10, {}
    for kind in KINDS:
        means = [
            np.mean([drawn(kind, 5, turn, c, c, cohort, 500) < theta * 65536 for c in range(cohort)], 0)
            for turn in range(20)
        ]
        assert np.mean(means) == pytest.approx(theta, abs=0.01)
        noise[kind] = np.var(means)
    assert noise["independent"] == pytest.approx(theta * (1 - theta) / cohort, rel=0.1)
    assert noise["stratified"] < 0.1 * noise["independent"]


def test_nothing_to_draw_gives_nothing():
    for kind in KINDS:
        assert drawn(kind, 0, 0, 0, 0, 2, 0).shape == (0,)
    assert all(Draws("stratified", dealt, 0, 0, 2).dealt().shape == (0,) for dealt in ((), ((0, 4),)))


# -------------------------------------------------------------------------------------------- parts

stretched = st.lists(st.tuples(st.integers(0, 90), st.integers(1, 9)), max_size=4)


@given(st.integers(1, 80), st.integers(0, 2**64 - 1), st.integers(0, 2**31))
def test_places_are_a_permutation_of_the_ranks(cohort, seed, turn):
    mine = Draws("stratified", ((1, 1),), seed, turn, cohort)
    assert sorted(mine.place(rank) for rank in range(cohort)) == list(range(cohort))


@settings(max_examples=50)
@given(st.sampled_from(KINDS), stretched, st.integers(1, 12), st.integers(0, 2**32))
def test_each_entry_is_in_one_part_and_sent_by_the_clients_whose_place_is_that_part(kind, stretches, cohort, seed):
    mine = Draws(kind, tuple(stretches), seed, 3, cohort)
    dealt, parts = mine.dealt(), np.repeat(*np.array(stretches, int).reshape(-1, 2).T[::-1])
    assert dealt.shape == (mine.count,) and (dealt < parts).all()
    for rank in range(cohort):
        np.testing.assert_array_equal(mine.sent(rank), dealt == mine.place(rank) % parts)
        np.testing.assert_array_equal(np.arange(mine.count)[mine.chosen(rank)], np.flatnonzero(mine.sent(rank)))
    weights = np.random.default_rng(seed).integers(0, 9, cohort)
    by_rank = sum(weights[mine.place(rank)] * mine.sent(rank) for rank in range(cohort))
    np.testing.assert_array_equal(mine.by_entry(weights), by_rank)


def test_stretches_are_layers_cut_off_and_neighbours_of_one_kind_together():
    layers = [(5, 3), (4, 3), (2, 1), (6, 2), (1, 2)]
    assert stretches(layers, 18) == ((9, 3), (2, 1), (7, 2))
    assert stretches(layers, 11) == ((9, 3), (2, 1))
    assert stretches(layers, 7) == ((7, 3),)
    assert stretches(layers, 0) == ()


def test_one_part_is_every_entry():
    assert Draws("independent", ((70, 1),), 8, 2, 5).sent(3).all()


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_parts_are_of_like_size_and_dealt_anew_each_round(parts):
    rounds = np.array([Draws("stratified", ((3000, parts),), 2, turn, 4).dealt() for turn in range(8)])
    sizes = [np.bincount(dealt, minlength=parts) for dealt in rounds]
    assert np.abs(np.array(sizes) - 3000 / parts).max() < 5 * (3000 / parts) ** 0.5
    agreeing = [(one == other).mean() for one, other in zip(rounds[1:], rounds[:-1], strict=True)]
    np.testing.assert_allclose(agreeing, 1 / parts, atol=0.06)
    assert not np.array_equal(rounds[0], Draws("stratified", ((3000, parts),), 3, 0, 4).dealt())


def test_the_part_of_an_entry_says_nothing_of_its_uniform():
    mine = Draws("stratified", ((20_000, 2),), 4, 0, 3)
    assert abs(np.corrcoef(mine.dealt(), mine.uniforms(0, 0))[0, 1]) < 5 / 20_000**0.5


# ----------------------------------------------------------------------------------------- baseline


def recount(mine, q, replied):
    """Clients, kept, below, above of each entry, entry by entry."""
    rows = []
    sets = [(mine.uniforms(client, rank).tolist(), mine.sent(rank).tolist()) for client, rank in replied]
    for place, theta in enumerate(q.tolist()):
        us = [u[place] for u, sent in sets if sent[place]]
        below = min(((theta - u - 1) % 65536 for u in us), default=65535)
        above = min(((u - theta) % 65536 for u in us), default=65535)
        rows.append((len(us), sum(u < theta for u in us), below, above))
    return np.array(rows).reshape(-1, 4).T


@settings(max_examples=60)
@given(
    st.sampled_from(KINDS),
    st.integers(1, 4),
    st.sets(st.integers(0, 6), max_size=7),
    st.lists(st.integers(0, 65535), min_size=1, max_size=25),
    st.integers(0, 2**32),
)
def test_the_baseline_is_a_plain_recount(kind, parts, ranks, thetas, seed):
    halves = ((len(thetas) // 2, parts), (len(thetas) - len(thetas) // 2, 1 + parts % 3))
    mine, q = Draws(kind, halves, seed, 1, 7), np.array(thetas, np.uint16)
    replied = [(10 * rank, rank) for rank in sorted(ranks)]
    found = baseline(mine, q, replied)
    columns = (found.clients, found.kept, found.below, found.above)
    np.testing.assert_array_equal(columns, recount(mine, q, replied))
    assert {column.dtype for column in columns} == {np.dtype(np.uint16)}
    backwards = baseline(mine, q, reversed(replied))
    for name in ("clients", "kept", "below", "above"):
        np.testing.assert_array_equal(getattr(backwards, name), getattr(found, name))


def test_a_uniform_at_theta_is_above_it_at_no_distance(monkeypatch):
    monkeypatch.setattr(draws, "Stream", Every)
    mine = Draws("independent", ((4, 1),), 0, 0, 1)  # u = 0, 1, 2, 3
    found = baseline(mine, np.array([0, 2, 2, 0], np.uint16), [(0, 0)])
    assert found.kept.tolist() == [0, 1, 0, 0]
    assert found.below.tolist() == [65535, 0, 65535, 65532]
    assert found.above.tolist() == [0, 65535, 0, 3]
