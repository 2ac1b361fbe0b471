"""The simulator: every client in this process, its bytes carried as a deployment would."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prismfl.data.datasets import ImageSet
from prismfl.engines.caches import KeptThetas
from prismfl.engines.clientdisk import ClientDisk, releases_of
from prismfl.engines.processes import SearchProcesses, processes_of
from prismfl.engines.sums import answer_sum, simulated_members
from prismfl.errors import ClientError, PrismError
from prismfl.federation.agreement import Agreement, Exchange, Reply
from prismfl.federation.client import Answer, ClientKit, client_distances, client_update
from prismfl.federation.handed import is_target, taken, wanted
from prismfl.moments import Target
from prismfl.run import folder as runfolder
from prismfl.run import loop
from prismfl.run.environment import cores
from prismfl.run.folder import RunFolder
from prismfl.run.loop import Finished, Silent, Watcher
from prismfl.run.prepare import Prepared, as_array, for_arrays, prepare
from prismfl.search import Memory
from prismfl.settings.schema import Settings
from prismfl.sums.server import Enough

_ON_A_GPU = 6  # workers at most: more gain nothing (docs/research/speed.md)
_MOST_COUNTS = 100_000  # of labels at clients, in the run folder
_MOST_TARGETS, _MOST_THETAS = 2**29, 2**28  # bytes in memory, of all clients together

# A client's part: (client, frame) → reply frame.
Worker = Callable[[int, bytes], bytes]


def workers_of(settings: Settings) -> int:
    """Clients searched at a time: one a core, and a few on a GPU, which one alone leaves partly idle.

    There in turns of as many each, for a last turn of few would again.
    """
    if settings.running.workers:
        return settings.running.workers
    most = max(1, cores() // settings.running.threads)
    if settings.running.device == "cpu":
        return most
    most = min(most, _ON_A_GPU)
    clients = settings.federation.cohort or settings.data.clients or most
    return -(-clients // -(-clients // most))


def begin_worker(threads: int, device: torch.device) -> None:
    """A worker's processor threads, and on a GPU a queue of its own: what others do there it need not wait for."""
    torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream(device))


class InProcess:
    """An engine whose clients are threads of this process, which may leave their searches to others.

    A client keeps θ in memory alone: when the simulator is resumed, its clients ask for a snapshot.
    What it keeps between runs lies on its disk.  Memory does not grow with the number of clients: see
    `engines/caches.py`.
    Each client's search runs on `client_threads` processor threads, whatever the number of
    clients searched at a time: the bytes do not depend on `workers`.
    """

    attempts = 1  # what fails here fails again

    def __init__(self, agreement: Agreement, kit: ClientKit, clients: Sequence[ImageSet], folder: RunFolder) -> None:
        self.agreement, self.kit, self.clients, self.folder = agreement, kit, clients, folder
        threads = agreement.settings.running.threads
        workers = workers_of(agreement.settings)
        device = kit.weights.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the workers read what was put there
        self.pool = ThreadPoolExecutor(workers, initializer=begin_worker, initargs=(threads, device))
        count = processes_of(agreement.settings, workers)
        self.searches = SearchProcesses(agreement.layout, kit, threads, count) if count else None
        if self.searches:
            self.kit = replace(kit, search=self.searches.search)
        self.disk = disk = ClientDisk(agreement, kit, folder, releases_of(agreement, kit, clients, folder))
        size = 4 * max(1, agreement.layout.classes) * kit.features.dimension  # bytes a target
        kept = lru_cache(max(1, _MOST_TARGETS // size))  # those used last; all are on disk, to be read again
        self.targets = kept(lambda client: disk.target(client, clients[client]))
        self.held = KeptThetas(_MOST_THETAS)
        self.memories: dict[int, Memory | None] = {}
        self.handed: dict[int, Target] = {}  # pooled targets, where the server hands them out

    def train(self, round_index: int) -> Exchange:
        """Carry a round's broadcasts to the clients and yield their updates as they come."""

        def one(client: int, frame: bytes) -> bytes:
            if self.agreement.pooled and (reply := self._handed(client, frame, round_index)) is not None:
                return reply
            memory, target, held = self.disk.recall(client, round_index), self.target(client), self.held.get(client)
            answer = client_update(self.agreement, self.kit, frame, round_index, client, target, memory, held)
            return self._remembered(client, answer)

        return lambda frames: self._carry(one, frames)

    def _handed(self, client: int, frame: bytes, round_index: int) -> bytes | None:
        """The reply of a client that is handed the pooled target, or has none yet."""
        place = self.agreement.place(round_index, client)
        if is_target(frame):
            target, reply = taken(self.agreement, self.kit.features.dimension, frame, place)
            # One in memory for all that were handed the same.
            same = (held for held in list(self.handed.values()) if np.array_equal(held.moments, target.moments))
            self.handed[client] = next(same, target)
            return reply
        return wanted(place) if client not in self.handed else None

    def _remembered(self, client: int, answer: Answer) -> bytes:
        """A client's reply, once what it keeps for its next round is kept."""
        self.memories[client] = answer.memory
        if answer.held is not None:
            self.held.put(client, answer.held)
        return answer.frame

    def sum(self, round_index: int, enough: Enough) -> Exchange:  # noqa: ARG002 - nobody is absent here
        """Carry messages of a secure sum to the clients and yield their answers."""
        members = simulated_members(self.folder, len(self.clients))

        def one(client: int, frame: bytes) -> bytes:
            found = answer_sum(
                self.disk,
                members[client],
                client,
                frame,
                round_index,
                lambda: self.clients[client],
                lambda: self.target(client),
                self.held.get(client),
            )
            if found.held is not None:
                self.held.put(client, found.held)  # Adam's memory is on the disk already
            return found.frame

        return lambda frames: self._carry(one, frames)

    def compare(self) -> Exchange:
        """Carry the final θ to the clients and yield their distances."""

        def one(client: int, frame: bytes) -> bytes:
            target, held = self.target(client), self.held.get(client)
            return client_distances(self.agreement, self.kit, frame, client, target, held)

        return lambda frames: self._carry(one, frames)

    def keep(self, round_index: int, clients: Iterable[int]) -> None:
        """Write the memories of a round's clients, where Adam is kept between rounds."""
        # Side by side: at the paper's sizes a client's are 28 MB.
        list(self.pool.map(lambda client: self.disk.remember(client, round_index, self.memories.get(client)), clients))
        self.memories.clear()

    def close(self, *, now: bool = False) -> None:
        """Let the threads and processes go; `now`: searches that are under way as well."""
        if self.searches:
            self.searches.close(now=now)
        self.pool.shutdown(cancel_futures=True)

    def _carry(self, one: Worker, frames: Mapping[int, bytes]) -> Iterator[tuple[int, Reply]]:
        """Frames to clients, in their order; replies as they come."""
        futures = {self.pool.submit(one, client, frame): client for client, frame in frames.items()}
        try:
            for future in as_completed(futures):
                yield futures[future], _outcome(futures[future], future)
        finally:
            for future in futures:
                future.cancel()
            if self.agreement.settings.privacy.epsilon:
                runfolder.gather_ledger(self.folder)

    def target(self, client: int) -> Target:
        """What the client searches towards: its moments, from its disk unless they were used lately."""
        if self.agreement.pooled:
            return self.handed[client]
        return self.targets(client)


def _outcome(client: int, future: Future[bytes]) -> Reply:
    """What a client's part gave; whatever went wrong inside a client stays that client's, as an error."""
    try:
        return future.result()
    except PrismError as error:
        return error
    except Exception as error:
        return ClientError(
            f"client {client} failed ({type(error).__name__}: {error})", "an update", "look at its data and machine"
        )


# -------------------------------------------------------------------------------- entry points


def train(
    settings: Settings,
    images: NDArray[np.uint8] | None = None,
    labels: NDArray[np.int64] | None = None,
    *,
    out: str | Path,
    watcher: Watcher | None = None,
) -> Finished:
    """Train with simulated clients in this process; the command `prismfl train` from Python.

    Args:
        settings: what is asked for; what it leaves open follows from the images.
        images: uint8 `[N, C, H, W]` of 1 or 3 channels, an array or a torch tensor, dealt to the clients; every tenth
            is kept for measuring.  None loads the settings' data set.
        labels: int64 `[N]`; with them the generator takes a label.
        out: a new or empty folder for the run.
        watcher: is told how the run goes.

    Returns:
        The run's folder, whose `model` is the finished model's file, and its closing figures.

    Raises:
        SettingError, DataError, PrivacyError, ModelFileError: before anything is trained.
        ClientError: when fewer clients reply than `running.least_cohort`.
        RunFolderError: for a folder that is not empty or cannot be written.

    Examples:
        >>> import numpy as np, prismfl, tempfile
        >>> images = np.random.default_rng(0).integers(0, 256, (40, 1, 16, 16), np.uint8)
        >>> asked = {"data": {"clients": 2, "partition": "iid"}, "generator": {"width": 2}}
        >>> asked |= {"federation": {"rounds": 1, "finished_mask": "half"}, "running": {"distance_samples": 0}}
        >>> asked |= {"search": {"local_steps": 1, "batch_size": 4}}
        >>> with tempfile.TemporaryDirectory() as root:
        ...     finished = prismfl.train(prismfl.settings_from(asked), images, out=f"{root}/run")
        ...     samples = prismfl.load(finished.folder.model).sample(8, seed=0)
        >>> samples.shape, samples.dtype
        ((8, 1, 16, 16), dtype('uint8'))
        >>> finished.summary["rounds"], finished.summary["parameters"]
        (1, 8790)
    """
    if images is not None:
        images = as_array(images)
        settings = for_arrays(settings, images)
    runfolder.check_new(Path(out))  # before all images are read
    ready = prepare(settings, images, labels)
    folder = runfolder.create(Path(out), settings)
    runfolder.record(folder, settings, ready.agreement)
    _record_labels(ready, folder)
    return _run(ready, folder, watcher)


def resume(
    root: str | Path,
    images: NDArray[np.uint8] | None = None,
    labels: NDArray[np.int64] | None = None,
    *,
    watcher: Watcher | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Finished:
    """Finish the run in a run folder; its model has the same bytes as an uninterrupted run's.

    Args:
        root: the folder.
        images: those that the run began with, where it began with arrays.
        labels: those that the run began with, where it began with arrays.
        watcher: is told how the run goes.
        changes: settings of the section `running`, and `data_dir` or `features` where files have moved.

    Returns:
        As `train`.

    Raises:
        RunFolderError: for a folder that holds no run, or whose settings and data make another run.
        ModelFileError: for another feature network than the run began with.
        SettingError: for changes that would make another run.

    Examples:
        >>> import numpy as np, prismfl, tempfile
        >>> from prismfl.run.loop import Silent
        >>> class Stop(Silent):
        ...     def round_done(self, record, rounds):
        ...         raise KeyboardInterrupt
        >>> images = np.zeros((40, 1, 16, 16), np.uint8)
        >>> asked = {"data": {"clients": 2, "partition": "iid"}, "generator": {"width": 2}}
        >>> asked |= {"federation": {"rounds": 2, "finished_mask": "half"}, "running": {"distance_samples": 0}}
        >>> asked |= {"search": {"local_steps": 1, "batch_size": 4}}
        >>> with tempfile.TemporaryDirectory() as root:
        ...     try:
        ...         prismfl.train(prismfl.settings_from(asked), images, out=f"{root}/run", watcher=Stop())
        ...     except KeyboardInterrupt:
        ...         finished = prismfl.resume(f"{root}/run", images)
        >>> finished.summary["rounds"]
        2
    """
    folder, settings = runfolder.reopen(Path(root), changes or {})
    ready = prepare(settings, images, labels)
    runfolder.record(folder, settings, ready.agreement)
    return _run(ready, folder, watcher)


def _run(ready: Prepared, folder: RunFolder, watcher: Watcher | None) -> Finished:
    with runfolder.alone_in(folder):
        return _run_alone(ready, folder, watcher)


def _run_alone(ready: Prepared, folder: RunFolder, watcher: Watcher | None) -> Finished:
    watcher = watcher or Silent()
    runfolder.save_description(folder, ready.described)
    for line in (ready.described.line(), *ready.warnings):
        watcher.note(line)
    engine = InProcess(ready.agreement, ready.kit, ready.clients, folder)
    try:
        finished = loop.run(ready.agreement, engine, folder, watcher, ready.test, ready.kit)
    except BaseException:
        engine.close(now=True)
        raise
    engine.close()
    if engine.disk.releases:
        watcher.note(engine.disk.releases.source.summary())
    return finished


def _record_labels(ready: Prepared, folder: RunFolder) -> None:
    """How many images of each label, and persons, each client has: a simulator's knowledge, written only without ε.

    With ε set these counts would be outside the guarantee; of very many clients they would fill a disk.
    """
    classes = ready.clients[0].classes
    if ready.agreement.settings.privacy.epsilon or len(ready.clients) * len(classes) > _MOST_COUNTS:
        return
    counts = [np.bincount(mine.labels, minlength=len(classes)).tolist() for mine in ready.clients]
    people = [len(np.unique(mine.people)) for mine in ready.clients if mine.people is not None]
    runfolder.save_labels(folder, classes, counts, people)
