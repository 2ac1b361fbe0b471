"""Searches in processes of their own: in one process they would wait for each other's interpreter."""

import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
import time
import warnings
from concurrent.futures import BrokenExecutor
from typing import Any

import numpy as np
import torch
from joblib.externals.loky import ProcessPoolExecutor
from numpy.typing import NDArray
from torch import Tensor

from prismfl.federation.client import ClientKit
from prismfl.generator.layout import Layout
from prismfl.moments import FeatureMap
from prismfl.search import SearchResult, local_search
from prismfl.settings.schema import Settings

# glibc's numbers for mallopt.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3

_WORTH_STARTING = 2_000  # steps of a run in which what starting processes takes is gained back (docs/research/speed.md)

_log = logging.getLogger(__name__)


def processes_of(settings: Settings, workers: int) -> int:
    """Processes that a run's searches take turns in; 0 where they stay in this one's threads."""
    federation, search = settings.federation, settings.search
    clients = federation.cohort or settings.data.clients
    count = min(workers, clients)
    able = settings.running.device == "cpu" and federation.mode == "masks" and count > 1
    steps = federation.rounds * clients * search.local_steps
    return count if able and steps >= _WORTH_STARTING else 0


class SearchProcesses:
    """`local_search` of one run's clients, each in one of some processes: what it finds there is the same.

    A thread that asks waits without holding the interpreter, so that searches do not slow each other down.
    """

    def __init__(self, layout: Layout, kit: ClientKit, threads: int, count: int) -> None:
        self.pool: ProcessPoolExecutor | None = None
        world = layout, kit.weights.numpy(), kit.features, threads, os.getpid()
        try:
            self.pool = ProcessPoolExecutor(count, initializer=_begin, initargs=world)
            self.pool.submit(os.getpid)  # they begin now, while the first round is prepared
        except (OSError, ImportError, AssertionError) as error:  # no semaphores here, or no children for a daemon
            self.pool = None
            _log.warning("no processes to search in (%s: %s); threads do it", type(error).__name__, error)

    def search(self, layout: Layout, weights: Tensor, features: FeatureMap, *asked: Any) -> SearchResult:
        """`local_search`, of the layout, weights and features that the processes began with; takes what that takes."""
        if (pool := self.pool) is not None:  # another thread may give it up meanwhile
            try:
                found: SearchResult = pool.submit(_searched, *asked).result()
                return found
            except BrokenExecutor as error:  # by something else than us
                if self.pool is not None:
                    _log.warning(
                        "a process that searched has died (%s); going on without them, and more slowly: "
                        "if memory ran out, set running.workers lower",
                        type(error).__name__,
                    )
                self.pool = None
        return local_search(layout, weights, features, *asked)

    def close(self, *, now: bool = False) -> None:
        """Let the processes go; `now`: whatever they are at."""
        if self.pool is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it found no `pgrep`
                self.pool.shutdown(kill_workers=now)


_world: tuple[Layout, Tensor, FeatureMap]  # of the run that this process searches for


def _begin(layout: Layout, weights: NDArray[np.float32], features: FeatureMap, threads: int, parent: int) -> None:
    """Ready a process: an interrupt is the parent's to answer, which then ends this one."""
    global _world  # a process serves one run
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    keep_freed_memory()
    torch.set_num_threads(threads)
    _world = layout, torch.from_numpy(weights), features


def _leave_with(parent: int) -> None:
    """End this process once its parent has ended, however and how early that was."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _searched(*asked: Any) -> SearchResult:
    return local_search(*_world, *asked)


def keep_freed_memory() -> None:
    """Have glibc keep freed blocks: each step frees and asks for the same large tensors again.

    Giving them back to the system and faulting them in anew took a third of a step.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(_MMAP_THRESHOLD, 1 << 30)
            libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
