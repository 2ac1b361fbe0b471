"""The ServerApp: greets the clients, agrees with them on what they train, and runs the rounds over Flower."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from prismfl.data.datasets import ImageSet
from prismfl.data.files import write_atomic
from prismfl.engines.flower.engine import Flower
from prismfl.engines.flower.envelope import Ask, Hello, Request, Terms
from prismfl.engines.flower.events import EventWriter, alone
from prismfl.engines.flower.roster import Roster
from prismfl.errors import ClientError, PrismError, RunFolderError
from prismfl.federation.agreement import Agreement
from prismfl.federation.client import ClientKit
from prismfl.run import folder as runfolder
from prismfl.run import loop
from prismfl.run.folder import RunFolder
from prismfl.run.loop import Finished, Watcher
from prismfl.run.prepare import agree_on, counted, prepare, site_kit
from prismfl.settings.schema import Settings
from prismfl.settings.toml import settings_from, to_toml, toml_from

_WAIT = 0.2  # seconds between looks at who is connected
_SETTLE = 60.0  # seconds that a resumed run waits for all of its clients, once some are there

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run, or go on with, the run in the folder that the run configuration names."""
    config = context.run_config
    out = str(config.get("out") or Path("runs") / f"flower-{context.run_id}")
    folder, settings = open_folder(Path(out), str(config.get("settings", "")))
    watcher = EventWriter(folder.root)
    try:
        with alone(folder.root):
            finished = serve(grid, folder, settings, watcher)
    except PrismError as error:
        watcher.failed(error)
        raise
    except Exception as error:
        watcher.failed(PrismError(f"{type(error).__name__}: {error}", "a whole run", "look at the server's log"))
        raise
    watcher.finished(finished.summary)


def open_folder(root: Path, settings: str) -> tuple[RunFolder, Settings]:
    """The run in a folder, or a new one there of settings as TOML.  Raises PrismError subclasses."""
    if (root / "config.toml").is_file():
        return runfolder.reopen(root)
    made = settings_from(toml_from(settings))
    return runfolder.create(root, made), made


@dataclass(frozen=True)
class Agreed:
    """What server and clients found out about the images before the first round; kept in `agreement.json`."""

    classes: tuple[str, ...]
    channels: int


def serve(grid: Grid, folder: RunFolder, settings: Settings, watcher: Watcher) -> Finished:
    """A whole run over a grid.  Raises PrismError subclasses; a run that stopped so can be gone on with."""
    settings = counted(settings)
    greeting = Request(Ask.HELLO, terms=Terms(to_toml(settings.public())))
    roster = Roster(grid, settings.data.clients, greeting, watcher.note)
    agreed = _read(folder)
    _gather(roster, settings, agreed, watcher)
    kit: ClientKit | None = None
    hellos = [roster.seats[client].hello for client in sorted(roster.seats)]
    if any(hello.simulated for hello in hellos):
        agreement, test, terms, kit = _simulated(settings, folder, watcher)
    else:
        agreed = agreed or agree_of(hellos)
        agreement, test = agree_on(settings, agreed.channels, agreed.classes), None
        if agreement.settings.federation.mode == "one-shot":
            kit = site_kit(agreement)
        terms = Terms(to_toml(agreement.settings.public()), agreed.classes, agreed.channels)
        write_atomic(_path(folder), json.dumps(asdict(agreed), ensure_ascii=False) + "\n")
    runfolder.record(folder, settings, agreement)
    # Lines of rounds that never counted go first: the engine reads who counted.
    runfolder.load_state(folder, agreement.layout.count, agreement.settings.data.clients)
    engine = Flower(grid, agreement, folder, roster, terms)
    return loop.run(agreement, engine, folder, watcher, test, kit)


def _simulated(
    settings: Settings, folder: RunFolder, watcher: Watcher
) -> tuple[Agreement, ImageSet | None, Terms, ClientKit]:
    """Flower simulates the clients: the data set is here, and there, as the settings name it."""
    ready = prepare(settings)
    for line in ready.warnings:
        watcher.note(line)
    agreement = ready.agreement
    root = str(folder.root.resolve())
    terms = Terms(to_toml(agreement.settings), agreement.labels, agreement.layout.channels, root)
    return agreement, ready.test, terms, ready.kit


def _gather(roster: Roster, settings: Settings, agreed: Agreed | None, watcher: Watcher) -> None:
    """Wait for the clients: all of them where their classes are still to be agreed on, else those that come soon.

    Raises ClientError when they do not come in time.
    """
    wait, needed = settings.running.deadline, settings.running.least_cohort if agreed else settings.data.clients
    begun, told, enough_since = time.monotonic(), -1, 0.0
    while len(roster.seats) < settings.data.clients:
        roster.poll()
        here, now = len(roster.seats), time.monotonic()
        if here != told:
            watcher.note(f"{here} of {settings.data.clients} clients are connected")
            told = here
        enough_since = (enough_since or now) if here >= needed else 0.0
        if enough_since and now - enough_since > min(_SETTLE, wait or _SETTLE):
            return
        if wait and now - begun > wait and here < needed:
            missing = ", ".join(map(str, roster.missing(range(settings.data.clients))[:20]))
            raise ClientError(
                f"{here} clients after {wait:g} s, without {missing}",
                f"{needed}",
                "start the missing clients and resume the run",
            )
        time.sleep(_WAIT)


def agree_of(hellos: Sequence[Hello]) -> Agreed:
    """The classes of all clients together, and colour if one has it.

    Where all report the same names their order is kept, else the union is sorted.
    """
    first = hellos[0].classes
    same = all(hello.classes == first for hello in hellos)
    classes = first if same else tuple(sorted({name for hello in hellos for name in hello.classes}))
    if any(hello.channels not in (1, 3) for hello in hellos):
        raise ClientError("a client whose images have neither 1 nor 3 channels", "grey or colour", "convert them")
    return Agreed(classes, max(hello.channels for hello in hellos))


def _path(folder: RunFolder) -> Path:
    return folder.root / "agreement.json"


def _read(folder: RunFolder) -> Agreed | None:
    path = _path(folder)
    if not path.is_file():
        return None
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return Agreed(tuple(map(str, held["classes"])), int(held["channels"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{path} does not read ({error})", "what was agreed on", "restore the file") from None
