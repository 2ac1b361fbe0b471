"""Masks and keep-probabilities come back as they went, and nothing else comes back at all."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prismfl.errors import MessageError
from prismfl.wire.codec import pack_mask, pack_theta, unpack_mask, unpack_theta

masks = st.lists(st.booleans(), max_size=70).map(lambda bits: np.array(bits, np.bool_))
thetas = st.lists(st.integers(0, 65535), max_size=40).map(lambda q: np.array(q, np.uint16))


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
    assert len(raw) == 2 * len(q)
    found = unpack_theta(raw, len(q))
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, q)


def test_bytes_are_the_ones_written_down():
    assert pack_mask(np.array([1, 0, 0, 0, 0, 0, 0, 0, 1, 1], np.bool_)) == b"\x01\x03"
    assert pack_theta(np.array([1, 0x1234], np.uint16)) == b"\x01\x00\x34\x12"
    assert pack_theta(np.array([0x1234], ">u2")) == b"\x34\x12"


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
    raw = pack_theta(q)
    changed = raw + bytes(more) if more > 0 else raw[:more]
    if len(changed) != len(raw):
        with pytest.raises(MessageError, match="keep-probabilities"):
            unpack_theta(changed, len(q))


def test_what_comes_back_can_be_changed():
    unpack_mask(b"\x01", 3)[0] = False
    unpack_theta(b"\x01\x00", 1)[0] = 5
