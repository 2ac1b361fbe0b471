"""A client that answers at once: a SuperExec that has imported everything forks for each message.

Flower's SuperExec starts the program `flwr-clientapp` for each message, which takes seconds to import Flower and torch.
Flower keeps no warm process for it (docs/decisions/flower.md), but lets a SuperExec be started beside the SuperNode
(`--isolation process`).  This one is Flower's own program in a process that has imported all that a message needs:
where it would start `flwr-clientapp`, it forks, and the fork runs that program.

Forks share no noise: nothing that draws is loaded here, and privacy noise comes from the operating system.

A fork runs the app that is installed here, whatever the server sent: who has the server, or reaches its port, can ask
this site for what its policy allows, and cannot have it run a program.  Flower's other programs are not started at all.
"""

import contextlib
import gc
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

PROGRAM = "flwr-clientapp"
SUPPORTED = sys.platform == "linux"  # elsewhere a fork of a process with threads is not safe
_IMPORTED = ("scipy.sparse", "constriction", "prismfl.engines.flower.client")  # what is imported late, and the app
_start = subprocess.Popen


def superexec(port: int) -> list[str]:
    """The command of a SuperExec for the SuperNode that listens on `port` of this machine."""
    return [sys.executable, "-m", __name__, "--insecure", "--runtime-api-address", f"127.0.0.1:{port}"]


def main() -> None:
    """Import everything, and be Flower's SuperExec with a fork for each message."""
    run = program("flower-superexec")
    answer = program(PROGRAM)
    for name in _IMPORTED:
        import_module(name)
    gc.collect()
    gc.freeze()
    subprocess.Popen = forking(answer)  # type: ignore[misc, assignment]
    run()


def program(name: str) -> Callable[[], None]:
    """What one of Flower's commands calls."""
    (found,) = entry_points(group="console_scripts", name=name)
    run: Callable[[], None] = found.load()
    return run


def forking(answer: Callable[[], None]) -> Callable[..., Any]:
    """What starts programs in place of `subprocess.Popen`: `answer` in a fork for a message, and nothing else."""

    def answered(words: Sequence[str]) -> None:
        subprocess.Popen = _start  # type: ignore[misc]
        sys.argv = list(words)
        with pinned():
            answer()

    def start(args: Sequence[str], *more: Any, **options: Any) -> Any:
        if args[0] != PROGRAM:
            said = f"a program {args[0]!r} that the server asks for; this site runs {PROGRAM} alone"
            return _start([sys.executable, "-c", f"raise SystemExit({said!r})"], *more, **options)
        fork = multiprocessing.get_context("fork").Process(target=answered, args=(args,), daemon=True)
        fork.start()  # which also forgets forks that have ended
        return fork

    return start


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """Flower's program runs the installed app in place of the one that came with the run, which is not unpacked."""
    from flwr.supernode.runtime import run_clientapp as runtime

    def load(**_: Any) -> Callable[..., Any]:
        return lambda *_: installed()

    patched = {"install_from_fab": lambda *_, **__: None, "get_load_client_app_fn": load}
    before = {name: getattr(runtime, name) for name in patched}
    vars(runtime).update(patched)
    try:
        yield
    finally:
        vars(runtime).update(before)


def installed() -> Any:
    """The app of this installation; of the file that `PRISMFL_CLIENT_APP` names here, for tests of faults."""
    if path := os.environ.get("PRISMFL_CLIENT_APP"):
        return runpy.run_path(path)["app"]
    return import_module("prismfl.engines.flower.client").app


if __name__ == "__main__":
    main()
