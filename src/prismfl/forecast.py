"""What a run will take, before it is run: minutes, bytes and memory."""

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from prismfl.config import Settings
from prismfl.federation import broadcast, client_update, init
from prismfl.mmd import Target
from prismfl.preparation import Prepared

_TRIAL_IMAGES, _TRIAL_STEPS = 200, 3
_SPARE = 1.25  # of memory: what the rounds take beyond the trial


@dataclass(frozen=True)
class Forecast:
    """Minutes are measured on this machine; bytes are exact for the whole run; memory is in MB.

    moment_dimension: the entries of a client's target, D a label; images a client: fewest and most.
    """

    minutes: float
    uplink_bytes: int
    downlink_bytes: int
    memory_mb: float
    parameters: int
    moment_dimension: int
    images_per_client: tuple[int, int]


def forecast(ready: Prepared, workers: int) -> Forecast:
    """Run one client's first round, timed after a warm-up, and count its frames' bytes."""
    settings, count = ready.agreement.settings, ready.agreement.layout.count
    frames = broadcast(ready.agreement, init(ready.agreement))
    with _threads(settings.search.client_threads):
        moments_seconds, target = _timed_target(ready)
        step_seconds, update_bytes = _timed_update(ready, frames, target)
    searches, sizes = len(frames) * settings.federation.rounds, [len(part) for part in ready.clients]
    work = step_seconds * settings.search.local_steps * searches + moments_seconds * sum(sizes)
    return Forecast(
        work / min(workers, len(frames)) / 60,
        update_bytes * searches,
        sum(map(len, frames.values())) * settings.federation.rounds,
        _peak_mb() * _SPARE,
        count,
        len(target.moments),
        (min(sizes), max(sizes)),
    )


def _timed_target(ready: Prepared) -> tuple[float, Target]:
    """Seconds an image of a client's moments, and such moments."""
    trial = ready.clients[0].part(np.arange(min(_TRIAL_IMAGES, len(ready.clients[0]))))
    classes = ready.agreement.layout.classes
    ready.kit.features.target(trial.images, trial.labels, classes)
    begun = time.perf_counter()
    target = ready.kit.features.target(trial.images, trial.labels, classes)
    return (time.perf_counter() - begun) / len(trial), target


def _timed_update(ready: Prepared, frames: Mapping[int, bytes], target: Target) -> tuple[float, int]:
    """Seconds a local step, and the bytes of an update."""
    client, frame = next(iter(frames.items()))
    trial = replace(ready.agreement, settings=_shortened(ready.agreement.settings))
    client_update(trial, ready.kit, frame, 0, client, target)
    begun = time.perf_counter()
    reply, _ = client_update(trial, ready.kit, frame, 0, client, target)
    return (time.perf_counter() - begun) / trial.settings.search.local_steps, len(reply)


def _shortened(settings: Settings) -> Settings:
    return replace(
        settings, search=replace(settings.search, local_steps=min(_TRIAL_STEPS, settings.search.local_steps))
    )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _peak_mb() -> float:
    """Largest resident memory of this process so far, MB (Linux counts KB, macOS bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
