"""A round from broadcast to θ_{t+1}: who is heard, who is left out, and what is shipped."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prismfl.errors import ClientError, MessageError, SettingError
from prismfl.federation import (
    MOST_LABELS,
    agree,
    broadcast,
    candidates,
    client_distances,
    client_update,
    cohort,
    init,
    make_kit,
    server_update,
    shipped_mask,
)
from prismfl.mmd import Target
from prismfl.nets.generator import generate, latent_batch
from prismfl.seeding import Purpose, Stream
from prismfl.server import ServerState
from prismfl.wire import message
from prismfl.wire.draws import uniforms


def round_of(world, state=None):
    """(agreement, state, frames sent, replies by client) of one round in which everyone answers."""
    agreement, kit, targets = world
    state = state or init(agreement)
    sent = broadcast(agreement, state)
    replies = {
        client: client_update(agreement, kit, frame, state.round, client, targets[client])[0]
        for client, frame in sent.items()
    }
    return agreement, state, sent, replies


@pytest.fixture(scope="module")
def played(make_world):
    return round_of(make_world())


# ------------------------------------------------------------------------------------- agreement


def test_the_run_id_names_what_is_public(tiny):
    mine = agree(tiny(), 1)
    same = agree(tiny(data={"data_dir": "/elsewhere"}, output={"workers": 2, "cache_dir": "x"}), 1)
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
    state = ServerState(np.arange(700, 700 + agreement.layout.count).astype(np.uint16), 1)
    sent = broadcast(agreement, state)
    assert list(sent) == cohort(agreement, 1)
    for rank, (client, frame) in enumerate(sent.items()):
        heard = message.open_broadcast(frame, agreement.place(1, client), agreement.layout.count)
        assert (heard.rank, heard.cohort) == (rank, 4)
        np.testing.assert_array_equal(heard.q, state.q)


# ----------------------------------------------------------------------------------------- clients


def test_an_update_is_repeatable_and_each_clients_own(make_world, played):
    agreement, kit, targets = make_world()
    _, _, sent, replies = played
    again, memory = client_update(agreement, kit, sent[1], 0, 1, targets[1])
    assert again == replies[1]
    assert memory.steps == 1
    assert len(set(replies.values())) == 3


@pytest.mark.parametrize("draws", ["stratified", "independent"])
def test_a_client_without_news_sends_the_mask_of_the_old_state(make_world, draws):
    agreement, state, _, replies = round_of(
        make_world(search={"learning_rate": 1e-6}, federation={"draws": draws, "alpha": 0.3})
    )
    masked, count = agreement.masked, agreement.layout.count
    assert 0 < masked < count
    for client, frame in replies.items():
        update = message.open_update(frame, agreement.place(0, client), masked, count - masked)
        uniform = uniforms(draws, 0, 0, client, client, 3, masked)
        assert (update.mask != (uniform < state.q[:masked])).mean() < 1e-3
        np.testing.assert_allclose(update.alpha.astype(int), state.q[masked:].astype(int), atol=1)


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
    after, record = server_update(agreement, state, replies.items(), sent)
    assert (after.round, record.round) == (1, 0)
    assert record.replied == (0, 1, 2)
    assert not record.left_out
    assert record.uplink_bytes == sum(map(len, replies.values()))
    assert record.downlink_bytes == sum(map(len, sent.values()))
    count = agreement.layout.count
    updates = {c: message.open_update(f, agreement.place(0, c), count, 0) for c, f in replies.items()}
    assert record.loss == pytest.approx(np.mean([update.loss for update in updates.values()]))
    mean = np.mean([update.mask for update in updates.values()], 0)
    assert record.density == pytest.approx(mean.mean())
    np.testing.assert_allclose(after.q / 65536, np.clip(mean, 0.01, 0.99), atol=1.1 / 65536)
    theta = after.q / 65536
    assert record.theta_variance == pytest.approx((theta * (1 - theta)).mean())
    assert record.kept_share == 0


@pytest.mark.parametrize("mada", ["off", "published"])
@settings(max_examples=6)
@given(st.permutations(range(3)))
def test_replies_may_come_in_any_order(make_world, mada, order):
    agreement, state, sent, replies = round_of(make_world(federation={"mada": mada, "control_variate": True}))
    mine, record = server_update(agreement, state, [(client, replies[client]) for client in order], sent)
    theirs, straight = server_update(agreement, state, replies.items(), sent)
    assert mine.q.tobytes() == theirs.q.tobytes()
    assert record == straight


@pytest.fixture(scope="module")
def bad_replies(make_world, played):
    """What client 1 may send instead of its update."""
    agreement, state, sent, replies = played
    kit, targets = make_world()[1:]
    later = replace(state, round=1)
    elsewhere = make_world(seed=9)[0]
    alpha = round_of(make_world(federation={"alpha": 0.4}))[3]
    return {
        "failure": ClientError("client 1 is out of power", "an update", "wait"),
        "nothing": b"",
        "garbage": bytes(range(256)) * 4,
        "cut short": replies[1][:-1],
        "flipped": replies[1][:-1] + bytes([replies[1][-1] ^ 1]),
        "another client": replies[0],
        "an echo": sent[1],
        "another round": client_update(agreement, kit, broadcast(agreement, later)[1], 1, 1, targets[1])[0],
        "another run": client_update(elsewhere, kit, broadcast(elsewhere, state)[1], 0, 1, targets[1])[0],
        "another share of layers": alpha[1],
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
    ],
)
def test_a_bad_reply_is_left_out_and_named(played, bad_replies, what):
    agreement, state, sent, replies = played
    without, _ = server_update(agreement, state, [(0, replies[0]), (2, replies[2])], sent)
    for place in range(3):
        heard = [(0, replies[0]), (2, replies[2])]
        heard.insert(place, (1, bad_replies[what]))
        after, record = server_update(agreement, state, heard, sent)
        assert after.q.tobytes() == without.q.tobytes()
        assert record.replied == (0, 2)
        assert list(record.left_out) == [1]
        assert "expected" in record.left_out[1]


def test_a_second_reply_of_a_client_is_not_counted(played):
    agreement, state, sent, replies = played
    once, _ = server_update(agreement, state, replies.items(), sent)
    twice, record = server_update(agreement, state, [*replies.items(), (0, replies[0])], sent)
    assert twice.q.tobytes() == once.q.tobytes()
    assert record.replied == (0, 1, 2)
    assert "one reply" in record.left_out[0]


def test_a_reply_of_a_client_that_was_not_asked_is_not_counted(make_world):
    world = make_world(federation={"cohort": 2})
    agreement, state, sent, replies = round_of(world)
    kit, targets = world[1:]
    (stranger,) = {0, 1, 2} - set(sent)
    frame = message.seal_broadcast(message.Broadcast(state.q, 0, 2), agreement.place(0, stranger))
    foreign = client_update(agreement, kit, frame, 0, stranger, targets[stranger])[0]
    after, record = server_update(agreement, state, [(stranger, foreign), *replies.items()], sent)
    assert after.q.tobytes() == server_update(agreement, state, replies.items(), sent)[0].q.tobytes()
    assert list(record.left_out) == [stranger]


def test_no_client_left_ends_the_round_with_reasons(played):
    agreement, state, sent, replies = played
    with pytest.raises(ClientError, match="none came"):
        server_update(agreement, state, [], sent)
    broken = [(c, ClientError(f"client {c} is gone", "an update", "wait")) for c in replies]
    with pytest.raises(ClientError, match=r"round 0.*client 0 is gone.*client 2 is gone"):
        server_update(agreement, state, broken, sent)


def test_a_client_cannot_give_itself_weight(played):
    agreement, state, sent, replies = played
    count = agreement.layout.count
    greedy = replace(message.open_update(replies[1], agreement.place(0, 1), count, 0), weight=10_000)
    heard = dict(replies) | {1: message.seal_update(greedy, agreement.place(0, 1))}
    after, record = server_update(agreement, state, heard.items(), sent)
    without, _ = server_update(agreement, state, [(0, replies[0]), (2, replies[2])], sent)
    assert 1 in record.left_out
    assert after.q.tobytes() == without.q.tobytes()


def test_too_heavy_clients_leave_the_order_without_a_say(make_world):
    heavy = {client: 2**30 + client for client in range(3)}
    agreement, state, sent, replies = round_of(make_world(heavy, federation={"client_weights": "size"}))

    def outcome(order):
        try:
            return server_update(agreement, state, [(c, replies[c]) for c in order], sent)[0].q.tobytes()
        except ClientError:
            return b""

    assert outcome((0, 1, 2)) == outcome((2, 1, 0))


def test_weights_by_size_pull_the_mean(make_world):
    agreement, state, sent, replies = round_of(make_world({0: 60, 1: 30, 2: 10}, federation={"client_weights": "size"}))
    masks = [message.open_update(replies[c], agreement.place(0, c), agreement.masked, 0).mask for c in range(3)]
    after, _ = server_update(agreement, state, replies.items(), sent)
    mean = 0.6 * masks[0] + 0.3 * masks[1] + 0.1 * masks[2]
    np.testing.assert_allclose(after.q / 65536, np.clip(mean, 0.01, 0.99), atol=1.1 / 65536)


@pytest.mark.parametrize("draws", ["stratified", "independent"])
def test_the_control_variate_keeps_a_round_without_news_where_it_was(make_world, draws):
    agreement, state, sent, replies = round_of(
        make_world(search={"learning_rate": 1e-6}, federation={"draws": draws, "control_variate": True})
    )
    after, _ = server_update(agreement, state, replies.items(), sent)
    assert (after.q == state.q).mean() > 0.99
    # A client that is left out takes its M0 with it.
    after, _ = server_update(agreement, state, [(0, replies[0]), (2, replies[2])], sent)
    assert (after.q == state.q).mean() > 0.99


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_alpha_layers_travel_as_keep_probabilities_and_are_averaged(make_world, alpha):
    agreement, state, sent, replies = round_of(make_world(federation={"alpha": alpha}))
    masked, count = agreement.masked, agreement.layout.count
    assert (masked == 0) == (alpha == 1)
    heavy = 8 + (masked + 7) // 8 + 2 * (count - masked)
    assert {len(frame) for frame in replies.values()} == {message.HEADER_BYTES + heavy}
    updates = [message.open_update(replies[c], agreement.place(0, c), masked, count - masked) for c in range(3)]
    after, _ = server_update(agreement, state, replies.items(), sent)
    np.testing.assert_allclose(after.q[masked:], np.mean([u.alpha for u in updates], 0), atol=1)
    assert len({u.alpha.tobytes() for u in updates}) == 3
    # Three masks average to thirds, rounded up or down; the clip range ends at 656 and 64880.
    thirds = np.clip(np.round(after.q[:masked] * 3.0 / 65536) * 65536 / 3, 656, 64880)
    np.testing.assert_allclose(after.q[:masked], thirds, atol=1)


# -------------------------------------------------------------------------------------- what is shipped


def test_candidates_are_draws_and_the_likelier_half(make_agreement):
    agreement = make_agreement(federation={"shipped": "best", "shipped_draws": 3})
    q = np.resize(np.array([656, 20000, 40000, 64880], np.uint16), agreement.layout.count)
    masks = candidates(agreement, q)
    assert len(masks) == 4
    np.testing.assert_array_equal(masks[-1], q > 32000)
    for mask in masks[:-1]:
        for value in np.unique(q):
            assert mask[q == value].mean() == pytest.approx(value / 65536, abs=0.12)
    assert len({mask.tobytes() for mask in masks}) == 4
    (draw,) = candidates(make_agreement(federation={"shipped": "draw"}), q)
    (half,) = candidates(make_agreement(federation={"shipped": "half"}), q)
    np.testing.assert_array_equal(draw, masks[0])
    np.testing.assert_array_equal(half, masks[-1])


@pytest.fixture(scope="module")
def compared(make_world):
    """(agreement, state, distances frames by client) of a finished run with three candidates."""
    agreement, kit, targets = make_world({0: 10, 1: 20, 2: 30}, federation={"shipped": "best", "shipped_draws": 2})
    q = np.random.default_rng(1).integers(656, 64881, agreement.layout.count).astype(np.uint16)
    frames = {
        client: client_distances(
            agreement, kit, message.seal_candidates(q, agreement.place(2, client)), client, targets[client]
        )
        for client in range(3)
    }
    return agreement, kit, targets, ServerState(q, 2), frames


def distances_of(agreement, rows, weight=1):
    return {c: message.seal_distances(np.array(row), weight, agreement.place(2, c)) for c, row in enumerate(rows)}


def test_the_candidate_of_the_least_mean_distance_is_shipped(compared):
    agreement, _, _, state, _ = compared
    masks = candidates(agreement, state.q)
    for best in range(3):
        rows = np.full((3, 3), 5.0)
        rows[:, best] = [9.0, 1.0, 1.0]
        found = shipped_mask(agreement, state, lambda _, rows=rows: iter(distances_of(agreement, rows).items()))
        np.testing.assert_array_equal(found, masks[best])


def test_weights_count_in_the_choice(compared):
    """By size a client of five images outvotes the others; where all weigh the same, its claim is void."""
    agreement, _, _, state, _ = compared
    federation = agreement.settings.federation
    masks = candidates(agreement, state.q)
    for weights, best in (("size", 1), ("equal", 0)):
        asked = replace(agreement.settings, federation=replace(federation, client_weights=weights))
        changed = replace(agreement, settings=asked)
        frames = distances_of(agreement, [[1.0, 2.0, 9.0], [2.0, 1.5, 9.0], [9.0, 9.5, 9.9]])
        frames[1] = message.seal_distances(np.array([2.0, 1.5, 9.0]), 5, agreement.place(2, 1))
        found = shipped_mask(changed, state, lambda _, frames=frames: iter(frames.items()))
        np.testing.assert_array_equal(found, masks[best])


def test_bad_distances_have_no_vote_and_no_votes_ship_the_likelier_half(compared):
    agreement, _, _, state, _ = compared
    masks = candidates(agreement, state.q)
    good = distances_of(agreement, [[1.0, 2.0, 3.0]])
    bad = {1: b"garbage", 2: ClientError("gone", "distances", "wait")}
    np.testing.assert_array_equal(shipped_mask(agreement, state, lambda _: iter((good | bad).items())), masks[0])
    np.testing.assert_array_equal(shipped_mask(agreement, state, lambda _: iter(bad.items())), masks[-1])
    np.testing.assert_array_equal(shipped_mask(agreement, state, lambda _: iter(())), masks[-1])


def test_clients_answer_with_the_distances_of_the_candidates(compared):
    agreement, kit, targets, state, frames = compared
    moments = [m.numpy().astype(float) for m in kit.candidate_moments(agreement, state.q)]
    for client, frame in frames.items():
        found, weight = message.open_distances(frame, agreement.place(2, client), 3)
        assert weight == 1
        np.testing.assert_allclose(found, [((m - targets[client].moments) ** 2).sum() for m in moments], rtol=1e-4)
    shipped = shipped_mask(agreement, state, lambda _: iter(frames.items()))
    pooled = np.mean([targets[c].moments for c in range(3)], 0)
    closest = int(np.argmin([((m - pooled) ** 2).sum() for m in moments]))
    np.testing.assert_array_equal(shipped, candidates(agreement, state.q)[closest])


@pytest.fixture(scope="module")
def labelled(tiny, feature_map, blobs):
    """(agreement, kit, θ, targets by client) of three labels, of which some clients have few or none."""
    agreement = agree(tiny(federation={"shipped": "best", "shipped_draws": 2}), 1, ("a", "b", "c"))
    tags = [[0, 1, 2, 0, 1, 2, 0, 1, 2, 0], [0] * 9 + [2], [1] * 10]
    targets = {
        client: feature_map.target(blobs[10 * client : 10 * client + 10], np.array(tags[client]), 3)
        for client in range(3)
    }
    q = np.random.default_rng(1).integers(656, 64881, agreement.layout.count).astype(np.uint16)
    return agreement, make_kit(agreement, feature_map), q, targets


def distances_heard(agreement, kit, q, client, target):
    frame = message.seal_candidates(q, agreement.place(2, client))
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
        real, wanted = target.moments.reshape(3, -1), []
        for fake in fakes:
            parts = [((share * f - r) ** 2).sum() for share, f, r in zip(target.shares, fake, real, strict=True)]
            wanted.append(sum(parts))
        np.testing.assert_allclose(distances_heard(agreement, kit, q, client, target), wanted, rtol=1e-4)


@pytest.mark.parametrize("shares", [[0.2, 0.3, 0.5], [0.0, 1.0, 0.0]])
def test_a_candidate_that_makes_a_clients_labels_is_at_no_distance_from_it(labelled, shares):
    agreement, kit, q, _ = labelled
    for best, fake in enumerate(kit.candidate_moments(agreement, q)):
        moments = fake.numpy().reshape(3, -1) * np.array(shares, np.float32)[:, None]
        found = distances_heard(agreement, kit, q, 0, Target(moments.ravel(), 10, np.array(shares)))
        assert found[best] == pytest.approx(0, abs=1e-9)
        assert np.delete(found, best).min() > 1e-6


def test_a_single_candidate_asks_nobody(make_agreement):
    agreement = make_agreement(federation={"shipped": "half"})
    q = np.full(agreement.layout.count, 40000, np.uint16)

    def nobody(frames):
        raise AssertionError("clients were asked")

    assert shipped_mask(agreement, ServerState(q, 2), nobody).all()
