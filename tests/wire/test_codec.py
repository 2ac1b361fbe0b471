"""Masks, steps and changes come back as they went, in few bytes, and nothing else comes back at all."""

import contextlib
import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismfl.errors import MessageError
from prismfl.wire import masks as codec
from prismfl.wire.flags import FlagWriter
from prismfl.wire.masks import (
    SharedKnowledge,
    decode_changes,
    decode_mask,
    decode_step,
    encode_changes,
    encode_mask,
    encode_step,
    pack_mask,
    pack_theta,
    unpack_mask,
    unpack_theta,
)
from prismfl.wire.uniforms import Draws, baseline

masks = st.lists(st.booleans(), max_size=70).map(lambda bits: np.array(bits, np.bool_))
thetas = st.lists(st.integers(0, 65535), max_size=40).map(lambda q: np.array(q, np.uint16))


# ------------------------------------------------------------------------------------------- packed


@given(masks)
def test_masks_come_back(mask):
    raw = pack_mask(mask)
    assert len(raw) == (len(mask) + 7) // 8
    found = unpack_mask(raw, len(mask))
    assert found.dtype == np.bool_
    np.testing.assert_array_equal(found, mask)


@given(thetas)
def test_keep_probabilities_come_back(q):
    raw = pack_theta(q)
    assert len(raw) <= 2 * len(q) + 1
    found = unpack_theta(raw, len(q))
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, q)


def test_bytes_are_the_ones_written_down():
    assert pack_mask(np.array([1, 0, 0, 0, 0, 0, 0, 0, 1, 1], np.bool_)) == b"\x01\x03"
    assert pack_theta(np.array([1, 0x1234], np.uint16)) == b"\x00\x01\x00\x34\x12"
    assert pack_theta(np.array([0x1234], ">u2")) == b"\x00\x34\x12"
    assert pack_theta(np.full(9, 0x1234, np.uint16)) == b"\x01\x00\x34\x12"


@given(masks, st.integers(-3, 3).filter(bool))
def test_masks_of_a_wrong_length_are_refused(mask, more):
    raw = pack_mask(mask)
    changed = raw + bytes(more) if more > 0 else raw[:more]
    if len(changed) != len(raw):
        with pytest.raises(MessageError, match="packed mask"):
            unpack_mask(changed, len(mask))


@given(st.integers(1, 70).filter(lambda count: count % 8), st.data())
def test_set_padding_is_refused(count, data):
    raw = bytearray(pack_mask(np.zeros(count, np.bool_)))
    raw[-1] |= 1 << data.draw(st.integers(count % 8, 7))
    with pytest.raises(MessageError, match="after the last parameter"):
        unpack_mask(bytes(raw), count)


@given(thetas, st.sampled_from((-2, -1, 1, 2)))
def test_keep_probabilities_of_a_wrong_length_are_refused(q, more):
    raw = b"\x00" + q.astype("<u2").tobytes()
    changed = raw + bytes(more) if more > 0 else raw[:more]
    if len(changed) != len(raw):
        with pytest.raises(MessageError, match="keep-probabilities"):
            unpack_theta(changed, len(q))


@pytest.mark.parametrize("kinds", [1, 2, 3, 12, 255, 256, 257])
def test_few_values_of_theta_take_few_bits_and_come_back(kinds):
    rng = np.random.default_rng(kinds)
    values = np.sort(rng.choice(65536, kinds, replace=False)).astype(np.uint16)
    q = values[rng.integers(0, kinds, 20_000)]
    raw = pack_theta(q)
    np.testing.assert_array_equal(unpack_theta(raw, len(q)), q)
    bits = np.log2(kinds) if kinds <= 256 else 16
    assert 8 * len(raw) <= 1.03 * bits * len(q) + 16 * kinds + 600


def test_values_that_are_rare_take_less():
    rng = np.random.default_rng(0)
    q = np.where(rng.random(50_000) < 0.95, 655, rng.integers(0, 5, 50_000) * 13107).astype(np.uint16)
    assert 8 * len(pack_theta(q)) < 0.5 * len(q)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x01",
        b"\x01\x00",
        b"\x01\x01\x05\x00",
        b"\x02\x00\x05\x00",
        b"\x01\x01\x05\x00\x05\x00",
        b"\x01\x02" + bytes(9),
    ],
    ids=lambda raw: raw.hex() or "nothing",
)
def test_what_nobody_codes_is_no_theta(raw):
    with pytest.raises(MessageError):
        unpack_theta(raw, 8)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.data())
def test_any_damage_to_a_coded_theta_gives_another_or_an_error(kinds, data):
    q = (np.arange(300) * 7 % kinds * 1000).astype(np.uint16)
    raw = bytearray(pack_theta(q))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(MessageError):
        assert unpack_theta(bytes(raw), len(q)).shape == q.shape


def test_what_comes_back_can_be_changed():
    unpack_mask(b"\x01", 3)[0] = False
    for _ in range(2):
        found = unpack_theta(b"\x00\x01\x00", 1)
        assert found[0] == 1
        found[0] = 5


# -------------------------------------------------------------------------------------------- masks


def world(seed, count, moved):
    """θ_t, θ_k about `moved` away from it, and u, of `count` entries in three layers."""
    rng = np.random.default_rng(seed)
    q = rng.integers(656, 64881, count)
    mine = np.clip(q + rng.normal(0, moved * 65536, count), 1, 65535)
    layers = np.sort(rng.integers(0, 3, count)).astype(np.uint8)
    known = SharedKnowledge(q.astype(np.uint16), layers, 3)
    return known, mine.astype(np.uint16), rng.integers(0, 65536, count).astype(np.uint16)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 2000), st.sampled_from([0.0, 0.001, 0.02, 0.1, 0.5]))
def test_coded_masks_come_back_and_are_never_much_longer_than_packed_ones(seed, count, moved):
    known, mine, u = world(seed, count, moved)
    mask = u < mine
    raw = encode_mask(mask, u, known)
    assert len(raw) <= -(-count // 8) + 1
    np.testing.assert_array_equal(decode_mask(raw, u, known), mask)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 500))
def test_any_mask_comes_back_however_improbable(seed, count):
    known, _, u = world(seed, count, 0.1)
    mask = np.random.default_rng(seed + 1).random(count) < 0.5
    np.testing.assert_array_equal(decode_mask(encode_mask(mask, u, known), u, known), mask)
    far = (u < known.q) ^ (np.arange(count) == count - 1)
    np.testing.assert_array_equal(decode_mask(encode_mask(far, u, known), u, known), far)


def searched(seed, count, step):
    """θ_t, θ_k a normal `step` of log-odds away, u, and the flips' entropy, bits an entry, for who knows the step."""
    from scipy.special import expit, logit
    from scipy.stats import norm

    known, _, u = world(seed, count, 0)
    scores = logit(known.q / 65536)
    mine = np.rint(65536 * expit(scores + np.random.default_rng((seed, 1)).normal(0, step, count)))
    share = np.clip(norm.sf(np.abs(logit((u + 0.5) / 65536) - scores) / step), 1e-12, 1 - 1e-12)
    bits = float(np.mean(-share * np.log2(share) - (1 - share) * np.log2(1 - share)))
    return known, np.clip(mine, 1, 65535).astype(np.uint16), u, bits


# The code learns its probabilities from the flags themselves, which takes the larger share of the few.
@pytest.mark.parametrize(("step", "most"), [(0.03, 1.17), (0.2, 1.05), (1.0, 1.02), (3.0, 1.015)])
def test_a_coded_mask_takes_what_the_change_of_theta_is_worth(step, most):
    count = 200_000
    known, mine, u, ideal = searched(1, count, step)
    bits = 8 * len(encode_mask(u < mine, u, known)) / count
    assert 0.98 < bits / ideal < most


def test_moves_in_theta_rather_than_log_odds_take_little_more():
    known, mine, u = world(1, 200_000, 0.03)
    assert 8 * len(encode_mask(u < mine, u, known)) < 3 * 0.03 * 200_000


def test_no_news_takes_next_to_nothing():
    known, _, u = world(2, 100_000, 0)
    assert len(encode_mask(u < known.q, u, known)) < 30


def test_improbable_flips_are_listed_one_by_one():
    known, mine, u = world(3, 50_000, 0.004)
    mask = u < mine
    far = np.flatnonzero((np.abs(u.astype(int) - known.q) > 30_000) & (np.arange(50_000) % 16 > 0))[::3000]
    mask[far] ^= True
    raw = encode_mask(mask, u, known)
    assert raw[0] == 1 and raw[1] < len(codec._WIDTHS) - 1
    assert int.from_bytes(raw[2:6], "little") >= len(far) > 0
    np.testing.assert_array_equal(decode_mask(raw, u, known), mask)


@pytest.mark.parametrize("moved", [0.003, 0.03, 0.3])
def test_the_width_that_is_chosen_is_about_the_best_there_is(moved, monkeypatch):
    known, mine, u = world(7, 40_000, moved)
    mask = u < mine
    chosen, every = len(encode_mask(mask, u, known)), []
    for index in range(len(codec._WIDTHS)):
        monkeypatch.setattr(codec, "_width_for", lambda *_, index=index: index)
        raw = encode_mask(mask, u, known)
        np.testing.assert_array_equal(decode_mask(raw, u, known), mask)
        every.append(len(raw))
    assert chosen < 1.01 * min(every) + 4 < 1.3 * max(every)


def test_levels_are_log_odds_that_every_machine_rounds_alike():
    found = codec.levels()
    exact = 2048 * np.log((np.arange(65536) + 0.5) / (65535.5 - np.arange(65536)))
    np.testing.assert_array_equal(found, np.rint(exact))
    assert np.abs(np.abs(exact - np.floor(exact)) - 0.5).min() > 1e-9
    np.testing.assert_array_equal(found, -found[::-1])
    assert hashlib.sha256(found.astype("<i2").tobytes()).hexdigest()[:16] == "d4fed7b051ab5359"


def test_a_cell_tells_log_odds_theta_on_the_side_of_u_and_layer():
    q = np.array([6554, 6554, 58982, 58982, 6554], np.uint16)
    u = np.array([6553, 6555, 58983, 58981, 13107], np.uint16)
    known = SharedKnowledge(q, np.array([0, 1, 0, 1, 2], np.uint8), 3)
    near, cells, shape = codec.flip_contexts(u, known, 0)
    # Kept and improbable is like dropped and probable; from 0.1 to 0.2 is 0.81 of a nat, 16 bins are 64 / 2048.
    assert near.tolist() == [True] * 4 + [False] and shape == (16, 16, 3)
    assert np.stack(np.unravel_index(cells, shape), 1).tolist() == [[0, 1, 0], [0, 14, 1], [0, 1, 0], [0, 14, 1]]
    near, cells, _ = codec.flip_contexts(u, known, 20)
    step = int((np.log(13107.5 / 52428.5) - np.log(6554.5 / 58981.5)) * 2048) // 128
    assert near.all() and np.unravel_index(cells[4], shape) == (step, 14, 2)


@pytest.mark.parametrize("raw", [b"", b"\x02abc", b"\x01", b"\x01\x27\0\0\0\0", b"\x01\x00\xff\xff\xff\xff", b"\x00"])
def test_what_is_no_coded_mask_is_refused(raw):
    known, _, u = world(4, 40, 0.1)
    with pytest.raises(MessageError):
        decode_mask(raw, u, known)


def test_a_flip_listed_beyond_the_end_or_near_is_refused():
    known, _, u = world(5, 40, 0.1)
    near = int(np.argmin(np.abs(u.astype(int) - known.q)))
    for place in (39 + 10, near):
        width = 0 if place > 39 else 38
        quiet, contexts, shape = codec.flip_contexts(u, known, width)
        writer = FlagWriter()
        writer.flags(contexts, shape, np.zeros(quiet.sum(), np.bool_))
        writer.positives(np.zeros(1, np.uint16), (1,), np.array([place + 1]))
        with pytest.raises(MessageError, match="flip beyond"):
            decode_mask(codec._MASK.pack(1, width, 1) + writer.done(), u, known)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 50), st.data())
def test_damaged_masks_are_refused_or_other_masks_but_never_crash(seed, data):
    known, mine, u = world(seed, 300, 0.1)
    raw = bytearray(encode_mask(u < mine, u, known))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(MessageError):
        assert decode_mask(bytes(raw), u, known).shape == (300,)


# ---------------------------------------------------------------------------------- steps and changes


def round_of(seed, count, clients, parts=1):
    """A baseline and the net flips of clients that moved alike."""
    rng = np.random.default_rng(seed)
    known, mine, _ = world(seed, count, 0.1)
    draws = Draws("stratified", ((count, parts),), seed, 3, clients)
    base = baseline(draws, known.q, [(k, k) for k in range(clients)])
    kept = np.zeros(count, np.int64)
    for rank in range(clients):
        theirs = np.clip(mine.astype(int) + rng.normal(0, 2000, count), 1, 65535).astype(np.uint16)
        kept += (draws.uniforms(rank, rank) < theirs) & draws.sent(rank)
    return base, kept - base.kept, known


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 400), st.integers(1, 12), st.integers(1, 3), st.integers(0, 50))
def test_steps_come_back(seed, count, clients, parts, alpha):
    base, net, known = round_of(seed, count, clients, parts)
    more = SharedKnowledge(
        np.concatenate((known.q, np.full(alpha, 3, np.uint16))), np.zeros(count + alpha, np.uint8), known.depth
    )
    changes = np.random.default_rng(seed).integers(-300, 301, alpha)
    found = decode_step(encode_step(net, changes, base, more), base, more)
    np.testing.assert_array_equal(found[0], net)
    np.testing.assert_array_equal(found[1], changes)


def test_a_step_takes_fewer_bits_than_its_net_flips_alone():
    base, net, known = round_of(1, 200_000, 10)
    _, counts = np.unique(net, return_counts=True)
    shares = counts / counts.sum()
    alone = -(shares * np.log2(shares)).sum()
    assert 8 * len(encode_step(net, np.zeros(0, np.int64), base, known)) / len(net) < alone


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 400), st.integers(1, 65536))
def test_changes_come_back(seed, count, most):
    known, _, _ = world(seed, count, 0.1)
    changes = np.random.default_rng(seed).integers(-most, most + 1, count)
    np.testing.assert_array_equal(decode_changes(encode_changes(changes, known), known), changes)


def test_changes_beyond_any_probability_are_refused():
    known, _, _ = world(0, 5, 0.1)
    with pytest.raises(MessageError, match="65536"):
        decode_changes(encode_changes(np.array([0, 1, -65537, 0, 0]), known), known)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 30), st.data())
def test_damaged_steps_are_refused_or_other_steps_but_never_crash(seed, data):
    base, net, known = round_of(seed, 200, 5)
    raw = bytearray(encode_step(net, np.zeros(0, np.int64), base, known))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(MessageError):
        found, _ = decode_step(bytes(raw), base, known)
        assert found.shape == (200,)
