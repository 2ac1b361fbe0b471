"""What the simulator keeps of its clients: bounded, shared, and nothing lost that is still on disk."""

import numpy as np
import pytest

from prismfl.data.images import ImageSet
from prismfl.engines import caches as kept
from prismfl.engines import simulator as inprocess
from prismfl.engines.simulator import InProcess, train
from prismfl.federation.agreement import KnownTheta
from prismfl.run.folder import RunFolder, read_rounds
from prismfl.run.prepare import prepare
from prismfl.settings.schema import Settings


def held(turn, value, count=100):
    return KnownTheta(np.full(count, value, np.uint16), turn)


def test_clients_that_hold_the_same_share_one_array():
    store = kept.KeptThetas(10**6)
    for client in range(50):
        store.put(client, held(3, 7))
    assert len({id(store.get(client).q) for client in range(50)}) == 1
    assert store.get(50) is None
    store.put(4, held(3, 8))  # another θ of the same round stays another
    assert store.get(4).q[0] == 8 and store.get(5).q[0] == 7


def test_a_theta_goes_with_the_last_client_that_holds_it():
    store = kept.KeptThetas(10**6)
    for turn in range(40):
        for client in range(3):
            store.put(client, held(turn, turn))
    assert len(store._shared) == 1
    assert [store.get(client).round for client in range(3)] == [39] * 3


def test_the_earliest_thetas_go_where_there_is_no_room():
    store = kept.KeptThetas(5 * 200)
    for turn in range(20):
        store.put(turn, held(turn, turn))
    assert [client for client in range(20) if store.get(client) is not None] == [15, 16, 17, 18, 19]
    store.put(3, held(19, 19))
    assert store.get(3).q is store.get(19).q
    store.put(15, held(20, 20))
    assert sum(one.q.nbytes for one in store._shared.values()) <= 5 * 200


def sparse(tiny, rounds=4, **changes):
    return tiny(data={"clients": 12}, federation={"rounds": rounds, "cohort": 3}, **changes)


def models_of(tiny, blobs, root, monkeypatch, limit):
    """Model files of a run with room and of one without, by name."""
    train(sparse(tiny), blobs, out=root / "roomy")
    monkeypatch.setattr(inprocess, limit, 1)
    train(sparse(tiny), blobs, out=root / "narrow")
    return {name: (root / name / "model.safetensors").read_bytes() for name in ("roomy", "narrow")}


def test_room_for_a_single_target_changes_no_byte(tiny, blobs, tmp_path, monkeypatch):
    models = models_of(tiny, blobs, tmp_path, monkeypatch, "_MOST_TARGETS")
    assert models["roomy"] == models["narrow"]


def test_room_for_a_single_theta_costs_bytes_and_changes_no_model(tiny, blobs, tmp_path, monkeypatch):
    models = models_of(tiny, blobs, tmp_path, monkeypatch, "_MOST_THETAS")
    assert models["roomy"] == models["narrow"]
    sent = [
        sum(line["downlink_bytes"] for line in read_rounds(RunFolder(tmp_path / name))) for name in ("roomy", "narrow")
    ]
    assert sent[0] <= sent[1]


@pytest.mark.parametrize("population", [40, 400])
def test_what_is_held_in_memory_does_not_grow_with_the_clients(tiny, tmp_path, monkeypatch, population):
    """Three rounds of twenty clients: as many targets and θ as there is room for, whoever is asked."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (population * 2, 1, 16, 16), np.uint8)
    engines = []

    class Seen(InProcess):
        def __init__(self, *args):
            super().__init__(*args)
            engines.append(self)

    monkeypatch.setattr(inprocess, "InProcess", Seen)
    settings: Settings = tiny(data={"clients": population}, federation={"rounds": 3, "cohort": 20})
    size = prepare(settings, images).kit.features.dimension * 4
    monkeypatch.setattr(inprocess, "_MOST_TARGETS", 5 * size)
    train(settings, images, out=tmp_path / "run")
    (engine,) = engines
    assert engine.targets.cache_info().currsize == 5
    assert len(engine.held._shared) <= 3
    assert len(engine.kit._thetas) <= 4
    assert isinstance(engine.clients[0], ImageSet)
