"""How a run shows itself: a live bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

_EVERY = 10.0  # seconds between plain lines


def sized(count: float) -> str:
    """Bytes for people: `1.2 MB`, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if round(count, 1) < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def lasting(seconds: float) -> str:
    """A time for people: `45 s`, `3 min`, `2 h 05 min`.

    Examples:
        >>> lasting(45), lasting(200), lasting(7500)
        ('45 s', '3 min', '2 h 05 min')
    """
    minutes = round(seconds / 60)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


# Begins a part of so many steps; what it gives is told of each number of steps done.
Part = Callable[[str, int], Callable[[int], object]]


def no_parts(_name: str, _steps: int) -> Callable[[int], object]:
    """Shows nothing."""
    return int


def begun(watcher: Any, name: str, steps: int) -> Callable[[int], object]:
    """A part of a run's end: shown by a watcher that shows parts, and by others as a note."""
    shown: Part | None = getattr(watcher, "part", None)
    if shown is not None:
        return shown(name, steps)
    watcher.note(name)
    return int


@contextmanager
def within(watcher: Any, name: str, steps: int) -> Iterator[Callable[[int], object]]:
    """Something that lasts within a round: shown by a watcher that shows it, until it is over."""
    shown = getattr(watcher, "within", None)
    if shown is None:
        yield int
        return
    with shown(name, steps) as advance:
        yield advance


@contextmanager
def shown_parts() -> Iterator[Part]:
    """Parts of a command on standard error: a bar each on a terminal, elsewhere a line now and then."""
    if not sys.stderr.isatty():
        yield PlainParts()
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TextColumn("left"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        yield lambda name, steps: partial(bars.advance, bars.add_task(name, total=steps))


class PlainParts:
    """A line at most every ten seconds: what is under way, how far it is, and the time that is left of it."""

    def __init__(self, to: TextIO | None = None) -> None:
        self.told, self.to = time.monotonic(), to or sys.stderr

    def __call__(self, name: str, steps: int) -> Callable[[int], object]:
        """Begin a part."""
        begun, done = time.monotonic(), 0

        def advance(more: int) -> None:
            nonlocal done
            done += more
            if (now := time.monotonic()) - self.told >= _EVERY:
                self.told = now
                left = (now - begun) / max(1, done) * (steps - done)
                print(f"{name}  {done}/{steps}  {lasting(left)} left", file=self.to, flush=True)

        return advance


class PlainWatcher:
    """One line a round, for logs and pipes."""

    def __init__(self) -> None:
        self.begun, self.first = time.monotonic(), 0

    def started(self, done: int, rounds: int) -> None:
        """The run begins, or goes on after `done` rounds."""
        self.begun, self.first = time.monotonic(), done
        self.note(f"{rounds} round{'s' * (rounds != 1)}" if not done else f"going on after {done} of {rounds} rounds")

    def round_done(self, record: Mapping[str, Any], rounds: int) -> None:
        """A round is on disk."""
        done = record["round"] + 1
        left = (time.monotonic() - self.begun) / max(1, done - self.first) * (rounds - done)
        self.note(f"round {done}/{rounds}  {figures(record)}  {left:.0f} s left")

    def note(self, text: str) -> None:
        """One line."""
        print(text, flush=True)

    def part(self, name: str, steps: int) -> Callable[[int], object]:
        """A line, and one every ten seconds while it lasts."""
        self.note(name)
        return PlainParts(sys.stdout)(name, steps)

    @contextmanager
    def within(self, name: str, steps: int) -> Iterator[Callable[[int], object]]:
        """A line every ten seconds, none of what takes less."""
        yield PlainParts(sys.stdout)(name, steps)


def figures(record: Mapping[str, Any]) -> str:
    """Loss, bytes and, where measured, distance of a round."""
    text = f"loss {record['loss']:.4f}  up {sized(record['uplink_bytes'])}  down {sized(record['downlink_bytes'])}"
    return text + (f"  distance {record['distance']:.1f}" if "distance" in record else "")


class LiveWatcher(Progress):
    """A bar with round, loss, bytes and the time left, as long as this context lasts; notes go above it.

    After the last round it says what is still being done, and for how long: that may take longer than a round.
    """

    def __init__(self, console: Console) -> None:
        described = TextColumn("{task.description}", table_column=Column(ratio=3, no_wrap=True, overflow="ellipsis"))
        bar = BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=8))
        super().__init__(bar, _Rounds(), described, _Time(), console=console, expand=True)

    def started(self, done: int, rounds: int) -> None:
        """The run begins, or goes on after `done` rounds."""
        self.add_task("moments of the images", total=rounds, completed=done, rounds=True)

    def round_done(self, record: Mapping[str, Any], rounds: int) -> None:
        """A round is on disk."""
        for task in self._training:
            self.update(task.id, total=rounds, completed=record["round"] + 1, description=figures(record))

    def note(self, text: str) -> None:
        """A line above the bar, or once all rounds are done one below it, until the next."""
        training = self._training
        if not training or not training[0].finished:
            self.console.print(text, highlight=False, markup=False)
            return
        self._close()
        self.add_task(escape(text), total=None)

    def part(self, name: str, steps: int) -> Callable[[int], object]:
        """A bar below the others, with the time left."""
        self._close()
        return partial(self.advance, self.add_task(escape(name), total=steps))

    @contextmanager
    def within(self, name: str, steps: int) -> Iterator[Callable[[int], object]]:
        """A bar below the others that goes when it is over."""
        task = self.add_task(escape(name), total=steps, counted=True)
        try:
            yield partial(self.advance, task)
        finally:
            self.remove_task(task)

    @property
    def _training(self) -> list[Task]:
        """The bar of the rounds, once there is one."""
        return [task for task in self.tasks if task.fields.get("rounds")]

    def _close(self) -> None:
        """What went before is done."""
        for task in self.tasks:
            self.update(task.id, total=task.total or 1, completed=task.total or 1)


class _Rounds(ProgressColumn):
    """Rounds done, of how many, and clients that replied."""

    def render(self, task: Task) -> Text:
        total = task.total if task.fields.get("rounds") or task.fields.get("counted") else None
        return Text("" if total is None else f"{int(task.completed)}/{int(total)}")


class _Time(ProgressColumn):
    """Time that is left, or of what nobody knows how long it takes, the time that it has taken."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        if task.total is None or task.finished:
            return Text(_clock(task.finished_time or task.elapsed or 0.0))
        return Text("" if task.time_remaining is None else f"{_clock(task.time_remaining)} left")


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=int(seconds)))


def on_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout.isatty()
