"""Files appear whole or not at all: written to a temporary name, synced, then renamed."""

import os
from pathlib import Path

from prismfl.errors import RunFolderError


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader, a crash or a full disk never sees a part of it.

    Raises RunFolderError naming the file; what stood there before is kept.
    """
    raw = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True) if temporary.parent.is_dir() else None
        raise RunFolderError(
            f"cannot write {path} ({error.strerror})",
            "a writable place with room",
            "free space or choose another folder",
        ) from None
