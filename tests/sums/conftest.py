"""Sites in one process, and a post that carries their messages, loses some, and repeats others."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from prismfl.errors import ClientError, PrismError
from prismfl.sums.frames import Purpose, Sum, step_of
from prismfl.sums.ring import Ring
from prismfl.sums.rules import Rules
from prismfl.sums.secrets import Identity
from prismfl.sums.server import Memory, SumServer
from prismfl.sums.site import SumSite, Vector
from prismfl.wire.frames import Place


@dataclass
class World:
    """Sites 0 … n - 1 with vectors `values`, int64 `[n, words]`, of one group or several.

    dead: the step from which on a site answers nothing more; change: what becomes of an answer on its way; seen: all
    answers, by step and site.
    """

    identities: list
    rules: Rules
    values: np.ndarray
    purpose: Purpose = Purpose.RELEASE
    hidden: bool = True
    groups: dict = field(default_factory=dict)
    dead: dict = field(default_factory=dict)
    change: object = None
    asked: object = None
    seen: dict = field(default_factory=dict)
    made: int = 0

    def __post_init__(self):
        self.groups = self.groups or dict.fromkeys(range(len(self.identities)), 0)
        self.ring = Ring(((self.values.shape[1], 6),))
        self.memory = Memory()
        self.sites = [SumSite(self.rules, one, client, {}) for client, one in enumerate(self.identities)]

    def restart(self, client):
        """A site's process ends; what it kept on its disk is there again."""
        state = {name: bytes(value) for name, value in self.sites[client].state.items()}
        self.sites[client] = SumSite(self.rules, self.identities[client], client, state)

    def vector(self, client):
        def make(_rest, _dealers):
            self.made += 1
            peers = frozenset(one for one, group in self.groups.items() if group == self.groups[client])
            return Vector(self.ring, [self.values[client].view(np.uint64)], peers, self.hidden)

        return make

    def answer(self, client, frame, round_index=0):
        """What a site answers, or its error."""
        members = tuple(range(len(self.sites)))
        try:
            reply = self.sites[client].answer(
                frame, Place(bytes(16), round_index, client), members, self.vector(client)
            )
        except PrismError as error:
            return error
        self.seen.setdefault(step_of(reply), {})[client] = reply
        return reply

    def exchange(self, _least):
        def carried(frames):
            for client, frame in frames.items():
                asked = self.asked(client, frame) if self.asked else frame
                if step_of(frame) >= self.dead.get(client, 99):
                    yield client, ClientError("it is not connected", "a connection", "start it")
                    continue
                reply = self.answer(client, asked)
                yield client, self.change(client, reply) if self.change else reply

        return carried

    def server(self, round_index=0, **options):
        of = Sum(Place(bytes(16), round_index, 0), self.purpose, self.memory.name)
        rings = dict.fromkeys(self.groups.values(), self.ring)
        return SumServer(of, self.groups, lambda _: rings, self.exchange, self.memory, **options)

    def total(self, opened, group=0):
        """The opened sum as signed numbers."""
        (words,) = opened.totals[group]
        return (words << np.uint64(16)).view(np.int64) >> np.int64(16)


@pytest.fixture(scope="session")
def identities():
    """Keys of eight sites."""
    return [Identity.made() for _ in range(8)]


@pytest.fixture
def make_world(identities):
    """A maker of worlds of so many sites."""

    def make(sites=5, colluders=1, dropouts=1, words=4, values=None, **more):
        rules = Rules(tuple(one.public for one in identities[:sites]), colluders, dropouts)
        if values is None:
            values = np.random.default_rng(1).integers(-(2**40), 2**40, (sites, words))
        return World(identities[:sites], rules, values, **more)

    return make
