"""A round from broadcast to θ_{t+1}: who is heard, who is left out, who has lost its way, and what is shipped."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prismfl.errors import ClientError, MessageError, SettingError
from prismfl.federation import client as clients
from prismfl.federation.agreement import MOST_LABELS, KnownTheta, agree, cohort, init, next_theta
from prismfl.federation.client import client_distances, client_update, make_kit, seal_found
from prismfl.federation.finished_mask import _votes, candidates, choose_mask
from prismfl.federation.one_shot import pool
from prismfl.federation.record import distance_of
from prismfl.federation.round import broadcast, server_update
from prismfl.generator.network import generate, latent_batch
from prismfl.moments import Target
from prismfl.search import Memory, SearchResult
from prismfl.seeding.philox import Purpose, Stream
from prismfl.server import ALPHA_STEP, ServerState
from prismfl.wire import frames as message
from prismfl.wire.frames import HEADER_BYTES, Kind
from prismfl.wire.masks import decode_changes, decode_mask, pack_theta


class Party:
    """Clients with what each keeps between rounds, and every frame that passes between them and the server."""

    def __init__(self, world):
        self.agreement, self.kit, self.targets = world
        self.held, self.memory, self.down, self.up = {}, {}, [], []

    def answer(self, client, turn, frame):
        kept = self.memory.get(client), self.held.get(client)
        found = client_update(self.agreement, self.kit, frame, turn, client, self.targets[client], *kept)
        self.memory[client], self.held[client] = found.memory, found.held
        return found.frame

    def exchange(self, turn, deaf=(), mute=(), change=None):
        """Carry frames: the deaf get none, and what the mute say is lost."""

        def carry(frames):
            for client, frame in frames.items():
                self.down.append(frame)
                if client not in deaf:
                    reply = self.answer(client, turn, frame)
                    reply = change(client, reply) if change else reply
                    if client not in mute:
                        self.up.append(reply)
                        yield client, reply

        return carry

    def play(self, state, **how):
        """One round: (state after it, record)."""
        return server_update(self.agreement, state, self.exchange(state.round, **how))


def said(replies):
    """An exchange in which these (client, reply) come, whatever is sent; asked again, nobody answers."""
    turns = iter([list(replies.items()) if isinstance(replies, dict) else list(replies)])
    return lambda _: iter(next(turns, []))


def round_of(world, state=None):
    """(agreement, state, frames sent, replies by client) of one round in which everyone answers."""
    party = Party(world)
    state = state or init(party.agreement)
    sent = broadcast(party.agreement, state)
    return party.agreement, state, sent, {c: party.answer(c, state.round, frame) for c, frame in sent.items()}


def state_at(agreement, q, turn):
    """A state that nobody knows the way to."""
    return ServerState(q, turn, (), np.full(agreement.settings.data.clients, -1))


def opened(agreement, state, client, frame):
    """What an update says: the update, its mask bool `[A]`, which entries it sent, its α layers int `[N - A]`."""
    members = cohort(agreement, state.round)
    update = message.open_update(frame, agreement.place(state.round, client), 10**6, 10**6)
    rank, draws = members.index(client), agreement.draws(state.round, len(members))
    known, masked, sent = agreement.known(state.q), agreement.masked, draws.sent(members.index(client))
    mask = np.zeros(masked, np.bool_)
    mask[sent] = decode_mask(update.mask, draws.uniforms(client, rank)[sent], known.of(slice(masked)).of(sent))
    changes = decode_changes(update.alpha, known.of(slice(masked, None))) * ALPHA_STEP
    return update, mask, sent, state.q[masked:].astype(int) + changes


def masks_of(agreement, state, replies):
    return [opened(agreement, state, client, frame)[1] for client, frame in sorted(replies.items())]


@contextmanager
def drifting(spread, offset=0):
    """Searches that wander at random, for tests of what is sent: far quicker than real ones."""

    def wander(layout, weights, features, q, target, settings, rate, draws, memory=None):
        moved = q + offset + spread * draws.normals(len(q)).double().numpy()
        nothing = np.zeros(1, np.float32)
        return SearchResult(np.clip(moved.round(), 1, 65535).astype(np.uint16), 0.25, Memory(nothing, nothing, 1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clients, "local_search", wander)
        yield


@pytest.fixture(scope="module")
def crowd(make_agreement, feature_map):
    """A maker of parties of five clients of unequal size, for drifting searches."""

    def make(**changes):
        agreement = make_agreement(data={"clients": 5}, **changes)
        targets = {client: Target(np.zeros(1, np.float32), 7 * client + 1) for client in range(5)}
        return Party((agreement, make_kit(agreement, feature_map), targets))

    return make


@pytest.fixture(scope="module")
def played(make_world):
    return round_of(make_world())


# ------------------------------------------------------------------------------------- agreement


def test_the_run_id_names_what_is_public(tiny):
    mine = agree(tiny(), 1)
    same = agree(tiny(data={"data_dir": "/elsewhere"}, running={"workers": 2, "cache_dir": "x"}), 1)
    assert mine.run == same.run
    others = [
        agree(tiny(seed=1), 1),
        agree(tiny(search={"learning_rate": 0.2}), 1),
        agree(tiny(data={"clients": 4}), 1),
        agree(tiny(federation={"alpha": 0.5}), 1),
        agree(tiny(), 3),
        agree(tiny(), 1, ("cat", "dog")),
        agree(tiny(), 1, ("dog", "cat")),
        agree(tiny(), 1, ("cat", "cow")),
        agree(tiny(), 1, ("cat", "cow", "dog")),
    ]
    assert len({mine.run, *(other.run for other in others)}) == 10
    assert agree(tiny(), 1, ["cat", "dog"]).run == others[5].run


def test_named_classes_become_the_labels_of_the_generator(tiny):
    found = agree(tiny(), 1, ["cat", "dog", "owl"])
    assert found.labels == ("cat", "dog", "owl") and found.layout.classes == 3


@pytest.mark.parametrize(
    ("conditional", "classes"), [(True, ()), (True, ("only",)), (False, ("cat", "dog")), (False, ["x"] * 1001)]
)
def test_without_two_classes_or_by_wish_there_is_no_label(tiny, conditional, classes):
    found = agree(tiny(generator={"conditional": conditional}), 1, classes)
    assert found.labels == () and found.layout.classes == 0


def test_more_labels_than_a_generator_takes_are_refused(tiny):
    names = [str(index) for index in range(MOST_LABELS + 1)]
    assert agree(tiny(), 1, names[:-1]).layout.classes == MOST_LABELS == 1000
    with pytest.raises(SettingError, match="1001 labels; expected at most 1000"):
        agree(tiny(), 1, names)


# ---------------------------------------------------------------------------------------- cohorts


def test_everyone_takes_part_by_default(make_agreement):
    assert cohort(make_agreement(), 5) == [0, 1, 2]


def test_a_partial_cohort_is_a_fair_public_choice(make_agreement):
    agreement = make_agreement(data={"clients": 10}, federation={"cohort": 3})
    drawn = [cohort(agreement, turn) for turn in range(600)]
    assert all(members == sorted(set(members)) and len(members) == 3 for members in drawn)
    assert cohort(agreement, 7) == drawn[7]
    often = np.bincount(np.concatenate(drawn), minlength=10)
    assert len(often) == 10
    assert np.abs(often - 180).max() < 60  # five standard deviations
    other = make_agreement(seed=1, data={"clients": 10}, federation={"cohort": 3})
    assert [cohort(other, turn) for turn in range(20)] != drawn[:20]


def test_broadcasts_carry_the_state_and_each_members_rank(make_agreement):
    agreement = make_agreement(data={"clients": 10}, federation={"cohort": 4})
    q = np.arange(700, 700 + agreement.layout.count).astype(np.uint16)
    sent = broadcast(agreement, state_at(agreement, q, 1))
    assert list(sent) == cohort(agreement, 1)
    for rank, (client, frame) in enumerate(sent.items()):
        heard = message.open_broadcast(frame, agreement.place(1, client), agreement.layout.count)
        assert (heard.rank, heard.cohort, heard.digest) == (rank, 4, message.digest_of(q))
        np.testing.assert_array_equal(heard.snapshot, q)


def test_the_first_broadcast_names_what_every_client_knows(make_agreement):
    agreement = make_agreement()
    for client, frame in broadcast(agreement, init(agreement)).items():
        heard = message.open_broadcast(frame, agreement.place(0, client), agreement.layout.count)
        assert (heard.first, heard.steps, heard.snapshot) == (0, (), None)
        assert heard.digest == message.digest_of(init(agreement).q)
        assert len(frame) < HEADER_BYTES + 30


# ----------------------------------------------------------------------------------------- clients


def test_an_update_is_repeatable_and_each_clients_own(make_world, played):
    agreement, kit, targets = make_world()
    _, state, sent, replies = played
    again = client_update(agreement, kit, sent[1], 0, 1, targets[1])
    assert again.frame == replies[1]
    assert again.memory.steps == 1
    assert again.held.round == 0
    np.testing.assert_array_equal(again.held.q, state.q)
    assert len(set(replies.values())) == 3


@pytest.mark.parametrize(("uplink", "parts"), [("whole", 1), ("half", 2)])
@pytest.mark.parametrize("draws", ["stratified", "independent"])
def test_a_client_without_news_sends_the_mask_of_the_old_state(make_world, draws, uplink, parts):
    agreement, state, _, replies = round_of(
        make_world(search={"learning_rate": 1e-6}, federation={"draws": draws, "alpha": 0.3, "uplink": uplink})
    )
    masked, count = agreement.masked, agreement.layout.count
    assert 0 < masked < count
    for client, frame in replies.items():
        _, mask, sent, alpha = opened(agreement, state, client, frame)
        uniform = agreement.draws(0, 3).uniforms(client, client)
        assert sent.mean() == pytest.approx(1 / parts, abs=0.1)
        assert (mask != ((uniform < state.q[:masked]) & sent)).mean() < 1e-3
        # A change by one is sent as one step of 256, and hardly ever.
        assert (alpha != state.q[masked:]).mean() < 0.03
        np.testing.assert_allclose(alpha, state.q[masked:].astype(int), atol=256)
        # No news take hardly a byte.
        assert len(frame) < HEADER_BYTES + 20 + 40


def test_a_broadcast_of_another_round_client_or_run_is_refused(make_world, played):
    agreement, kit, targets = make_world()
    _, _, sent, _ = played
    for frame, turn, client in ((sent[1], 1, 1), (sent[0], 0, 1), (sent[1][:-1], 0, 1)):
        with pytest.raises(MessageError):
            client_update(agreement, kit, frame, turn, client, targets[client])
    with pytest.raises(MessageError):
        client_update(make_world(seed=3)[0], kit, sent[1], 0, 1, targets[1])


def test_a_loss_that_is_not_finite_is_the_clients_error(make_world, played):
    agreement, kit, targets = make_world()
    broken = Target(np.full_like(targets[1].moments, np.nan), 10)
    with pytest.raises(ClientError, match="client 1's search diverged"):
        client_update(agreement, kit, played[2][1], 0, 1, broken)


@pytest.mark.parametrize(("kind", "weight"), [("equal", 1), ("size", 40)])
def test_a_client_weighs_one_or_its_images(make_world, kind, weight):
    agreement, _, _, replies = round_of(make_world({1: 40}, federation={"client_weights": kind}))
    assert message.open_update(replies[1], agreement.place(0, 1), agreement.masked, 0).weight == weight


# ------------------------------------------------------------------------------------------ server


def test_a_round_is_recorded(played):
    agreement, state, sent, replies = played
    after, record = server_update(agreement, state, said(replies))
    assert (after.round, record.round) == (1, 0)
    assert record.replied == (0, 1, 2)
    assert not record.left_out
    assert record.traffic.uplink_bytes == sum(map(len, replies.values()))
    assert record.traffic.downlink_bytes == sum(map(len, sent.values()))
    assert (record.traffic.uplink_frames, record.traffic.downlink_frames) == (3, 3)
    updates = [opened(agreement, state, client, frame)[0] for client, frame in replies.items()]
    assert record.loss == pytest.approx(np.mean([update.loss for update in updates]))
    mean = np.mean(masks_of(agreement, state, replies), 0)
    assert record.density == pytest.approx(mean.mean())
    np.testing.assert_allclose(after.q / 65536, np.clip(mean, 0.01, 0.99), atol=1.1 / 65536)
    theta = after.q / 65536
    assert record.theta_variance == pytest.approx((theta * (1 - theta)).mean())
    kept = state.q / 65536
    assert record.mask_entropy == pytest.approx(np.mean(-kept * np.log2(kept) - (1 - kept) * np.log2(1 - kept)))
    assert record.kept_share == 0
    assert after.held.tolist() == [0, 0, 0]
    assert len(after.steps) == 1


def test_the_entropy_logged_is_that_of_a_mask_given_theta_alone(make_world):
    world = make_world()
    quarter = np.full(world[0].layout.count, 16384, np.uint16)
    agreement, state, _, replies = round_of(world, state_at(world[0], quarter, 1))
    record = server_update(agreement, state, said(replies))[1]
    assert record.mask_entropy == pytest.approx(2 - 0.75 * np.log2(3))


def test_how_far_masks_are_from_theta_is_recorded(make_world):
    world = make_world(federation={"uplink": "half"})
    q = np.random.default_rng(3).integers(2000, 63000, world[0].layout.count).astype(np.uint16)
    agreement, state, _, replies = round_of(world, state_at(world[0], q, 1))
    _, record = server_update(agreement, state, said(replies))
    flips, apart, theta = [], [], q / 65536
    for client, frame in replies.items():
        _, mask, sent, _ = opened(agreement, state, client, frame)
        u = agreement.draws(1, 3).uniforms(client, client)
        flips.append((mask != (u < q))[sent].mean())
        apart.append(np.where(mask, 1 - theta, theta)[sent].mean())
    assert record.flips == pytest.approx(np.mean(flips)) and record.local_divergence == pytest.approx(np.mean(apart))
    assert list(record.theta_by_layer) == [layer.name for layer in agreement.layout.layers]


@pytest.mark.parametrize("alpha", [0, 0.4, 1])
def test_stages_are_dealt_by_their_size_and_labels_weights_not_at_all(make_world, alpha):
    agreement = make_world(federation={"uplink": "fewest", "alpha": alpha})[0]
    labelled = replace(agreement, layout=replace(agreement.layout, classes=4))
    for one in (agreement, labelled):
        draws, layout = one.draws(2, 3), one.layout
        senders = np.sum([draws.sent(rank) for rank in range(3)], 0)
        assert len(senders) == draws.count == one.masked
        for layer, (_, parts) in zip(layout.layers, layout.dealt(3), strict=True):
            assert (senders[layer.span] == 3 // parts if parts in (1, 3) else senders[layer.span] >= 1).all()


def test_differences_are_averaged_over_the_clients_that_sent_an_entry(make_world):
    agreement, state, _, replies = round_of(make_world(federation={"uplink": "fewest"}))
    after, _ = server_update(agreement, state, said(replies))
    news, senders = np.zeros((2, agreement.layout.count))
    for client, frame in replies.items():
        _, mask, sent, _ = opened(agreement, state, client, frame)
        without = (agreement.draws(0, 3).uniforms(client, client) < state.q) & sent
        news += mask.astype(int) - without
        senders += sent
    assert len(set(senders)) > 2
    mean = state.q / 65536 + news / np.maximum(senders, 1)
    np.testing.assert_allclose(after.q / 65536, np.clip(mean, 0.04, 0.96), atol=1.1 / 65536)


def test_local_divergence_is_the_expected_distance_from_a_mask_drawn_of_theta():
    rng = np.random.default_rng(0)
    q, mine, u = (rng.integers(1, 65536, 40_000).astype(np.uint16) for _ in range(3))
    found = distance_of(u < mine, u, q)
    drawn = rng.integers(0, 65536, q.size) < q
    assert found.divergence == pytest.approx(((u < mine) != drawn).mean(), abs=0.01)
    assert found.flips == pytest.approx(np.abs(q.astype(int) - mine).mean() / 65536, abs=0.01)


def test_a_client_without_news_has_flipped_nothing():
    q = np.full(50_000, 16384, np.uint16)
    u = np.random.default_rng(1).integers(0, 65536, q.size).astype(np.uint16)
    found = distance_of(u < q, u, q)
    assert found.flips == 0 and found.divergence == pytest.approx(2 * 0.25 * 0.75, abs=0.01)


def test_without_masks_there_is_no_divergence(make_world):
    agreement, state, _, replies = round_of(make_world(federation={"alpha": 1.0}))
    record = server_update(agreement, state, said(replies))[1]
    assert record.flips is None and record.local_divergence is None


@pytest.mark.parametrize("mada", ["off", "published"])
@settings(max_examples=6)
@given(st.permutations(range(3)))
def test_replies_may_come_in_any_order(make_world, mada, order):
    agreement, state, _, replies = round_of(make_world(federation={"mada": mada, "uplink": "fewest", "alpha": 0.3}))
    mine, record = server_update(agreement, state, said([(client, replies[client]) for client in order]))
    theirs, straight = server_update(agreement, state, said(replies))
    assert mine.q.tobytes() == theirs.q.tobytes()
    assert mine.steps == theirs.steps
    assert record == straight


def resealed(agreement, client, frame, **changes):
    """An update with some of it changed, its checksum right."""
    place = agreement.place(0, client)
    update = message.open_update(frame, place, 10**6, 10**6)
    changed = {name: change(getattr(update, name)) for name, change in changes.items()}
    return message.seal_update(replace(update, **changed), place)


@pytest.fixture(scope="module")
def bad_replies(make_world, played):
    """What client 1 may send instead of its update."""
    agreement, state, sent, replies = played
    kit, targets = make_world()[1:]
    later, elsewhere = state_at(agreement, state.q, 1), make_world(seed=9)[0]
    alpha = round_of(make_world(federation={"alpha": 0.4}))[3]
    return {
        "failure": ClientError("client 1 is out of power", "an update", "wait"),
        "nothing": b"",
        "garbage": bytes(range(256)) * 4,
        "cut short": replies[1][:-1],
        "flipped": replies[1][:-1] + bytes([replies[1][-1] ^ 1]),
        "another client": replies[0],
        "an echo": sent[1],
        "another round": client_update(agreement, kit, broadcast(agreement, later)[1], 1, 1, targets[1]).frame,
        "another run": client_update(elsewhere, kit, broadcast(elsewhere, state)[1], 0, 1, targets[1]).frame,
        "another share of layers": alpha[1],
        "another theta": resealed(agreement, 1, replies[1], digest=lambda _: message.digest_of(state.q ^ 1)),
        "too long a mask": resealed(agreement, 1, replies[1], mask=lambda raw: raw + bytes(5000)),
        "bytes after the mask": resealed(agreement, 1, replies[1], mask=lambda raw: raw + b"\1\2\3\4" * 10),
        "half a head": resealed(agreement, 1, replies[1], mask=lambda raw: raw[:3]),
        "no mask": resealed(agreement, 1, replies[1], mask=lambda _: b""),
        "layers that do not travel": resealed(agreement, 1, replies[1], alpha=lambda _: bytes(5000)),
        "no weight": resealed(agreement, 1, replies[1], weight=lambda _: 0),
        "no loss": resealed(agreement, 1, replies[1], loss=lambda _: float("nan")),
        "distances": message.seal_distances(np.zeros(1), 1, agreement.place(0, 1)),
    }


@pytest.mark.parametrize(
    "what",
    [
        "failure",
        "nothing",
        "garbage",
        "cut short",
        "flipped",
        "another client",
        "an echo",
        "another round",
        "another run",
        "another share of layers",
        "another theta",
        "too long a mask",
        "bytes after the mask",
        "half a head",
        "no mask",
        "layers that do not travel",
        "no weight",
        "no loss",
        "distances",
    ],
)
def test_a_bad_reply_is_left_out_and_named(played, bad_replies, what):
    agreement, state, _, replies = played
    without, _ = server_update(agreement, state, said([(0, replies[0]), (2, replies[2])]))
    for place in range(3):
        heard = [(0, replies[0]), (2, replies[2])]
        heard.insert(place, (1, bad_replies[what]))
        after, record = server_update(agreement, state, said(heard))
        assert after.q.tobytes() == without.q.tobytes()
        assert after.steps == without.steps
        assert record.replied == (0, 2)
        assert list(record.left_out) == [1]
        assert "expected" in record.left_out[1]


def test_a_reply_of_an_earlier_round_is_not_counted_again(crowd):
    """Neither as it was nor, by a liar, under this round's name."""
    with drifting(2000):
        party, first = crowd(), {}
        state, _ = party.play(init(party.agreement), change=lambda c, reply: first.setdefault(c, reply))
        old = message.open_update(first[1], party.agreement.place(0, 1), 10**6, 10**6)
        for replay in (first[1], message.seal_update(old, party.agreement.place(1, 1))):
            party.held = {client: KnownTheta(init(party.agreement).q, 0) for client in range(5)}
            without, _ = party.play(state, mute=(1,))
            after, record = party.play(state, change=lambda c, reply, replay=replay: replay if c == 1 else reply)
            assert record.replied == (0, 2, 3, 4) and list(record.left_out) == [1]
            assert after.q.tobytes() == without.q.tobytes()
            assert after.held[1] == 0  # it has not shown to know θ_1


@settings(max_examples=40)
@given(st.data())
def test_no_bytes_in_an_update_harm_the_round(played, data):
    """Damage under a right checksum is left out or is an update like any other."""
    agreement, state, _, replies = played
    raw = bytearray(message.open_update(replies[1], agreement.place(0, 1), 10**6, 10**6).mask)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    del raw[data.draw(st.sampled_from((len(raw), len(raw), len(raw) // 2, len(raw) - 4))) :]
    heard = replies | {1: resealed(agreement, 1, replies[1], mask=lambda _: bytes(raw))}
    after, record = server_update(agreement, state, said(heard))
    assert {0, 2} <= set(record.replied)
    assert set(record.replied) | set(record.left_out) == {0, 1, 2}
    assert ((after.q >= 655) & (after.q <= 64881)).all()


def test_a_second_reply_of_a_client_is_not_counted(played):
    agreement, state, _, replies = played
    once, _ = server_update(agreement, state, said(replies))
    twice, record = server_update(agreement, state, said([*replies.items(), (0, replies[0])]))
    assert twice.q.tobytes() == once.q.tobytes()
    assert record.replied == (0, 1, 2) and not record.left_out, "who replied is not left out for having replied twice"
    assert record.traffic.uplink_bytes == sum(map(len, replies.values())) + len(replies[0])


def test_a_reply_of_a_client_that_was_not_asked_is_not_counted(make_world):
    world = make_world(federation={"cohort": 2})
    agreement, state, sent, replies = round_of(world)
    kit, targets = world[1:]
    (stranger,) = {0, 1, 2} - set(sent)
    place = agreement.place(0, stranger)
    frame = message.seal_broadcast(message.Broadcast(message.digest_of(state.q), 0, 2, 0), place)
    foreign = client_update(agreement, kit, frame, 0, stranger, targets[stranger]).frame
    straight = server_update(agreement, state, said(replies))[0]
    for uninvited in (foreign, message.seal_lost(place)):
        after, record = server_update(agreement, state, said([(stranger, uninvited), *replies.items()]))
        assert after.q.tobytes() == straight.q.tobytes()
        assert list(record.left_out) == [stranger]
        assert record.traffic.downlink_frames == 2


def test_no_client_left_ends_the_round_with_reasons(played):
    agreement, state, _, replies = played
    with pytest.raises(ClientError, match="none came"):
        server_update(agreement, state, said({}))
    broken = [(c, ClientError(f"client {c} is gone", "an update", "wait")) for c in replies]
    with pytest.raises(ClientError, match=r"round 1.*client 0 is gone.*client 2 is gone"):
        server_update(agreement, state, said(broken))


def test_a_client_cannot_give_itself_weight(played):
    agreement, state, _, replies = played
    heard = dict(replies) | {1: resealed(agreement, 1, replies[1], weight=lambda _: 10_000)}
    after, record = server_update(agreement, state, said(heard))
    without, _ = server_update(agreement, state, said([(0, replies[0]), (2, replies[2])]))
    assert 1 in record.left_out
    assert after.q.tobytes() == without.q.tobytes()


def test_too_heavy_clients_leave_the_order_without_a_say(make_world):
    heavy = {client: 2**30 + client for client in range(3)}
    agreement, state, _, replies = round_of(make_world(heavy, federation={"client_weights": "size"}))

    def outcome(order):
        try:
            return server_update(agreement, state, said([(c, replies[c]) for c in order]))[0].q.tobytes()
        except ClientError:
            return b""

    assert outcome((0, 1, 2)) == outcome((2, 1, 0))


def test_weights_by_size_pull_the_mean(make_world):
    agreement, state, _, replies = round_of(make_world({0: 60, 1: 30, 2: 10}, federation={"client_weights": "size"}))
    masks = masks_of(agreement, state, replies)
    after, _ = server_update(agreement, state, said(replies))
    mean = 0.6 * masks[0] + 0.3 * masks[1] + 0.1 * masks[2]
    # It travels in steps of 1/24, rounded at random: right in the mean of many entries.
    np.testing.assert_allclose(after.q / 65536, np.clip(mean, 0.01, 0.99), atol=1 / 24 + 1.1 / 65536)
    for exact in np.unique(mean[(mean > 0.05) & (mean < 0.95)]):
        got = after.q[mean == exact] / 65536
        assert abs(got.mean() - exact) < 5 * 0.5 / 24 / len(got) ** 0.5 + 1 / 65536


@pytest.mark.parametrize("draws", ["stratified", "independent"])
def test_by_differences_a_round_without_news_stays_where_it_was(make_world, draws):
    agreement, state, _, replies = round_of(
        make_world(search={"learning_rate": 1e-6}, federation={"draws": draws, "uplink": "fewest"})
    )
    after, _ = server_update(agreement, state, said(replies))
    assert (np.abs(after.q.astype(int) - state.q) <= 1).mean() > 0.99  # the clip begins within a unit
    # A client that is left out takes its M0 with it.
    after, _ = server_update(agreement, state, said([(0, replies[0]), (2, replies[2])]))
    assert (np.abs(after.q.astype(int) - state.q) <= 1).mean() > 0.99  # the clip begins within a unit


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_alpha_layers_travel_as_quantised_changes_and_are_averaged(make_world, alpha):
    agreement, state, _, replies = round_of(make_world(federation={"alpha": alpha}))
    masked, count = agreement.masked, agreement.layout.count
    assert (masked == 0) == (alpha == 1)
    heavy = (masked + 7) // 8 + 2 * (count - masked)
    assert max(map(len, replies.values())) < HEADER_BYTES + 20 + heavy  # changes take less than θ itself
    layers = [opened(agreement, state, client, replies[client])[3] for client in range(3)]
    assert all(((layer - state.q[masked:].astype(int)) % 256 == 0).all() for layer in layers)
    after, _ = server_update(agreement, state, said(replies))
    mean = np.clip(np.mean([np.clip(layer, 0, 65535) for layer in layers], 0), 656, 64880)
    np.testing.assert_allclose(after.q[masked:], mean, atol=257)
    assert abs(np.mean(after.q[masked:] - mean)) < 5 * 128 / (count - masked) ** 0.5
    assert len({layer.tobytes() for layer in layers}) == 3
    # Three masks average to thirds, rounded up or down; the clip range ends at 656 and 64880.
    thirds = np.clip(np.round(after.q[:masked] * 3.0 / 65536) * 65536 / 3, 656, 64880)
    np.testing.assert_allclose(after.q[:masked], thirds, atol=1)


def test_changes_of_alpha_layers_below_a_step_are_not_swallowed(crowd):
    """Clients that move by 37 where 256 is the step: over entries and rounds, the mean moves by 37."""
    with drifting(0, 37):
        party = crowd(federation={"alpha": 1.0})
        start = init(party.agreement).q
        moved = []
        for turn in range(12):
            after, _ = party.play(state_at(party.agreement, start, turn))
            moved.append(after.q.astype(int) - start)
    assert set(np.unique(moved).tolist()) <= {0, 256}
    assert abs(np.mean(moved) - 37) < 5 * np.std(moved) / np.size(moved) ** 0.5


def test_each_client_sends_its_part_alone_and_the_parts_make_the_mean(crowd):
    with drifting(4000):
        party, replies = crowd(federation={"uplink": "half"}), {}
        state = init(party.agreement)
        after, _ = party.play(state, change=lambda c, reply: replies.setdefault(c, reply))
    found = [opened(party.agreement, state, client, frame)[1:3] for client, frame in sorted(replies.items())]
    masks, sent = (np.array(column) for column in zip(*found, strict=True))
    assert sorted(set(sent.sum(0).tolist())) == [2, 3]
    mean = masks.sum(0) / sent.sum(0)
    np.testing.assert_allclose(after.q / 65536, np.clip(mean, 0.01, 0.99), atol=1.1 / 65536)


@pytest.mark.parametrize("screen", [0.0, 3.0])
def test_a_mask_that_no_search_led_to_is_left_out_if_the_server_screens(crowd, screen):
    def stranger(client, reply):
        if client != 2:
            return reply
        told = message.open_broadcast(sent[2], agreement.place(0, 2), agreement.layout.count)
        ones = np.full(agreement.layout.count, 65535, np.uint16)
        return seal_found(agreement, agreement.place(0, 2), told, state.q, ones)

    with drifting(4000):
        party = crowd(federation={"screen": screen})
        agreement, state = party.agreement, init(party.agreement)
        sent = broadcast(agreement, state)
        after, record = party.play(state, change=stranger)
    assert record.replied == ((0, 1, 3, 4) if screen else (0, 1, 2, 3, 4))
    assert list(record.left_out) == ([2] if screen else [])
    assert (after.held[2] == 0) and after.round == 1
    assert (record.density > 0.53) == (screen == 0)


# ------------------------------------------------------------------------------- the way to θ


@st.composite
def rounds_with_failures(draw):
    """Settings, and for each round who hears nothing and whose reply is lost."""
    chosen = {
        "draws": draw(st.sampled_from(("stratified", "independent"))),
        "uplink": draw(st.sampled_from(("auto", "whole", "half", "fewest"))),
        "alpha": draw(st.sampled_from((0.0, 0.0, 0.3, 1.0))),
        "mada": draw(st.sampled_from(("off", "published"))),
        "client_weights": draw(st.sampled_from(("equal", "size"))),
        "cohort": draw(st.sampled_from((0, 1, 2, 4))),
    }
    if chosen["uplink"] == "fewest":
        chosen["client_weights"] = "equal"
    some = st.sets(st.integers(0, 4), max_size=3)
    turns = st.lists(st.tuples(some, some), min_size=4, max_size=7)
    return chosen, draw(turns), draw(st.sampled_from((0, 300, 6000)))


@settings(max_examples=25)
@given(rounds_with_failures())
def test_every_client_comes_to_the_servers_theta_whatever_it_missed(crowd, case):
    chosen, turns, spread = case
    party = crowd(federation=chosen)
    agreement, state = party.agreement, init(party.agreement)
    longest = HEADER_BYTES + 30 + 2 * agreement.layout.count
    with drifting(spread):
        for deaf, mute in turns:
            members = cohort(agreement, state.round)
            party.up, party.down = [], []
            try:
                after, record = party.play(state, deaf=deaf, mute=mute)
            except ClientError:
                assert set(members) <= deaf | mute
                after = state  # the round is played again
            else:
                assert set(record.replied) == set(members) - deaf - mute
                assert not record.left_out
                assert record.traffic.uplink_bytes == sum(map(len, party.up))
                assert record.traffic.downlink_bytes == sum(map(len, party.down))
                assert after.held[list(record.replied)].tolist() == [state.round] * len(record.replied)
                if after.steps:
                    again = next_theta(agreement, state.q, state.round, after.steps[-1])
                    assert again.tobytes() == after.q.tobytes()
            for client in set(members) - deaf:
                assert party.held[client].round == state.round
                assert party.held[client].q.tobytes() == state.q.tobytes()
            assert len(party.up) <= len(members) and max(map(len, party.down)) <= longest  # nobody was lost
            state = after


def told_to(party, state, client):
    place = party.agreement.place(state.round, client)
    return message.open_broadcast(broadcast(party.agreement, state)[client], place, party.agreement.layout.count)


@pytest.mark.parametrize("unheard", ["deaf", "mute"])
def test_a_client_that_missed_rounds_is_sent_the_steps_since(crowd, unheard):
    with drifting(50):
        party = crowd()
        state, _ = party.play(init(party.agreement))
        for _ in range(3):
            state, _ = party.play(state, **{unheard: (3,)})
        late, straight = told_to(party, state, 3), told_to(party, state, 2)
        assert (late.first, late.steps, late.snapshot) == (0, state.steps[-4:], None)
        assert (straight.first, straight.steps) == (3, state.steps[-1:])
        _, record = party.play(state)
    assert record.replied == (0, 1, 2, 3, 4)
    assert party.held[3].q.tobytes() == state.q.tobytes()
    assert record.traffic.downlink_frames == 5


def test_a_step_is_computed_once_for_all_clients_that_take_it(crowd, monkeypatch):
    with drifting(50):
        party = crowd()
        state, _ = party.play(init(party.agreement))
        for turn in range(6):
            state, _ = party.play(state, deaf=(turn % 5, 4))
        computed, real = [], clients.next_theta
        monkeypatch.setattr(
            clients,
            "next_theta",
            lambda agreement, q, turn, raw: (computed.append(turn), real(agreement, q, turn, raw))[1],
        )
        party.play(state)
    assert computed == [state.round - 1]  # though one client is six rounds behind
    assert all(party.held[client].q.tobytes() == state.q.tobytes() for client in range(5))


def test_steps_longer_than_theta_itself_are_not_sent(crowd):
    with drifting(20_000):
        party = crowd(federation={"mada": "published"})
        state, _ = party.play(init(party.agreement))
        while len(state.steps) == state.round:
            state, _ = party.play(state, deaf=(3,))
        assert sum(map(len, state.steps)) <= 2 * party.agreement.layout.count
        assert len(state.steps) > 1
        late = told_to(party, state, 3)
        assert late.first is None
        np.testing.assert_array_equal(late.snapshot, state.q)
        assert told_to(party, state, 2).steps == state.steps[-1:]
        _, record = party.play(state)
    assert record.replied == (0, 1, 2, 3, 4)
    assert record.traffic.downlink_frames == 5  # it did not have to ask
    assert party.held[3].q.tobytes() == state.q.tobytes()


def astray(what, held, state):
    """What a client that held the θ before this round's may hold instead."""
    return {
        "nothing": None,
        "another theta": KnownTheta(~held.q, held.round),
        "another round": KnownTheta(held.q, held.round - 1),
        "a later round": KnownTheta(state.q, state.round + 2),
        "another theta of this round": KnownTheta(state.q ^ 1, state.round),
    }[what]


@pytest.mark.parametrize("uplink", ["whole", "half"])
@pytest.mark.parametrize(
    "what", ["nothing", "another theta", "another round", "a later round", "another theta of this round"]
)
def test_a_client_that_has_lost_its_way_gets_a_snapshot_and_takes_part(crowd, what, uplink):
    with drifting(2000):
        party = crowd(federation={"uplink": uplink, "alpha": 0.3})
        state = init(party.agreement)
        for _ in range(3):
            state, _ = party.play(state)
        held = dict(party.held)
        straight, _ = party.play(state)
        party.held = held | {client: astray(what, held[client], state) for client in (1, 4)}
        party.up, party.down = [], []
        after, record = party.play(state)
    assert after.q.tobytes() == straight.q.tobytes()
    assert record.replied == (0, 1, 2, 3, 4) and not record.left_out
    assert after.held.tolist() == [3] * 5
    lost = [message.is_lost(reply, party.agreement.place(3, 1)) for reply in party.up]
    assert sum(lost) == 1
    for client in (1, 4):
        assert party.held[client].q.tobytes() == state.q.tobytes() and party.held[client].round == 3
    traffic = record.traffic
    assert (traffic.uplink_frames, traffic.downlink_frames) == (7, 7) == (len(party.up), len(party.down))
    assert traffic.uplink_bytes == sum(map(len, party.up))
    assert traffic.downlink_bytes == sum(map(len, party.down))


def test_a_client_that_stays_lost_is_left_out(crowd):
    with drifting(500):
        party = crowd()
        state, _ = party.play(init(party.agreement))
        without, _ = party.play(state, mute=(2,))
        plea = message.seal_lost(party.agreement.place(1, 2))
        after, record = party.play(state, change=lambda client, reply: plea if client == 2 else reply)
    assert record.replied == (0, 1, 3, 4) and list(record.left_out) == [2]
    assert after.q.tobytes() == without.q.tobytes()
    assert (record.traffic.uplink_frames, record.traffic.downlink_frames) == (6, 6)
    assert after.held[2] == 0


def test_a_client_that_is_lost_twice_at_once_is_sent_one_snapshot(crowd):
    with drifting(500):
        party = crowd()
        state, _ = party.play(init(party.agreement))
        straight, _ = party.play(state)
        plea, frames = message.seal_lost(party.agreement.place(1, 2)), []

        def twice(sent):
            frames.append(sent)
            for client, reply in party.exchange(1)(sent):
                yield from [(client, plea)] * 2 if client == 2 and len(frames) == 1 else [(client, reply)]

        after, record = server_update(party.agreement, state, twice)
    assert [sorted(sent) for sent in frames] == [[0, 1, 2, 3, 4], [2]]
    assert record.replied == (0, 1, 2, 3, 4)
    assert after.q.tobytes() == straight.q.tobytes()


@pytest.fixture(scope="module")
def two_steps(crowd):
    """(party, state, broadcast of two steps to client 1, the θ they start from) with all that travels."""
    with drifting(3000):
        party = crowd(federation={"uplink": "half", "alpha": 0.3, "mada": "published", "cohort": 4})
        passed = [init(party.agreement)]
        while len(passed) < 3 or 1 not in cohort(party.agreement, passed[-1].round):
            passed.append(party.play(passed[-1])[0])
    state = replace(passed[-1], held=np.full(5, passed[-3].round))
    told = told_to(party, state, 1)
    assert len(told.steps) == 2
    return party, state, told, KnownTheta(passed[-3].q, passed[-3].round)


@settings(max_examples=150)
@given(st.data())
def test_a_damaged_step_makes_a_client_ask_and_nothing_worse(two_steps, data):
    """Bytes flipped, cut off, put in or made up within a frame whose checksum is right."""
    party, state, told, start = two_steps
    steps = [bytearray(step) for step in told.steps]
    victim = steps[data.draw(st.integers(0, 1))]
    kind = data.draw(st.sampled_from(("flip", "flip", "flip", "cut", "more", "made up")))
    if kind == "flip":
        early = data.draw(st.booleans())
        victim[data.draw(st.integers(0, 6 if early else len(victim) - 1))] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del victim[data.draw(st.integers(0, len(victim) - 1)) :]
    elif kind == "more":
        victim += data.draw(st.binary(min_size=1, max_size=9))
    else:
        victim[3:] = data.draw(st.binary(max_size=400))
    place = party.agreement.place(state.round, 1)
    frame = message.seal_broadcast(replace(told, steps=tuple(map(bytes, steps))), place)
    with drifting(0):
        found = client_update(party.agreement, party.kit, frame, state.round, 1, party.targets[1], None, start)
    if message.is_lost(found.frame, place):
        assert found.held is start  # what it holds is as good as before
    else:
        assert found.held.q.tobytes() == state.q.tobytes() and found.held.round == state.round


def test_a_whole_step_is_taken_and_one_of_another_theta_is_not(two_steps):
    party, state, told, start = two_steps
    place = party.agreement.place(state.round, 1)
    for steps, lost in ((told.steps, False), (told.steps[::-1], True), ((told.steps[0],) * 2, True)):
        frame = message.seal_broadcast(replace(told, steps=steps), place)
        with drifting(0):
            found = client_update(party.agreement, party.kit, frame, state.round, 1, party.targets[1], None, start)
        assert message.is_lost(found.frame, place) == lost


# -------------------------------------------------------------------------------------- what is shipped


def test_candidates_are_draws_and_the_likelier_half(make_agreement):
    agreement = make_agreement(federation={"finished_mask": "best"})
    q = np.resize(np.array([656, 20000, 40000, 64880], np.uint16), agreement.layout.count)
    masks = candidates(agreement, q)
    assert len(masks) == 3
    np.testing.assert_array_equal(masks[-1], q > 32000)
    for mask in masks[:-1]:
        for value in np.unique(q):
            assert mask[q == value].mean() == pytest.approx(value / 65536, abs=0.12)
    assert len({mask.tobytes() for mask in masks}) == 3
    (draw,) = candidates(make_agreement(federation={"finished_mask": "draw"}), q)
    (half,) = candidates(make_agreement(federation={"finished_mask": "half"}), q)
    np.testing.assert_array_equal(draw, masks[0])
    np.testing.assert_array_equal(half, masks[-1])


@pytest.mark.parametrize("chosen", ["draw", "half"])
def test_no_distance_is_told_where_the_choice_of_the_mask_asks_nobody(make_world, chosen):
    agreement, kit, targets = make_world(federation={"finished_mask": chosen})
    state = state_at(agreement, np.full(agreement.layout.count, 40000, np.uint16), 2)
    for client, frame in broadcast(agreement, state, Kind.CANDIDATES).items():
        with pytest.raises(ClientError, match="distances"):
            client_distances(agreement, kit, frame, client, targets[client])


@pytest.fixture(scope="module")
def compared(make_world):
    """(agreement, state, distances frames by client) of a finished run with three candidates."""
    agreement, kit, targets = make_world({0: 10, 1: 20, 2: 30}, federation={"finished_mask": "best"})
    q = np.random.default_rng(1).integers(656, 64881, agreement.layout.count).astype(np.uint16)
    state = state_at(agreement, q, 2)
    frames = {
        client: client_distances(agreement, kit, frame, client, targets[client])
        for client, frame in broadcast(agreement, state, Kind.CANDIDATES).items()
    }
    return agreement, kit, targets, state, frames


def distances_of(agreement, rows, weight=1):
    return {c: message.seal_distances(np.array(row), weight, agreement.place(2, c)) for c, row in enumerate(rows)}


def test_the_candidate_of_the_least_mean_distance_is_shipped(compared):
    agreement, _, _, state, _ = compared
    masks = candidates(agreement, state.q)
    for best in range(3):
        rows = np.full((3, 3), 5.0)
        rows[:, best] = [9.0, 1.0, 1.0]
        found = choose_mask(agreement, state, lambda _, rows=rows: iter(distances_of(agreement, rows).items()))
        np.testing.assert_array_equal(found, masks[best])


def test_weights_count_in_the_choice(compared):
    """By size a client of five images outvotes the others; where all weigh the same, its claim is void."""
    agreement, _, _, state, _ = compared
    federation = agreement.settings.federation
    masks = candidates(agreement, state.q)
    for weights, best in (("size", 1), ("equal", 0)):
        asked = replace(agreement.settings, federation=replace(federation, client_weights=weights))
        changed = replace(agreement, settings=asked)
        frames = distances_of(agreement, [[1.0, 2.0, 9.0], [2.0, 1.5, 9.0], [5.0, 6.0, 13.0]])
        frames[1] = message.seal_distances(np.array([2.0, 1.5, 9.0]), 5, agreement.place(2, 1))
        found = choose_mask(changed, state, lambda _, frames=frames: iter(frames.items()))
        np.testing.assert_array_equal(found, masks[best])


@pytest.mark.parametrize("lie", [[1e300, 1e300, 0.0], [1e308, -1e308, -1e308], [0.0, 0.0, -1e9]], ids=str)
def test_what_one_client_makes_up_does_not_choose_the_mask(lie):
    honest = np.array([[1.0, 1.1, 1.2]]) + np.arange(5)[:, None]
    assert _votes(np.vstack((honest, lie)), np.ones(6, np.int64)).argmin() == 0
    # Those of honest clients alike in spread are just summed, by weight.
    weights = np.arange(1, 6)
    sums = (honest * weights[:, None]).sum(0)
    np.testing.assert_allclose(_votes(honest, weights), sums - sums.mean(), atol=1e-12)


def test_bad_distances_have_no_vote_and_no_votes_ship_the_likelier_half(compared):
    agreement, _, _, state, _ = compared
    masks = candidates(agreement, state.q)
    good = distances_of(agreement, [[1.0, 2.0, 3.0]])
    bad = {1: b"garbage", 2: ClientError("gone", "distances", "wait")}
    np.testing.assert_array_equal(choose_mask(agreement, state, lambda _: iter((good | bad).items())), masks[0])
    np.testing.assert_array_equal(choose_mask(agreement, state, lambda _: iter(bad.items())), masks[-1])
    np.testing.assert_array_equal(choose_mask(agreement, state, lambda _: iter(())), masks[-1])


def test_clients_answer_with_the_distances_of_the_candidates(compared):
    agreement, kit, targets, state, frames = compared
    moments = [m.numpy().astype(float) for m in kit.candidate_moments(agreement, state.q)]
    for client, frame in frames.items():
        found, weight = message.open_distances(frame, agreement.place(2, client), 3)
        assert weight == 1
        np.testing.assert_allclose(found, [((m - targets[client].moments) ** 2).sum() for m in moments], rtol=1e-4)
    shipped = choose_mask(agreement, state, lambda _: iter(frames.items()))
    pooled = np.mean([targets[c].moments for c in range(3)], 0)
    closest = int(np.argmin([((m - pooled) ** 2).sum() for m in moments]))
    np.testing.assert_array_equal(shipped, candidates(agreement, state.q)[closest])


def test_a_client_lost_at_the_end_gets_a_snapshot_and_votes(make_world):
    world = make_world(federation={"finished_mask": "best"})
    agreement, kit, targets = world
    with drifting(4000):
        party, state = Party(world), init(agreement)
        for _ in range(2):
            state, _ = party.play(state)
    masks, asked = candidates(agreement, state.q), []
    party.held[1] = KnownTheta(~party.held[1].q, 1)

    def compare(frames):
        asked.append({client: len(frame) for client, frame in frames.items()})
        for client, frame in frames.items():
            reply = client_distances(agreement, kit, frame, client, targets[client], party.held[client])
            if not message.is_lost(reply, agreement.place(2, client)):
                best = {0: [1.0, 2.0, 1.1], 1: [1.2, 2.0, 0.9], 2: [1.0, 2.0, 1.1]}[client]
                assert len(message.open_distances(reply, agreement.place(2, client), 3)[0]) == 3
                reply = message.seal_distances(np.array(best), 1, agreement.place(2, client))
            yield client, reply

    np.testing.assert_array_equal(choose_mask(agreement, state, compare), masks[2])
    assert [sorted(frames) for frames in asked] == [[0, 1, 2], [1]]
    assert asked[1][1] == HEADER_BYTES + 22 + len(pack_theta(state.q)) != asked[0][1]


@pytest.fixture(scope="module")
def labelled(tiny, feature_map, blobs):
    """(agreement, kit, θ, targets by client) of three labels, of which some clients have few or none."""
    agreement = agree(tiny(federation={"finished_mask": "best"}), 1, ("a", "b", "c"))
    tags = [[0, 1, 2, 0, 1, 2, 0, 1, 2, 0], [0] * 9 + [2], [1] * 10]
    targets = {
        client: feature_map.target(blobs[10 * client : 10 * client + 10], np.array(tags[client]), 3)
        for client in range(3)
    }
    q = np.random.default_rng(1).integers(656, 64881, agreement.layout.count).astype(np.uint16)
    return agreement, make_kit(agreement, feature_map), q, targets


def distances_heard(agreement, kit, q, client, target):
    frame = broadcast(agreement, state_at(agreement, q, 2), Kind.CANDIDATES)[client]
    reply = client_distances(agreement, kit, frame, client, target)
    return message.open_distances(reply, agreement.place(2, client), 3)[0]


def test_candidates_are_judged_by_the_means_of_their_labels(labelled):
    """Images by label, taken anew: half of them in each batch, as many of each label as there are turns."""
    agreement, kit, q, _ = labelled
    latents = latent_batch(agreement.layout, Stream(0, Purpose.SHIPPED, 2**32 - 1), 500)
    tags = torch.arange(500) % 3
    for mask, found in zip(candidates(agreement, q), kit.candidate_moments(agreement, q), strict=True):
        flat = kit.weights * torch.from_numpy(mask)
        halves = [
            generate(agreement.layout, flat, latents[rows], labels=tags[rows])
            for rows in (slice(0, 250), slice(250, 500))
        ]
        images = torch.cat(halves)
        means = [kit.features.moments(images[tags == label]) for label in range(3)]
        torch.testing.assert_close(found, torch.cat(means), rtol=1e-4, atol=1e-6)


def test_labels_weigh_by_their_share_of_a_clients_images(labelled):
    agreement, kit, q, targets = labelled
    fakes = [fake.numpy().astype(float).reshape(3, -1) for fake in kit.candidate_moments(agreement, q)]
    for client, target in targets.items():
        held = [label for label, share in enumerate(target.shares) if share > 0]
        real, wanted = target.moments.reshape(3, -1), []
        for fake in fakes:
            parts = [target.shares[c] * ((fake[c] - real[c] / target.shares[c]) ** 2).sum() for c in held]
            wanted.append(sum(parts))
        np.testing.assert_allclose(distances_heard(agreement, kit, q, client, target), wanted, rtol=1e-4)


def test_clients_distances_tell_candidates_apart_as_the_pooled_images_do(labelled):
    """However the labels' images are dealt to clients: the means differ by the same for every candidate."""
    agreement, kit, q, targets = labelled
    told = np.mean([distances_heard(agreement, kit, q, client, target) for client, target in targets.items()], 0)
    pooled = pool(list(targets.values()))
    means = pooled.moments.reshape(3, -1) / pooled.shares[:, None]
    fakes = [fake.numpy().astype(float).reshape(3, -1) for fake in kit.candidate_moments(agreement, q)]
    exact = [(pooled.shares[:, None] * (fake - means) ** 2).sum() for fake in fakes]
    np.testing.assert_allclose(told - told[0], np.array(exact) - exact[0], rtol=1e-3, atol=1e-6)
    assert np.ptp(exact) > 1e-3


@pytest.mark.parametrize("shares", [[0.2, 0.3, 0.5], [0.0, 1.0, 0.0]])
def test_a_candidate_that_makes_a_clients_labels_is_at_no_distance_from_it(labelled, shares):
    agreement, kit, q, _ = labelled
    for best, fake in enumerate(kit.candidate_moments(agreement, q)):
        moments = fake.numpy().reshape(3, -1) * np.array(shares, np.float32)[:, None]
        found = distances_heard(agreement, kit, q, 0, Target(moments.ravel(), 10, np.array(shares)))
        assert found[best] == pytest.approx(0, abs=1e-9)
        assert np.delete(found, best).min() > 1e-6


def test_a_single_candidate_asks_nobody(make_agreement):
    agreement = make_agreement(federation={"finished_mask": "half"})
    q = np.full(agreement.layout.count, 40000, np.uint16)

    def nobody(frames):
        raise AssertionError("clients were asked")

    assert choose_mask(agreement, state_at(agreement, q, 2), nobody).all()


@pytest.mark.parametrize(
    ("uplink", "clients", "taken", "parts"),
    [
        ("auto", 8, 0, 2),
        ("auto", 7, 0, 1),
        ("auto", 40, 7, 1),
        ("auto", 40, 8, 2),
        ("whole", 40, 0, 1),
        ("half", 3, 0, 2),
        ("half", 1, 0, 1),
        ("fewest", 40, 0, 10),
        ("fewest", 3, 0, 3),
    ],
)
def test_parts_follow_from_the_uplink_and_the_cohort(make_agreement, uplink, clients, taken, parts):
    """From eight clients a round a mask is dealt in two; never into more parts than there are clients to send them."""
    federation = {"uplink": uplink, "cohort": taken}
    assert make_agreement(data={"clients": clients}, federation=federation).parts == parts


@pytest.mark.parametrize("uplink", ["auto", "fewest"])
def test_what_masks_are_drawn_with_is_shared_where_the_fewest_bits_travel_and_nothing_else(make_world, uplink):
    agreement, kit, _ = make_world(federation={"uplink": uplink})
    masks, latents = {}, {}
    for turn, client in ((0, 0), (0, 1), (1, 1)):
        place, asked = agreement.place(turn, client), []
        q = init(agreement).q
        seen = replace(kit, search=lambda *given, asked=asked, q=q: asked.append(given) or SearchResult(q, 0.0, None))
        clients.searched(agreement, seen, place, q, None, None)
        draws = asked[0][7]
        masks[turn, client], latents[turn, client] = draws.masks(500), draws.normals(500)
    assert torch.equal(masks[0, 0], masks[0, 1]) == (uplink == "fewest")
    assert not torch.equal(masks[0, 1], masks[1, 1])
    assert not any(torch.equal(latents[0, 1], latents[other]) for other in ((0, 0), (1, 1)))


def test_clients_of_one_target_find_nearly_the_same_where_they_draw_masks_alike(make_world):
    apart = {}
    for uplink in ("whole", "fewest"):
        search = {"learning_rate": 1.0, "local_steps": 3, "batch_size": 64}
        agreement, kit, targets = make_world(federation={"alpha": 1.0, "uplink": uplink}, search=search)
        start = state_at(agreement, np.full(agreement.layout.count, 32768, np.uint16), 0)
        _, state, _, replies = round_of((agreement, kit, dict.fromkeys(targets, targets[0])), start)
        one, other = (opened(agreement, state, client, replies[client])[3] - state.q.astype(int) for client in (0, 1))
        apart[uplink] = np.corrcoef(one, other)[0, 1]
    assert apart["fewest"] > apart["whole"] + 0.05
