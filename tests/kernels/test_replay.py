"""A step that is recorded and replayed finds what the same step finds taken again and again."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from prismfl import search
from prismfl.generator.layout import Layout, frozen_weights
from prismfl.kernels import fused, replay
from prismfl.seeding.device import Tape
from prismfl.seeding.philox import Purpose, Stream
from prismfl.settings.resolve import SearchPlan

SETTINGS = SearchPlan(local_steps=5, batch_size=6, precision="float32")
CPU = torch.device("cpu")


def as_recorded(repeated, count):
    """As a CUDA graph does it: one list of operations on the same memory, without Python.  Tracing takes the step."""
    graph = replay.traced(repeated.step, repeated.tensors)
    for _ in range(count - 1):
        graph(*repeated.tensors)


@pytest.fixture(params=[0, 3], ids=["no labels", "three labels"])
def run(request, feature_map, blobs, monkeypatch):
    """A client's search as on a device without kernels of ours."""
    monkeypatch.setattr(fused, "_fast", None)
    layout = Layout(16, 1, 2, 8, request.param)
    weights = torch.from_numpy(frozen_weights(layout, 0).copy())
    labels = np.arange(len(blobs)) % 3 if request.param else None
    target = feature_map.target(blobs, labels, request.param)
    q = np.full(layout.count, 32768, np.uint16)

    def found(take=replay.Repeated.take):
        monkeypatch.setattr(replay.Repeated, "take", take)
        draws = Tape(Stream(0, Purpose.SEARCH))
        draws.by_torch = True
        return search.local_search(layout, weights, feature_map, q, target, SETTINGS, 0.3, draws)

    return found


def test_a_replayed_step_is_the_step(run):
    one, two = run(), run(as_recorded)
    np.testing.assert_array_equal(one.q, two.q)
    np.testing.assert_array_equal(one.memory.second, two.memory.second)
    assert (one.loss, one.memory.steps) == (two.loss, two.memory.steps) == (one.loss, 5)


def test_steps_are_taken_as_often_as_asked_on_a_processor():
    taken = []
    for count in (0, 1, 40):
        taken.clear()
        replay.Repeated(lambda: taken.append(1), [torch.zeros(1)]).take(count)
        assert len(taken) == count


@pytest.mark.long
@pytest.mark.parametrize("run", [3], indirect=True)
def test_a_compiled_step_is_the_step_up_to_rounding(run):
    def as_compiled(repeated, count):
        program = replay.compiled(repeated.step, repeated.tensors)
        with torch.no_grad():
            for _ in range(count - 1):
                program(*repeated.tensors)

    one, two = run(), run(as_compiled)
    moved = [found.q.astype(int) - 32768 for found in (one, two)]
    assert np.linalg.norm(moved[0] - moved[1]) < 0.02 * np.linalg.norm(moved[0])
    assert one.loss == pytest.approx(two.loss, rel=1e-4) and two.memory.steps == 5


def test_what_was_traced_runs_on_other_tensors():
    one, two, fixed = torch.zeros(3), torch.ones(3), torch.full((3,), 2.0)

    def step():
        one.add_(two * fixed)
        two.mul_(3)

    graph = replay.traced(step, [one, two])
    assert one.tolist() == [2.0] * 3 and two.tolist() == [3.0] * 3  # tracing takes the step
    others = torch.full((3,), 10.0), torch.full((3,), 5.0)
    graph(*others)
    assert others[0].tolist() == [20.0] * 3 and others[1].tolist() == [15.0] * 3
    assert one.tolist() == [2.0] * 3 and two.tolist() == [3.0] * 3


class Nothing:
    """Stands for streams and their contexts."""

    device = torch.device("cuda", 0)

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False

    def wait_stream(self, _):
        pass


@pytest.fixture
def gpu(monkeypatch):
    """What is asked of a GPU that is not there, in order; `fails` makes recordings fail."""
    calls, state = [], SimpleNamespace(fails=False, queue=Nothing(), queues=[])

    class Graph:
        def replay(self):
            calls.append("replayed")

    class Capture(Nothing):
        def __init__(self, _, *, stream, **__):
            state.queues.append(stream)

        def __enter__(self):
            calls.append("recorded")
            if state.fails:
                raise RuntimeError("operation not permitted when stream is capturing")

        def __exit__(self, *_):
            calls.pop()  # what was recorded was not taken

    for name, stub in {"CUDAGraph": Graph, "Stream": Nothing, "stream": Nothing, "graph": Capture}.items():
        monkeypatch.setattr(torch.cuda, name, stub)
    state.first = Nothing()
    monkeypatch.setattr(torch.cuda, "default_stream", lambda _: state.first)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: state.queue)
    monkeypatch.setattr(replay, "wait_for_device", lambda _: None)
    state.calls = calls
    return state


def on_a_gpu(step, tensors=(), programs=None):
    found = replay.Repeated(step, tensors or [torch.zeros(1)], programs)
    found.recorded = True
    return found


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("count", [15, 16, 40])
def test_on_a_gpu_a_step_is_recorded_once_and_replayed_or_taken_where_it_cannot_be(gpu, count, fails):
    gpu.fails = fails
    repeated = on_a_gpu(lambda: gpu.calls.append("taken"))
    repeated.take(count)
    assert gpu.calls.count("recorded") == (count >= 16)
    assert gpu.calls[-count:] == ["taken" if fails or count < 16 else "replayed"] * count
    gpu.calls.clear()
    repeated.take(20)
    assert gpu.calls[-20:] == ["taken" if fails else "replayed"] * 20
    assert gpu.calls.count("recorded") == (count < 16)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_a_step_is_recorded_with_convolutions_that_add_up_in_order(gpu, monkeypatch, before, fails):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", before)
    seen = []

    def step():
        seen.append(torch.backends.cudnn.deterministic)
        if fails and len(seen) == 3:
            raise ValueError

    with pytest.raises(ValueError) if fails else nullcontext():
        on_a_gpu(step).take(20)
    assert set(seen) == {True} and torch.backends.cudnn.deterministic is before


def test_a_step_is_recorded_in_the_threads_own_queue_but_never_in_the_devices_first(gpu):
    mine = gpu.queue
    on_a_gpu(lambda: None).take(20)
    gpu.queue = gpu.first
    on_a_gpu(lambda: None).take(20)
    assert gpu.queues[0] is mine and gpu.queues[1] not in (mine, gpu.first)


def test_a_step_is_compiled_once_for_all_that_share_it_and_each_writes_its_own_tensors(gpu, monkeypatch):
    made, programs, counters = [], {}, [torch.zeros(1), torch.zeros(1)]

    def compiled(step, tensors):
        made.append(1)
        return replay.traced(step, tensors)

    monkeypatch.setattr(replay, "compiled", compiled)
    for counter in counters:
        on_a_gpu(lambda counter=counter: counter.add_(1), [counter], programs).take(30)
        assert counter.item() == 0 and gpu.calls.count("replayed") == 30  # what it took to get there is undone
        gpu.calls.clear()
    assert len(made) == 1 and programs["step"] is not None


def test_a_step_that_no_compiler_takes_is_taken_as_it_is(gpu, monkeypatch):
    programs, counter = {}, torch.zeros(1)

    def compiled(step, _):
        step()
        raise AssertionError("no compiler")

    monkeypatch.setattr(replay, "compiled", compiled)
    on_a_gpu(lambda: counter.add_(1), [counter], programs).take(30)
    assert programs == {"step": None} and counter.item() == 0 and gpu.calls.count("replayed") == 30
