"""Clients that all search for the moments of all images: what targets of their own are compared with.

A row of `run.py` whose `[row]` has `pooled = true` is run like this; all else is that of other rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from prismfl.engines.simulator import InProcess
from prismfl.federation.one_shot import pool
from prismfl.moments import Target


@contextmanager
def pooled_targets() -> Iterator[None]:
    """Inside, every simulated client has the mean of all clients' targets."""
    own, found = InProcess.target, dict[int, Target]()

    def shared(engine: InProcess, _: int) -> Target:
        # An engine for its whole run; threads that find nothing there yet all find the same.
        if id(engine) not in found:
            found[id(engine)] = pool([own(engine, one) for one in range(len(engine.clients))])
        return found[id(engine)]

    with patch.object(InProcess, "target", shared):
        yield
