"""What happens in a run, as lines of `events.jsonl` of its folder: the ServerApp writes, the command follows."""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from prismfl.errors import PrismError, RunFolderError
from prismfl.run.loop import Watcher

NAME = "events.jsonl"
_LOCK = ".lock"
_OTHER = 20.0  # seconds that another server, just killed, may still hold the run folder
_WAIT = 0.2


class EventWriter:
    """A watcher that writes a line an event, with the time of day."""

    def __init__(self, root: Path) -> None:
        self.path = root / NAME

    def started(self, done: int, rounds: int) -> None:
        """The run begins, or goes on after `done` rounds."""
        self._write(event="started", done=done, rounds=rounds)

    def round_done(self, record: Mapping[str, Any], rounds: int) -> None:
        """A round is on disk."""
        self._write(event="round", record=dict(record), rounds=rounds)

    def note(self, text: str) -> None:
        """Something worth a line."""
        self._write(event="note", text=text)

    def finished(self, summary: Mapping[str, Any]) -> None:
        """The model is on disk."""
        self._write(event="finished", summary=dict(summary))

    def failed(self, error: PrismError) -> None:
        """The run stopped."""
        self._write(event="failed", got=error.got, expected=error.expected, remedy=error.remedy)

    def _write(self, **fields: Any) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = json.dumps({"time": stamp, **fields}, ensure_ascii=False) + "\n"
        try:
            # One write of a whole line: a reader never sees half of it.
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(handle, line.encode())
            finally:
                os.close(handle)
        except OSError:
            print(line, end="", flush=True)  # a run does not end because its log has no room


def read_events(root: Path, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Whole lines from byte `start` on: where each ends, and what it says."""
    path = root / NAME
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return
            start += len(line)
            try:
                yield start, json.loads(line)
            except ValueError:
                continue


def replay(event: Mapping[str, Any], watcher: Watcher) -> None:
    """Tell a watcher of one event."""
    if event["event"] == "started":
        watcher.started(event["done"], event["rounds"])
    elif event["event"] == "round":
        watcher.round_done(event["record"], event["rounds"])
    elif event["event"] == "note":
        watcher.note(event["text"])


# ----------------------------------------------------------------------------- one server a run


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """Hold a run folder against a second server.  Raises RunFolderError when another has it."""
    with (root / _LOCK).open("w") as file:
        end = time.monotonic() + _OTHER
        while not _locked(file):
            if time.monotonic() > end:
                raise RunFolderError(f"{root} in use by another server", "one server a run", "stop the other")
            time.sleep(_WAIT)
        yield


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def held(root: Path) -> bool:
    """Whether a server has the run folder now."""
    try:
        with (root / _LOCK).open() as file:
            return not _locked(file)
    except OSError:
        return False
