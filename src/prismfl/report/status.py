"""The live page of a run: read-only, on this machine alone, of what the server knows and nothing else."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from prismfl.data.files import write_atomic
from prismfl.privacy.ledger import Entry, compose, from_json, summary_of
from prismfl.report.grids import Grid, read_grids
from prismfl.report.look import rendered
from prismfl.report.runs import read_line
from prismfl.run import folder as runfolder
from prismfl.run.folder import RunFolder
from prismfl.run.loop import Watcher
from prismfl.run.progress import begun, lasting, sized, within
from prismfl.settings.schema import Settings

NAME = "status.html"
_REFRESH = 5  # seconds
_QUIET, _MOST_PAGES = 1.0, 20  # seconds between pages that notes alone ask for, and how many a round need not wait
_NOTES, _SITES, _POINTS = 8, 40, 200
_GRID_ROOM = 300_000  # bytes


@dataclass
class _Site:
    """What the server knows of a client: how often its reply counted, the last round of those, and why it did not."""

    counted: int = 0
    last: int = 0
    missed: int = 0
    why: str = ""
    late: bool = False


@dataclass
class _Known:
    """A run as its watcher has seen it."""

    done: int = 0
    rounds: int = 0
    first: int = 0
    begun: float = field(default_factory=lambda: time.monotonic())
    losses: list[float] = field(default_factory=list)
    up: int = 0
    down: int = 0
    sites: dict[int, _Site] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    end: str = ""

    def add(self, record: Mapping[str, Any]) -> None:
        """A round's line of the log."""
        self.done = record["round"] + 1
        self.losses.append(record["loss"])
        self.up, self.down = self.up + record["uplink_bytes"], self.down + record["downlink_bytes"]
        for client in record["cohort"]:
            site = self.sites.setdefault(int(client), _Site())
            site.counted, site.last, site.late = site.counted + 1, self.done, False
        for client, why in record["left_out"].items():
            site = self.sites.setdefault(int(client), _Site())
            site.missed, site.why, site.late = site.missed + 1, str(why), True

    def left(self) -> str:
        """The time that is left, reckoned from this session's rounds; empty where nothing tells."""
        if self.done <= self.first or self.done >= self.rounds:
            return ""
        return lasting((time.monotonic() - self.begun) / (self.done - self.first) * (self.rounds - self.done))


class Status:
    """A display that keeps `status.html` of the run folder as well; a page that cannot be written is left out.

    root: the run folder, which need not be there yet.  A context: when it is left, the page says how the run ended,
    and no longer refreshes itself.
    """

    def __init__(self, display: Watcher, root: Path) -> None:
        self.display, self.root, self.known, self.written = display, root, _Known(), 0.0
        self.settings: Settings | None = None
        self.grid: tuple[int, Grid] | None = None
        self.begun, self.broken, self.told = False, False, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.begun:  # a run that was refused: the folder may be another's
            return
        stopped = " ".join(str(error).split()) or "interrupted"
        self.known.end = "finished" if kind is None else f"stopped: {stopped}"
        self._write()

    def started(self, done: int, rounds: int) -> None:
        """The run begins, or goes on after `done` rounds."""
        self.display.started(done, rounds)
        known = self.known = _Known(done=done, rounds=rounds, first=done, notes=self.known.notes)
        for record in runfolder.read_rounds(RunFolder(self.root))[:done]:
            known.add(record)
        self._write()

    def round_done(self, record: Mapping[str, Any], rounds: int) -> None:
        """A round is on disk."""
        self.display.round_done(record, rounds)
        self.known.add(record)
        self.told = 0
        self._write()

    def note(self, text: str) -> None:
        """Something worth a line."""
        self.display.note(text)
        self.known.notes = [*self.known.notes, f"{time.strftime('%H:%M:%S')}  {text}"][-_NOTES:]
        self.told += 1
        if self.told <= _MOST_PAGES or time.monotonic() - self.written > _QUIET:
            self._write()

    def part(self, name: str, steps: int) -> Callable[[int], object]:
        """What takes long at the end: a note on the page, and shown as the display shows it."""
        shown = begun(self.display, name, steps)
        self.known.notes = [*self.known.notes, f"{time.strftime('%H:%M:%S')}  {name}"][-_NOTES:]
        self._write()
        return shown

    def within(self, name: str, steps: int) -> AbstractContextManager[Callable[[int], object]]:
        """What lasts within a round: as the display shows it."""
        return within(self.display, name, steps)

    def _write(self) -> None:
        if self.broken or not (self.root / "config.toml").is_file():
            return
        try:
            write_atomic(self.root / NAME, self._page())
            self.begun = True
        except Exception as error:  # whatever it is, the run goes on
            self.broken = True
            self.display.note(f"{NAME} is left out from here on ({' '.join(str(error).split())})")
        self.written = time.monotonic()

    def _page(self) -> str:
        folder, known = RunFolder(self.root), self.known
        self.settings = self.settings or runfolder.reopen(self.root)[1]
        ledger = from_json((runfolder.read_json(folder.ledger) or {"releases": []}).get("releases"))
        late = sorted(client for client, site in known.sites.items() if site.late)
        ordered = sorted(known.sites.items(), key=lambda pair: (not pair[1].late, -pair[1].missed, pair[0]))
        return rendered(
            "status.html",
            "status",
            self.root.resolve().name,
            known=known,
            facts=list(_facts(known, late, ledger, self.settings)),
            settings=self.settings,
            read=read_line(folder),
            privacy=summary_of(ledger),
            refresh=0 if known.end else _REFRESH,
            clock=time.strftime("%Y-%m-%d %H:%M:%S"),
            late=late,
            sites=ordered[:_SITES],
            more_sites=max(0, len(ordered) - _SITES),
            line=_line(known.losses),
            grid=self._latest(folder),
        )  # fmt: skip

    def _latest(self, folder: RunFolder) -> tuple[int, Grid] | None:
        """The newest grid and its number of rounds, read once."""
        files = runfolder.grids(folder)
        newest = max(files, default=None)
        if newest is not None and (self.grid is None or self.grid[0] != newest):
            self.grid = (newest, read_grids({newest: files[newest]}, _GRID_ROOM).shown[-1])
        return self.grid


def _facts(
    known: _Known, late: list[int], ledger: tuple[Entry, ...], settings: Settings
) -> Iterator[tuple[str, str, str]]:
    """Tiles: what it is, its value, and a note beneath."""
    yield "Rounds", f"{known.done} of {known.rounds or settings.federation.rounds}", ""
    yield "Time left", known.left() or "–", "of the rounds" if known.left() else ""
    heard = sum(site.counted > 0 for site in known.sites.values())
    yield "Organisations heard", f"{heard} of {settings.data.clients or '?'}", "so far"
    yield "Left out in the last round", str(len(late)), ", ".join(map(str, late[:10])) + " …" * (len(late) > 10)
    yield "Sent by all organisations", sized(known.up), "in all rounds so far"
    yield "Sent to all organisations", sized(known.down), "in all rounds so far"
    yield _spent(ledger, settings)
    yield "Loss", f"{known.losses[-1]:.4f}" if known.losses else "–", "of the last round: falls while the run learns"


def _spent(ledger: tuple[Entry, ...], settings: Settings) -> tuple[str, str, str]:
    asked = settings.privacy.epsilon
    if not asked:
        return "Privacy spent", "no promise", "the run was asked for none"
    if not ledger:
        return "Privacy spent", "nothing yet", f"ε = {asked:g} is asked for"
    return "Privacy spent", f"ε = {compose(ledger).epsilon:.3g}", "once, for the whole run"


def _line(values: list[float]) -> str:
    """Points of a line over values, for an SVG of 600 × 120; of many values some."""
    if len(values) < 2:
        return ""
    step, top = -(-len(values) // _POINTS), max(*values, 1e-12)
    shown = [*range(0, len(values) - 1, step), len(values) - 1]
    return " ".join(f"{600 * i / (len(values) - 1):.1f},{115 - 110 * values[i] / top:.1f}" for i in shown)
