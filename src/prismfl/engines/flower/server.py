"""The ServerApp: greets the clients, agrees with them on what they train, and runs the rounds over Flower."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from prismfl.data.files import write_atomic
from prismfl.data.site import named_classes
from prismfl.engines.flower.engine import Flower
from prismfl.engines.flower.envelope import Ask, Hello, Request, Terms
from prismfl.engines.flower.events import EventWriter
from prismfl.engines.flower.roster import Roster
from prismfl.engines.sums import simulated_members
from prismfl.errors import ClientError, PrismError
from prismfl.federation.agreement import MOST_LABELS
from prismfl.run import folder as runfolder
from prismfl.run import loop
from prismfl.run.folder import RunFolder
from prismfl.run.loop import Finished, Watcher
from prismfl.run.prepare import agree_on, counted, prepare, site_kit
from prismfl.settings.schema import Settings
from prismfl.settings.toml import settings_from, to_toml, toml_from

_WAIT = 0.2  # seconds between looks at who is connected
_OTHER = 20.0  # seconds that another server, just killed, may still hold the run folder
_REASONS = 3  # of nodes that were refused, in the error of a run that does not begin
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
        with runfolder.alone_in(folder, _OTHER):
            finished = serve(grid, folder, settings, watcher)
    except Exception as error:
        told = PrismError(f"{type(error).__name__}: {error}", "a whole run", "look at the server's log")
        watcher.failed(error if isinstance(error, PrismError) else told)
        raise
    watcher.finished(finished.summary)


def open_folder(root: Path, settings: str) -> tuple[RunFolder, Settings]:
    """The run in a folder, or a new one there of settings as TOML.  Raises PrismError subclasses."""
    if (root / "config.toml").is_file():
        return runfolder.reopen(root, going_on=True)
    made = settings_from(toml_from(settings))
    return runfolder.create(root, made), made


def serve(grid: Grid, folder: RunFolder, settings: Settings, watcher: Watcher) -> Finished:
    """A whole run over a grid.  Raises PrismError subclasses; a run that stopped so can be gone on with."""
    settings = counted(settings)
    greeting = Request(Ask.HELLO, terms=Terms(to_toml(settings.public())))
    roster = Roster(grid, settings.data.clients, greeting, watcher.note)
    path = folder.root / "agreement.json"
    held = runfolder.read_json(path)
    stated = _stated(settings)
    # What is stated is agreed on whoever comes: then those that are late do not keep the others from beginning.
    least = settings.data.clients if held is None and stated is None else settings.running.least_cohort
    _gather(roster, settings, least, watcher, patient=held is None)
    hellos = [roster.seats[client].hello for client in sorted(roster.seats)]
    test, kit = None, None
    if all(hello.simulated for hello in hellos):  # by Flower: the data set is here, and there, as the settings name it
        ready = prepare(settings)
        runfolder.save_description(folder, ready.described)
        for line in (ready.described.line(), *ready.warnings):
            watcher.note(line)
        agreement, test, kit = ready.agreement, ready.test, ready.kit
        if settings.federation.secure_sum:
            simulated_members(folder, settings.data.clients)  # before any of them looks for its key
        root = str(folder.root.resolve())
        terms = Terms(to_toml(agreement.settings), agreement.labels, agreement.layout.channels, root)
    else:
        classes, channels = stated or agree_of(hellos)
        if held is not None:
            classes, channels = tuple(held["classes"]), held["channels"]
        agreement = agree_on(settings, channels, classes)
        if agreement.settings.federation.mode == "one-shot" or agreement.pooled:
            kit = site_kit(agreement)
        terms = Terms(to_toml(agreement.settings.public()), classes, channels)
        write_atomic(path, json.dumps({"classes": classes, "channels": channels}, ensure_ascii=False) + "\n")
    runfolder.record(folder, settings, agreement)
    # Lines of rounds that never counted go first: the engine reads who counted.
    runfolder.load_state(folder, agreement.layout.count, agreement.settings.data.clients)
    engine = Flower(grid, agreement, folder, roster, terms, kit.features.dimension if kit else 0)
    return loop.run(agreement, engine, folder, watcher, test, kit)


def _gather(roster: Roster, settings: Settings, needed: int, watcher: Watcher, *, patient: bool) -> None:
    """Wait for the clients: for all of them a while once `needed` are there, and for these until the deadline.

    patient: wait for all of them until the deadline.  Raises ClientError when too few come in time.
    """
    wait = settings.running.deadline
    begun, told, enough_since = time.monotonic(), -1, 0.0
    while len(roster.seats) < settings.data.clients:
        roster.poll()
        here, now = len(roster.seats), time.monotonic()
        if here != told:
            watcher.note(f"{here} of {settings.data.clients} clients are connected")
            told = here
        left = max(0.0, wait - (now - begun)) if wait else None
        roster.remind(
            f"{here} of {settings.data.clients} clients are connected",
            roster.missing(range(settings.data.clients)),
            left,
        )
        enough_since = (enough_since or now) if here >= needed else 0.0
        if enough_since and not patient and now - enough_since > min(_SETTLE, wait or _SETTLE):
            return
        if wait and now - begun > wait and here >= needed:
            return
        if wait and now - begun > wait and here < needed:
            missing = ", ".join(map(str, roster.missing(range(settings.data.clients))[:20]))
            refused = "; refused: " + "; ".join(list(roster.reasons)[-_REASONS:]) if roster.reasons else ""
            raise ClientError(
                f"{here} clients after {wait:g} s, without {missing}{refused}",
                f"{needed}",
                "start the missing clients and resume the run",
            )
        time.sleep(_WAIT)


def _stated(settings: Settings) -> tuple[tuple[str, ...], int] | None:
    """Classes and channels where the settings say both: then no site's word changes them."""
    names, channels = named_classes(settings.data.classes), settings.channels
    return (names, channels) if names and channels else None


def agree_of(hellos: Sequence[Hello]) -> tuple[tuple[str, ...], int]:
    """The classes of all clients together, and the channels of their images: those of most, colour where it is even.

    Where all report the same names their order is kept, else the union is sorted.  One site cannot decide the
    channels; names that it adds can be kept out by stating them.  Raises ClientError for more names than any run takes.
    """
    first = hellos[0].classes
    same = all(hello.classes == first for hello in hellos)
    classes = first if same else tuple(sorted({name for hello in hellos for name in hello.classes}))
    if len(classes) > MOST_LABELS:
        raise ClientError(
            f"{len(classes)} class names of all sites together", f"at most {MOST_LABELS}", "state them with --classes"
        )
    colour = sum(hello.channels == 3 for hello in hellos)
    return classes, 3 if 2 * colour >= len(hellos) else 1
