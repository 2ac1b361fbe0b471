"""Files appear whole or not at all: written to a temporary name, synced, then renamed."""

import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from prismfl.errors import RunFolderError


def write_atomic(path: Path, content: bytes | str | Iterable[bytes], *, private: bool = False) -> None:
    """Write a file so that a reader, a crash or a full disk never sees a part of it.

    content: all of it, or pieces as they come; an error in their making passes through.  private: nobody but the
    owner may ever read it, not for a moment; folders made for it are the owner's alone as well.
    Raises RunFolderError naming the file.  Whatever is raised, what stood there before is kept.
    """
    raw = content.encode() if isinstance(content, str) else content
    temporary = _temporary(path)
    try:
        _write(temporary, (raw,) if isinstance(raw, bytes) else raw, private)
        temporary.replace(path)
        sync_folder(path.parent)
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


def _write(path: Path, pieces: Iterable[bytes], private: bool = False) -> None:
    make_folder(path.parent, private=private)
    with open(path, "wb", opener=opener(private)) as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def opener(private: bool) -> Callable[[str, int], int]:
    """What makes a file readable by its owner alone, or by whom the system's mask lets."""
    return lambda name, flags: os.open(name, flags, 0o600 if private else 0o666)


def make_folder(path: Path, *, private: bool = False) -> None:
    """Make a folder and those above it where they are missing; private: what is made is its owner's alone."""
    for folder in reversed([path, *path.parents]):
        if not folder.exists():
            folder.mkdir(mode=0o700 if private else 0o777, exist_ok=True)


def sync_folder(path: Path) -> None:
    """Put on the disk which files a folder has: a rename or a new file is lost with the power until then."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _refuse(path: Path, why: str) -> RunFolderError:
    return RunFolderError(
        f"cannot write {path} ({why})", "a writable place with room", "free space or choose another folder"
    )
