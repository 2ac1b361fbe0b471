"""`prismfl train`, and what every command that trains shows of a run."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from prismfl.cli.options import asked
from prismfl.errors import SettingError
from prismfl.metrics.text import in_words
from prismfl.run.folder import RunFolder
from prismfl.run.progress import LiveWatcher, PlainWatcher, on_terminal, sized
from prismfl.settings.schema import Settings

Preset = Annotated[
    str,
    typer.Option(
        help="Settings by name, below --config: long, for the best images in up to an hour; or paper, as published."
    ),
]
INTERRUPTED = 130  # exit status, as a shell has it of what Ctrl-C ended


def train(
    changes: dict[str, Any],
    config: Annotated[Path | None, typer.Option(help="Settings file (TOML); options go over it.")] = None,
    preset: Preset = "",
    out: Annotated[Path | None, typer.Option(help="New run folder [runs/DATASET-SEED].")] = None,
    resume: Annotated[Path | None, typer.Option(help="Finish the run in this folder.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the run takes, and stop.")] = False,
    log: Annotated[str, typer.Option(help="Also log to some of tensorboard,wandb,mlflow.", show_default=False)] = "",
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no report.html at the end.")] = False,
) -> None:
    """Train a generator with simulated clients on this machine."""
    if resume is not None and (config or preset or out or dry_run):
        raise SettingError(
            "--resume with --config, --preset, --out or --dry-run",
            "options of running at most",
            "settings come from the run",
        )
    settings = Settings() if resume else asked(config, changes, preset)
    if dry_run:
        _forecast(settings)
        return
    from prismfl.engines import simulator
    from prismfl.engines.processes import keep_freed_memory
    from prismfl.report.status import Status
    from prismfl.run.loggers import Logged, make_logs

    root = resume or out or Path("runs") / f"{settings.data.dataset}-{settings.seed}"
    logs = make_logs(log, root)

    keep_freed_memory()

    def go(display: Any) -> Any:
        with Status(display, root) as page, Logged(page, logs) as watcher:
            if resume is not None:
                finished = simulator.resume(root, watcher=watcher, changes=changes)
            else:
                finished = simulator.train(settings, out=root, watcher=watcher)
            watcher.finished(finished.summary)
        return finished, "" if no_report else reported(root, display)

    finished, page = watched(go, f"prismfl train --resume {root}", root)
    closing(finished.folder, finished.summary, page)


def watched(go: Callable[[Any], Any], again: str, root: Path) -> Any:
    """What a run gives, shown as it goes.

    again: the command that goes on with it after an interrupt; root: its folder.
    """
    try:
        if not on_terminal():
            return go(PlainWatcher())
        with LiveWatcher(Console()) as live:
            return go(live)
    except KeyboardInterrupt:
        begun = RunFolder(root).config.exists()
        kept = f"finished rounds are kept: go on with `{again}`" if begun else "the run had not begun"
        print(f"interrupted; {kept}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def reported(root: Path, watcher: Any) -> str:
    """Where the report of a finished run lies, or why there is none: a run is never lost to its report."""
    watcher.note("building the report")
    try:
        from prismfl.report.page import build_report

        return str(build_report([root]))
    except Exception as error:  # whatever it is, the run is whole
        return f"not built ({' '.join(str(error).split()) or type(error).__name__}); try `prismfl report {root}`"


def closing(folder: Any, found: Any, report: str) -> None:
    traffic = f"{sized(found['uplink_bytes'])} up, {sized(found['downlink_bytes'])} down"
    print(f"\nrounds {found['rounds']}, in {found['seconds']:.0f} s; {traffic}")
    if found["uplink_bits_per_parameter"] is not None:
        each = (found["uplink_bits_per_parameter"], found["downlink_bits_per_parameter"])
        print(f"a client and round: {each[0]:.3f} bits a parameter up, {each[1]:.3f} down")
    if "fid_judge" in found:
        outside = ", outside the guarantee" if found.get("outside_guarantee") else ""
        halves = found.get("fid_judge_of_halves")
        print(f"fid_judge {found['fid_judge']:.2f} (Fréchet distance in the judge network{outside})")
        cautions = found.get("cautions", ())
        if not cautions and (words := in_words(found["fid_judge"], halves)):  # of few images both are bias
            print(f"          {words}")
        for caution in cautions:
            print(f"          caution: {caution}")
    print(
        f"model    {folder.model} ({found['model_bytes']} bytes, {found['model_bits_per_parameter']:.3f} bits a weight)"
    )
    print(f"samples  {folder.root / found['grid']}")
    print(f"log      {folder.rounds}")
    if report:
        print(f"report   {report}")
    print(f"privacy  {found['privacy']}")
    print(f"more     prismfl sample {folder.model} --count 64 --seed 1 --out grid.png")


def _forecast(settings: Settings) -> None:
    from prismfl.engines.processes import processes_of
    from prismfl.engines.simulator import workers_of
    from prismfl.run.forecast import forecast
    from prismfl.run.prepare import prepare

    workers = workers_of(settings)
    ready = prepare(settings)
    for line in (ready.described.line(), *ready.warnings):
        print(line)
    processes = processes_of(settings, workers)
    print("trying some steps, to see how long they take on this machine as busy as it is", file=sys.stderr, flush=True)
    found = forecast(ready, workers, processes)
    asked = ready.agreement.settings
    alone = asked.federation.mode == "one-shot"
    who = "of the server's search" if alone else f"of each client, {workers} clients at a time"
    counts = f"{asked.federation.rounds} rounds of {asked.search.local_steps} steps {who}"
    print(f"minutes            {found.minutes:.1f} ({counts}; without the closing figures)")
    if ready.noise:
        print(f"noise              {ready.noise:.2g} of an image's features, in the mean of all clients")
    print(f"uplink             about {sized(found.uplink_bytes)}")
    print(f"downlink           about {sized(found.downlink_bytes)}")
    beside = f" ({processes} processes search)" if processes else ""
    print(f"memory             {found.memory_mb:.0f} MB{beside}")
    print(f"parameters         {found.parameters}")
    print(f"moments a client   {found.moment_dimension}")
    print(f"images a client    {found.images_per_client[0]} … {found.images_per_client[1]}")
