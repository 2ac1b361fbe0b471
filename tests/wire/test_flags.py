"""Flags and integers come back as they went, in little more room than their entropy, and never from noise."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismfl.errors import MessageError
from prismfl.wire import flags
from prismfl.wire import range_coder as coder
from prismfl.wire.flags import FlagReader, FlagWriter

SHAPE = (4, 3, 2)
CELLS = 24
NONE = np.zeros(0, np.uint16)


def entropy_bytes(values, contexts):
    """Empirical conditional entropy of integers given their contexts, in bytes."""
    total = 0.0
    for cell in np.unique(contexts):
        _, counts = np.unique(values[contexts == cell], return_counts=True)
        total -= (counts * np.log2(counts / counts.sum())).sum()
    return total / 8


def written(*calls):
    """Bytes of calls (method, values, contexts)."""
    writer = FlagWriter()
    for method, values, contexts in calls:
        getattr(writer, method)(contexts, SHAPE, values)
    return writer.done()


def drawn(seed, count):
    rng = np.random.default_rng(seed)
    contexts = rng.integers(0, CELLS, count).astype(np.uint16)
    return rng, contexts, rng.random(CELLS)[contexts] ** 3


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 700))
def test_what_is_written_is_read_back_call_by_call(seed, count):
    rng, contexts, share = drawn(seed, count)
    bits = rng.random(count) < share
    signed = rng.integers(-40, 41, count) * bits
    positive = rng.integers(1, 2 ** rng.integers(1, 31), count)
    raw = written(("flags", bits, contexts), ("integers", signed, contexts), ("positives", positive, contexts))
    reader = FlagReader(raw)
    np.testing.assert_array_equal(reader.flags(contexts, SHAPE), bits)
    np.testing.assert_array_equal(reader.integers(contexts, SHAPE), signed)
    np.testing.assert_array_equal(reader.positives(contexts, SHAPE), positive)
    reader.finish()


def test_the_largest_integers_come_back():
    values = np.array([2**31 - 1, -(2**31) + 1, 1, -1, 0, 65536, 65535], np.int64)
    contexts = np.zeros(len(values), np.uint16)
    found = FlagReader(written(("integers", values, contexts))).integers(contexts, SHAPE)
    np.testing.assert_array_equal(found, values)


# What is believed of a cell before its flags are seen is that it is like its neighbours; it may be nothing like them.
@pytest.mark.parametrize(
    ("count", "like", "most"), [(20_000, 0.2, 1.04), (200_000, 0.2, 1.006), (20_000, 2.0, 1.04), (200_000, 2.0, 1.015)]
)
def test_flags_take_little_more_than_their_entropy(count, like, most):
    rng, contexts, _ = drawn(3, count)
    odds = np.repeat(rng.normal(-2, 1, 4), 6) + rng.normal(0, like, CELLS)
    bits = rng.random(count) < 1 / (1 + np.exp(-odds[contexts]))
    ratio = len(written(("flags", bits, contexts))) / entropy_bytes(bits, contexts)
    assert 0.99 < ratio < most


def test_integers_take_little_more_than_their_entropy():
    rng, contexts, share = drawn(5, 200_000)
    values = (rng.geometric(0.15 + 0.8 * share) - 1) * rng.choice([-1, 1], len(share))
    assert 0.99 < len(written(("integers", values, contexts))) / entropy_bytes(values, contexts) < 1.03


def test_flags_that_are_all_alike_take_next_to_nothing():
    contexts = np.zeros(1_000_000, np.uint16)
    assert len(written(("flags", np.zeros(1_000_000, np.bool_), contexts))) < 120


def test_nothing_takes_nothing():
    assert written(("flags", np.zeros(0, np.bool_), NONE), ("integers", np.zeros(0, np.int64), NONE)) == b""
    reader = FlagReader(b"")
    assert len(reader.integers(NONE, SHAPE)) == 0
    reader.finish()


@given(st.integers(0, 5000))
def test_the_passes_take_each_flag_once(count):
    taken = np.zeros(count, int)
    for part in flags._passes(count):
        for piece in flags._pieces(part):
            taken[piece] += 1
    assert (taken == 1).all()


def test_a_contexts_share_is_learnt_within_its_parent_first():
    counts = flags._Counts((2, 3))
    contexts = np.repeat(np.arange(6), (100, 100, 0, 100, 100, 0)).astype(np.uint16)
    counts.add(contexts, np.repeat([True, False], 200))
    shares = coder.ladder()[counts.rungs()].reshape(2, 3) / 8192
    assert (shares[0] > 0.75).all() and (shares[1] < 0.25).all()  # cells never seen follow their parents
    assert shares[0, 0] > shares[0, 2] and shares[1, 0] < shares[1, 2]


def test_probabilities_are_exact_and_ascending():
    ladder = coder.ladder()
    assert ladder[0] == 1 and ladder[-1] < 8192
    assert (np.diff(ladder) > 0).all() and 4096 in ladder
    of = flags._rung_of()
    assert len(of) == 65537 and (np.diff(of.astype(int)) >= 0).all()
    assert np.array_equal(of[ladder * 8], np.arange(len(ladder)))


def test_a_piece_is_not_longer_than_what_is_sorted_at_a_time(monkeypatch):
    monkeypatch.setattr(flags, "_PIECE", 50)
    rng, contexts, share = drawn(2, 3000)
    bits = rng.random(3000) < share
    raw = written(("flags", bits, contexts))
    np.testing.assert_array_equal(FlagReader(raw).flags(contexts, SHAPE), bits)


# ------------------------------------------------------------------------------------------ damage


def test_bytes_that_are_no_words_are_refused():
    with pytest.raises(MessageError, match="32-bit words"):
        FlagReader(b"abcde")


def test_bytes_nobody_reads_are_refused():
    contexts = np.zeros(100, np.uint16)
    raw = written(("flags", np.ones(100, np.bool_), contexts))
    reader = FlagReader(raw + bytes(400))
    reader.flags(contexts, SHAPE)
    with pytest.raises(MessageError, match="after the last"):
        reader.finish()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200).map(lambda raw: raw[: len(raw) // 4 * 4]), st.integers(0, 300))
def test_noise_is_read_as_something_or_refused_but_never_crashes(raw, count):
    contexts = (np.arange(count) % CELLS).astype(np.uint16)
    with contextlib.suppress(MessageError):
        reader = FlagReader(raw)
        assert reader.flags(contexts, SHAPE).shape == (count,)
        found = reader.integers(contexts, SHAPE)
        assert np.abs(found).max(initial=0) < 2**31
        reader.finish()


def test_integers_that_never_end_are_refused():
    contexts = np.zeros(1, np.uint16)
    writer = FlagWriter()
    for _ in range(40):
        writer.flags(contexts, SHAPE, np.array([True]))
    with pytest.raises(MessageError, match="never ends"):
        FlagReader(writer.done()).positives(contexts, SHAPE)
