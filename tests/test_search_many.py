"""Many clients in one batch: each draws and finds what it would alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from prismfl import search
from prismfl.config import Features, Search
from prismfl.layout import Layout, frozen_weights
from prismfl.mmd import FeatureMap, Target
from prismfl.nets.features import load_features
from prismfl.nets.generator import generate, generate_many
from prismfl.nets.tape import Tape
from prismfl.search import (
    BatchSearcher,
    Memory,
    Searcher,
    batching_of,
    compile_of,
    faster_together,
    local_search,
    search_many,
)
from prismfl.seeding import Purpose, Stream

EXACT = Search(local_steps=1, batch_size=8, precision="float32")
CLIENTS = 3


class World:
    """Three clients with images of their own, and what they share."""

    def __init__(self, classes, **features):
        self.layout = Layout(16, 1, 2, 8, classes)
        self.features = FeatureMap(load_features("vgg"), Features(layers=(0, 1), **features), 1, 16)
        self.weights = torch.from_numpy(frozen_weights(self.layout, 0).copy())
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (CLIENTS, 20, 1, 16, 16), np.uint8)
        labels = [rng.integers(0, max(1, classes), 20) % (1 + client) for client in range(CLIENTS)]
        self.targets = [self.features.target(mine, tags, classes) for mine, tags in zip(images, labels, strict=True)]
        self.qs = list(rng.integers(6000, 60000, (CLIENTS, self.layout.count)).astype(np.uint16))

    def draws(self):
        return [Tape(Stream(0, Purpose.SEARCH, 0, client)) for client in range(CLIENTS)]

    def alone(self, settings, rate=0.3, memories=(None,) * CLIENTS):
        return [
            local_search(self.layout, self.weights, self.features, q, target, settings, rate, draws, memory)
            for q, target, draws, memory in zip(self.qs, self.targets, self.draws(), memories, strict=True)
        ]

    def together(self, settings, rate=0.3, memories=(None,) * CLIENTS):
        return search_many(
            self.layout, self.weights, self.features, self.qs, self.targets, settings, rate, self.draws(), memories
        )


@pytest.fixture(scope="module", params=[0, 3], ids=["no labels", "three labels"])
def world(request):
    return World(request.param)


@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("classes", [0, 1, 4])
def test_grouped_networks_make_the_images_of_each(classes, size):
    layout = Layout(size, 3, 2, 8, classes)
    random = torch.Generator().manual_seed(0)
    flats = torch.randn(CLIENTS, layout.count, generator=random)
    latents = torch.randn(CLIENTS, 5, 8, generator=random)
    labels = torch.randint(0, max(1, classes), (CLIENTS, 5), generator=random)
    found = generate_many(layout, flats, latents, labels)
    assert found.shape == (CLIENTS, 5, 3, size, size)
    for mine, *inputs in zip(found, flats, latents, labels, strict=True):
        torch.testing.assert_close(mine, generate(layout, *inputs[:2], labels=inputs[2]), atol=1e-5, rtol=1e-4)


def test_a_networks_images_do_not_depend_on_its_neighbours():
    layout = Layout(16, 1, 2, 8)
    flats, latents = torch.randn(2, layout.count), torch.randn(2, 5, 8)
    before = generate_many(layout, flats, latents)
    flats[1], latents[1] = float("nan"), float("nan")
    torch.testing.assert_close(generate_many(layout, flats, latents)[0], before[0])


VARIANTS = {
    "plain": ({}, {}),
    "moving": ({"loss": "moving"}, {}),
    "scale by layer": ({"scale": "layer"}, {}),
    "identity": ({"gradient": "identity"}, {}),
    "joint features and patches": ({}, {"joint": 8, "patch": 8}),
    "first moments alone": ({}, {"second_weight": 0.0}),
}


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_and_losses_of_a_batch_are_those_of_each_client(name, classes):
    changes, features = VARIANTS[name]
    world, settings = World(classes, **features), replace(EXACT, **changes)
    theta = torch.from_numpy(np.stack(world.qs) / 65536).float()
    shared = world.layout, world.weights, world.features
    found, losses = BatchSearcher(*shared, world.targets, settings, world.draws()).gradient(theta)
    for client, (target, draws) in enumerate(zip(world.targets, world.draws(), strict=True)):
        wanted, loss = Searcher(*shared, target, settings, draws).gradient(theta[client])
        assert (found[client] - wanted).norm() < 1e-5 * wanted.norm()
        assert losses[client].item() == pytest.approx(loss.item(), rel=1e-5)


def test_every_client_draws_what_it_draws_alone(world):
    searcher = BatchSearcher(world.layout, world.weights, world.features, world.targets, EXACT, world.draws())
    alone = world.draws()
    for _ in range(2):
        searcher.gradient(torch.full((CLIENTS, world.layout.count), 0.5))
    for client, draws in enumerate(alone):
        one = Searcher(world.layout, world.weights, world.features, world.targets[client], EXACT, draws)
        for _ in range(2):
            one.gradient(torch.full((world.layout.count,), 0.5))
        assert draws.block == searcher.draws[client].block > 0
        assert torch.equal(draws.uniforms(9), searcher.draws[client].uniforms(9))


@pytest.mark.parametrize(
    "changes", [{}, {"scale": "layer", "hold": 0.1, "reach": 0.2, "shrinkage": 0.01}, {"loss": "moving"}], ids=str
)
def test_searches_together_find_what_each_finds_alone(world, changes):
    settings = replace(EXACT, local_steps=4, **changes)
    for one, two in zip(world.alone(settings, 0.05), world.together(settings, 0.05), strict=True):
        apart = np.abs(one.q.astype(int) - two.q)
        # Gradients near nought may turn on a rounding: Adam makes a whole step of each.
        assert np.mean(apart > 100) < 0.02
        assert two.loss == pytest.approx(one.loss, rel=0.02)
        assert two.memory.steps == 4 and two.q.dtype == np.uint16


def test_clients_that_remember_more_steps_go_on_from_them(world):
    rng = np.random.default_rng(1)
    first, second = rng.normal(0, 1e-4, (CLIENTS, world.layout.count)), rng.random((CLIENTS, world.layout.count)) * 1e-6
    memories = [
        None if steps == 0 else Memory(one.astype(np.float32), two.astype(np.float32), steps)
        for one, two, steps in zip(first, second, (0, 1, 40), strict=True)
    ]
    kept = [None if one is None else (one.first.copy(), one.second.copy()) for one in memories]
    found = zip(world.alone(EXACT, 0.2, memories), world.together(EXACT, 0.2, memories), strict=True)
    for one, two in found:
        assert one.memory.steps == two.memory.steps
        np.testing.assert_allclose(two.memory.first, one.memory.first, atol=1e-6 * np.abs(one.memory.first).max())
        assert np.mean(np.abs(one.q.astype(int) - two.q) > 20) < 0.02
    assert [one.steps for one in memories if one] == [1, 40]
    assert all(
        (one.first == was[0]).all() and (one.second == was[1]).all()
        for one, was in zip(memories[1:], kept[1:], strict=True)
    )


def test_a_client_whose_numbers_blow_up_leaves_the_others_alone(world):
    broken = replace(world.targets[1], moments=np.full_like(world.targets[1].moments, np.nan))
    whole = world.together(replace(EXACT, local_steps=2))
    targets, world.targets = world.targets, [world.targets[0], broken, world.targets[2]]
    found = world.together(replace(EXACT, local_steps=2))
    world.targets = targets
    assert np.isnan(found[1].loss) and not np.isnan([found[0].loss, found[2].loss]).any()
    for client in (0, 2):
        np.testing.assert_array_equal(found[client].q, whole[client].q)


def test_shares_of_labels_stay_each_clients_own():
    world = World(3)
    lone = [replace(one, shares=np.eye(3)[client]) for client, one in enumerate(world.targets)]
    searcher = BatchSearcher(world.layout, world.weights, world.features, lone, EXACT, world.draws())
    assert searcher._draw()[2].tolist() == [[client] * 8 for client in range(3)]


# ------------------------------------------------------------------------------------- which and how many


def chosen(world, clients=9, **changes):
    return batching_of(replace(EXACT, **changes), world.layout, world.features, world.weights, clients)


def test_batches_hold_the_clients_that_there_are_or_are_asked_for_or_have_room(world):
    assert chosen(world, batching="vmap") == ("vmap", 9)
    assert chosen(world, batching="vmap", batch_clients=4) == ("vmap", 4)
    assert chosen(world, batching="vmap", batch_clients=40) == ("vmap", 9)
    some, fewer = (chosen(world, 10**6, batching="vmap", batch_size=size)[1] for size in (1000, 4000))
    assert 10**6 > some > fewer >= 1
    assert chosen(world, 10**6, batching="vmap", batch_size=65536)[1] >= 1


def test_a_processor_searches_one_after_another_unless_told(world):
    assert chosen(world, batching="auto")[0] == "none"


def test_the_measurement_decides_one_way_or_the_other_and_draws_nothing(world):
    before = torch.get_rng_state()
    assert faster_together(world.layout, world.weights, world.features, EXACT, 2) in (True, False)
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(world.targets[0], Target)


@pytest.mark.parametrize(
    ("asked", "device", "searches", "wanted"),
    [
        ("auto", "cpu", 10**9, "off"),
        ("auto", "cuda", 10, "off"),
        ("auto", "cuda:1", 10_000, "on"),
        ("on", "cuda", 1, "on"),
        ("off", "cuda", 10**9, "off"),
    ],
)
def test_steps_are_compiled_on_a_gpu_where_there_are_many(asked, device, searches, wanted):
    assert compile_of(replace(EXACT, compile=asked, local_steps=20), device, searches) == wanted


def test_auto_takes_no_batches_where_steps_are_compiled(world, monkeypatch):
    monkeypatch.setattr(search, "faster_together", lambda *_: True)
    elsewhere = torch.empty(1, device="meta")
    found = [
        batching_of(replace(EXACT, batching="auto", compile=one), world.layout, world.features, elsewhere, 3)[0]
        for one in ("on", "off")
    ]
    assert found == ["none", "vmap"]


# -------------------------------------------------------------------------- tensors that are kept


@pytest.mark.parametrize("changes", [{}, {"loss": "moving"}, {"hold": 0.2, "scale": "layer"}], ids=str)
def test_searches_in_kept_tensors_find_what_they_find_in_new_ones(world, monkeypatch, changes):
    settings = replace(EXACT, local_steps=3, **changes)
    memories = [one.memory for one in world.alone(settings)]
    wanted = world.alone(settings, 0.1, memories) + world.together(settings, 0.2, memories)
    targets = [target.moments.copy() for target in world.targets]
    monkeypatch.setattr(search, "_reusable", lambda _: True)
    monkeypatch.setattr(search, "_here", search.threading.local())
    found = world.alone(settings, 0.1, memories) + world.together(settings, 0.2, memories)
    for one, two in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(one.q, two.q)
        np.testing.assert_array_equal(one.memory.first, two.memory.first)
        assert (one.loss, one.memory.steps) == (two.loss, two.memory.steps)
    for target, before in zip(world.targets, targets, strict=True):
        np.testing.assert_array_equal(target.moments, before)  # nobody's target was written over


def test_tensors_are_kept_for_one_world_alone_and_a_callers_tape_reads_on(world, monkeypatch):
    monkeypatch.setattr(search, "_reusable", lambda _: True)
    monkeypatch.setattr(search, "_here", search.threading.local())
    world.alone(EXACT)
    kept = search._here.station[2]
    world.alone(EXACT)
    assert search._here.station[2] is kept
    world.alone(replace(EXACT, local_steps=2))
    assert search._here.station[2] is not kept
    draws, shared = world.draws()[1], (world.layout, world.weights, world.features)
    halves = [local_search(*shared, world.qs[1], world.targets[1], EXACT, 0.3, draws) for _ in range(2)]
    again = world.draws()[1]
    local_search(*shared, world.qs[1], world.targets[1], replace(EXACT, local_steps=2), 0.3, again)
    assert halves[0].q.tolist() != halves[1].q.tolist() and int(draws.block) == int(again.block)


def test_adams_memory_is_kept_to_itself_where_it_begins_anew(world):
    kept, anew = (world.alone(replace(EXACT, adam=adam))[0] for adam in ("keep", "reset"))
    assert kept.memory is not None and anew.memory is None and anew.finite
