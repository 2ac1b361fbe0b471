"""Logging hooks, with stand-ins for the three libraries: what is told, and that no failure of theirs ends a run."""

import json
import sys

import pytest

from prismfl.errors import DependencyError, SettingError
from prismfl.run import folder as runfolder
from prismfl.run import loggers as callbacks
from prismfl.run.loggers import Logged, flat_settings, make_logs, scalars
from prismfl.run.loop import Silent

RECORD = {
    "round": 1,
    "loss": 0.5,
    "flips": None,
    "theta_by_layer": {"input": 0.25},
    "cohort": [3, 4],
    "left_out": {"2": "damaged"},
    "grid": "samples/1.png",
}
FLAT = {"round": 1, "loss": 0.5, "theta_by_layer/input": 0.25, "cohort": 2, "left_out": 1}
SUMMARY = {"rounds": 2, "loss": 0.25, "versions": {"torch": "2"}, "privacy": "none"}


class Told(list):
    """A stand-in: every call, by name."""

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*words, **named):
            self.append((name, words, named))
            return self

        return call

    @property
    def summary(self):
        return self

    def of(self, name):
        return [(words, named) for called, words, named in self if called == name]


@pytest.fixture
def libraries(monkeypatch):
    """Stand-ins for the three libraries, by name."""
    for name in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    found = {name: Told() for name in ("tensorboard", "wandb", "mlflow")}
    for name, module in found.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", found["tensorboard"])
    return found


@pytest.fixture
def root(tiny, tmp_path):
    return runfolder.create(tmp_path / "run", tiny(data={"data_dir": "/private/place"})).root


class Display(Silent):
    def __init__(self):
        self.heard = []

    def round_done(self, record, rounds):  # noqa: ARG002
        self.heard.append(record["round"])

    def note(self, text):
        self.heard.append(text)


def play(logs, display=None):
    """A run of one round as the command tells it."""
    display = display or Display()
    with Logged(display, logs) as watcher:
        watcher.started(0, 2)
        watcher.round_done(RECORD, 2)
        watcher.finished(SUMMARY)
    return display.heard


def test_numbers_of_a_record():
    assert scalars(RECORD) == FLAT
    assert scalars({"a": True, "b": [1], "c": {"d": {"e": 2}}}) == {"c/d/e": 2}


def test_every_hook_hears_all_and_the_display_too(libraries, root):
    assert play(make_logs("wandb, tensorboard,mlflow", root)) == [1]
    board, wandb, mlflow = (libraries[name] for name in ("tensorboard", "wandb", "mlflow"))
    assert {words[0]: words[1:] for words, _ in board.of("add_scalar")} == {
        **{name: (value, 2) for name, value in FLAT.items()},
        "summary/loss": (0.25, 2),
    }
    assert wandb.of("log") == [((FLAT,), {"step": 2})] and wandb.of("update") == [(({"summary/loss": 0.25},), {})]
    assert mlflow.of("log_metrics")[0] == ((FLAT,), {"step": 2})
    assert board.of("close") and wandb.of("finish") == [((), {"exit_code": 0})]
    assert mlflow.of("end_run") == [(("FINISHED",), {})]


def test_nothing_leaves_the_machine_unless_the_environment_says_so(libraries, root, monkeypatch):
    play(make_logs("wandb,mlflow", root))
    (_, named), ((address,), _) = libraries["wandb"].of("init")[0], libraries["mlflow"].of("set_tracking_uri")[0]
    assert named["mode"] == "offline" and named["dir"] == str(root) and named["name"] == "run"
    assert address == f"sqlite:///{root / 'mlflow.db'}"
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker")
    play(make_logs("wandb,mlflow", root))
    assert libraries["wandb"].of("init")[1][1]["mode"] == "online"
    assert libraries["mlflow"].of("set_tracking_uri")[1][0] == ("http://tracker",)


def test_settings_are_logged_without_paths(libraries, root):
    play(make_logs("wandb,mlflow", root))
    config = libraries["wandb"].of("init")[0][1]["config"]
    assert config == flat_settings(runfolder.reopen(root)[1]) and config["search.local_steps"] == 1
    logged = [words[0] for words, _ in libraries["mlflow"].of("log_params")]
    assert {name: value for part in logged for name, value in part.items()} == config
    assert max(map(len, logged)) <= 100
    assert "/private" not in json.dumps(config)


def test_a_resumed_run_drops_what_was_beyond_its_checkpoint(libraries, root):
    for done, step in ((0, None), (3, 4)):
        with Logged(Display(), make_logs("tensorboard", root)) as watcher:
            watcher.started(done, 9)
        assert libraries["tensorboard"].of("SummaryWriter")[-1][1] == {"purge_step": step}


def test_a_run_that_fails_is_closed_as_failed(libraries, root):
    with pytest.raises(KeyboardInterrupt), Logged(Display(), make_logs("wandb,mlflow", root)) as watcher:
        watcher.started(0, 2)
        raise KeyboardInterrupt
    assert libraries["wandb"].of("finish") == [((), {"exit_code": 1})]
    assert libraries["mlflow"].of("end_run") == [(("FAILED",), {})]


def test_a_run_that_never_began_opens_and_closes_nothing(libraries, root):
    with Logged(Display(), make_logs("tensorboard,wandb,mlflow", root)):
        pass
    assert not any(
        stand_in.of(name) for stand_in in libraries.values() for name in ("init", "finish", "end_run", "close")
    )


def test_a_hook_that_fails_is_left_out_with_a_note(libraries, root):
    class Broken:
        def __getattr__(self, name):
            raise OSError("disk full")

    logs = make_logs("wandb,tensorboard", root)
    logs["wandb"].module = Broken()
    heard = play(logs)
    assert heard == ["wandb failed and is left out (OSError: disk full)", 1]
    assert libraries["tensorboard"].of("add_scalar")


@pytest.mark.parametrize("names", ["tensorbord", "wandb,csv", "TensorBoard"])
def test_unknown_logs_are_refused(libraries, root, names):
    with pytest.raises(SettingError, match="expected some of tensorboard, wandb, mlflow"):
        make_logs(names, root)


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_library_is_named_with_its_remedy(libraries, root, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DependencyError, match=f"pip install {name}"):
        make_logs(name, root)


def test_no_log_needs_no_library(root):
    assert make_logs("", root) == {} and make_logs(" , ", root) == {}


def test_a_library_that_breaks_when_imported_is_a_dependency_error(root, monkeypatch):
    def broken(name):
        raise RuntimeError(f"two versions of {name}")

    monkeypatch.setattr(callbacks, "import_module", broken)
    with pytest.raises(DependencyError, match="two versions of wandb"):
        make_logs("wandb", root)
