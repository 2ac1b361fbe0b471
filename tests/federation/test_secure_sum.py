"""Rounds whose masks are summed: the same θ as of masks that travel, whoever is gone and whoever has lost its way."""

import numpy as np
import pytest

from prismfl.errors import ClientError, PrismError, SettingError
from prismfl.federation import secure_sum
from prismfl.federation.agreement import init
from prismfl.federation.client import client_distances, client_update
from prismfl.federation.finished_mask import _votes, candidates
from prismfl.federation.record import Traffic
from prismfl.federation.round import server_update
from prismfl.federation.secure_sum import MaskSums, Sums, Work, choose_mask, client_sum, sum_round
from prismfl.sums.frames import Purpose, Step, Sum, seal_step, step_of, sum_of
from prismfl.sums.rules import Rules
from prismfl.sums.secrets import Identity
from prismfl.sums.server import Memory
from prismfl.sums.site import SumSite
from prismfl.wire import frames as message

CLIENTS = 6


class Party:
    """Six clients that sum; dead: the step from which on a client is silent; lost: whoever forgets θ each round."""

    def __init__(self, world, identities, colluders=1, dropouts=1):
        self.agreement, self.kit, self.targets = world
        rules = Rules(tuple(one.public for one in identities), colluders, dropouts)
        self.rules, self.identities = rules, identities
        self.states = {(client, purpose): {} for client in range(CLIENTS) for purpose in Purpose}
        self.held, self.adam, self.dead, self.lost, self.up = {}, {}, {}, set(), []

    def exchange(self, round_index, _least):
        def carried(frames):
            for client, frame in frames.items():
                if step_of(frame) >= self.dead.get(client, 99):
                    yield client, ClientError("gone", "a connection", "start it")
                    continue
                reply = self.answer(client, frame, round_index)
                self.up.append(reply)
                yield client, reply

        return carried

    def answer(self, client, frame, round_index):
        place = self.agreement.place(round_index, client)
        of = sum_of(frame, step_of(frame), place)
        site = SumSite(self.rules, self.identities[client], client, self.states[client, of.purpose])
        held = None if client in self.lost else self.held.get(client)
        work = Work(None, lambda: self.targets[client % 3], lambda: self.adam.get(client), held)
        try:
            found = client_sum(self.agreement, self.kit, site, frame, place, of, work)
        except PrismError as error:
            return error
        if found.held is not None:
            self.held[client] = found.held
        if found.memory is not None:
            self.adam[client] = found.memory
        return found.frame

    def sums(self):
        memories = {}
        return Sums(self.exchange, lambda *key: memories.setdefault(key, Memory()))

    def plain(self, state, survivors, held, adam):
        """The same round by masks that travel, of these clients alone."""

        def carried(frames):
            for client in survivors:
                kept = (self.targets[client % 3], adam.get(client), held.get(client))
                if client in self.lost and state.round:
                    kept = (*kept[:2], None)
                yield client, client_update(self.agreement, self.kit, frames[client], state.round, client, *kept).frame

        return server_update(self.agreement, state, carried)


@pytest.fixture(scope="module")
def identities():
    return [Identity.made() for _ in range(CLIENTS)]


@pytest.fixture
def make_party(make_world, identities):
    def make(colluders=1, dropouts=1, **changes):
        federation = {"secure_sum": True, "rounds": 3} | changes.pop("federation", {})
        world = make_world(data={"clients": CLIENTS}, federation=federation, **changes)
        return Party(world, identities, colluders, dropouts)

    return make


@pytest.mark.parametrize("uplink", ["whole", "half"])
@pytest.mark.parametrize("mada", ["off", "published"])
def test_theta_is_that_of_masks_that_travel(make_party, uplink, mada):
    party = make_party(federation={"uplink": uplink, "mada": mada}, dropouts=0 if uplink == "half" else 1)
    state, plain, sums = init(party.agreement), init(party.agreement), party.sums()
    for _ in range(2):
        plain, expected = party.plain(plain, range(CLIENTS), dict(party.held), dict(party.adam))
        state, found = sum_round(party.agreement, state, sums)
        assert np.array_equal(state.q, plain.q) and state.steps == plain.steps
        assert found.replied == expected.replied and found.kept_share == expected.kept_share
        for name in ("loss", "flips", "local_divergence"):
            assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-6)


@pytest.mark.parametrize("step", [Step.OPEN, Step.LIST, Step.INBOX, Step.SURVIVORS, Step.SIGNATURES])
def test_a_client_that_vanishes_leaves_the_sum_of_the_others(make_party, step):
    party = make_party()
    party.dead = {4: step}
    before = init(party.agreement)
    after, record = sum_round(party.agreement, before, party.sums())
    left = [client for client in range(CLIENTS) if client != 4 or step >= Step.SURVIVORS]
    plain, _ = party.plain(before, left, {}, {})
    assert np.array_equal(after.q, plain.q) and record.replied == tuple(left)
    assert set(record.left_out) == set(range(CLIENTS)) - set(left)


def test_too_few_clients_end_the_round_and_it_goes_on_with_the_same_sum(make_party):
    party = make_party()
    party.dead = {1: Step.INBOX, 2: Step.INBOX}
    before, sums = init(party.agreement), party.sums()
    with pytest.raises(ClientError, match="4 of 6 sites in a secure sum"):
        sum_round(party.agreement, before, sums)
    party.dead = {}
    after, _ = sum_round(party.agreement, before, sums)
    assert np.array_equal(after.q, party.plain(before, range(CLIENTS), {}, {})[0].q)


def test_a_client_that_has_lost_its_way_gets_a_snapshot_and_is_summed(make_party):
    party = make_party(federation={"uplink": "whole"})
    sums = party.sums()
    state, _ = sum_round(party.agreement, init(party.agreement), sums)
    state, _ = sum_round(party.agreement, state, sums)  # from here on θ_0 leads nowhere
    held, adam = dict(party.held), dict(party.adam)
    party.lost = {2}
    traffic = Traffic()
    after, record = sum_round(party.agreement, state, sums, traffic)
    assert record.replied == tuple(range(CLIENTS)) and any(
        message.is_lost(up, party.agreement.place(2, 2)) for up in party.up
    )
    party.lost = set()
    assert np.array_equal(after.q, party.plain(state, range(CLIENTS), held, adam)[0].q)


def test_the_mask_is_chosen_by_the_sum_of_the_distances(make_party):
    party = make_party(federation={"finished_mask": "best", "rounds": 1})
    state, _ = sum_round(party.agreement, init(party.agreement), party.sums())
    found = choose_mask(party.agreement, state, party.sums(), Traffic())
    distances = []
    from prismfl.federation.round import broadcast

    for client, frame in broadcast(party.agreement, state, message.Kind.CANDIDATES).items():
        held = party.held[client]
        raw = client_distances(party.agreement, party.kit, frame, client, party.targets[client % 3], held)
        masks = candidates(party.agreement, state.q)
        distances.append(message.open_distances(raw, party.agreement.place(1, client), len(masks))[0])
    best = int(np.argmin(_votes(np.array(distances), np.ones(CLIENTS, np.int64))))
    assert np.array_equal(found, masks[best])


def test_a_part_costs_nearly_the_logarithm_of_its_clients(make_party):
    party = make_party(federation={"uplink": "half"}, dropouts=0)
    how = MaskSums(party.agreement, 0)
    for group in (0, 1):
        weights = int(how.entries(group).sum())
        bits = 8 * (how.ring(group).size - 24) / weights
        assert bits <= 1.1 * np.log2(how.digits(group).most + 1)
    assert np.array_equal(how.entries(0), ~how.entries(1))


def test_a_server_cannot_ask_for_sums_that_the_run_has_not(make_party, identities):
    party = make_party(federation={"finished_mask": "half"})
    for purpose, turn in ((Purpose.RELEASE, 0), (Purpose.DISTANCES, 3), (Purpose.MASKS, 3)):
        of = Sum(party.agreement.place(turn, 0), purpose, bytes(16))
        assert "a secure sum of" in str(party.answer(0, seal_step(Step.OPEN, of, {}), turn))


def test_a_release_is_taken_for_the_attempt_and_not_for_the_name_that_a_server_gives_again(make_party, monkeypatch):
    party, named = make_party(privacy={"epsilon": 5.0, "delta": 1e-3}), []
    of = Sum(party.agreement.place(0, 0), Purpose.RELEASE, bytes(16))
    monkeypatch.setattr(secure_sum, "_shared_noise", lambda *_: 1)
    monkeypatch.setattr(secure_sum, "_release_ring", lambda *_: None)
    monkeypatch.setattr(SumSite, "adverts", lambda _: {})
    work = Work(lambda name, *_: named.append(name) or np.zeros(1, np.int64), lambda: None)
    site = SumSite(party.rules, party.identities[0], 0, {})
    for name in (of, Sum(of.place, of.purpose, bytes(15) + b"1"), of):
        site.answer(seal_step(Step.OPEN, name, {}), of.place, tuple(range(CLIENTS)), lambda *_: b"")
        for _ in range(2):
            secure_sum._release_vector(party.agreement, party.kit, site, name, work)
    assert named[::2] == named[1::2] and len(set(named)) == 3


@pytest.mark.parametrize(
    "section, name, value",
    [
        ("federation", "screen", 3.0),
        ("federation", "alpha", 0.5),
        ("federation", "client_weights", "size"),
        ("federation", "uplink", "fewest"),
        ("search", "mask", "soft"),
    ],
)
def test_what_a_sum_does_not_tell_is_refused_with_it(tiny, section, name, value):
    asked = {"federation": {"secure_sum": True}}
    asked[section] = asked.get(section, {}) | {name: value}
    with pytest.raises(SettingError, match=name):
        tiny(**asked)
    if name != "client_weights":  # with ε masks follow from a target that everybody knows, and hide nothing
        tiny(**asked, privacy={"epsilon": 5.0, "delta": 1e-3})


def test_sums_of_one_client_or_of_a_thousand_are_refused(tiny):
    for clients in (1, 1000):
        with pytest.raises(SettingError, match=r"2 … 256"):
            tiny(data={"clients": clients}, federation={"secure_sum": True})
    tiny(data={"clients": 1000}, federation={"secure_sum": True, "cohort": 100})
    with pytest.raises(SettingError, match="noise"):
        tiny(federation={"secure_sum": True}, privacy={"epsilon": 5.0, "noise": "fast"})
