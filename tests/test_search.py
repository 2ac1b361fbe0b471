"""The local search: repeatable, it descends, and what it remembers matters."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prismfl import search as search_room
from prismfl.generator.layout import Layout, frozen_weights
from prismfl.generator.masks import scores_of
from prismfl.generator.network import generate, layer_views
from prismfl.search import Memory, Searcher, batch_labels, local_search, precision_of, rate_at, worth_compiling
from prismfl.seeding.device import Tape
from prismfl.seeding.philox import Purpose, Stream
from prismfl.settings.resolve import SearchPlan
from prismfl.settings.toml import merged, settings_from

SETTINGS = SearchPlan(local_steps=3, batch_size=4)


@pytest.fixture(scope="module")
def search(layout, feature_map, blobs):
    target = feature_map.target(blobs)
    weights = torch.from_numpy(frozen_weights(layout, 0).copy())

    def run(settings=SETTINGS, rate=0.3, seed=0, q=None, memory=None, target=target):
        start = np.full(layout.count, 32768, np.uint16) if q is None else q
        draws = Tape(Stream(seed, Purpose.SEARCH))
        return local_search(layout, weights, feature_map, start, target, settings, rate, draws, memory)

    return run


def test_a_soft_masks_gradient_is_that_of_its_scores(layout, feature_map, blobs):
    weights, target = torch.from_numpy(frozen_weights(layout, 0).copy()), feature_map.target(blobs)
    settings = replace(SETTINGS, mask="soft", precision="float32")
    scores = torch.linspace(-2, 2, layout.count).requires_grad_()
    one, other = (
        Searcher(layout, weights, feature_map, target, settings, Tape(Stream(0, Purpose.SEARCH))) for _ in range(2)
    )
    loss, _ = one.losses(weights * torch.sigmoid(scores))
    loss.backward()
    found, measured = other.gradient(torch.sigmoid(scores.detach()))
    torch.testing.assert_close(found, scores.grad, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(measured, loss.detach())


@pytest.mark.parametrize("loss", ["squared", "unbiased", "moving"])
def test_the_same_seed_gives_the_same_bytes(search, loss):
    settings = replace(SETTINGS, loss=loss)
    once, again, other = search(settings), search(settings), search(settings, seed=1)
    assert once.q.tobytes() == again.q.tobytes()
    assert once.loss == again.loss
    assert once.memory.first.tobytes() == again.memory.first.tobytes()
    assert once.memory.second.tobytes() == again.memory.second.tobytes()
    assert once.q.tobytes() != other.q.tobytes()
    assert once.q.dtype == np.uint16
    assert (once.q >= 1).all()


def test_precisions_find_nearly_the_same_and_auto_is_one_of_them(search):
    found = {name: search(replace(SETTINGS, precision=name)) for name in ("float32", "bfloat16", "auto")}
    exact, short = (found[name].q.astype(int) for name in ("float32", "bfloat16"))
    assert (exact != short).any()
    assert np.corrcoef(exact, short)[0, 1] > 0.8
    assert found["bfloat16"].loss == pytest.approx(found["float32"].loss, rel=0.05)
    named = precision_of("auto", "cpu")
    assert found["auto"].q.tobytes() == found[named].q.tobytes()


def test_a_processor_without_bfloat16_computes_exactly(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert precision_of("auto", "cpu") == "float32"
    assert precision_of("bfloat16", "cpu") == "bfloat16"
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert precision_of("auto", "cpu") == "float32"


def test_the_global_generator_is_left_alone_and_has_no_say(search):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    once = search()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert search().q.tobytes() == once.q.tobytes()


def test_the_start_is_left_alone(search, layout):
    q = np.full(layout.count, 32768, np.uint16)
    q.setflags(write=False)
    found = search(q=q)
    assert (q == 32768).all()
    assert (found.q != q).mean() > 0.5


@pytest.mark.parametrize("loss", ["squared", "moving"])
def test_the_loss_falls_on_an_easy_problem(search, loss):
    settings = SearchPlan(local_steps=30, batch_size=16, loss=loss)
    first = search(replace(settings, local_steps=1), rate=1e-6)
    found, losses = first, []
    for seed in range(3):
        found = search(settings, rate=0.3, seed=seed, q=found.q)
        losses.append(found.loss)
    assert losses[-1] < 0.6 * first.loss
    assert loss == "moving" or losses[-1] < losses[0]  # at this rate the moving average swings at the end


def test_a_mask_that_made_the_target_is_a_low_loss(layout, feature_map, search):
    mask = np.random.default_rng(0).random(layout.count) < 0.5
    weights = torch.from_numpy(frozen_weights(layout, 0) * mask)
    latents = torch.randn(256, layout.latent, generator=torch.Generator().manual_seed(3))
    images = generate(layout, weights, latents).detach()
    target = feature_map.target(((images + 1) * 127.5).round().byte().numpy())
    known = np.where(mask, 65535, 1).astype(np.uint16)
    settings = SearchPlan(local_steps=2, batch_size=64)
    assert search(settings, 1e-6, q=known, target=target).loss < 0.5 * search(settings, 1e-6, target=target).loss


def test_the_first_step_moves_every_score_with_a_gradient_by_the_rate(search, layout):
    found = search(replace(SETTINGS, local_steps=1), rate=0.25)
    moved = scores_of(found.q).abs()
    struck = torch.from_numpy(found.memory.first != 0)
    torch.testing.assert_close(moved[struck], torch.full_like(moved[struck], 0.25), atol=1e-3, rtol=0)
    assert not moved[~struck].any()
    assert struck.float().mean() > 0.5


def test_scores_move_against_their_gradient(search):
    found = search(replace(SETTINGS, local_steps=1))
    struck = found.memory.first != 0
    assert (np.sign(32768 - found.q.astype(int)) == np.sign(found.memory.first))[struck].all()


def test_adam_is_torchs_adam(search, layout):
    settings, beta1, beta2 = SearchPlan(local_steps=1, batch_size=4, beta1=0.8), 0.8, 0.999
    scores = torch.zeros(layout.count, requires_grad=True)
    adam = torch.optim.Adam([scores], lr=0.3, betas=(beta1, beta2), eps=1e-16)
    q, memory, before = None, None, np.zeros(layout.count, np.float32)
    for seed in range(4):
        found = search(settings, q=q, seed=seed, memory=memory)
        scores.grad = torch.from_numpy((found.memory.first - beta1 * before) / (1 - beta1))
        adam.step()
        q, memory, before = found.q, found.memory, found.memory.first.copy()
    assert memory.steps == 4
    # q rests on a grid of 1/65536 between the searches.
    torch.testing.assert_close(torch.sigmoid(scores.detach()), torch.from_numpy(q / 65536).float(), atol=2e-4, rtol=0)


def test_a_kept_memory_goes_on_and_differs_from_a_reset_one(search):
    first = search(seed=0)
    assert first.memory.steps == 3
    kept, reset = search(seed=1, q=first.q, memory=first.memory), search(seed=1, q=first.q)
    assert kept.memory.steps == 6
    assert reset.memory.steps == 3
    assert kept.q.tobytes() != reset.q.tobytes()


def test_a_memory_given_is_left_alone(search):
    memory = search().memory
    before = memory.first.tobytes(), memory.second.tobytes()
    search(memory=memory, seed=1)
    assert (memory.first.tobytes(), memory.second.tobytes()) == before


def test_a_memory_of_nothing_is_no_memory(search, layout):
    nothing = Memory(np.zeros(layout.count, np.float32), np.zeros(layout.count, np.float32))
    assert search(memory=nothing).q.tobytes() == search().q.tobytes()


# ---------------------------------------------------------------- compiled steps, and kept tensors


@pytest.mark.parametrize(
    ("device", "steps", "wanted"), [("cpu", 10**9, False), ("cuda", 200, False), ("cuda:1", 200_000, True)]
)
def test_steps_are_compiled_on_a_gpu_where_there_are_many(device, steps, wanted):
    assert worth_compiling(device, steps) == wanted


@pytest.fixture
def reusing(monkeypatch):
    """Tensors are kept between searches, as on a GPU."""
    monkeypatch.setattr(search_room, "_reusable", lambda _: True)
    monkeypatch.setattr(search_room, "_here", search_room.threading.local())


@pytest.fixture
def clients(feature_map, blobs):
    """Searches of three clients, each with its own images, start and draws, of three labels."""
    layout = Layout(16, 1, 2, 8, classes=3)
    weights = torch.from_numpy(frozen_weights(layout, 0).copy())
    starts = np.random.default_rng(0).integers(6000, 60000, (3, layout.count)).astype(np.uint16)
    targets = [feature_map.target(blobs[client::3], np.arange(10) % (1 + client), 3) for client in range(3)]

    def run(settings, memories=(None,) * 3):
        told = [target.moments.copy() for target in targets]
        found = [
            local_search(layout, weights, feature_map, q, target, settings, 0.3, tape, memory)
            for q, target, tape, memory in zip(starts, targets, tapes(), memories, strict=True)
        ]
        for target, before in zip(targets, told, strict=True):
            np.testing.assert_array_equal(target.moments, before)  # nobody's target was written over
        return found

    def tapes():
        return [Tape(Stream(0, Purpose.SEARCH, 0, client)) for client in range(3)]

    return run


@pytest.mark.parametrize("loss", ["squared", "moving"])
def test_searches_in_kept_tensors_find_what_they_find_in_new_ones(clients, request, loss):
    settings = replace(SETTINGS, loss=loss)
    memories = [None, *(one.memory for one in clients(settings)[1:])]
    wanted = clients(settings, memories)
    request.getfixturevalue("reusing")
    for one, two in zip(wanted, clients(settings, memories), strict=True):
        np.testing.assert_array_equal(one.q, two.q)
        np.testing.assert_array_equal(one.memory.first, two.memory.first)
        assert (one.loss, one.memory.steps) == (two.loss, two.memory.steps)


def test_tensors_are_kept_for_one_world_alone(clients, reusing):
    clients(SETTINGS)
    kept = search_room._here.station[2]
    clients(SETTINGS)
    assert search_room._here.station[2] is kept
    clients(replace(SETTINGS, local_steps=2))
    assert search_room._here.station[2] is not kept


def test_a_callers_tape_reads_on(layout, feature_map, blobs, reusing):
    weights, q = torch.from_numpy(frozen_weights(layout, 0).copy()), np.full(layout.count, 32768, np.uint16)
    once, twice = Tape(Stream(0, Purpose.SEARCH)), Tape(Stream(0, Purpose.SEARCH))
    world = layout, weights, feature_map, q, feature_map.target(blobs)
    halves = [local_search(*world, SETTINGS, 0.3, twice) for _ in range(2)]
    local_search(*world, replace(SETTINGS, local_steps=6), 0.3, once)
    assert halves[0].q.tolist() != halves[1].q.tolist() and int(once.block) == int(twice.block)


def test_adams_memory_is_kept_to_itself_where_it_begins_anew(search):
    kept, anew = (search(replace(SETTINGS, keeps_adam=keeps)) for keeps in (True, False))
    assert kept.memory is not None and anew.memory is None and anew.finite


def test_a_search_of_a_broken_target_says_so(search, feature_map, blobs):
    target = feature_map.target(blobs)
    assert not search(target=replace(target, moments=np.full_like(target.moments, np.nan))).finite


# ----------------------------------------------------------------------------------------- labels


@pytest.fixture(scope="module")
def search_by_label(feature_map, blobs):
    """A search over four labels with images of some: (layout, what it found)."""
    layout = Layout(16, 1, 2, 8, classes=4)
    weights = torch.from_numpy(frozen_weights(layout, 0).copy())

    def run(labels, settings=SETTINGS, rate=0.3, seed=0, q=None):
        target = feature_map.target(blobs, np.resize(labels, len(blobs)), 4)
        start = np.full(layout.count, 32768, np.uint16) if q is None else q
        draws = Tape(Stream(seed, Purpose.SEARCH))
        return layout, local_search(layout, weights, feature_map, start, target, settings, rate, draws)

    return run


@pytest.mark.parametrize("loss", ["squared", "moving"])
@pytest.mark.parametrize("mine", [[0, 2], [3], [0, 1, 2, 3]])
def test_only_the_labels_of_a_clients_images_move(search_by_label, mine, loss):
    layout, found = search_by_label(mine, SearchPlan(local_steps=3, batch_size=8, loss=loss))
    views = layer_views(layout, torch.from_numpy(found.q.astype(np.int32)))
    shifts = torch.cat([view.flatten(1) for name, view in views.items() if name.endswith(".label")], 1)
    for label in range(4):
        assert bool((shifts[label] != 32768).any()) == (label in mine)
    for name, view in views.items():
        assert (view != 32768).any(), name


def test_a_search_by_label_is_repeatable_and_heeds_the_labels(search_by_label):
    once, again, other, fewer = (
        search_by_label(labels, seed=seed)[1].q.tobytes()
        for labels, seed in (([0, 1], 0), ([0, 1], 0), ([0, 1], 1), ([0, 0, 0, 1], 0))
    )
    assert once == again
    assert len({once, other, fewer}) == 3


def test_the_loss_by_label_falls_on_an_easy_problem(search_by_label):
    settings = SearchPlan(local_steps=30, batch_size=16)
    first = found = search_by_label([0, 1], replace(settings, local_steps=1), 1e-6)[1]
    for seed in range(3):
        found = search_by_label([0, 1], settings, 0.3, seed, found.q)[1]
    assert found.loss < 0.7 * first.loss


@given(st.lists(st.integers(0, 20), min_size=1, max_size=12).filter(any), st.integers(1, 64), st.integers(0, 2**31))
def test_a_batch_has_labels_by_their_shares(images, count, seed):
    shares = torch.tensor(images, dtype=torch.float64) / sum(images)
    labels = batch_labels(shares, count, Tape(Stream(seed, Purpose.SEARCH)))
    found = torch.bincount(labels, minlength=len(images))
    assert labels.dtype == torch.int64 and len(labels) == count and len(found) == len(images)
    assert (found - count * shares).abs().max() < 1 + 1e-9
    assert not found[shares == 0].any()
    assert torch.equal(labels, batch_labels(shares, count, Tape(Stream(seed, Purpose.SEARCH))))


def test_over_many_batches_labels_have_their_shares_in_all_company():
    shares, draws = torch.tensor([0.05, 0.35, 0.0, 0.6], dtype=torch.float64), Tape(Stream(0, Purpose.SEARCH))
    found = [torch.bincount(batch_labels(shares, 3, draws), minlength=4) for _ in range(2000)]
    # A number within 1 has a deviation of at most 1/2: five of them.
    torch.testing.assert_close(torch.stack(found).double().mean(0), 3 * shares, atol=2.5 / 2000**0.5, rtol=0)
    even = torch.full((4,), 0.25, dtype=torch.float64)
    assert len({frozenset(batch_labels(even, 2, draws).tolist()) for _ in range(200)}) == 6


# ------------------------------------------------------------------------------------------- rates


@given(st.integers(2, 500), st.floats(0, 1), st.floats(0.01, 10))
def test_the_rate_falls_from_the_first_to_the_last_round(rounds, final, rate):
    search = {"learning_rate": rate, "final_rate": final}
    settings = settings_from({"search": search, "federation": {"rounds": rounds}})
    rates = [rate_at(settings, turn) for turn in range(rounds)]
    assert rates[0] == pytest.approx(rate)
    assert rates[-1] == pytest.approx(rate * final)
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(rates))
    assert np.mean(rates) == pytest.approx(rate * (1 + final) / 2)


@pytest.mark.parametrize(
    ("rounds", "steps", "wanted"), [(1, 1, 1.0), (20, 10, 1.0), (20, 50, 0.3), (50, 20, 0.3), (10_000, 100, 0.05)]
)
def test_long_runs_take_short_steps(rounds, steps, wanted):
    values = {"search": {"local_steps": steps}, "federation": {"rounds": rounds}}
    assert rate_at(settings_from(values), 0) == wanted
    assert rate_at(settings_from(merged(values, {"learning_rate": 0.7})), 0) == 0.7
    lite = rate_at(settings_from(merged(values, {"features": "efficientnet-lite0"})), 0)
    assert lite == pytest.approx(min(1, wanted * 4 / 3), abs=0.02), "a third longer at full rate"
    assert rate_at(settings_from(merged(values, {"mode": "one-shot"})), 0) == 1.0  # nothing is averaged


def test_a_single_round_has_the_whole_rate():
    settings = settings_from({"search": {"learning_rate": 0.7, "final_rate": 0.1}, "federation": {"rounds": 1}})
    assert rate_at(settings, 0) == pytest.approx(0.7)
