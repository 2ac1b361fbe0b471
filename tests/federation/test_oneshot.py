"""A run in one exchange: what travels, what is made of it, who is left out, and what a resume repeats."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import prismfl
from prismfl.engines.simulator import InProcess
from prismfl.errors import ClientError, MessageError, RunFolderError, SettingError
from prismfl.features.networks import load_features
from prismfl.federation import one_shot as oneshot
from prismfl.federation.agreement import agree, init
from prismfl.federation.client import candidate_distances, client_update, make_kit, seal_target
from prismfl.federation.one_shot import gather, pool, search_round
from prismfl.generator.modelfile import load_model
from prismfl.moments import FeatureMap, Target
from prismfl.privacy.release import from_bytes
from prismfl.run import loop as coordinator
from prismfl.run.folder import create, read_rounds, reopen
from prismfl.run.forecast import forecast
from prismfl.run.loop import Silent
from prismfl.run.prepare import prepare
from prismfl.run.source import source_of
from prismfl.settings.resolve import Matching
from prismfl.settings.toml import settings_from
from prismfl.wire import frames as message
from prismfl.wire.masks import decode_moments, encode_moments

ONE_SHOT = {"federation": {"mode": "one-shot"}}


@pytest.fixture
def world(make_world):
    return make_world(**ONE_SHOT)


def answers(world, change=None, order=(0, 1, 2)):
    """An exchange in which each client answers as a client does; `change(client, reply)` spoils replies."""
    agreement, kit, targets = world

    def carry(frames):
        for client in order:
            reply = client_update(agreement, kit, frames[client], 0, client, targets[client]).frame
            yield client, change(client, reply) if change else reply

    return carry


def gathered(world, **how):
    agreement, kit, _ = world
    return gather(agreement, kit.features.dimension, answers(world, **how))


# --------------------------------------------------------------------------------------- the code


@pytest.mark.parametrize("count", [0, 1, 5, 3000])
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_moments_come_back_on_their_grid(count, size):
    moments = (np.random.default_rng(count).standard_normal(count) * size).astype(np.float32)
    with np.errstate(invalid="ignore"):
        step, coded = encode_moments(moments, 64) if count else (0.0, b"")
    found = decode_moments(coded, step, count)
    assert found.dtype == np.float32 and found.shape == (count,)
    assert np.abs(found.astype(np.float64) - moments).max(initial=0) <= step * 0.5001 <= 0.02 * size


def test_fewer_steps_take_fewer_bytes_and_err_as_theory_says():
    moments = np.random.default_rng(1).standard_normal(20_000).astype(np.float32)
    sizes, errors = [], []
    for steps in (64, 16, 4):
        step, coded = encode_moments(moments, steps)
        sizes.append(len(coded))
        errors.append(float(((decode_moments(coded, step, len(moments)) - moments) ** 2).mean() * 12 * steps**2))
    assert errors == pytest.approx([1, 1, 1], rel=0.05)
    assert [sizes[0] - sizes[1], sizes[1] - sizes[2]] == pytest.approx([5000, 5000], rel=0.05)  # two bits each


def test_what_is_all_zero_takes_next_to_nothing():
    step, coded = encode_moments(np.zeros(100_000, np.float32), 64)
    assert step == 0 and len(coded) < 1000 and not decode_moments(coded, step, 100_000).any()


def test_sparse_moments_take_fewer_bytes_than_dense_ones():
    dense = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
    sparse = np.where(np.arange(20_000) % 10, 0, dense).astype(np.float32)
    assert len(encode_moments(sparse, 64)[1]) < len(encode_moments(dense, 64)[1]) / 3 < 20_000


@pytest.mark.parametrize("spoil", [lambda raw: raw + bytes(8), lambda raw: raw[1:], lambda raw: bytes(len(raw))])
def test_coded_moments_that_are_none_are_refused(spoil):
    step, coded = encode_moments(np.random.default_rng(0).standard_normal(500).astype(np.float32), 64)
    with pytest.raises(MessageError):
        decode_moments(spoil(coded), step, 500)


def sent(**changes):
    given = message.Moments(3, 0.5, np.array([0.25, 0.75]), b"abcd")
    return message.seal_moments(replace(given, **changes), PLACE)


PLACE = message.Place(bytes(16), 0, 1)


def test_a_frame_of_moments_comes_back():
    found = message.open_moments(sent(), PLACE, 2, 4)
    assert (found.weight, found.step, found.shares.tolist(), found.coded) == (3, 0.5, [0.25, 0.75], b"abcd")
    message.open_request(message.seal_request(PLACE), PLACE)


@pytest.mark.parametrize(
    "frame",
    [
        sent(weight=0),
        sent(weight=2**31),
        sent(step=-1.0),
        sent(step=float("nan")),
        sent(step=float("inf")),
        sent(shares=np.array([0.5, 0.6])),
        sent(shares=np.array([-0.5, 1.5])),
        sent(shares=np.array([np.nan, 1.0])),
        sent(coded=b"abcde"),
        sent()[:-1],
        message.seal(message.Kind.MOMENTS, PLACE, bytes(23)),
        message.seal_request(PLACE),
        message.seal_moments(message.Moments(1, 1.0, np.array([0.5, 0.5]), b""), replace(PLACE, client=2)),
    ],
)
def test_frames_of_moments_that_cannot_be_are_refused(frame):
    with pytest.raises(MessageError):
        message.open_moments(frame, PLACE, 2, 4)


def test_a_request_with_a_payload_is_refused():
    with pytest.raises(MessageError):
        message.open_request(message.seal(message.Kind.REQUEST, PLACE, b"x"), PLACE)


# ------------------------------------------------------------------------------------ the exchange


def test_pooled_moments_are_those_of_the_pooled_images(feature_map, blobs):
    labels = np.arange(30) % 3
    parts = [slice(0, 4), slice(4, 15), slice(15, 30)]
    targets = [feature_map.target(blobs[part], labels[part], 3) for part in parts]
    whole, found = feature_map.target(blobs, labels, 3), pool(targets)
    assert found.images == 30
    np.testing.assert_allclose(found.moments, whole.moments, atol=1e-6)
    np.testing.assert_allclose(found.shares, whole.shares)


def test_the_server_pools_what_clients_hold(world):
    targets = list(world[2].values())
    found = gathered(world)
    wanted = np.mean([target.moments for target in targets], axis=0)
    assert np.linalg.norm(found.target.moments - wanted) < 0.01 * np.linalg.norm(wanted)
    assert found.heard == (0, 1, 2) and not found.left_out
    assert found.traffic.downlink_bytes == 3 * message.HEADER_BYTES
    frames = [seal_target(world[0], world[0].place(0, client), world[2][client]) for client in range(3)]
    assert found.traffic.uplink_bytes == sum(map(len, frames)) and found.traffic.uplink_frames == 3


def test_the_order_of_arrival_changes_nothing(world):
    one, other = gathered(world), gathered(world, order=(2, 0, 1))
    assert np.array_equal(one.target.moments, other.target.moments)


def test_clients_count_by_their_images_where_the_settings_say_so(make_world):
    settings = {"federation": {"mode": "one-shot", "client_weights": "size"}}
    world = make_world(sizes={0: 80}, **settings)
    found, targets = gathered(world), world[2]
    wanted = 0.8 * targets[0].moments + 0.1 * targets[1].moments + 0.1 * targets[2].moments
    assert np.linalg.norm(found.target.moments - wanted) < 0.01 * np.linalg.norm(wanted)


def test_who_cannot_be_used_is_left_out_and_named(world):
    def change(client, reply):
        return {0: reply, 1: ClientError("no images", "some", "give some"), 2: reply[:-1]}[client]

    found, alone = gathered(world, change=change), world[2][0]
    assert found.heard == (0,) and sorted(found.left_out) == [1, 2] and "no images" in found.left_out[1]
    assert np.linalg.norm(found.target.moments - alone.moments) < 0.01 * np.linalg.norm(alone.moments)


def test_weights_beyond_the_rules_are_left_out(world):
    agreement, _, targets = world
    greedy = message.Moments(1000, *encode_moments(targets[1].moments, 64)[:1], targets[1].shares, b"")
    greedy = replace(greedy, coded=encode_moments(targets[1].moments, 64)[1])
    found = gathered(world, change=lambda c, r: message.seal_moments(greedy, agreement.place(0, 1)) if c == 1 else r)
    assert "weight 1000" in found.left_out[1]


def test_nobody_to_hear_is_an_error(world):
    with pytest.raises(ClientError, match="usable moments of 0 clients"):
        gathered(world, change=lambda *_: b"")


def test_a_client_of_a_one_shot_run_answers_requests_alone(world):
    agreement, kit, targets = world
    broadcast = message.Broadcast(init(agreement).digest, 0, 3, 0)
    frame = message.seal_broadcast(broadcast, agreement.place(0, 0))
    with pytest.raises(MessageError):
        client_update(agreement, kit, frame, 0, 0, targets[0])


# -------------------------------------------------------------------------------------- the search


def test_the_search_nears_the_target_within_the_clip(world):
    agreement, kit, _ = world
    settings = replace(agreement.settings, search=replace(agreement.settings.search, local_steps=12))
    agreement = replace(agreement, settings=settings)
    state, found, losses = init(agreement), gathered(world), []
    for _ in range(2):
        state, record = search_round(agreement, kit, state, found)
        losses.append(record.loss)
    assert losses[1] < losses[0] and state.round == 2
    assert state.q.min() >= 656 and state.q.max() <= 64880
    assert record.traffic.uplink_bytes == 0 and record.replied == ()


def test_what_was_gathered_comes_back_from_its_arrays(world):
    found = gathered(world, change=lambda client, reply: reply if client else b"")
    count = len(found.target.moments)
    again = oneshot.from_arrays(oneshot.to_arrays(found), count)
    assert (again.heard, again.left_out, again.traffic) == (found.heard, found.left_out, found.traffic)
    assert np.array_equal(again.target.moments, found.target.moments) and again.target.images == 2
    for wrong in ({}, {"about": np.zeros(3, np.uint8)}, {"moments": np.zeros(3, np.float32)}):
        with pytest.raises(RunFolderError):
            oneshot.from_arrays((oneshot.to_arrays(found) | wrong) if wrong else {}, count)


# ------------------------------------------------------------------------------------- whole runs


def run(tiny, out, watcher=None, **changes):
    return prismfl.train(
        tiny(federation={"mode": "one-shot", **changes.pop("federation", {})}, **changes), out=out, watcher=watcher
    )


def test_a_run_says_what_it_sent_and_sends_it_once(tiny, tmp_path):
    finished = run(tiny, tmp_path / "run", federation={"rounds": 3, "finished_mask": "best"})
    lines = read_rounds(finished.folder)
    assert [line["uplink_bytes"] > 0 for line in lines] == [True, False, False]
    assert [line["cohort"] for line in lines] == [[0, 1, 2], [], []]
    assert finished.summary["uplink_bytes"] == lines[0]["uplink_bytes"] and finished.summary["closing_bytes"] == 0
    assert prismfl.load(finished.folder.model).sample(3).shape == (3, 1, 16, 16)


def test_a_servers_own_search_goes_on_with_adams_memory(world):
    agreement, kit, _ = world
    one, _ = search_round(agreement, kit, init(agreement), gathered(world))
    two, _ = search_round(agreement, kit, one, gathered(world))
    forgetful, _ = search_round(agreement, kit, replace(one, memory=None), gathered(world))
    assert [int(state.memory[2][0]) for state in (one, two, forgetful)] == [1, 2, 1]
    assert (two.q != forgetful.q).any()


class Killed(Silent):
    def round_done(self, record, rounds):  # noqa: ARG002
        if record["round"] == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("mask", ["binary", "soft"])
def test_a_killed_run_goes_on_to_the_same_bytes_and_asks_nobody_again(tiny, tmp_path, monkeypatch, mask):
    changes = {"federation": {"rounds": 3}, "search": {"mask": mask}}
    whole = run(tiny, tmp_path / "whole", **changes)
    with pytest.raises(KeyboardInterrupt):
        run(tiny, tmp_path / "killed", watcher=Killed(), **changes)
    monkeypatch.setattr(InProcess, "train", None)
    again = prismfl.resume(tmp_path / "killed")
    assert again.folder.model.read_bytes() == whole.folder.model.read_bytes()
    assert [line["uplink_bytes"] for line in read_rounds(again.folder)] == [
        line["uplink_bytes"] for line in read_rounds(whole.folder)
    ]


def test_the_processor_threads_of_others_stay_as_they_were(tiny, tmp_path):
    before = torch.get_num_threads()
    run(tiny, tmp_path / "run", running={"client_threads": 2})
    assert torch.get_num_threads() == before


def test_with_epsilon_the_release_is_what_travels(tiny, tmp_path, monkeypatch):
    frames = {}

    def spy(agreement, dimension, exchange):
        def carry(sent):
            for client, reply in exchange(sent):
                frames[client] = reply
                yield client, reply

        return gather(agreement, dimension, carry)

    monkeypatch.setattr(oneshot, "gather", spy)
    privacy = {"epsilon": 9.8, "delta": 1e-5, "noise": "fast"}
    notes = Notes()
    finished = run(tiny, tmp_path / "run", watcher=notes, privacy=privacy)
    assert sorted(frames) == [0, 1, 2] and not any("warning" in note for note in notes.told)
    agreement = prepare(reopen(finished.folder.root)[1]).agreement
    for client, frame in frames.items():
        held = from_bytes(stored_release(finished.folder.root, client)).target
        told = message.open_moments(frame, agreement.place(0, client), len(held.shares), 10**7)
        found = decode_moments(told.coded, told.step, len(held.moments))
        assert np.abs(found - held.moments).max() <= told.step * 0.5001
        assert np.array_equal(told.shares, held.shares)
    assert [entry["client"] for entry in load_model(finished.folder.model).ledger] == [0, 1, 2]


def stored_release(root, client):
    """What a client of a run on the digits released, as it is stored."""
    ledger = source_of(reopen(root)[1], root)
    (one,) = [line for line in ledger.releases() if line.entry.client == client]
    return (ledger.folder / f"{one.definition}.safetensors").read_bytes()


class Notes(Silent):
    def __init__(self):
        self.told = []

    def note(self, text):
        self.told.append(text)


def test_without_epsilon_a_warning_says_what_is_sent(tiny, tmp_path):
    notes = Notes()
    run(tiny, tmp_path / "run", watcher=notes)
    assert any("warning: one-shot without epsilon" in note and "exact moments" in note for note in notes.told)


@pytest.mark.parametrize(
    "changes",
    [
        {"federation": {"mada": "published"}},
        {"federation": {"alpha": 0.5}},
        {"federation": {"uplink": "half"}},
        {"federation": {"cohort": 2}},
    ],
    ids=str,
)
def test_settings_of_masks_alone_are_refused(tiny, changes):
    federation = {"mode": "one-shot"} | changes.pop("federation", {})
    with pytest.raises(SettingError, match="one-shot"):
        tiny(federation=federation, **changes)


def test_a_cohort_of_all_is_all(tiny):
    assert tiny(federation={"mode": "one-shot", "cohort": 3}).federation.cohort == 3


def test_a_forecast_counts_one_exchange(tiny):
    found = forecast(prepare(tiny(**ONE_SHOT)), 1)
    assert found.downlink_bytes == 3 * message.HEADER_BYTES
    assert found.uplink_bytes < 3 * 4 * found.moment_dimension
    noisy = forecast(prepare(tiny(**ONE_SHOT, privacy={"epsilon": 9.8, "delta": 1e-5, "noise": "fast"})), 1)
    assert 3 * noisy.moment_dimension < noisy.uplink_bytes < 3 * 1.2 * noisy.moment_dimension


def test_a_server_that_cannot_search_says_so(tiny, tmp_path):
    ready = prepare(tiny(**ONE_SHOT))
    engine = InProcess(ready.agreement, ready.kit, ready.clients, create(tmp_path / "run", ready.agreement.settings))
    with pytest.raises(SettingError, match="no kit"):
        coordinator.run(ready.agreement, engine, engine.folder, Silent())
    engine.close()


def test_a_target_of_many_labels_is_sent_whole(make_agreement, feature_map):
    agreement = make_agreement(**ONE_SHOT)
    kit = make_kit(agreement, feature_map)
    target = Target(np.linspace(-1, 1, kit.features.dimension, dtype=np.float32), 5, np.ones(1))
    told = message.open_moments(seal_target(agreement, PLACE, target), PLACE, 1, 10**7)
    assert np.abs(decode_moments(told.coded, told.step, len(target.moments)) - target.moments).max() < told.step


def test_what_labels_share_does_not_choose_among_masks():
    asked = {"data": {"clients": 2}, "generator": {"width": 2, "size": 16}}
    agreement = agree(settings_from(asked), channels=1, classes=("one", "two"))
    features = FeatureMap(load_features("vgg"), Matching(layers=(0,), pool=2, summary=2), 1, 16)
    kit, q = make_kit(agreement, features), np.full(agreement.layout.count, 30000, np.uint16)
    pictures = np.random.default_rng(0).integers(0, 256, (20, 1, 16, 16), np.uint8)
    target = features.target(pictures, np.arange(20) % 2, 2)
    rows = target.moments.reshape(2, -1).copy()
    rows[0, -features.shared :] += 1
    other = replace(target, moments=rows.ravel())
    found, again = (candidate_distances(agreement, kit, q, one) for one in (target, other))
    np.testing.assert_array_equal(found, again)
    rows[0, 0] += 1
    assert (candidate_distances(agreement, kit, q, replace(target, moments=rows.ravel())) != found).all()
