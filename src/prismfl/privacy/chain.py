"""An append-only file of JSON lines, each of which names the one before it by its SHA-256.

Whoever changes, removes or inserts a line breaks the chain from there on.  A last line that was cut short, as by a
crash, was never written: what was to follow it did not happen either, for nothing is done before its line is on disk.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from prismfl.data.files import make_folder, opener, sync_folder
from prismfl.errors import PrivacyError, RunFolderError

_FIRST = "0" * 64


class Chain:
    """The records of one file, read and checked as far as they are new.  Whoever appends holds its lock.

    kind: what the file is, in its first line and in errors.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path, self.kind, self.generation = path, kind, 0
        self._start()

    def _start(self) -> None:
        self.generation += 1  # whoever keeps what was read begins anew as well
        self._offset, self._tail, self._file = 0, _FIRST, -1
        self._records: list[dict[str, Any]] = []

    def read(self) -> list[dict[str, Any]]:
        """All records but the first line, oldest first; none where there is no file.

        Raises PrivacyError for a file that is another kind's, and where the chain is broken.
        """
        if not self.path.is_file():
            self._start()
            return []
        about = self.path.stat()
        if about.st_ino != self._file or about.st_size < self._offset:
            self._start()
        self._file = about.st_ino
        with self.path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if line.endswith(b"\n"):
                    self._take(line)
        return self._records[1:]

    def _take(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            whole = isinstance(record, dict) and record.pop("previous") == self._tail
        except (ValueError, KeyError, RecursionError):
            whole = False
        if not whole or (not self._records and record != self._header()):
            raise PrivacyError(
                f"{self.path}, whose line {len(self._records) + 1} does not follow from the one before",
                f"the {self.kind} as it was written",
                "restore it from a backup: what was spent cannot be told without it",
            )
        self._records.append(record)
        self._tail = hashlib.sha256(line).hexdigest()
        self._offset += len(line)

    def _header(self) -> dict[str, Any]:
        return {"prismfl": self.kind, "format": 1}

    def append(self, record: dict[str, Any]) -> None:
        """Write one record, and return once it is on the disk.  Raises PrivacyError, RunFolderError."""
        self.read()
        try:
            make_folder(self.path.parent, private=True)
            with open(self.path, "ab", opener=opener(True)) as file:
                file.truncate(self._offset)  # what a crash cut short
                for one in (record,) if self._records else (self._header(), record):
                    line = json.dumps({"previous": self._tail} | one, ensure_ascii=False).encode() + b"\n"
                    file.write(line)
                    self._take(line)
                file.flush()
                os.fsync(file.fileno())
            sync_folder(self.path.parent)
        except OSError as error:
            self._start()
            raise RunFolderError(
                f"cannot write {self.path} ({error.strerror})", "a writable place with room", "free space, or move it"
            ) from None
        self._file = self.path.stat().st_ino
