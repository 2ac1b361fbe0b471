"""Counts → θ: exact against Python's fractions, unbiased over rounds, and MADA against simulation."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prismfl.config import Federation
from prismfl.errors import MessageError
from prismfl.server import ServerState, Tally, add_reply, average, initial_state, moved_share

ONE = 65536
NONE = np.zeros(0, np.uint16)


def tallied(replies, count, control=None):
    """A tally of (mask, alpha, weight) replies."""
    tally = Tally(np.zeros(count, np.int64))
    for index, (mask, alpha, weight) in enumerate(replies):
        tally = add_reply(tally, mask, alpha, weight, None if control is None else control[index])
    return tally


def random_replies(rng, clients, masked, alpha):
    return [
        (rng.random(masked) < 0.5, rng.integers(656, 64881, alpha).astype(np.uint16), int(rng.integers(1, 1000)))
        for _ in range(clients)
    ]


def test_the_first_state_is_the_setting_everywhere():
    state = initial_state(Federation(initial_theta=0.25), 5)
    assert state.q.tolist() == [16384] * 5
    assert state.round == 0


# ------------------------------------------------------------------------------------------ the mean


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(0, 8), st.integers(0, 5))
def test_the_mean_is_exact_up_to_its_rounding(seed, clients, masked, alpha):
    if masked + alpha == 0:
        return
    rng = np.random.default_rng(seed)
    replies = random_replies(rng, clients, masked, alpha)
    state = ServerState(rng.integers(656, 64881, masked + alpha).astype(np.uint16), 4)
    done = average(state, tallied(replies, masked + alpha), Federation(clip=0.0001), seed, masked)
    total = sum(weight for *_, weight in replies)
    for place, got in enumerate(done.state.q.tolist()):
        values = [int(m[place]) * ONE if place < masked else int(a[place - masked]) for m, a, _ in replies]
        exact = Fraction(sum(v * w for v, (*_, w) in zip(values, replies, strict=True)), total)
        clipped = min(max(exact, Fraction(7)), Fraction(ONE - 7))
        assert abs(got - clipped) < 1
        assert exact.denominator > 1 or got == clipped  # a whole number needs no rounding
    assert done.state.round == 5
    assert done.kept_share == 0


def test_the_mean_is_mixed_with_the_old_state():
    settings = Federation(mada="fixed", fixed_share=0.25)
    state = ServerState(np.array([8000, 40000, 60000], np.uint16), 0)
    replies = [(np.array([1, 0, 1], np.bool_), NONE, 1), (np.array([1, 0, 0], np.bool_), NONE, 1)]
    done = average(state, tallied(replies, 3), settings, 0, 3)
    assert done.state.q.tolist() == [6000 + 16384, 30000, 45000 + 8192]
    assert done.kept_share == 0.75


def test_the_density_is_the_share_of_ones():
    replies = [(np.array([1, 0, 1, 1], np.bool_), NONE, 3), (np.array([1, 0, 0, 0], np.bool_), NONE, 1)]
    done = average(ServerState(np.full(4, 30000, np.uint16), 0), tallied(replies, 4), Federation(), 0, 4)
    assert done.density == pytest.approx((1 + 0 + 0.75 + 0.75) / 4)


@given(st.permutations(range(6)), st.sampled_from(("off", "published", "coupled")), st.booleans())
def test_the_order_of_arrival_changes_no_byte(order, mada, control):
    rng = np.random.default_rng(2)
    replies, without = random_replies(rng, 6, 40, 8), [rng.random(40) < 0.5 for _ in range(6)]
    settings = Federation(mada=mada, control_variate=control)
    state = ServerState(rng.integers(656, 64881, 48).astype(np.uint16), 1)

    def result(places):
        chosen = [without[p] for p in places] if control else None
        return average(state, tallied([replies[p] for p in places], 48, chosen), settings, 5, 40)

    assert result(order).state.q.tobytes() == result(range(6)).state.q.tobytes()
    assert result(order).kept_share == result(range(6)).kept_share


def test_rounding_is_unbiased_over_the_rounds_of_the_public_stream():
    q = np.full(500, 20001, np.uint16)
    settings, rounds = Federation(mada="fixed", fixed_share=0.001), 400
    replies = [(np.arange(500) % 3 < turn, NONE, 1) for turn in (1, 2, 3)]  # means 1, 2/3, 1/3
    found = [average(ServerState(q, t), tallied(replies, 500), settings, 0, 500).state.q for t in range(rounds)]
    share = round(0.001 * ONE)
    for residue, mean in enumerate((Fraction(1), Fraction(2, 3), Fraction(1, 3))):
        exact = Fraction((ONE - share) * 20001, ONE) + share * mean
        got = np.array(found)[:, residue::3]
        assert set(np.unique(got)) <= {exact.__floor__(), exact.__floor__() + 1}
        # At most half a step of deviation an entry, over 66,000 of them.
        assert abs(got.mean() - float(exact)) < 5 * 0.5 / got.size**0.5


def test_steps_smaller_than_a_grid_step_are_not_swallowed():
    settings = Federation(mada="fixed", fixed_share=2 / ONE)  # a step of 2 (1 - θ) / 65536 at most
    state = ServerState(np.full(4000, 60000, np.uint16), 0)
    for _ in range(50):
        tally = tallied([(np.ones(4000, np.bool_), NONE, 1)], 4000)
        state = average(state, tally, settings, 1, 4000).state
    assert state.q.mean() - 60000 == pytest.approx(50 * 2 * (1 - 60000 / ONE), rel=0.1)


def test_roundings_of_rounds_seeds_and_places_differ():
    settings = Federation(mada="fixed", fixed_share=0.5)
    state = ServerState(np.full(2000, 30001, np.uint16), 0)
    results = {
        average(
            ServerState(state.q, t), tallied([(np.ones(2000, np.bool_), NONE, 1)], 2000), settings, s, 2000
        ).state.q.tobytes()
        for t in (0, 1)
        for s in (0, 1)
    }
    assert len(results) == 4
    assert all(0.4 < (np.frombuffer(raw, np.uint16) % 2).mean() < 0.6 for raw in results)


@given(st.floats(0.0001, 0.49), st.integers(0, 100))
def test_the_clip_is_kept(clip, seed):
    rng = np.random.default_rng(seed)
    replies = [(np.array([0, 1, 1, 0], np.bool_), np.array([0, 65535], np.uint16), 1)]
    state = ServerState(rng.integers(1, ONE, 6).astype(np.uint16), 0)
    q = average(state, tallied(replies, 6), Federation(clip=clip, initial_theta=0.5), seed, 4).state.q / ONE
    assert q.min() >= clip
    assert q.max() <= 1 - clip
    np.testing.assert_allclose(q, [clip, 1 - clip, 1 - clip, clip, clip, 1 - clip], atol=1 / ONE)


def test_clients_count_by_their_weight():
    replies = [(np.array([1], np.bool_), NONE, 300), (np.array([0], np.bool_), NONE, 100)]
    state = ServerState(np.array([100], np.uint16), 0)
    assert average(state, tallied(replies, 1), Federation(), 0, 1).state.q.tolist() == [3 * ONE // 4]


def test_alpha_layers_are_averaged():
    nothing = np.zeros(0, np.bool_)
    replies = [(nothing, np.array([1000, 50000], np.uint16), 1), (nothing, np.array([4000, 50002], np.uint16), 2)]
    done = average(ServerState(np.array([9, 9], np.uint16), 0), tallied(replies, 2), Federation(clip=0.001), 0, 0)
    assert done.state.q[0] == 3000
    assert done.state.q[1] in (50001, 50002)


# --------------------------------------------------------------------------------------------- MADA


def monte_carlo(theta, mean, coupled, rng):
    """Share of differing bits of masks drawn from θ and θ̄, with one uniform or with two."""
    u = rng.random((400, len(theta)))
    v = u if coupled else rng.random((400, len(theta)))
    return ((u < theta) != (v < mean)).mean()


@pytest.mark.parametrize("kind", ["published", "coupled"])
def test_the_moved_share_is_the_hamming_distance_of_drawn_masks(kind):
    rng = np.random.default_rng(8)
    q, mean = rng.integers(656, 64881, 3000), rng.integers(0, ONE + 1, 3000)
    share = moved_share(q.astype(np.uint16), mean, Federation(mada=kind)) / ONE
    assert share == pytest.approx(monte_carlo(q / ONE, mean / ONE, kind == "coupled", rng), abs=0.004)


@given(st.lists(st.tuples(st.integers(1, ONE - 1), st.integers(0, ONE)), min_size=1, max_size=30))
def test_the_moved_share_is_its_formula_in_fractions(pairs):
    q, mean = (np.array(column) for column in zip(*pairs, strict=True))
    theta = [(Fraction(int(a), ONE), Fraction(int(b), ONE)) for a, b in pairs]
    published = sum(a + b - 2 * a * b for a, b in theta) / len(pairs)
    coupled = sum(abs(b - a) for a, b in theta) / len(pairs)
    for kind, exact in (("published", published), ("coupled", coupled)):
        assert abs(moved_share(q.astype(np.uint16), mean, Federation(mada=kind)) - exact * ONE) <= Fraction(501, 1000)


def test_equal_models_move_by_their_own_noise_when_published_and_not_at_all_when_coupled():
    q = np.full(100, 16384, np.uint16)
    assert moved_share(q, q.astype(np.int64), Federation(mada="published")) == round(2 * 0.25 * 0.75 * ONE)
    assert moved_share(q, q.astype(np.int64), Federation(mada="coupled")) == 0


def test_fixed_and_off():
    q = np.full(3, 1000, np.uint16)
    assert moved_share(q, q.astype(np.int64), Federation(mada="fixed", fixed_share=0.125)) == ONE // 8
    assert moved_share(q, q.astype(np.int64), Federation(mada="off")) == ONE


# ---------------------------------------------------------------------------------- control variate


def variate_means(theta, mine, control, draws=4000, clients=3):
    """The server's θ̄ for clients at `mine` (near θ), over many independent draws a place."""
    rng = np.random.default_rng(4)
    q = np.full(draws, theta, np.uint16)
    uniform = rng.integers(0, ONE, (clients, draws))
    replies = [(u < k, NONE, 1) for u, k in zip(uniform, mine, strict=True)]
    without = [u < theta for u in uniform] if control else None
    settings = Federation(control_variate=control, clip=0.0001)
    return average(ServerState(q, 0), tallied(replies, draws, without), settings, 0, draws).state.q / ONE


def test_the_control_variate_is_unbiased_and_less_noisy_near_the_old_state():
    theta, mine = 26000, (26300, 26600, 25900)
    plain, better = (variate_means(theta, mine, control) for control in (False, True))
    exact = np.mean(mine) / ONE
    assert better.mean() == pytest.approx(exact, abs=5 * better.std() / 4000**0.5)
    assert plain.mean() == pytest.approx(exact, abs=5 * plain.std() / 4000**0.5)
    assert better.var() < 0.05 * plain.var()


def test_clients_with_no_news_leave_the_state_alone():
    rng = np.random.default_rng(0)
    q = rng.integers(700, 64000, 300).astype(np.uint16)
    masks = [rng.integers(0, ONE, 300) < q for _ in range(4)]
    tally = tallied([(mask, NONE, 7) for mask in masks], 300, masks)
    np.testing.assert_array_equal(
        average(ServerState(q, 0), tally, Federation(control_variate=True), 0, 300).state.q, q
    )


def test_the_control_variate_leaves_alpha_layers_alone():
    alpha = np.array([5000, 6000], np.uint16)
    mask = np.array([True])
    tally = tallied([(mask, alpha, 1)], 3, [mask])
    state = ServerState(np.array([30000, 1000, 1000], np.uint16), 0)
    assert average(state, tally, Federation(control_variate=True), 0, 1).state.q.tolist() == [30000, 5000, 6000]


# ------------------------------------------------------------------------------------------ overflow


def test_weights_beyond_exact_arithmetic_are_refused_and_change_nothing():
    tally = tallied([(np.array([True]), NONE, 2**29)], 1)
    before = tally.votes.copy()
    with pytest.raises(MessageError, match="at most"):
        add_reply(tally, np.array([True]), NONE, 2**30)
    np.testing.assert_array_equal(tally.votes, before)


@pytest.mark.parametrize("weight", [2**16, 2**29, 2**30 - 1])
@pytest.mark.parametrize("control", [False, True])
def test_large_weights_are_exact(weight, control):
    mask, without = np.array([True, False, True]), [np.array([False, True, True])] if control else None
    state = ServerState(np.array([40000, 40000, 40000], np.uint16), 0)
    done = average(state, tallied([(mask, NONE, weight)], 3, without), Federation(control_variate=control), 0, 3)
    # Clipped to 656 … 64880; with the variate θ + 1, θ - 1, θ + 0.
    assert done.state.q.tolist() == ([64880, 656, 40000] if control else [64880, 656, 64880])


@pytest.mark.parametrize("control", [False, True])
def test_the_largest_weight_that_passes_the_check_is_exact(control):
    weight = 2**31 - 1
    mask, without = np.array([True]), [np.array([False])] if control else None
    state = ServerState(np.array([40000], np.uint16), 0)
    try:
        tally = tallied([(mask, NONE, weight)], 1, without)
    except MessageError:
        return
    assert average(state, tally, Federation(control_variate=control), 0, 1).state.q.tolist() == [64880]
