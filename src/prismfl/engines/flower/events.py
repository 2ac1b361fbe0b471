"""What happens in a run, as lines of `events.jsonl` of its folder: the ServerApp writes, the command follows."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prismfl.errors import PrismError
from prismfl.run.loop import Watcher

NAME = "events.jsonl"
_LOCK = ".lock"
_OTHER = 20.0  # seconds that another server, just killed, may still hold the run folder


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
            with self.path.open("ab", buffering=0) as file:  # one write of a whole line: nobody reads half of it
                file.write(line.encode())
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
