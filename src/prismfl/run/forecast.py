"""What a run will take, before it is run: minutes, bytes and memory."""

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from prismfl.federation.agreement import Agreement, Reply, cohort, init
from prismfl.federation.client import seal_found, seal_target
from prismfl.federation.round import server_update
from prismfl.federation.secure_sum import MaskSums
from prismfl.moments import Target
from prismfl.privacy.pooled import plan, width_of
from prismfl.privacy.release import grid_of
from prismfl.run.prepare import Prepared
from prismfl.search import local_search, processor_threads, rate_at
from prismfl.seeding.device import Tape
from prismfl.seeding.philox import Purpose, Stream
from prismfl.settings.resolve import plan_of
from prismfl.sums.rules import usual
from prismfl.wire import frames as message

_TRIAL_IMAGES, _TRIAL_STEPS = 200, 50
_TRIAL_CLIENTS = 16  # whose masks are coded
_A_PAIR = 220, 450  # bytes up and down that two clients of a secure sum have to do with each other
_SPARE = 1.25  # of memory: what the rounds take beyond the trial


@dataclass(frozen=True)
class Forecast:
    """Minutes are measured on this machine; bytes are of the whole run; memory is in MB.

    Bytes are an estimate, from one client's first search: they shrink as the learning rate falls and
    θ settles; memory counts each process that searches as much as this one.  moment_dimension: the
    entries of a client's target, D a label; images a client: fewest and most.
    """

    minutes: float
    uplink_bytes: int
    downlink_bytes: int
    memory_mb: float
    parameters: int
    moment_dimension: int
    images_per_client: tuple[int, int]


def forecast(ready: Prepared, workers: int, processes: int = 0) -> Forecast:
    """Search as one client of the first round would, timed after a warm-up, and code masks that moved as far.

    workers: clients at a time; processes: that search for them, beside this one.
    """
    settings = ready.agreement.settings
    with processor_threads(settings.running.threads):
        moments_seconds, target = _timed_target(ready)
        step_seconds, moved = _timed_search(ready, target)
    members, alone = len(cohort(ready.agreement, 0)), settings.federation.mode == "one-shot"
    sizes, together = [len(part) for part in ready.clients], min(workers, members)
    searching = step_seconds * settings.search.local_steps * settings.federation.rounds
    up, down = _bytes(ready, target, moved)
    return Forecast(
        (searching * (1 if alone else members / together) + moments_seconds * sum(sizes) / together) / 60,
        up,
        down,
        _peak_mb() * (_SPARE + processes),
        ready.agreement.layout.count,
        len(target.moments),
        (min(sizes), max(sizes)),
    )


def _bytes(ready: Prepared, target: Target, moved: NDArray[np.uint16]) -> tuple[int, int]:
    """Bytes up and down of a whole run."""
    agreement, federation = ready.agreement, ready.agreement.settings.federation
    once = federation.mode == "one-shot"
    of_rounds = (0, 0) if once else _bytes_of_masks(agreement, moved)
    if not federation.secure_sum:
        return _bytes_once(agreement, target) if once else of_rounds
    if once or agreement.pooled:
        up, down = _bytes_of_sum([_release_bytes(ready)] * len(ready.clients))
        handed = 0 if once else _bytes_once(agreement, target)[0]
        return of_rounds[0] + up, of_rounds[1] + down + handed
    sums = MaskSums(agreement, 0)
    up, down = _bytes_of_sum([sums.ring(group).size for group in sums.groups.values()])
    return federation.rounds * up, of_rounds[1] + federation.rounds * down


def _bytes_of_sum(vectors: Sequence[int]) -> tuple[int, int]:
    """Bytes up and down of a secure sum of packed vectors of these sizes."""
    up, down = (len(vectors) ** 2 * each for each in _A_PAIR)
    return sum(vectors) + up, down


def _release_bytes(ready: Prepared) -> int:
    """Bytes of a client's packed sums over its images."""
    agreement, sizes = ready.agreement, [part.units for part in ready.clients]
    grid, own = grid_of(ready.kit.features, agreement.layout.classes), 0
    if agreement.settings.privacy.epsilon:
        own = plan(grid, agreement.settings.privacy, sum(sizes), len(sizes), *usual(len(sizes)))[1]
    return grid.entries * width_of(sum(sizes), len(sizes), own)


def _bytes_of_masks(agreement: Agreement, moved: NDArray[np.uint16]) -> tuple[int, int]:
    """Bytes up and down of a whole run with masks."""
    settings, members, count = agreement.settings, len(cohort(agreement, 0)), agreement.layout.count
    up, step = _round_bytes(agreement, moved)
    rates = np.array([rate_at(settings, t) for t in range(settings.federation.rounds)]) / settings.search.learning_rate
    # A client hears the steps since it was last asked, or a snapshot.
    missed = settings.data.clients / members
    steps = missed * (step + count / 16 * math.log2(max(1, members / _TRIAL_CLIENTS)))
    heard = message.HEADER_BYTES + 26 + min(steps, 2 * count)
    return round(up * members * rates.sum()), round(heard * members * np.sqrt(rates[:-1]).sum())


def _bytes_once(agreement: Agreement, target: Target) -> tuple[int, int]:
    """Bytes up and down of a one-shot run, whose clients' moments take as much as these, or with ε as noise."""
    members = len(cohort(agreement, 0))
    if agreement.settings.privacy.epsilon:
        target = replace(target, moments=Stream(0, Purpose.SUBSETS).normals(len(target.moments)))
    return members * len(seal_target(agreement, agreement.place(0, 0), target)), members * message.HEADER_BYTES


def _timed_target(ready: Prepared) -> tuple[float, Target]:
    """Seconds an image of a client's moments, and such moments."""
    trial = ready.clients[0].part(np.arange(min(_TRIAL_IMAGES, len(ready.clients[0]))))
    classes = ready.agreement.layout.classes
    ready.kit.features.target(trial.images, trial.labels, classes)
    begun = time.perf_counter()
    target = ready.kit.features.target(trial.images, trial.labels, classes)
    return (time.perf_counter() - begun) / len(trial), target


def _timed_search(ready: Prepared, target: Target) -> tuple[float, NDArray[np.uint16]]:
    """Seconds a local step, and θ_k after a search, uint16 `[N]`."""
    agreement, plan = ready.agreement, plan_of(ready.agreement.settings, compiled=ready.kit.compiled)
    steps = min(_TRIAL_STEPS, plan.local_steps)
    for trial in (replace(plan, local_steps=1), replace(plan, local_steps=steps)):
        begun, kit, q = time.perf_counter(), ready.kit, init(agreement).q
        draws = Tape(Stream(agreement.settings.seed, Purpose.SEARCH), kit.weights.device)
        rate = agreement.settings.search.learning_rate
        found = local_search(agreement.layout, kit.weights, kit.features, q, target, trial, rate, draws)
    return (time.perf_counter() - begun) / steps, found.q


def _round_bytes(agreement: Agreement, moved: NDArray[np.uint16]) -> tuple[float, int]:
    """Bytes of a client's update and of the step that follows, if all move as far, each in its own direction."""
    state, sizes = init(agreement), list[int]()

    def exchange(frames: Mapping[int, bytes]) -> Iterator[tuple[int, Reply]]:
        for client, frame in list(frames.items())[:_TRIAL_CLIENTS]:
            place = agreement.place(0, client)
            told = message.open_broadcast(frame, place, len(state.q))
            reply = seal_found(agreement, place, told, state.q, _shuffled(agreement, moved, client))
            sizes.append(len(reply))
            yield client, reply

    after, _ = server_update(agreement, state, exchange)
    return float(np.mean(sizes)), len(after.steps[-1]) if after.steps else 2 * len(state.q)


def _shuffled(agreement: Agreement, moved: NDArray[np.uint16], client: int) -> NDArray[np.uint16]:
    """The same changes in each layer, at other entries that begin alike."""
    rng, begun, found = np.random.default_rng(client), init(agreement).q, moved.copy()
    for layer in agreement.layout.layers:
        for value in np.unique(begun[layer.span]):
            alike = layer.offset + np.flatnonzero(begun[layer.span] == value)
            found[alike] = moved[rng.permutation(alike)]
    return found


def _peak_mb() -> float:
    """Largest resident memory of this process so far, MB (Linux counts KB, macOS bytes); 0 where none is told."""
    try:
        import resource  # POSIX has it alone
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
