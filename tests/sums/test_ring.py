"""Vectors modulo powers of two, and counts packed to nearly their entropy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from prismfl.errors import MessageError
from prismfl.sums.ring import Digits, Ring, add, signed


@pytest.mark.parametrize("most", [2, 3, 5, 6, 9, 10, 50, 84, 100, 255])
def test_counts_take_what_their_range_takes_and_never_carry(most):
    digits, rng = Digits(most), np.random.default_rng(most)
    assert 8 * digits.width / digits.each <= 1.1 * math.log2(most + 1)
    masks = rng.random((most, 1000)) < rng.random(1000)
    masks[:, 0] = True
    ring = Ring(((digits.words(1000), digits.width),))
    total = ring.unpack(ring.pack(ring.sum([digits.pack(mask)] for mask in masks)))
    assert np.array_equal(digits.unpack(total[0], 1000), masks.sum(0))


def test_a_sum_that_no_masks_have_is_refused():
    digits = Digits(5)  # three of them in a byte, and 6^3 is below 2^8
    with pytest.raises(MessageError, match="cannot be one"):
        digits.unpack(np.array([255], np.uint64), 3)
    with pytest.raises(MessageError, match="cannot be one"):
        digits.unpack(digits.pack(np.array([True, True, True])), 2)


@given(some.lists(some.integers(-(2**46), 2**46 - 1), min_size=1, max_size=9), some.integers(6, 8))
def test_signed_numbers_come_back_from_any_width(values, width):
    ring = Ring(((len(values), width),))
    (words,) = ring.unpack(ring.pack([np.array(values, np.int64).view(np.uint64)]))
    assert signed(words, width).tolist() == values


def test_masks_cancel_out_and_differ_by_key():
    ring = Ring(((1000, 1), (10, 8), (7, 3)))
    one, other = ring.stream(bytes(32)), ring.stream(b"1" * 32)
    assert not np.array_equal(one[0], other[0]) and int(one[0].max()) < 256 and int(one[2].max()) < 2**24
    total = ring.sum([one, other])
    add(total, one, -1)
    assert ring.pack(total) == ring.pack(other)
    assert len(np.unique(one[0])) > 230


def test_another_number_of_bytes_is_no_vector():
    with pytest.raises(MessageError, match="a vector of 5 bytes"):
        Ring(((2, 3),)).unpack(bytes(5))
