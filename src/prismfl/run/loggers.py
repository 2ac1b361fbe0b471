"""Logging hooks: what `rounds.jsonl` records, sent to TensorBoard, Weights & Biases or MLflow as well.

All three are optional and imported when a hook is made, before any training.  Nothing leaves the machine unless the
user's own environment (`WANDB_MODE`, `MLFLOW_TRACKING_URI`) says so.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from prismfl.errors import DependencyError, SettingError
from prismfl.run.folder import reopen
from prismfl.run.loop import Watcher
from prismfl.run.progress import begun, within
from prismfl.settings.schema import SECTIONS, Settings


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record, those of a table as `table/name`, and how many clients counted and did not."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if name in ("cohort", "left_out"):
            found[name] = len(value)
        elif isinstance(value, Mapping):
            found |= {f"{name}/{part}": number for part, number in scalars(value).items()}
        elif type(value) in (int, float):
            found[name] = value
    return found


class Log:
    """Keeps numbers somewhere: by round, one step a round done, and closing ones.

    modules: what is imported, the last of them kept; the first is what `pip` installs.  root: the run folder, which
    need not be there yet.  What a foreign library makes is `Any`.
    """

    modules: tuple[str, ...] = ()

    def __init__(self, root: Path) -> None:
        self.root = root
        self.module: Any = None
        self.open: Any = None
        for name in self.modules:
            self.module = _library(name, self.modules[0])

    def begin(self, done: int) -> None:
        """Open the log of a run that has `done` rounds behind it."""

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Numbers after `step` rounds."""

    def close_with(self, values: Mapping[str, float], step: int) -> None:
        """Closing numbers."""
        self.write(values, step)

    def close(self, whole: bool) -> None:
        """Nothing more comes to a log that was begun; whole: the run came to its end."""


class TensorBoard(Log):
    """Scalars by round in `RUN/tensorboard/`; `tensorboard --logdir RUN` shows them."""

    modules = ("tensorboard", "torch.utils.tensorboard")

    def begin(self, done: int) -> None:
        """An event file; what a killed run wrote beyond its checkpoint is dropped."""
        self.open = self.module.SummaryWriter(str(self.root / "tensorboard"), purge_step=done + 1 if done else None)

    def write(self, values: Mapping[str, float], step: int) -> None:
        """A scalar each."""
        for name, value in values.items():
            self.open.add_scalar(name, value, step)

    def close(self, whole: bool) -> None:  # noqa: ARG002
        """Flush the events."""
        self.open.close()


class WeightsAndBiases(Log):
    """A run of Weights & Biases in `RUN/wandb/`: offline, unless `WANDB_MODE` says otherwise."""

    modules = ("wandb",)

    def begin(self, done: int) -> None:  # noqa: ARG002
        """A run with the public settings; a resumed one begins another of the same name."""
        self.open = self.module.init(
            project=os.environ.get("WANDB_PROJECT", "prismfl"),
            name=self.root.resolve().name,
            dir=str(self.root),
            mode=os.environ.get("WANDB_MODE", "offline"),
            config=flat_settings(reopen(self.root)[1]),
            settings=self.module.Settings(console="off", silent=True, disable_git=True),
        )

    def write(self, values: Mapping[str, float], step: int) -> None:
        """One row of the history."""
        self.open.log(dict(values), step=step)

    def close_with(self, values: Mapping[str, float], step: int) -> None:  # noqa: ARG002
        """In the run's summary."""
        self.open.summary.update(dict(values))

    def close(self, whole: bool) -> None:
        """End the run."""
        self.open.finish(exit_code=0 if whole else 1)


class MLflow(Log):
    """An MLflow run in `RUN/mlflow.db` (SQLite), or where `MLFLOW_TRACKING_URI` says."""

    modules = ("mlflow",)

    def __init__(self, root: Path) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        super().__init__(root)

    def begin(self, done: int) -> None:  # noqa: ARG002
        """A run with the public settings; a resumed one begins another of the same name."""
        database = (self.root / "mlflow.db").resolve()
        self.module.set_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{database}"))
        self.module.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "prismfl"))
        self.module.start_run(run_name=self.root.resolve().name)
        settings = list(flat_settings(reopen(self.root)[1]).items())
        for start in range(0, len(settings), _MOST_PARAMETERS):
            self.module.log_params(dict(settings[start : start + _MOST_PARAMETERS]))

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Metrics of one step."""
        self.module.log_metrics(dict(values), step=step)

    def close(self, whole: bool) -> None:
        """End the run."""
        self.module.end_run("FINISHED" if whole else "FAILED")


LOGS: dict[str, type[Log]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}
_MOST_PARAMETERS = 100  # that MLflow takes at once


def make_logs(names: str, root: Path) -> dict[str, Log]:
    """The hooks named, by commas, for the run folder `root`.

    Raises SettingError for an unknown name, and DependencyError, which says what to install, for a missing library.
    """
    asked = dict.fromkeys(name.strip() for name in names.split(",") if name.strip())
    for name in asked:
        if name not in LOGS:
            raise SettingError(f"log {name!r}", f"some of {', '.join(LOGS)}", "name these, by commas")
    return {name: LOGS[name](root) for name in asked}


class Logged:
    """A display and any number of logs as one watcher; a log that fails is left out from then on, with a note.

    A context: when it is left, the logs that were begun are closed.
    """

    def __init__(self, display: Watcher, logs: Mapping[str, Log]) -> None:
        self.display, self.logs, self.begun = display, dict(logs), False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.begun:
            self._tell(lambda log: log.close(kind is None))

    def started(self, done: int, rounds: int) -> None:
        """The run begins, or goes on after `done` rounds."""
        self.display.started(done, rounds)
        self.begun = True
        self._tell(lambda log: log.begin(done))

    def round_done(self, record: Mapping[str, Any], rounds: int) -> None:
        """A round is on disk."""
        self.display.round_done(record, rounds)
        self._tell(lambda log: log.write(scalars(record), record["round"] + 1))

    def note(self, text: str) -> None:
        """Something worth a line."""
        self.display.note(text)

    def part(self, name: str, steps: int) -> Callable[[int], object]:
        """What takes long at the end."""
        return begun(self.display, name, steps)

    def within(self, name: str, steps: int) -> AbstractContextManager[Callable[[int], object]]:
        """What lasts within a round: as the display shows it."""
        return within(self.display, name, steps)

    def finished(self, summary: Mapping[str, Any]) -> None:
        """The run's closing figures, each as `summary/name`."""
        kept = {name: value for name, value in summary.items() if name not in ("versions", "hardware", "rounds")}
        self._tell(lambda log: log.close_with(scalars({"summary": kept}), summary["rounds"]))

    def _tell(self, told: Callable[[Log], None]) -> None:
        for name, log in list(self.logs.items()):
            try:
                told(log)
            except Exception as error:  # whatever a foreign library raises, the run goes on
                del self.logs[name]
                self.display.note(f"{name} failed and is left out ({type(error).__name__}: {error})")


def flat_settings(settings: Settings) -> dict[str, str | int | float | bool]:
    """Public settings by `section.name`; no path of this machine is among them."""
    values = asdict(settings.public())
    sections = (name for name in SECTIONS if name != "running")
    return {"seed": settings.seed} | {
        f"{name}.{key}": value for name in sections for key, value in values[name].items()
    }


def _library(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except Exception as error:  # a library beside a wrong version of another raises anything
        raise DependencyError(
            f"{package} does not import ({type(error).__name__}: {error})",
            f"it, for --log {package}",
            f"pip install {package}",
        ) from None
