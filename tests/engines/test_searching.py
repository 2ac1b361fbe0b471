"""Searches in processes of their own: the same bytes, whatever becomes of the processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from prismfl.engines import processes as process_room
from prismfl.engines.processes import SearchProcesses, processes_of
from prismfl.engines.simulator import train
from prismfl.run.folder import read_rounds
from prismfl.run.prepare import prepare
from prismfl.search import local_search
from prismfl.seeding.device import Tape
from prismfl.seeding.philox import Purpose, Stream
from prismfl.settings.resolve import plan_of
from prismfl.settings.toml import settings_from

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals")


@pytest.fixture(scope="module")
def world(tiny, blobs):
    ready = prepare(tiny(), blobs)
    target = ready.kit.features.target(ready.clients[0].images, ready.clients[0].labels, 0)
    return ready, target


@pytest.fixture
def processes(world):
    ready, _ = world
    found = SearchProcesses(ready.agreement.layout, ready.kit, 1, 2)
    yield found
    found.close(now=True)


def asked(world):
    """What a search is asked: θ, target, settings, rate, draws, memory."""
    ready, target = world
    q = np.full(ready.agreement.layout.count, 32768, np.uint16)
    return q, target, plan_of(ready.agreement.settings), 0.5, Tape(Stream(0, Purpose.SEARCH, 1, 2)), None


def begun_with(world):
    ready, _ = world
    return ready.agreement.layout, ready.kit.weights, ready.kit.features


class Refusing:
    """An executor where processes cannot share anything."""

    def __init__(self, *_args, **_more):
        raise OSError(38, "Function not implemented")


def same(one, other):
    return one.q.tobytes() == other.q.tobytes() and one.loss == other.loss and one.memory.steps == other.memory.steps


def pids(processes):
    return {processes.pool.submit(os.getpid).result() for _ in range(20)}


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def gone(numbers, seconds=60):
    """Whether processes have ended within some time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(alive(pid) for pid in numbers):
        time.sleep(0.05)
    return not any(alive(pid) for pid in numbers)


def test_a_process_finds_what_a_thread_finds(world, processes):
    q, *rest = asked(world)
    here = local_search(*begun_with(world), q, *rest)
    there = processes.search(*begun_with(world), q, *asked(world)[1:])
    assert same(here, there)
    assert os.getpid() not in pids(processes)
    # What a client keeps goes there and comes back.
    again = [
        search(*begun_with(world), q, *asked(world)[1:-1], here.memory) for search in (local_search, processes.search)
    ]
    assert same(*again) and not same(again[0], here)


@posix
def test_what_ends_a_process_does_not_end_the_search(world, processes, caplog):
    first = processes.search(*begun_with(world), *asked(world))
    for pid in pids(processes):
        os.kill(pid, signal.SIGKILL)
    for _ in range(2):
        assert same(first, processes.search(*begun_with(world), *asked(world)))
    assert ["has died" in record.message for record in caplog.records] == [True]


def test_where_no_process_can_be_started_threads_search(world, monkeypatch, caplog):
    ready, _ = world
    monkeypatch.setattr("prismfl.engines.processes.ProcessPoolExecutor", Refusing)
    found = SearchProcesses(ready.agreement.layout, ready.kit, 1, 2)
    here = local_search(*begun_with(world), *asked(world))
    assert same(here, found.search(*begun_with(world), *asked(world)))
    found.close()
    assert ["no processes" in record.message for record in caplog.records] == [True]


def test_what_goes_wrong_in_a_process_is_told(world, processes):
    q, target, *rest = asked(world)
    with pytest.raises(RuntimeError, match="size"):
        processes.search(*begun_with(world), q, replace(target, moments=target.moments[:-1]), *rest)


@posix
def test_an_interrupted_run_leaves_no_process(world, processes):
    numbers, ends = pids(processes), []

    def search():
        try:
            processes.search(*begun_with(world), *asked(world, local_steps=10**6))
        except Exception as error:
            ends.append(error)

    thread = threading.Thread(target=search)
    thread.start()
    time.sleep(0.5)
    processes.close(now=True)
    thread.join(20)
    assert len(ends) == 1 and not thread.is_alive()
    assert gone(numbers)


@posix
@pytest.mark.parametrize("ready", [True, False])
def test_processes_end_with_a_parent_that_is_killed(ready):
    """Whether they search already or are still beginning."""
    code = f"""
import os, time
from prismfl.engines import processes as process_room
from prismfl.engines.processes import SearchProcesses
from prismfl.features.networks import load_features
from types import SimpleNamespace
import torch
if __name__ == "__main__":
    found = SearchProcesses(None, SimpleNamespace(weights=torch.zeros(1), features=None), 1, 2)
    if {ready}:
        found.pool.submit(os.getpid).result()
    print(*found.pool._processes, flush=True)
    time.sleep(100)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    numbers = [int(word) for word in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    assert len(numbers) == 2 and gone(numbers)


@pytest.mark.parametrize(
    ("running", "federation", "wanted"),
    [
        ({}, {}, 4),
        ({}, {"rounds": 1}, 0),
        ({"device": "cuda"}, {}, 0),
        ({}, {"cohort": 2}, 2),
        ({}, {"cohort": 1}, 0),
        ({}, {"mode": "one-shot"}, 0),
    ],
    ids=str,
)
def test_long_runs_on_processors_search_in_processes(running, federation, wanted):
    changes = {"running": running, "federation": {"rounds": 100, **federation}, "search": {"local_steps": 25}}
    assert processes_of(settings_from({"data": {"dataset": "digits"}, **changes}), 4) == wanted


def test_processes_change_no_byte_of_a_run(tiny, blobs, tmp_path, monkeypatch):
    runs = []
    for name, worth in (("off", 2_000), ("on", 1)):
        monkeypatch.setattr(process_room, "_WORTH_STARTING", worth)
        runs.append(train(tiny(running={"workers": 2}), blobs, out=tmp_path / name).folder)
    one, two = (folder.model.read_bytes() for folder in runs)
    assert one == two
    lines = [[{**line, "seconds": 0} for line in read_rounds(folder)] for folder in runs]
    assert lines[0] == lines[1]
