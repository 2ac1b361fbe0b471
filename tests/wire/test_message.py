"""Frames: what went in comes out, and every damage or foreign frame is a MessageError."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prismfl.errors import MessageError
from prismfl.wire import message
from prismfl.wire.message import Broadcast, Kind, Place, Update

HERE = Place(b"0123456789abcdef", 3, 7)

places = st.builds(
    Place, run=st.binary(min_size=16, max_size=16), round=st.integers(0, 2**32 - 1), client=st.integers(0, 2**32 - 1)
)


def q_of(*values):
    return np.array(values, np.uint16)


def update(**changes):
    fields = {"mask": np.array([1, 0, 1], np.bool_), "alpha": q_of(9, 65535), "weight": 5, "loss": 0.25} | changes
    return Update(**fields)


# One small frame of each kind, with its opener at its own place.
FRAMES = {
    "broadcast": (
        message.seal_broadcast(Broadcast(q_of(1, 2, 60000), 1, 4), HERE),
        lambda frame, place=HERE: message.open_broadcast(frame, place, 3),
    ),
    "update": (message.seal_update(update(), HERE), lambda frame, place=HERE: message.open_update(frame, place, 3, 2)),
    "candidates": (
        message.seal_candidates(q_of(5, 6), HERE),
        lambda frame, place=HERE: message.open_candidates(frame, place, 2),
    ),
    "distances": (
        message.seal_distances(np.array([0.5, 2.0]), 3, HERE),
        lambda frame, place=HERE: message.open_distances(frame, place, 2),
    ),
}
each_frame = pytest.mark.parametrize("name", sorted(FRAMES))


# --------------------------------------------------------------------------------------- round trips


@given(st.sampled_from(Kind), places, st.binary(max_size=60))
def test_payloads_come_back(kind, place, payload):
    frame = message.seal(kind, place, payload)
    assert len(frame) == message.HEADER_BYTES + len(payload)
    assert message.open_frame(frame, kind, place) == payload


@given(places, st.lists(st.integers(0, 65535), max_size=20), st.integers(1, 32767), st.data())
def test_broadcasts_come_back(place, q, cohort, data):
    sent = Broadcast(q_of(*q), data.draw(st.integers(0, cohort - 1)), cohort)
    found = message.open_broadcast(message.seal_broadcast(sent, place), place, len(q))
    np.testing.assert_array_equal(found.q, sent.q)
    assert (found.rank, found.cohort) == (sent.rank, sent.cohort)


@given(
    places,
    st.lists(st.booleans(), max_size=30),
    st.lists(st.integers(0, 65535), max_size=10),
    st.integers(1, 2**31 - 1),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)
def test_updates_come_back(place, mask, alpha, weight, loss):
    sent = Update(np.array(mask, np.bool_), q_of(*alpha), weight, loss)
    found = message.open_update(message.seal_update(sent, place), place, len(mask), len(alpha))
    np.testing.assert_array_equal(found.mask, sent.mask)
    np.testing.assert_array_equal(found.alpha, sent.alpha)
    assert (found.weight, found.loss) == (weight, loss)


@given(places, st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=9), st.integers(1, 2**31 - 1))
def test_distances_come_back(place, distances, weight):
    frame = message.seal_distances(np.array(distances, np.float64), weight, place)
    found, heavy = message.open_distances(frame, place, len(distances))
    assert (found.tolist(), heavy) == (distances, weight)


def test_candidates_come_back():
    frame, open_it = FRAMES["candidates"]
    assert open_it(frame).tolist() == [5, 6]


def test_the_header_is_the_one_written_down():
    frame = message.seal(Kind.UPDATE, HERE, b"payload")
    head = b"PRSM" + struct.pack("<HBB", 1, 2, 0) + HERE.run + struct.pack("<III", 3, 7, 7)
    check = zlib.crc32(head + bytes(4) + b"payload")
    assert frame == head + struct.pack("<I", check) + b"payload"


def test_an_update_takes_a_bit_a_parameter():
    sent = Update(np.ones(80_000, np.bool_), q_of(), 1, 0.0)
    assert len(message.seal_update(sent, HERE)) == 10_000 + message.HEADER_BYTES + 8


# ------------------------------------------------------------------------------------------ damage


@each_frame
def test_whole_frames_open(name):
    frame, open_it = FRAMES[name]
    open_it(frame)


@each_frame
def test_every_truncation_is_refused(name):
    frame, open_it = FRAMES[name]
    for end in range(len(frame)):
        with pytest.raises(MessageError):
            open_it(frame[:end])


@each_frame
def test_every_flipped_bit_is_refused(name):
    frame, open_it = FRAMES[name]
    for place in range(8 * len(frame)):
        changed = bytearray(frame)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(MessageError):
            open_it(bytes(changed))


@each_frame
def test_trailing_bytes_are_refused(name):
    frame, open_it = FRAMES[name]
    for tail in (b"\0", frame):
        with pytest.raises(MessageError):
            open_it(frame + tail)


@each_frame
@given(noise=st.binary(max_size=120))
def test_noise_is_refused(name, noise):
    frame, open_it = FRAMES[name]
    for foreign in (noise, frame[: message.HEADER_BYTES] + noise):
        if foreign != frame:
            with pytest.raises(MessageError):
                open_it(foreign)


@each_frame
@pytest.mark.parametrize("other", [Place(b"x" * 16, 3, 7), Place(HERE.run, 4, 7), Place(HERE.run, 3, 8)])
def test_frames_of_another_place_are_refused(name, other):
    frame, open_it = FRAMES[name]
    with pytest.raises(MessageError, match="expected kind"):
        open_it(frame, other)


@each_frame
def test_frames_of_another_kind_are_refused(name):
    frame, _ = FRAMES[name]
    for other, (_, open_it) in FRAMES.items():
        if other != name:
            with pytest.raises(MessageError, match="of kind"):
                open_it(frame)


def relabelled(length, payload=b""):
    """A frame with a right checksum and a claimed payload length."""
    head = b"PRSM" + struct.pack("<HBB", 1, Kind.UPDATE, 0) + HERE.run + struct.pack("<III", 3, 7, length)
    return head + struct.pack("<I", zlib.crc32(head + bytes(4) + payload)) + payload


@pytest.mark.parametrize("length", [0, 6, 8, 2**31, 2**32 - 1])
def test_claimed_lengths_are_checked_against_the_bytes_present(length):
    assert message.open_frame(relabelled(7, b"payload"), Kind.UPDATE, HERE) == b"payload"
    with pytest.raises(MessageError, match=f"claiming {length} payload bytes and holding 7"):
        message.open_frame(relabelled(length, b"payload"), Kind.UPDATE, HERE)


def test_other_versions_and_formats_are_named():
    frame = bytearray(message.seal(Kind.UPDATE, HERE, b""))
    frame[4] = 2
    with pytest.raises(MessageError, match="version 2"):
        message.open_frame(bytes(frame), Kind.UPDATE, HERE)


@each_frame
def test_payloads_of_another_size_are_refused(name):
    frame, open_it = FRAMES[name]
    kind, payload = frame[6], frame[message.HEADER_BYTES :]
    for changed in (b"", payload[:-1], payload + b"\0", payload * 50):
        with pytest.raises(MessageError):
            open_it(message.seal(Kind(kind), HERE, changed))


@pytest.mark.parametrize(("rank", "cohort"), [(4, 4), (0, 0), (5, 4), (0, 32768), (2**32 - 1, 2**32 - 1)])
def test_impossible_ranks_are_refused(rank, cohort):
    with pytest.raises(MessageError, match="rank"):
        message.open_broadcast(message.seal_broadcast(Broadcast(q_of(1), rank, cohort), HERE), HERE, 1)


@pytest.mark.parametrize("changes", [{"weight": 0}, {"weight": 2**31}, {"loss": float("nan")}, {"loss": float("inf")}])
def test_unusable_updates_are_refused(changes):
    with pytest.raises(MessageError, match="weight"):
        message.open_update(message.seal_update(update(**changes), HERE), HERE, 3, 2)


@pytest.mark.parametrize(
    ("distances", "weight"), [([float("nan")], 1), ([float("inf")], 1), ([1.0], 0), ([1.0], 2**31)]
)
def test_unusable_distances_are_refused(distances, weight):
    with pytest.raises(MessageError, match="finite"):
        message.open_distances(message.seal_distances(np.array(distances), weight, HERE), HERE, 1)


def test_run_ids_are_stable_and_differ():
    assert message.run_id("a").hex() == "ca978112ca1bbdcafac231b39a23dc4d"  # SHA-256 of "a", FIPS 180
    assert message.run_id("a") != message.run_id("b")
