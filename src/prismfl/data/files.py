"""Files appear whole or not at all: written to a temporary name, synced, then renamed."""

import os
import threading
from collections.abc import Iterable
from pathlib import Path

from prismfl.errors import RunFolderError


def write_atomic(path: Path, content: bytes | str | Iterable[bytes]) -> None:
    """Write a file so that a reader, a crash or a full disk never sees a part of it.

    content: all of it, or pieces as they come; an error in their making passes through.
    Raises RunFolderError naming the file.  Whatever is raised, what stood there before is kept.
    """
    raw = content.encode() if isinstance(content, str) else content
    temporary = _temporary(path)
    try:
        _write(temporary, (raw,) if isinstance(raw, bytes) else raw)
        temporary.replace(path)
    except BaseException as error:
        if temporary.parent.is_dir():
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _refuse(path, str(error.strerror)) from None
        raise


def check_writable(path: Path) -> None:
    """Raise RunFolderError now, not after hours, when a file could not be written there."""
    temporary = _temporary(path)
    try:
        _write(temporary, ())
        temporary.unlink()
    except OSError as error:
        raise _refuse(path, str(error.strerror)) from None


def _temporary(path: Path) -> Path:
    if not path.name or path.is_dir():
        raise _refuse(path, "it names no file")
    return path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")


def _write(path: Path, pieces: Iterable[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _refuse(path: Path, why: str) -> RunFolderError:
    return RunFolderError(
        f"cannot write {path} ({why})", "a writable place with room", "free space or choose another folder"
    )
