"""A client that answers at once: a process that has imported everything forks for each message.

A SuperNode starts the program `flwr-clientapp` for each message, which takes seconds to import Flower and torch.  In
front of its PATH lies a small program of that name, which hands its arguments to a process that imported all of it
beforehand; a fork of that runs Flower's own `flwr-clientapp`.  Where nobody answers, the small program runs Flower's.

Forks share no noise: nothing that draws is loaded here, and privacy noise comes from the operating system.
"""

import contextlib
import gc
import os
import shlex
import socket
import sys
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

from prismfl.data.files import write_atomic

PROGRAM = "flwr-clientapp"
SUPPORTED = sys.platform == "linux"  # elsewhere a fork of a process with threads is not safe
_IMPORTED = (
    "torch",
    "scipy.sparse",
    "constriction",
    "prismfl.engines.flower.client",
    "prismfl.engines.clientdisk",
    "prismfl.federation.round",
    "prismfl.run.prepare",
)
_ACK = b"1"
_WAIT = 60.0  # seconds that the process may be busy with another message
_MOST = 2**16  # bytes of arguments
_HAND_OVER = """
import os, socket, sys
try:
    with socket.socket(socket.AF_UNIX) as door:
        door.settimeout({wait})
        door.connect({door!r})
        door.sendall("\\0".join(sys.argv[1:]).encode())
        door.shutdown(socket.SHUT_WR)
        taken = door.recv(1) == {ack!r}
except OSError:
    taken = False
if not taken:
    os.execv({real!r}, [{real!r}, *sys.argv[1:]])
"""


def furnish(folder: Path, real: str) -> list[str]:
    """Write the small program into `folder`, and return the command of the process that it hands over to.

    real: path of Flower's own program.  The folder must be short enough to hold a socket, and nobody else's.
    """
    door = str(folder / "door")
    write_atomic(folder / "hand_over.py", _HAND_OVER.format(wait=_WAIT, door=door, ack=_ACK, real=real))
    words = [sys.executable, "-I", "-S", str(folder / "hand_over.py")]
    write_atomic(folder / PROGRAM, f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    (folder / PROGRAM).chmod(0o700)
    return [sys.executable, "-m", __name__, door]


def main() -> None:
    """Import everything, and be Flower's program in a fork for each message."""
    (program,) = entry_points(group="console_scripts", name=PROGRAM)
    run = program.load()
    for name in _IMPORTED:
        import_module(name)
    gc.collect()
    gc.freeze()
    sys.argv = [PROGRAM, *forked(sys.argv[1])]
    run()


def forked(door: str) -> list[str]:
    """Arguments of one message, in a fork of its own; the process itself stays here for the next."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{door}.new")
        listener.listen(16)
        Path(f"{door}.new").rename(door)  # who finds it is heard
        while True:
            with listener.accept()[0] as guest:
                guest.settimeout(_WAIT)
                words = _heard(guest)
                if words is not None and os.fork() == 0:
                    return words
                if words is not None:
                    with contextlib.suppress(OSError):
                        guest.sendall(_ACK)
            _reap()


def _heard(guest: socket.socket) -> list[str] | None:
    """What a guest says, or None if it does not say it whole."""
    said = b""
    try:
        while part := guest.recv(4096):
            said += part
            if len(said) > _MOST:
                return None
        return said.decode().split("\0")
    except (OSError, UnicodeDecodeError):
        return None


def _reap() -> None:
    """Forget forks that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    main()
