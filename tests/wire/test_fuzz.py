"""Whatever arrives, a message is taken or refused with a MessageError: no crash, no hang, no great memory."""

import contextlib
import os
import tracemalloc

import numpy as np
import pytest

from prismfl.errors import MessageError
from prismfl.federation.agreement import KnownTheta, agree, init, next_theta
from prismfl.federation.client import receive, seal_found
from prismfl.federation.record import Traffic
from prismfl.federation.round import _heard, broadcast, server_update
from prismfl.settings.toml import settings_from
from prismfl.wire import frames as message
from prismfl.wire.frames import HEADER_BYTES, Kind

MESSAGES = int(os.environ.get("PRISMFL_FUZZ", "100000"))


class World:
    """Two rounds of three clients that move at random, their frames, and the server between."""

    def __init__(self, width=1, alpha=0.4):
        values = {
            "data": {"dataset": "digits", "clients": 3, "partition": "shards:3"},
            "generator": {"size": 16, "width": width},
            "federation": {"rounds": 3, "alpha": alpha},
        }
        self.agreement = agree(settings_from(values), 1)
        self.states = [init(self.agreement)]
        self.updates: list[bytes] = []
        for _ in range(2):
            self.states.append(server_update(self.agreement, self.states[-1], self.exchange)[0])

    def exchange(self, frames):
        for client, frame in frames.items():
            state = self.states[-1]
            place = self.agreement.place(state.round, client)
            told = message.open_broadcast(frame, place, len(state.q))
            rng = np.random.default_rng([state.round, client])
            mine = np.clip(state.q + rng.normal(0, 9000, len(state.q)), 1, 65535).astype(np.uint16)
            reply = seal_found(self.agreement, place, told, state.q, mine)
            self.updates.append(reply)
            yield client, reply

    def targets(self):
        """(frame, opener) of each kind of message that is taken from outside."""
        state, agreement = self.states[1], self.agreement
        place = agreement.place(1, 0)
        update = next(raw for raw in self.updates if raw[24:32] == self.head(1, 0))
        steps = broadcast(agreement, state)[0]
        whole = message.seal_broadcast(
            message.Broadcast(message.digest_of(state.q), 0, 3, None, (), state.q), place, Kind.CANDIDATES
        )
        distances = message.seal_distances(np.arange(9.0), 1, place)

        def heard(frame):
            _heard(agreement, state, 0, 0, 3, frame)

        return [
            (update, heard),
            (steps, lambda frame: receive(agreement, Kit(), frame, place, None)),
            (whole, lambda frame: receive(agreement, Kit(), frame, place, None, Kind.CANDIDATES)),
            (distances, lambda frame: message.open_distances(frame, place, 9)),
        ]

    @staticmethod
    def head(round_index, client):
        return round_index.to_bytes(4, "little") + client.to_bytes(4, "little")


class Kit:
    """Computes every step anew."""

    def follow(self, agreement, held, steps):
        for step in steps:
            held = KnownTheta(next_theta(agreement, held.q, held.round, step), held.round + 1)
        return held


def mutated(frame, rng):
    """A frame with a few changes; mostly with a length and checksum that fit, to get past them."""
    payload, head = bytearray(frame[HEADER_BYTES:]), bytearray(frame[:HEADER_BYTES])
    for _ in range(rng.integers(1, 5)):
        CHANGES[rng.integers(len(CHANGES))](payload, rng)
    if rng.random() < 0.1:
        head[rng.integers(HEADER_BYTES)] = rng.integers(256)
        return bytes(head) + bytes(payload)
    place = message.Place(bytes(head[8:24]), *np.frombuffer(bytes(head[24:32]), "<u4").tolist())
    return message.seal(Kind(head[6]), place, bytes(payload))


def flip(payload, rng):
    if payload:
        payload[rng.integers(len(payload))] ^= 1 << rng.integers(8)


def replace(payload, rng):
    if payload:
        payload[rng.integers(min(40, len(payload)))] = rng.choice([0, 1, 127, 128, 255])


def cut(payload, rng):
    del payload[rng.integers(len(payload) + 1) :]


def grow(payload, rng):
    payload += rng.bytes(rng.integers(1, 40))


def claim(payload, rng):
    """Overwrite four bytes near the beginning, where lengths and counts are, by a great or odd number."""
    at = rng.integers(0, 40)
    payload[at : at + 4] = int(rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, rng.integers(2**32)])).to_bytes(
        4, "little"
    )


def noise(payload, rng):
    start = rng.integers(len(payload) + 1)
    payload[start : start + 30] = rng.bytes(30)


CHANGES = (flip, flip, replace, cut, grow, claim, noise)


def fuzzed(world, count):
    """Numbers of messages taken and refused, of `count` mutated ones."""
    rng, targets, taken = np.random.default_rng(0), world.targets(), 0
    for index in range(count):
        frame, open_it = targets[index % 5 % 4]
        try:
            open_it(mutated(frame, rng))
            taken += 1
        except MessageError:
            pass
    return taken, count - taken


@pytest.fixture(scope="module")
def world():
    return World()


def test_the_unchanged_messages_are_taken(world):
    for frame, open_it in world.targets():
        open_it(frame)


def test_mutated_messages_are_taken_or_refused(world):
    taken, refused = fuzzed(world, 1500)
    assert taken and refused


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_very_many_mutated_messages_are_taken_or_refused(world):
    taken, refused = fuzzed(world, MESSAGES)
    assert taken + refused == MESSAGES and taken and refused


def test_memory_is_bounded_by_the_agreed_parameters():
    world = World(width=16, alpha=0.0)
    count, rng = len(world.states[0].q), np.random.default_rng(1)
    frame, _ = world.targets()[0]
    state = world.states[1]
    _heard(world.agreement, state, 0, 0, 3, frame)  # caches of what is agreed are not the message's
    worst = 0
    for changed in (frame, *(mutated(frame, rng) for _ in range(25))):
        tracemalloc.start()
        with contextlib.suppress(MessageError):
            _heard(world.agreement, state, 0, 0, 3, changed)
        worst = max(worst, tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert worst < 8 * count + 2_000_000


def test_traffic_counts_garbage_too(world):
    traffic = Traffic()
    traffic.up(b"12345")
    assert (traffic.uplink_bytes, traffic.uplink_frames) == (5, 1)
