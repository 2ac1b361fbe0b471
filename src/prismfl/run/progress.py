"""How a run shows itself: a live bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def sized(count: float) -> str:
    """Bytes for people: `1.2 MB`, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if round(count, 1) < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


class PlainWatcher:
    """One line a round, for logs and pipes."""

    def __init__(self) -> None:
        self.begun, self.first = time.monotonic(), 0

    def started(self, done: int, rounds: int) -> None:
        """The run begins, or goes on after `done` rounds."""
        self.begun, self.first = time.monotonic(), done
        self.note(f"{rounds} rounds" if not done else f"going on after {done} of {rounds} rounds")

    def round_done(self, record: Mapping[str, Any], rounds: int) -> None:
        """A round is on disk."""
        done = record["round"] + 1
        left = (time.monotonic() - self.begun) / max(1, done - self.first) * (rounds - done)
        self.note(f"round {done}/{rounds}  {figures(record)}  {left:.0f} s left")

    def note(self, text: str) -> None:
        """One line."""
        print(text, flush=True)


def figures(record: Mapping[str, Any]) -> str:
    """Loss, bytes and, where measured, distance of a round."""
    text = f"loss {record['loss']:.4f}  up {sized(record['uplink_bytes'])}  down {sized(record['downlink_bytes'])}"
    return text + (f"  distance {record['distance']:.1f}" if "distance" in record else "")


class LiveWatcher(Progress):
    """A bar with round, loss, bytes and the time left, as long as this context lasts; notes go above it."""

    def __init__(self, console: Console) -> None:
        described, left = TextColumn("{task.description}"), (TextColumn("left"), TimeRemainingColumn())
        super().__init__(TextColumn("training"), BarColumn(), MofNCompleteColumn(), described, *left, console=console)

    def started(self, done: int, rounds: int) -> None:
        """The run begins, or goes on after `done` rounds."""
        self.add_task("moments of the images", total=rounds, completed=done)

    def round_done(self, record: Mapping[str, Any], rounds: int) -> None:
        """A round is on disk."""
        for task in self.task_ids:
            self.update(task, total=rounds, completed=record["round"] + 1, description=figures(record))

    def note(self, text: str) -> None:
        """A line above the bar."""
        self.console.print(text, highlight=False, markup=False)


def on_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout.isatty()
