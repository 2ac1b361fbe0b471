"""Frames: what went in comes out, and every damage or foreign frame is a MessageError."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prismfl.errors import MessageError
from prismfl.wire import frames as message
from prismfl.wire.frames import Broadcast, Kind, Place, Update

HERE = Place(b"0123456789abcdef", 3, 7)

places = st.builds(
    Place, run=st.binary(min_size=16, max_size=16), round=st.integers(0, 2**32 - 1), client=st.integers(0, 2**32 - 1)
)


DIGEST = b"8 bytes!"


def q_of(*values):
    return np.array(values, np.uint16)


def update(**changes):
    fields = {"digest": DIGEST, "weight": 5, "loss": 0.25, "mask": b"mask!", "alpha": b"alpha"} | changes
    return Update(**fields)


def stepped(**changes):
    fields = {"digest": DIGEST, "rank": 1, "cohort": 4, "first": 1, "steps": (b"one", b"second")} | changes
    return Broadcast(**fields)


def whole(q, **changes):
    return stepped(first=None, steps=(), snapshot=q, **changes)


# One small frame of each kind, with its opener at its own place.
FRAMES = {
    "broadcast": (
        message.seal_broadcast(stepped(), HERE),
        lambda frame, place=HERE: message.open_broadcast(frame, place, 3),
    ),
    "update": (message.seal_update(update(), HERE), lambda frame, place=HERE: message.open_update(frame, place, 5, 5)),
    "candidates": (
        message.seal_broadcast(whole(q_of(5, 6)), HERE, Kind.CANDIDATES),
        lambda frame, place=HERE: message.open_broadcast(frame, place, 2, Kind.CANDIDATES),
    ),
    "distances": (
        message.seal_distances(np.array([0.5, 2.0]), 3, HERE),
        lambda frame, place=HERE: message.open_distances(frame, place, 2),
    ),
    "lost": (message.seal_lost(HERE), lambda frame, place=HERE: message.open_frame(frame, Kind.LOST, place)),
}
each_frame = pytest.mark.parametrize("name", sorted(FRAMES))


# --------------------------------------------------------------------------------------- round trips


@given(st.sampled_from(Kind), places, st.binary(max_size=60))
def test_payloads_come_back(kind, place, payload):
    frame = message.seal(kind, place, payload)
    assert len(frame) == message.HEADER_BYTES + len(payload)
    assert message.open_frame(frame, kind, place) == payload


@given(st.lists(st.binary(max_size=30), max_size=5), st.integers(0, 50), st.integers(1, 32767), st.data())
def test_steps_come_back(steps, first, cohort, data):
    place = Place(HERE.run, first + len(steps), 2)
    sent = Broadcast(DIGEST, data.draw(st.integers(0, cohort - 1)), cohort, first, tuple(steps))
    assert message.open_broadcast(message.seal_broadcast(sent, place), place, 9) == sent


@given(places, st.lists(st.integers(0, 65535), max_size=20))
def test_snapshots_come_back(place, q):
    found = message.open_broadcast(message.seal_broadcast(whole(q_of(*q)), place), place, len(q))
    np.testing.assert_array_equal(found.snapshot, q_of(*q))
    assert (found.digest, found.rank, found.cohort, found.first, found.steps) == (DIGEST, 1, 4, None, ())


@given(
    places,
    st.binary(min_size=8, max_size=8),
    st.binary(max_size=30),
    st.binary(max_size=10),
    st.integers(1, 2**31 - 1),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)
def test_updates_come_back(place, digest, mask, alpha, weight, loss):
    sent = Update(digest, weight, loss, mask, alpha)
    assert message.open_update(message.seal_update(sent, place), place, len(mask), len(alpha)) == sent


@given(st.integers(1, 70), st.data(), st.binary(max_size=20))
def test_the_repliers_of_a_step_come_back(cohort, data, body):
    replied = sorted(data.draw(st.sets(st.integers(0, cohort - 1), min_size=1)))
    raw = message.pack_step(cohort, replied, body)
    assert len(raw) == 2 + -(-cohort // 8) + len(body)
    assert message.unpack_step(raw) == (cohort, replied, body)


def test_only_a_clients_own_word_says_that_it_is_lost():
    frame = message.seal_lost(HERE)
    assert message.is_lost(frame, HERE)
    for other in (frame[:-1], frame + b"x", message.seal_update(update(), HERE), message.seal(Kind.LOST, HERE, b"x")):
        assert not message.is_lost(other, HERE)
    assert not message.is_lost(frame, Place(HERE.run, 4, 7))


@given(places, st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=9), st.integers(1, 2**31 - 1))
def test_distances_come_back(place, distances, weight):
    frame = message.seal_distances(np.array(distances, np.float64), weight, place)
    found, heavy = message.open_distances(frame, place, len(distances))
    assert (found.tolist(), heavy) == (distances, weight)


def test_the_header_is_the_one_written_down():
    frame = message.seal(Kind.UPDATE, HERE, b"payload")
    head = b"PRSM" + struct.pack("<HBB", 4, 2, 0) + HERE.run + struct.pack("<III", 3, 7, 7)
    check = zlib.crc32(head + bytes(4) + b"payload")
    assert frame == head + struct.pack("<I", check) + b"payload"


def test_digests_name_a_theta():
    assert message.digest_of(q_of(0x6261, 0x63)[:1]).hex() == "fb8e20fc2e4c3f24"  # SHA-256 of "ab"
    assert len(message.digest_of(q_of(1, 2))) == 8
    assert len({message.digest_of(q) for q in (q_of(1, 2), q_of(2, 1), q_of(1, 2, 0))}) == 3
    assert message.digest_of(np.array([1, 2], ">u2")) == message.digest_of(q_of(1, 2))


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
    head = b"PRSM" + struct.pack("<HBB", message.VERSION, Kind.UPDATE, 0) + HERE.run + struct.pack("<III", 3, 7, length)
    return head + struct.pack("<I", zlib.crc32(head + bytes(4) + payload)) + payload


@pytest.mark.parametrize("length", [0, 6, 8, 2**31, 2**32 - 1])
def test_claimed_lengths_are_checked_against_the_bytes_present(length):
    assert message.open_frame(relabelled(7, b"payload"), Kind.UPDATE, HERE) == b"payload"
    with pytest.raises(MessageError, match=f"claiming {length} payload bytes and holding 7"):
        message.open_frame(relabelled(length, b"payload"), Kind.UPDATE, HERE)


def test_other_versions_and_formats_are_named():
    frame = bytearray(message.seal(Kind.UPDATE, HERE, b""))
    frame[4] = 1
    with pytest.raises(MessageError, match="version 1"):
        message.open_frame(bytes(frame), Kind.UPDATE, HERE)


@pytest.mark.parametrize("name", sorted(set(FRAMES) - {"lost", "update"}))
def test_payloads_of_another_size_are_refused(name):
    frame, open_it = FRAMES[name]
    kind, payload = frame[6], frame[message.HEADER_BYTES :]
    for changed in (b"", payload[:-1], payload + b"\0", payload * 50):
        with pytest.raises(MessageError):
            open_it(message.seal(Kind(kind), HERE, changed))


@pytest.mark.parametrize("changes", [{"mask": b"123456"}, {"alpha": b"123456"}, {"mask": b"", "alpha": bytes(11)}])
def test_updates_longer_than_was_agreed_are_refused(changes):
    with pytest.raises(MessageError, match="at most 5 and 5"):
        message.open_update(message.seal_update(update(**changes), HERE), HERE, 5, 5)


def test_an_update_claiming_more_mask_than_it_holds_is_refused():
    payload = DIGEST + struct.pack("<IfI", 1, 0.5, 2**31) + b"mask"
    with pytest.raises(MessageError, match="2147483648 of them mask"):
        message.open_update(message.seal(Kind.UPDATE, HERE, payload), HERE, 2**32, 5)


@pytest.mark.parametrize("first", [0, 2, 3, 2**31, 2**32 - 1])
def test_steps_that_do_not_lead_to_the_round_are_refused(first):
    with pytest.raises(MessageError, match="lead to round 3"):
        message.open_broadcast(message.seal_broadcast(stepped(first=first), HERE), HERE, 3)


@pytest.mark.parametrize("body", [b"", b"\x09\0\0\0abc", b"\xff\xff\xff\xff", b"\0\0\0\0", bytes(9)])
def test_steps_of_false_lengths_are_refused(body):
    head = DIGEST + struct.pack("<IIIH", 1, 4, 1, 2)
    with pytest.raises(MessageError, match="payload"):
        message.open_broadcast(message.seal(Kind.BROADCAST, HERE, head + body), HERE, 3)


@pytest.mark.parametrize("raw", [b"", b"\x05", b"\x09\0\x01", b"\x03\0\0", b"\x03\0\x08", b"\0\0"])
def test_what_is_no_step_is_refused(raw):
    with pytest.raises(MessageError):
        message.unpack_step(raw)


@pytest.mark.parametrize(("rank", "cohort"), [(4, 4), (0, 0), (5, 4), (0, 32768), (2**32 - 1, 2**32 - 1)])
def test_impossible_ranks_are_refused(rank, cohort):
    with pytest.raises(MessageError, match="rank"):
        message.open_broadcast(message.seal_broadcast(stepped(rank=rank, cohort=cohort), HERE), HERE, 1)


@pytest.mark.parametrize("changes", [{"weight": 0}, {"weight": 2**31}, {"loss": float("nan")}, {"loss": float("inf")}])
def test_unusable_updates_are_refused(changes):
    with pytest.raises(MessageError, match="weight"):
        message.open_update(message.seal_update(update(**changes), HERE), HERE, 5, 5)


@pytest.mark.parametrize(
    ("distances", "weight"), [([float("nan")], 1), ([float("inf")], 1), ([1.0], 0), ([1.0], 2**31)]
)
def test_unusable_distances_are_refused(distances, weight):
    with pytest.raises(MessageError, match="finite"):
        message.open_distances(message.seal_distances(np.array(distances), weight, HERE), HERE, 1)


def test_run_ids_are_stable_and_differ():
    assert message.run_id("a").hex() == "ca978112ca1bbdcafac231b39a23dc4d"  # SHA-256 of "a", FIPS 180
    assert message.run_id("a") != message.run_id("b")
