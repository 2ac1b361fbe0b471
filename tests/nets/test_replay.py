"""A step that is recorded and replayed finds what the same step finds taken again and again."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from prismfl import search
from prismfl.config import Search
from prismfl.layout import Layout, frozen_weights
from prismfl.nets import fused, replay
from prismfl.nets.tape import Tape
from prismfl.seeding import Purpose, Stream

SETTINGS = Search(local_steps=5, batch_size=6, precision="float32")
CPU = torch.device("cpu")


def traced(step, count, device, *, recorded):
    """As a CUDA graph does it: one list of operations on the same memory, without Python.  Tracing takes the step."""
    assert recorded and device.type == "cpu"
    graph = make_fx(step)()
    for _ in range(count - 1):
        graph()


@pytest.fixture(params=[0, 3], ids=["no labels", "three labels"])
def run(request, feature_map, blobs, monkeypatch):
    """A search of one or several clients as on a device without kernels of ours."""
    monkeypatch.setattr(fused, "_fast", None)
    layout = Layout(16, 1, 2, 8, request.param)
    weights = torch.from_numpy(frozen_weights(layout, 0).copy())
    labels = np.arange(len(blobs)) % 3 if request.param else None
    target = feature_map.target(blobs, labels, request.param)
    q = np.full(layout.count, 32768, np.uint16)

    def tape(client):
        found = Tape(Stream(0, Purpose.SEARCH, 0, client))
        found.by_torch = True
        return found

    def found(clients, settings, repeat=replay.repeat):
        monkeypatch.setattr(search, "repeat", repeat)
        shared, draws = (layout, weights, feature_map), [tape(client) for client in range(clients)]
        if clients == 1:
            return [search.local_search(*shared, q, target, settings, 0.3, draws[0])]
        return search.search_many(*shared, [q] * clients, [target] * clients, settings, 0.3, draws, [None] * clients)

    return found


@pytest.mark.parametrize("changes", [{}, {"scale": "layer", "hold": 0.1}, {"gradient": "identity"}], ids=str)
@pytest.mark.parametrize("clients", [1, 2])
def test_a_replayed_step_is_the_step(run, clients, changes):
    settings = replace(SETTINGS, **changes)
    for one, two in zip(run(clients, settings), run(clients, settings, traced), strict=True):
        np.testing.assert_array_equal(one.q, two.q)
        np.testing.assert_array_equal(one.memory.second, two.memory.second)
        assert (one.loss, one.memory.steps) == (two.loss, two.memory.steps) == (one.loss, 5)


def test_steps_are_taken_as_often_as_asked_on_a_processor():
    taken = []
    for count in (0, 1, 40):
        taken.clear()
        replay.repeat(lambda: taken.append(1), count, CPU)
        assert len(taken) == count


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("count", [15, 16, 40])
def test_on_a_gpu_a_step_is_recorded_once_and_replayed_or_taken_where_it_cannot_be(monkeypatch, count, fails):
    calls = []

    class Graph:
        def replay(self):
            calls.append("replayed")

    class Nothing:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return False

        def wait_stream(self, _):
            pass

    class Capture(Nothing):
        def __enter__(self):
            calls.append("recorded")
            if fails:
                raise RuntimeError("operation not permitted when stream is capturing")

        def __exit__(self, *_):
            calls.pop()  # what was recorded was not taken

    for name, stub in {"CUDAGraph": Graph, "Stream": Nothing, "stream": Nothing, "graph": Capture}.items():
        monkeypatch.setattr(torch.cuda, name, stub)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Nothing())
    replay.repeat(lambda: calls.append("taken"), count, torch.device("cuda"))
    done = [call for call in calls if call != "recorded"]
    assert len(done) == count and calls.count("recorded") == (count >= 16)
    assert done.count("replayed") == (0 if fails or count < 16 else count - 3)
