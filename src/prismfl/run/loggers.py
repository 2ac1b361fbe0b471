"""Logging hooks: what `rounds.jsonl` records, sent to TensorBoard, Weights & Biases or MLflow as well.

All three are optional and imported when a hook is made, before any training.  Nothing leaves the machine unless the
user's own environment (`WANDB_MODE`, `MLFLOW_TRACKING_URI`) says so.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from prismfl.errors import DependencyError, SettingError
from prismfl.run.folder import reopen
from prismfl.run.loop import Silent, Watcher
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


class Log(Silent):
    """A watcher that keeps numbers somewhere: by round, one step a round done, and closing ones.

    root: the run folder, which need not be there yet.  What a foreign library makes is `Any`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.open: Any = None

    def started(self, done: int, rounds: int) -> None:  # noqa: ARG002
        """The run begins, or goes on after `done` rounds."""
        self.open = self.begin(done)

    def round_done(self, record: Mapping[str, Any], rounds: int) -> None:  # noqa: ARG002
        """A round is on disk."""
        self.write(scalars(record), record["round"] + 1)

    def finished(self, summary: Mapping[str, Any]) -> None:
        """The run's closing figures, each as `summary/name`."""
        kept = {name: value for name, value in summary.items() if name not in ("versions", "hardware", "rounds")}
        self.close_with(scalars({"summary": kept}), summary["rounds"])

    def begin(self, done: int) -> Any:
        """Open the log of a run that has `done` rounds behind it."""
        raise NotImplementedError

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Numbers after `step` rounds."""
        raise NotImplementedError

    def close_with(self, values: Mapping[str, float], step: int) -> None:
        """Closing numbers."""
        self.write(values, step)

    def close(self, whole: bool) -> None:
        """Nothing more comes; whole: the run came to its end."""


class TensorBoard(Log):
    """Scalars by round in `RUN/tensorboard/`; `tensorboard --logdir RUN` shows them."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        _library("tensorboard", "tensorboard")
        self.module = _library("torch.utils.tensorboard", "tensorboard")

    def begin(self, done: int) -> Any:
        """An event file; what a killed run wrote beyond its checkpoint is dropped."""
        return self.module.SummaryWriter(str(self.root / "tensorboard"), purge_step=done + 1 if done else None)

    def write(self, values: Mapping[str, float], step: int) -> None:
        """A scalar each."""
        for name, value in values.items():
            self.open.add_scalar(name, value, step)

    def close(self, whole: bool) -> None:  # noqa: ARG002
        """Flush the events."""
        if self.open is not None:
            self.open.close()


class WeightsAndBiases(Log):
    """A run of Weights & Biases in `RUN/wandb/`: offline, unless `WANDB_MODE` says otherwise."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.module = _library("wandb", "wandb")

    def begin(self, done: int) -> Any:  # noqa: ARG002
        """A run with the public settings; a resumed one begins another of the same name."""
        return self.module.init(
            project=os.environ.get("WANDB_PROJECT", "prismfl"),
            name=self.root.resolve().name,
            dir=str(self.root),
            mode=os.environ.get("WANDB_MODE", "offline"),
            config=flat_settings(_settings_of(self.root)),
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
        if self.open is not None:
            self.open.finish(exit_code=0 if whole else 1)


class MLflow(Log):
    """An MLflow run in `RUN/mlflow.db` (SQLite), or where `MLFLOW_TRACKING_URI` says."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        self.module = _library("mlflow", "mlflow")

    def begin(self, done: int) -> Any:  # noqa: ARG002
        """A run with the public settings; a resumed one begins another of the same name."""
        database = (self.root / "mlflow.db").resolve()
        self.module.set_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{database}"))
        self.module.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "prismfl"))
        run = self.module.start_run(run_name=self.root.resolve().name)
        settings = list(flat_settings(_settings_of(self.root)).items())
        for start in range(0, len(settings), _MOST_PARAMETERS):
            self.module.log_params(dict(settings[start : start + _MOST_PARAMETERS]))
        return run

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Metrics of one step."""
        self.module.log_metrics(dict(values), step=step)

    def close(self, whole: bool) -> None:
        """End the run."""
        if self.open is not None:
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

    A context: when it is left, the logs are closed.
    """

    def __init__(self, display: Watcher, logs: Mapping[str, Log]) -> None:
        self.display, self.logs = display, dict(logs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tell(lambda log: log.close(kind is None))

    def started(self, done: int, rounds: int) -> None:
        """The run begins, or goes on after `done` rounds."""
        self.display.started(done, rounds)
        self._tell(lambda log: log.started(done, rounds))

    def round_done(self, record: Mapping[str, Any], rounds: int) -> None:
        """A round is on disk."""
        self.display.round_done(record, rounds)
        self._tell(lambda log: log.round_done(record, rounds))

    def note(self, text: str) -> None:
        """Something worth a line."""
        self.display.note(text)

    def finished(self, summary: Mapping[str, Any]) -> None:
        """The run's closing figures."""
        self._tell(lambda log: log.finished(summary))

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
    found: dict[str, str | int | float | bool] = {"seed": settings.seed}
    for section in (name for name in SECTIONS if name != "running"):
        found |= {f"{section}.{key}": _plain(value) for key, value in values[section].items()}
    return found


def _plain(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _settings_of(root: Path) -> Settings:
    """As the run folder has them: with what was filled in when the run began."""
    return reopen(root)[1]


def _library(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except Exception as error:  # a library beside a wrong version of another raises anything
        raise DependencyError(
            f"{package} does not import ({type(error).__name__}: {error})",
            f"it, for --log {package}",
            f"pip install {package}",
        ) from None
