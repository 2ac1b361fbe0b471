"""Draws of a search: the numbers of a stream, the same wherever they are made, and never twice."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from prismfl.seeding.device import Tape
from prismfl.seeding.philox import Purpose, Stream, torch_philox

STREAM = Stream(7, Purpose.SEARCH, 2, 5)


def played(tape, calls):
    return [getattr(tape, name)(*sizes) for name, sizes in calls]


calls = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(("uniforms", "masks")), st.tuples(st.integers(1, 70))),
        st.tuples(st.just("normals"), st.tuples(st.integers(1, 7), st.integers(1, 9))),
        st.tuples(st.just("order"), st.tuples(st.integers(1, 40))),
    ),
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(calls, st.booleans())
def test_a_device_draws_what_a_processor_draws(calls, common):
    here, there = Tape(STREAM, common=common), Tape(STREAM, common=common)
    there.by_torch = True
    for one, two in zip(played(here, calls), played(there, calls), strict=True):
        assert one.dtype == two.dtype and torch.equal(one, two)
    assert torch.equal(here.block, there.block)


@settings(max_examples=40, deadline=None)
@given(calls)
def test_no_word_is_drawn_twice(calls):
    tape, taken = Tape(STREAM), []
    tape.stream = Recorder(taken)
    played(tape, calls)
    spans = [(block, block + -(-count // 4)) for block, count in taken]
    assert all(end == begin for (_, end), (begin, _) in pairwise(spans))
    assert not spans or spans[0][0] == 0


class Recorder:
    """Notes which words are asked for."""

    def __init__(self, taken):
        self.taken = taken

    def words(self, count, block=0):
        self.taken.append((block, count))
        return STREAM.words(count, block)

    def halves(self, count, block=0):
        self.taken.append((block, -(-count // 2)))
        return STREAM.halves(count, block)


def test_masks_alone_are_drawn_with_numbers_in_common():
    tapes = [Tape(replace(STREAM, client=client), common=True) for client in (0, 5)]
    others = [Tape(tape.stream) for tape in tapes]
    for _ in range(2):
        (one, two), (plain, own) = ([tape.masks(90) for tape in some] for some in (tapes, others))
        assert torch.equal(one, two) and torch.equal(one, plain) and not torch.equal(two, own)
        for tape, other in zip(tapes, others, strict=True):
            assert torch.equal(tape.normals(2, 9), other.normals(2, 9))
            assert torch.equal(tape.uniforms(7), other.uniforms(7))


def test_a_tape_begins_with_its_streams_first_numbers():
    np.testing.assert_array_equal(Tape(STREAM).uniforms(99) * 65536, STREAM.halves(99))
    np.testing.assert_array_equal(Tape(STREAM).normals(3, 33).flatten(), STREAM.normals(99))
    first = Tape(STREAM)
    first.uniforms(9)
    np.testing.assert_array_equal(first.uniforms(99) * 65536, STREAM.halves(99, 2))


@pytest.mark.parametrize("by_torch", [False, True])
def test_draws_are_what_they_are_called(by_torch):
    tape = Tape(STREAM)
    tape.by_torch = by_torch
    uniforms = tape.uniforms(100_000)
    assert uniforms.dtype == torch.float32 and uniforms.min() >= 0 and uniforms.max() < 1
    assert stats.kstest(uniforms.numpy(), "uniform").pvalue > 1e-4
    assert stats.kstest(tape.normals(200, 500).flatten().numpy(), "norm").pvalue > 1e-4
    places = np.zeros((3, 3), int)
    for _ in range(2000):
        places[np.arange(3), tape.order(3).numpy()] += 1
    assert stats.chisquare(places.reshape(-1)).pvalue > 1e-4


@pytest.mark.slow
def test_the_compiled_generator_makes_the_same_words():
    compiled = torch.compile(torch_philox, dynamic=False)
    for count in (64, 1000):
        counter = tuple(torch.arange(4 * count).view(4, -1))
        for key in ((1, 2), (2**32 - 1, 0)):
            assert torch.equal(compiled(counter, key), torch_philox(counter, key))
