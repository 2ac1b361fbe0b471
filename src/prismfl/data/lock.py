"""One process at a time: locks on run folders, ledgers and stores, let go when their process ends, however it ends."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from prismfl.data.files import make_folder
from prismfl.errors import RunFolderError


@contextlib.contextmanager
def alone(lock: Path, what: str, patience: float = 0.0) -> Iterator[None]:
    """Hold a lock file; what else asks for it, in this process or another, waits or is refused.

    Args:
        lock: the lock file; it stays behind, and says nothing once nobody holds it.
        what: what it guards, in an error.
        patience: seconds to wait for whoever holds it.

    Raises:
        RunFolderError: "in use by process N since …", or where the file cannot be made.
    """
    try:
        make_folder(lock.parent)
        guard = FileLock(lock, mode=0o600, thread_local=False)
        guard.acquire(timeout=patience, poll_interval=0.02)
    except Timeout:
        raise RunFolderError(
            f"{what} in use by {_holder(lock)}", "one process at a time", "wait for it to end, or stop it"
        ) from None
    except OSError as error:
        raise RunFolderError(
            f"cannot lock {what} ({error.strerror or error})", "a writable place", "check its folder"
        ) from None
    try:
        _sign(lock)
        yield
    finally:
        guard.release()


def is_held(lock: Path) -> bool:
    """Whether somebody holds a lock file now."""
    if not lock.exists():
        return False
    try:
        with alone(lock, "it"):
            return False
    except RunFolderError:
        return True


def _sign(lock: Path) -> None:
    # Where a held file cannot be written again, as on Windows, an error just names nobody.
    with contextlib.suppress(OSError):
        lock.write_text(f"process {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n", encoding="ascii")


def _holder(lock: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if said := lock.read_text(encoding="ascii").strip():
            return said
    return "another process"
