"""Counts → θ: exact against Python's fractions, unbiased over rounds, and MADA against simulation."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismfl import server
from prismfl.errors import MessageError
from prismfl.federation.screen import Screen, Vote, surprise
from prismfl.generator.layout import Layout, frozen_signs
from prismfl.seeding.philox import Purpose
from prismfl.server import (
    ALPHA_STEP,
    ServerState,
    add_reply,
    advance,
    balanced,
    empty_tally,
    initial_state,
    mada_share,
    public_dither,
    round_to_step,
    rounded,
)
from prismfl.settings.schema import Federation
from prismfl.wire.uniforms import Baseline, Draws, baseline

ONE = 65536
NONE = np.zeros(0, np.uint16)


class Wide(Federation):
    """As `Federation`, but θ may come near 0 and 1."""

    clip = 0.0001


def uplink_of(control):
    """The setting by which differences are averaged, or masks."""
    return "fewest" if control else "auto"


def moving_by(monkeypatch, share):
    """Let θ move by a share of the way to the mean, whatever the rule."""
    monkeypatch.setattr(server, "mada_share", lambda *_: round(share * ONE))


class Round:
    """A round of (mask, alpha, weight) replies on θ = q / 65536: its step, and what it leads to.

    parts: the part of each reply, and of each entry; control: the masks without news, by reply.
    """

    def __init__(self, q, replies, settings=None, seed=0, turn=0, parts=None, control=None):
        settings, masked = settings or Federation(), len(replies[0][0])
        mine, dealt = parts or ([0] * len(replies), np.zeros(masked, np.uint16))
        tally = empty_tally(len(q), len(replies))
        clients, kept = np.zeros((2, masked), np.uint16)
        total = np.zeros(masked, np.int64)
        for index, (mask, alpha, weight) in enumerate(replies):
            sent = np.equal(dealt, mine[index])
            tally = add_reply(tally, mask & sent, alpha, weight, index)
            total += weight * sent
            clients += sent
            kept += sent & (np.zeros(masked, np.bool_) if control is None else control[index])
        self.base = Baseline(clients, kept, np.zeros(masked, np.uint16), np.zeros(masked, np.uint16))
        words = [public_dither(seed, purpose, turn, len(q)) for purpose in (Purpose.TALLY, Purpose.ROUNDING)]
        self.step = round_to_step(q, tally, self.base, total, settings, words[0])
        self.done = advance(q, self.step, self.base, settings, words[1])
        self.q = self.done.q


def flat(value, count):
    return np.full(count, value, np.uint16)


def random_replies(rng, clients, masked, alpha, heavy=True):
    return [
        (
            rng.random(masked) < 0.5,
            rng.integers(656, 64881, alpha).astype(np.uint16),
            int(rng.integers(1, 1000)) if heavy else 1,
        )
        for _ in range(clients)
    ]


def test_the_first_state_is_a_half_everywhere_where_nothing_is_decided():
    layout = Layout(16, 1, 2, 8)
    state = initial_state(Federation(initial_certainty=0.0), layout, 3)
    assert state.q.tolist() == [32768] * layout.count
    assert state.round == 0
    assert state.steps == ()
    assert state.held.tolist() == [0, 0, 0]  # every client knows θ_0


@pytest.mark.parametrize("certainty", [0.4, 0.8, 1.0])
def test_the_first_state_is_near_a_public_draw_and_keeps_its_mean(certainty):
    settings, layout, theta = Federation(initial_certainty=certainty), Layout(32, 1, 8, 64), 0.5
    q = initial_state(settings, layout, seed=3).q
    low, high = np.unique(q / 65536)
    assert low == pytest.approx(max(0.01, theta * (1 - certainty)), abs=1e-5)
    assert high == pytest.approx(min(0.99, theta + (1 - theta) * certainty), abs=1e-5)
    assert np.mean(q / 65536 == high) == pytest.approx(theta, abs=0.01)
    np.testing.assert_array_equal(q, initial_state(settings, layout, seed=3).q)
    assert (q != initial_state(settings, layout, seed=4).q).any()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_images_begin_neither_bright_nor_dark(channels, seed):
    layout = Layout(16, channels, 8, 8)
    q = initial_state(Federation(), layout, seed=seed).q
    output = layout.layers[-1]
    kept = (q[output.span] > 32768).reshape(channels, -1)
    signs = frozen_signs(layout, seed)[output.span].reshape(channels, -1)
    assert (np.abs((signs * kept).sum(1)) <= 1).all()
    assert np.abs(kept.mean() - 0.5) < 0.2


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([-1, 1]), st.integers(0, 65535)), min_size=1, max_size=40))
def test_balancing_keeps_the_count_and_moves_no_more_than_it_must(entries):
    kept, signs, ranks = (np.array(part) for part in zip(*entries, strict=True))
    found = balanced(kept, signs.astype(np.int8), ranks.astype(np.uint16))
    assert found.sum() == kept.sum()
    before, after = abs(signs[kept].sum()), abs(signs[found].sum())
    assert before - after == (found != kept).sum()
    # What is left has no entry to put in its place.
    sign = np.sign(signs[found].sum())
    assert after <= 1 or not (~found & (signs == -sign)).any()


# ------------------------------------------------------------------------------------------ the mean


def whole(value):
    """What rounding up or down may make of a fraction."""
    return {value.__floor__(), value.__ceil__()}


def exact_share(q, means, settings):
    """1 - λ by its formula, in fractions, rounded as it is (half to even)."""
    theta = [Fraction(int(a), ONE) for a in q]
    clipped = [min(max(mean / ONE, Fraction(0)), Fraction(1)) for mean in means]
    if settings.mada == "off":
        return ONE
    pairs = list(zip(theta, clipped, strict=True))
    return ONE * sum(a + b - 2 * a * b for a, b in pairs) / len(pairs)


@st.composite
def rounds_of_all_kinds(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    clients, masked, alpha = draw(st.integers(1, 6)), draw(st.integers(0, 8)), draw(st.integers(0, 5))
    chosen, count = (
        Wide(
            mada=draw(st.sampled_from(("off", "published"))),
            uplink=draw(st.sampled_from(("auto", "fewest"))),
            client_weights=draw(st.sampled_from(("equal", "size"))),
        ),
        draw(st.integers(1, 4)),
    )
    replies = random_replies(rng, clients, masked, alpha + (masked == 0), chosen.client_weights == "size")
    q = rng.integers(656, 64881, masked + alpha + (masked == 0)).astype(np.uint16)
    parts = (
        rng.integers(0, count, clients).tolist(),
        rng.integers(0, count, masked).astype(np.uint16),
    )
    control = [rng.random(masked) < 0.5 for _ in range(clients)]
    return q, replies, chosen, parts, control


@settings(max_examples=300)
@given(rounds_of_all_kinds(), st.integers(0, 2**32), st.integers(0, 2**31))
def test_a_round_is_exact_up_to_its_roundings(case, seed, turn):
    """Equal weights: the step holds the mean itself; by size: the mean to 1 / (8 · clients) of a mask."""
    q, replies, chosen, (mine, dealt), control = case
    played = Round(q, replies, chosen, seed, turn, (mine, dealt), control)
    masked, grain = len(dealt), 8 if chosen.client_weights == "size" else 1
    means = []
    for place in range(masked):
        heard = [(r, c) for r, c, part in zip(replies, control, mine, strict=True) if part == dealt[place]]
        if not heard:
            assert played.step.net[place] == 0
            means.append(Fraction(int(q[place])))
            continue
        total = sum(weight for (*_, weight), _ in heard)
        mean = Fraction(sum(weight for (mask, _, weight), _ in heard if mask[place]), total)
        without = sum(int(c[place]) for _, c in heard)
        told = int(played.step.net[place]) + without * grain
        assert told in whole(mean * len(heard) * grain)
        travelled = Fraction(told, len(heard) * grain) * ONE
        if chosen.by_differences:
            travelled += int(q[place]) - Fraction(without, len(heard)) * ONE
        means.append(travelled)
    total = sum(weight for *_, weight in replies)
    for place, told in enumerate(played.step.alpha.tolist(), masked):
        mean = Fraction(sum(int(alpha[place - masked]) * weight for _, alpha, weight in replies), total)
        assert told in whole((mean - int(q[place])) / ALPHA_STEP)
        means.append(Fraction(min(max(int(q[place]) + told * ALPHA_STEP, 0), ONE - 1)))
    share = round(played.done.kept_share * ONE)
    assert abs(ONE - share - exact_share(q, means, chosen)) <= 1  # means are cut to whole 1 / 65536 here
    for got, old, mean in zip(played.q.tolist(), q.tolist(), means, strict=True):
        mixed = (share * old + (ONE - share) * mean) / ONE
        assert got in {min(max(value, 7), ONE - 7) for value in whole(mixed)}
    cut = [min(max(mean / ONE, Fraction(0)), Fraction(1)) for mean in means]
    assert played.done.density == pytest.approx(float(sum(cut) / len(cut)))


def test_the_mean_is_mixed_with_the_old_state(monkeypatch):
    moving_by(monkeypatch, 0.25)
    replies = [(np.array([1, 0, 1], np.bool_), NONE, 1), (np.array([1, 0, 0], np.bool_), NONE, 1)]
    played = Round(np.array([8000, 40000, 60000], np.uint16), replies)
    assert played.q.tolist() == [6000 + 16384, 30000, 45000 + 8192]
    assert played.done.kept_share == 0.75


def test_the_density_is_the_share_of_ones():
    replies = [(np.array([1, 0, 1, 1], np.bool_), NONE, 3), (np.array([1, 0, 0, 0], np.bool_), NONE, 1)]
    played = Round(flat(30000, 4), replies, Federation(client_weights="size"))
    assert played.done.density == pytest.approx((1 + 0 + 0.75 + 0.75) / 4)


@given(
    st.permutations(range(6)),
    st.sampled_from(("off", "published")),
    st.booleans(),
    st.sampled_from(("equal", "size")),
    st.integers(1, 4),
)
def test_the_order_of_arrival_changes_no_byte(order, mada, control, weights, parts):
    rng = np.random.default_rng(2)
    replies = random_replies(rng, 6, 40, 8, weights == "size")
    without = [rng.random(40) < 0.5 for _ in range(6)]
    chosen = Federation(mada=mada, uplink=uplink_of(control), client_weights=weights)
    q = rng.integers(656, 64881, 48).astype(np.uint16)
    mine, dealt = [place % parts for place in range(6)], rng.integers(0, parts, 40).astype(np.uint16)

    def result(places):
        dealt_so = [mine[p] for p in places], dealt
        return Round(q, [replies[p] for p in places], chosen, 5, 1, dealt_so, [without[p] for p in places])

    one, other = result(order), result(range(6))
    assert one.q.tobytes() == other.q.tobytes()
    assert one.step.net.tobytes() == other.step.net.tobytes()
    assert one.step.alpha.tobytes() == other.step.alpha.tobytes()
    assert one.done.kept_share == other.done.kept_share


def test_rounding_is_unbiased_over_the_rounds_of_the_public_stream(monkeypatch):
    q, rounds = flat(20001, 500), 400
    moving_by(monkeypatch, 0.001)
    replies = [(np.arange(500) % 3 < turn, NONE, 1) for turn in (1, 2, 3)]  # means 1, 2/3, 1/3
    found = [Round(q, replies, None, 0, turn).q for turn in range(rounds)]
    share = round(0.001 * ONE)
    for residue, mean in enumerate((Fraction(1), Fraction(2, 3), Fraction(1, 3))):
        exact = Fraction((ONE - share) * 20001, ONE) + share * mean
        got = np.array(found)[:, residue::3]
        assert set(np.unique(got)) <= {exact.__floor__(), exact.__floor__() + 1}
        # At most half a step of deviation an entry, over 66,000 of them.
        assert abs(got.mean() - float(exact)) < 5 * 0.5 / got.size**0.5


@pytest.mark.parametrize("weights", [(1, 2, 4), (300, 77, 1), (1, 2**20, 2**29)])
def test_unequal_weights_are_rounded_without_bias(weights):
    """A mean by size travels in steps of 1/24 mask of three clients; over many rounds none of it is lost."""
    masks = [np.arange(600) % 3 != turn for turn in range(3)]
    replies = [(mask, NONE, weight) for mask, weight in zip(masks, weights, strict=True)]
    chosen, rounds = Federation(client_weights="size"), 150
    found = np.array([Round(flat(20001, 600), replies, chosen, 0, turn).step.net for turn in range(rounds)])
    for residue in range(3):
        exact = 24 * (1 - Fraction(weights[residue], sum(weights)))
        got = found[:, residue::3]
        assert set(np.unique(got).tolist()) <= whole(exact)
        deviation = float((exact - exact.__floor__()) * (1 - exact + exact.__floor__())) ** 0.5
        assert abs(got.mean() - float(exact)) <= 5 * deviation / got.size**0.5 + 1e-6


def test_steps_smaller_than_a_grid_step_are_not_swallowed(monkeypatch):
    moving_by(monkeypatch, 2 / ONE)  # a step of 2 (1 - θ) / 65536 at most
    q = flat(60000, 4000)
    for turn in range(50):
        q = Round(q, [(np.ones(4000, np.bool_), NONE, 1)], None, 1, turn).q
    assert q.mean() - 60000 == pytest.approx(50 * 2 * (1 - 60000 / ONE), rel=0.1)


def test_roundings_of_rounds_seeds_and_places_differ(monkeypatch):
    replies = [(np.ones(2000, np.bool_), NONE, 1)]
    moving_by(monkeypatch, 0.5)
    results = {Round(flat(30001, 2000), replies, None, s, t).q.tobytes() for t in (0, 1) for s in (0, 1)}
    assert len(results) == 4
    assert all(0.4 < (np.frombuffer(raw, np.uint16) % 2).mean() < 0.6 for raw in results)


@pytest.mark.parametrize("chosen", [Federation(), Federation(uplink="fewest"), Wide()])
@given(seed=st.integers(0, 100))
def test_the_clip_is_kept(chosen, seed):
    rng, clip = np.random.default_rng(seed), chosen.clip
    replies = [(np.array([0, 1, 1, 0], np.bool_), np.array([0, 65535], np.uint16), 1)]
    control = [np.zeros(4, np.bool_)]
    q = Round(rng.integers(ONE // 2, ONE // 2 + 9, 6).astype(np.uint16), replies, chosen, seed, control=control).q / ONE
    low, high = (0.5, 1 - clip) if chosen.by_differences else (clip, 1 - clip)
    np.testing.assert_allclose(q, [low, high, high, low, clip, 1 - clip], atol=10 / ONE)
    assert q.min() >= clip and q.max() <= 1 - clip


def test_clients_count_by_their_weight():
    replies = [(np.array([1], np.bool_), NONE, 300), (np.array([0], np.bool_), NONE, 100)]
    assert Round(flat(700, 1), replies, Federation(client_weights="size")).q.tolist() == [3 * ONE // 4]


# --------------------------------------------------------------------------------------- α layers


def test_alpha_layers_are_averaged_in_steps_from_where_they_were():
    nothing, q = np.zeros(0, np.bool_), np.array([1000, 50000], np.uint16)
    moved = ([3 * ALPHA_STEP, 0], [6 * ALPHA_STEP, 3])
    replies = [(nothing, q + np.array(by, np.uint16), weight) for by, weight in zip(moved, (1, 2), strict=True)]
    found = Round(q, replies, Federation(client_weights="size")).q
    assert found[0] == 1000 + 5 * ALPHA_STEP  # a whole number of steps is not rounded
    assert found[1] in (50000, 50000 + ALPHA_STEP)


def test_quantised_means_of_alpha_layers_are_unbiased():
    nothing, rounds, count = np.zeros(0, np.bool_), 100, 1000
    chosen = Federation(client_weights="size")
    replies = [(nothing, flat(20117, count), 1), (nothing, flat(31001, count), 2)]
    grid, exact = ALPHA_STEP, (20117 + 2 * 31001) / 3
    found = np.array([Round(flat(26003, count), replies, chosen, 0, turn).q for turn in range(rounds)]).astype(int)
    assert len(np.unique(found)) == 2 and not ((found - 26003) % grid).any()
    assert np.abs(found - exact).max() < grid
    assert abs(found.mean() - exact) < 5 * grid / 2 / found.size**0.5


@given(st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=10), st.integers(1, 3000))
def test_rounding_is_unbiased_over_all_dithers(values, step):
    """Words that are spread evenly round a value down and up so that the sum comes out."""
    words = [np.uint32(-(-turn * 2**32 // step)) for turn in range(step)]
    column = np.array(values, np.int64)
    found = np.array([rounded(column, step, np.full(len(values), word)) for word in words])
    np.testing.assert_array_equal(found.sum(0), column)
    assert (np.abs(found * step - column) < step).all()


def test_what_is_on_the_grid_is_not_rounded():
    words = np.array([0, 1, 2**31, 2**32 - 1], np.uint32)
    for step in (1, 3, 256, 2**31 + 1, 2**45):
        for times in (-5, 0, 7):
            assert rounded(np.full(4, times * step), step, words).tolist() == [times] * 4


# ------------------------------------------------------------------------------------------- parts


def test_an_entry_that_nobody_sent_keeps_its_theta():
    rng = np.random.default_rng(3)
    dealt = rng.integers(0, 5, 400).astype(np.uint16)
    q = rng.integers(2700, 62801, 400).astype(np.uint16)
    replies = [(rng.random(400) < 0.5, NONE, 1) for _ in range(3)]
    for mada in ("off", "published"):
        for control in (False, True):
            chosen = Federation(mada=mada, uplink=uplink_of(control))
            played = Round(q, replies, chosen, parts=([1, 4, 1], dealt), control=[mask for mask, *_ in replies])
            unsent = ~np.isin(dealt, (1, 4))
            np.testing.assert_array_equal(played.q[unsent], q[unsent])
            assert (played.q[~unsent] != q[~unsent]).any() or control


def test_each_part_is_averaged_over_its_senders():
    masks = [np.array(mask, np.bool_) for mask in ([1, 1, 1, 0], [0, 1, 0, 1], [1, 0, 1, 1])]
    played = Round(
        flat(30000, 4),
        [(mask, NONE, 1) for mask in masks],
        Federation(),
        parts=([0, 1, 0], np.array([0, 0, 0, 1], np.uint16)),
    )
    assert played.q.tolist() == [64880, 32768, 64880, 64880]


@pytest.mark.parametrize(("clients", "parts"), [(5, 2), (4, 4), (3, 5)])
@pytest.mark.parametrize("control", [False, True])
def test_means_over_parts_are_unbiased_over_many_rounds(clients, parts, control):
    count, rounds, start = 400, 200, 30000
    mine = np.linspace(20000, 44000, clients).astype(int)
    chosen = Wide(uplink=uplink_of(control))
    q, sums = flat(start, count), []
    for turn in range(rounds):
        draws = Draws("stratified", ((count, parts),), 9, turn, clients)
        us = [draws.uniforms(client, client) for client in range(clients)]
        replies = [((u < theta), NONE, 1) for u, theta in zip(us, mine, strict=True)]
        places = [draws.place(client) % parts for client in range(clients)]
        played = Round(q, replies, replace(chosen), 9, turn, (places, draws.dealt()), [u < start for u in us])
        sent = np.isin(draws.dealt(), places)
        # Before clipping: θ̄ with the control variate may lie beyond 0 … 1.
        kept = (played.step.net + played.base.kept) if not control else played.step.net
        sums.append((kept[sent] / played.base.clients[sent]).mean())
        assert sent.all() or clients < parts
    wanted = mine.mean() / ONE - (start / ONE if control else 0)
    assert abs(np.mean(sums) - wanted) < 5 * np.std(sums) / rounds**0.5 + 1e-4


# --------------------------------------------------------------------------------------------- MADA


def test_the_moved_share_is_the_hamming_distance_of_masks_drawn_independently():
    rng = np.random.default_rng(8)
    q, mean = rng.integers(656, 64881, 3000), rng.integers(0, ONE + 1, 3000)
    share = mada_share(q.astype(np.uint16), mean, Federation(mada="published")) / ONE
    u, v = rng.random((2, 400, 3000))
    assert share == pytest.approx(((u < q / ONE) != (v < mean / ONE)).mean(), abs=0.004)


@given(st.lists(st.tuples(st.integers(1, ONE - 1), st.integers(0, ONE)), min_size=1, max_size=30))
def test_the_moved_share_is_its_formula_in_fractions(pairs):
    q, mean = (np.array(column) for column in zip(*pairs, strict=True))
    theta = [(Fraction(int(a), ONE), Fraction(int(b), ONE)) for a, b in pairs]
    exact = sum(a + b - 2 * a * b for a, b in theta) / len(pairs)
    found = mada_share(q.astype(np.uint16), mean, Federation(mada="published"))
    assert abs(found - exact * ONE) <= Fraction(501, 1000)


def test_equal_models_move_by_their_own_noise_when_published_and_all_the_way_when_off():
    q = np.full(100, 16384, np.uint16)
    assert mada_share(q, q.astype(np.int64), Federation(mada="published")) == round(2 * 0.25 * 0.75 * ONE)
    assert mada_share(q, q.astype(np.int64), Federation(mada="off")) == ONE


# ---------------------------------------------------------------------------------- control variate


def variate_means(theta, mine, control, draws=4000):
    """The server's θ̄ for clients at `mine` (near θ), over many independent draws a place."""
    rng = np.random.default_rng(4)
    uniform = rng.integers(0, ONE, (len(mine), draws))
    replies = [(u < k, NONE, 1) for u, k in zip(uniform, mine, strict=True)]
    without = [u < theta for u in uniform]
    return Round(flat(theta, draws), replies, Wide(uplink=uplink_of(control)), control=without).q / ONE


def test_the_control_variate_is_unbiased_and_less_noisy_near_the_old_state():
    theta, mine = 26000, (26300, 26600, 25900)
    plain, better = (variate_means(theta, mine, control) for control in (False, True))
    exact = np.mean(mine) / ONE
    assert better.mean() == pytest.approx(exact, abs=5 * better.std() / 4000**0.5)
    assert plain.mean() == pytest.approx(exact, abs=5 * plain.std() / 4000**0.5)
    assert better.var() < 0.05 * plain.var()


@pytest.mark.parametrize("theta", [2000, 26000, 64000])
def test_the_control_variate_is_exactly_unbiased_before_clipping(theta):
    """Every u once: the mean of flips is θ_k - θ to the bit."""
    mine = (700, theta, 50000)
    uniform = np.arange(ONE)
    for k in mine:
        played = Round(
            flat(theta, ONE),
            [(uniform < k, NONE, 1)],
            Wide(uplink="fewest"),
            control=[uniform < theta],
        )
        assert int(played.step.net.sum()) == k - theta


def test_clients_with_no_news_leave_the_state_alone():
    rng = np.random.default_rng(0)
    q = rng.integers(2700, 62801, 300).astype(np.uint16)
    masks = [rng.integers(0, ONE, 300) < q for _ in range(4)]
    for weights in ("equal", "size"):
        chosen = Federation(uplink="fewest", client_weights=weights)
        played = Round(q, [(mask, NONE, 7) for mask in masks], chosen, control=masks)
        np.testing.assert_array_equal(played.q, q)
        assert not played.step.net.any()


def test_the_control_variate_leaves_alpha_layers_alone():
    alpha = np.array([1000 + 16 * ALPHA_STEP, 1000 + 20 * ALPHA_STEP], np.uint16)
    mask = np.array([True])
    chosen = Federation(uplink="fewest")
    played = Round(np.array([30000, 1000, 1000], np.uint16), [(mask, alpha, 1)], chosen, control=[mask])
    assert played.q.tolist() == [30000, *alpha]


# ------------------------------------------------------------------------------------------ overflow


def test_weights_beyond_exact_arithmetic_are_refused_and_change_nothing():
    tally = add_reply(empty_tally(1, 2), np.array([True]), NONE, 2**29, 1)
    before = tally.votes.copy(), tally.weights.copy()
    with pytest.raises(MessageError, match="at most"):
        add_reply(tally, np.array([True]), NONE, 2**30, 0)
    np.testing.assert_array_equal(tally.votes, before[0])
    np.testing.assert_array_equal(tally.weights, before[1])


@pytest.mark.parametrize("weight", [2**16, 2**29, 2**30 - 1])
@pytest.mark.parametrize("control", [False, True])
def test_large_weights_are_exact(weight, control):
    mask, without = np.array([True, False, True]), [np.array([False, True, True])]
    chosen = Federation(uplink=uplink_of(control), client_weights="size")
    found = Round(flat(40000, 3), [(mask, NONE, weight)], chosen, control=without).q
    # Clipped; by differences θ + 1, θ - 1, θ + 0.
    assert found.tolist() == ([62914, 2622, 40000] if control else [64880, 656, 64880])


@pytest.mark.parametrize("control", [False, True])
def test_the_largest_weight_that_passes_the_check_is_exact(control):
    weight = 2**31 - 1
    mask, without = np.array([True]), [np.array([False])]
    chosen = Federation(uplink=uplink_of(control), client_weights="size")
    try:
        found = Round(flat(40000, 1), [(mask, NONE, weight)], chosen, control=without).q
    except MessageError:
        return
    assert found.tolist() == [62914 if control else 64880]


@pytest.mark.parametrize("weights", ["equal", "size"])
@pytest.mark.parametrize("control", [False, True])
def test_the_largest_cohort_is_exact(weights, control):
    """32,767 clients: of four entries, all, none, three quarters and a third keep their mask."""
    clients = 32767
    votes = np.array([clients, 0, 24576, 10922], np.int64)
    weight = 2**30 // clients if weights == "size" else 1
    alpha = np.array([65535, 0], np.int64)
    tally = replace(
        empty_tally(6, 1),
        votes=np.concatenate((votes, alpha * clients)) * weight,
        weights=np.array([clients * weight]),
        weight=clients * weight,
        clients=clients,
    )
    q = flat(40000, 6)
    base = Baseline(flat(clients, 4), np.array([0, clients, 20000, 20000], np.uint16), flat(0, 4), flat(0, 4))
    chosen = Wide(client_weights=weights, uplink=uplink_of(control))
    step = round_to_step(q, tally, base, np.full(4, clients * weight), chosen, public_dither(0, Purpose.TALLY, 0, 6))
    np.testing.assert_array_equal(step.net, (votes - base.kept.astype(int)) * (8 if weights == "size" else 1))
    found = advance(q, step, base, chosen, public_dither(0, Purpose.ROUNDING, 0, 6)).q.astype(int)
    exact = votes / clients * ONE + ((40000 - base.kept / clients * ONE) if control else 0)
    np.testing.assert_allclose(found[:4], np.clip(exact, 7, ONE - 7), atol=1)
    assert found[4] in (65344, ONE - 7) and found[5] in (7, 64)
    np.testing.assert_array_equal(found[4:], np.clip(40000 + step.alpha * ALPHA_STEP, 7, ONE - 7))


def test_the_control_variate_of_a_state_is_its_baseline():
    """The masks without news that a step is counted from are those of the clients that replied."""
    draws, q = (
        Draws("stratified", ((200, 2), (100, 3)), 1, 4, 5),
        np.random.default_rng(1).integers(2700, 62801, 300).astype(np.uint16),
    )
    replied = [(client, client) for client in (0, 2, 3)]
    base, tally = baseline(draws, q, replied), empty_tally(300, 5)
    for client, rank in replied:
        mask = (draws.uniforms(client, rank) < q) & draws.sent(rank)
        tally = add_reply(tally, mask, NONE, 1, draws.place(rank))
    chosen = Federation(uplink="fewest")
    step = round_to_step(q, tally, base, draws.by_entry(tally.weights), chosen, public_dither(1, Purpose.TALLY, 4, 300))
    assert not step.net.any() and len(step.alpha) == 0
    state = ServerState(advance(q, step, base, chosen, public_dither(1, Purpose.ROUNDING, 4, 300)).q, 5)
    np.testing.assert_array_equal(state.q, q)


# ----------------------------------------------------------------------------------------- screen


def votes_of(moves, count=4000, cohort=10):
    """A vote a client: from θ = 1/2 everywhere to θ_k = 1/2 + move, but None for a mask of ones."""
    q, rng = np.full(count, 32768, np.uint16), np.random.default_rng(0)
    for move in moves:
        u = rng.integers(0, 65536, count).astype(np.uint16)
        mask = np.ones(count, np.bool_) if move is None else u < 32768 + round(65536 * move)
        yield Vote(mask, NONE, 1, 0, *surprise(mask, u, q))


def test_surprise_is_half_the_squared_move_on_average():
    (vote,) = votes_of([0.2], count=400_000)
    assert vote.surprise == pytest.approx(0.2**2 / 2, rel=0.02)
    assert next(votes_of([0.0])).surprise == 0
    assert surprise(np.zeros(0, np.bool_), *np.zeros((2, 0), np.uint16)) == (0, 0)


def test_surprise_looks_both_ways():
    q, u = np.array([100, 100, 100], np.uint16), np.array([90, 110, 65535], np.uint16)
    assert surprise(np.array([True, False, False]), u, q)[0] == 0
    assert surprise(np.array([False, True, False]), u, q)[0] == pytest.approx(20 / 3 / 65536)
    assert surprise(np.array([True, False, True]), u, q)[0] == pytest.approx(65435 / 3 / 65536)


def test_what_is_known_of_theta_itself_surprises_as_much_as_masks_of_it():
    q, u = np.full(200_000, 20000, np.uint16), np.random.default_rng(1).integers(0, 65536, 200_000).astype(np.uint16)
    theta, none = q + np.random.default_rng(2).integers(0, 20000, len(q)).astype(np.uint16), np.zeros(0, np.bool_)
    (drawn, chance), (known, sure) = surprise(u < theta, u, q), surprise(none, NONE, NONE, theta, q)
    assert abs(drawn - known) < 4 * chance < 0.1 * known and sure == 0
    both = surprise(u < theta, u, q, theta, q)[0]
    assert both == pytest.approx((drawn + known) / 2)


def test_of_few_flips_nobody_is_left_out_by_chance():
    q, rng, out = np.full(300, 32768, np.uint16), np.random.default_rng(3), []
    for _ in range(300):
        screen, tally = Screen(1.5), empty_tally(300, 1)
        for client in range(5):
            u = rng.integers(0, 65536, 300).astype(np.uint16)
            mask = u < 36000
            tally = screen.add(tally, client, Vote(mask, NONE, 1, 0, *surprise(mask, u, q)))
        out += screen.close(tally)[1]
    assert not out


def screened(times, moves):
    screen, tally = Screen(times), empty_tally(4000, 1)
    for client, vote in enumerate(votes_of(moves)):
        tally = screen.add(tally, client, vote)
    return screen.close(tally)


def test_a_screen_leaves_out_the_stranger_and_nobody_else():
    moves = [0.1, -0.12, 0.09, 0.11, None, 0.1]
    tally, out = screened(3.0, moves)
    assert list(out) == [4] and "surprise" in out[4]
    honest = screened(0.0, [move for move in moves if move is not None])[0]
    assert tally.clients == 5
    everyone, none = screened(0.0, moves)
    assert everyone.clients == 6 and not none
    assert tally.votes.sum() < everyone.votes.sum()
    assert abs(int(tally.votes.sum()) - int(honest.votes.sum())) < 0.02 * honest.votes.sum()


def test_votes_that_wait_count_as_those_that_do_not():
    moves = [0.1, -0.12, 0.09]
    (waited, _), (straight, _) = screened(1000.0, moves), screened(0.0, moves)
    np.testing.assert_array_equal(waited.votes, straight.votes)
    np.testing.assert_array_equal(waited.weights, straight.weights)
    assert (waited.weight, waited.clients) == (straight.weight, straight.clients)


def test_a_weight_too_many_is_left_out_when_votes_waited():
    screen, tally = Screen(2.0), empty_tally(8, 1)
    for client, weight in enumerate((2**29, 2**30)):
        tally = screen.add(tally, client, Vote(np.ones(8, np.bool_), NONE, weight, 0, 0.0))
    tally, out = screen.close(tally)
    assert list(out) == [1] and tally.weight == 2**29
