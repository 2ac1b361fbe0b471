"""The command line: whole runs, and one clear line for everything that goes wrong."""

import contextlib
import functools
import hashlib
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

import prismfl
from prismfl.cli import main as cli
from prismfl.cli import train as train_command
from prismfl.data.datasets import load_dataset
from prismfl.engines import simulator as inprocess
from prismfl.errors import PrismError
from prismfl.features.networks import load_features
from prismfl.features.vgg19 import random_vgg
from prismfl.generator.modelfile import save_model
from prismfl.metrics.readability import Classifier
from prismfl.run import evaluate as evaluation
from prismfl.run import folder as runfolder
from prismfl.run import loggers as callbacks
from prismfl.run.forecast import forecast
from prismfl.run.prepare import prepare
from prismfl.run.progress import sized
from prismfl.settings.resolve import resolved
from prismfl.settings.toml import load_settings, read_toml

TINY = shlex.split("""
    --size 16 --width 2 --clients 2 --rounds 2 --local-steps 1 --batch-size 4
    --distance-samples 0 --finished-mask half --workers 1 --no-report
""")
KEYS = shlex.split("""
    round loss lambda density cohort seconds uplink_bytes downlink_bytes
    uplink_bits_per_parameter downlink_bits_per_parameter
""")


def call(*words):
    """Run the command in this process: (exit status, standard output, standard error)."""
    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["prismfl", *map(str, words)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as caught:
            cli.main()
    finally:
        sys.argv = before
    return caught.value.code, out.getvalue(), err.getvalue()


def refused(*words):
    """The one line with which a command is refused."""
    code, _, err = call(*words)
    assert code == 2
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1
    assert "Traceback" not in err
    return err


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished tiny run, and what it printed."""
    root = tmp_path_factory.mktemp("cli") / "run"
    code, out, err = call("train", *TINY, "--out", root)
    assert (code, err) == (0, "")
    return root, out


@pytest.fixture
def model(run):
    return run[0] / "model.safetensors"


def lines_of(root):
    return [json.loads(line) for line in (root / "rounds.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------------------- train


def test_a_run_folder_has_all_its_files(run):
    root, out = run
    settings = load_settings(root / "config.toml")
    assert (settings.federation.rounds, settings.data.clients, settings.generator.width) == (2, 2, 2)
    lines = lines_of(root)
    assert [line["round"] for line in lines] == [0, 1]
    for line in lines:
        assert set(KEYS) <= set(line)
        assert line["cohort"] == [0, 1] and line["left_out"] == {}
        assert line["loss"] > 0 and 0 < line["density"] < 1
    assert json.loads((root / "ledger.json").read_text()) == {"releases": []}
    with Image.open(next((root / "samples").glob("*.png"))) as grid:
        assert grid.mode == "L" and min(grid.size) > 8 * 16
    assert "round 2/2" in out and str(root / "model.safetensors") in out and "no formal guarantee" in out
    assert not list(root.rglob("*.tmp"))
    assert "2 of 2" in (root / "status.html").read_text()


def test_bits_a_parameter_follow_from_bytes(run, model):
    count = prismfl.load(model).model.layout.count
    for line in lines_of(run[0]):
        for way in ("uplink", "downlink"):
            bits = line[f"{way}_bytes"] * 8 / (count * len(line["cohort"]))
            assert line[f"{way}_bits_per_parameter"] == pytest.approx(bits)


def test_the_config_of_a_run_makes_the_same_model(run, model, tmp_path):
    code, _, _ = call("train", "--config", run[0] / "config.toml", "--out", tmp_path / "again")
    assert code == 0 and (tmp_path / "again" / "model.safetensors").read_bytes() == model.read_bytes()
    assert (tmp_path / "again" / "config.toml").read_bytes() == (run[0] / "config.toml").read_bytes()


def test_options_go_over_the_config(run, model, tmp_path):
    root = tmp_path / "other"
    code, _, _ = call("train", "--config", run[0] / "config.toml", "--out", root, "--seed", 5, "--rounds", 1)
    settings = load_settings(root / "config.toml")
    assert code == 0 and (settings.seed, settings.federation.rounds, settings.generator.width) == (5, 1, 2)
    assert len(lines_of(root)) == 1
    assert (root / "model.safetensors").read_bytes() != model.read_bytes()


def test_without_out_the_folder_is_named_after_data_and_seed(run, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("train", *TINY, "--seed", 3, "--rounds", 1)[0] == 0
    assert (tmp_path / "runs" / "digits-3" / "model.safetensors").is_file()


def test_a_terminal_sees_a_bar_and_the_same_model(run, model, tmp_path, monkeypatch):
    monkeypatch.setattr(train_command, "on_terminal", lambda: True)
    code, out, err = call("train", *TINY, "--out", tmp_path / "live")
    assert (code, err) == (0, "") and "2/2" in out and "no formal guarantee" in out
    assert (tmp_path / "live" / "model.safetensors").read_bytes() == model.read_bytes()


def test_grids_and_distances_come_when_they_are_due(tmp_path):
    words = ["--distance-every", 1, "--distance-samples", 50]
    code, out, _ = call("train", *TINY, *words, "--out", tmp_path / "run")
    first, last = lines_of(tmp_path / "run")
    assert code == 0 and first["distance"] > 0 and "distance" not in last
    names = ["real.png", "round-00001.png", "round-00002.png"]
    assert sorted(path.name for path in (tmp_path / "run" / "samples").iterdir()) == names
    assert "fid_judge" in out
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["fid_judge"] > 0


def test_what_is_only_shown_does_not_change_the_model(model, tmp_path):
    """Grids, distances and the number of workers are outside the model's numbers."""
    words = ["--distance-every", 1, "--workers", 2]
    assert call("train", *TINY, *words, "--out", tmp_path / "run")[0] == 0
    one, two = (prismfl.load(path).model for path in (model, tmp_path / "run" / "model.safetensors"))
    assert np.array_equal(one.mask, two.mask) and np.array_equal(one.norm_mean, two.norm_mean)


# ----------------------------------------------------------------------------------- report and logs


def test_a_run_ends_with_its_report(run, tmp_path):
    copy = shutil.copytree(run[0], tmp_path / "copy")
    code, out, err = call("train", "--resume", copy)
    assert (code, err) == (0, "") and f"report   {copy / 'report.html'}" in out
    assert "<!doctype html>" in (copy / "report.html").read_text() and (copy / "plots" / "loss.png").is_file()
    assert "report" not in run[1] and not (run[0] / "report.html").exists(), "--no-report makes none"


@pytest.mark.parametrize(
    "error", [PrismError("a", "b", "c"), OSError("disk\nfull"), KeyError("x"), ImportError("none")]
)
def test_a_report_that_fails_does_not_fail_the_run(run, tmp_path, monkeypatch, error):
    def fail(roots):
        raise error

    monkeypatch.setattr("prismfl.report.page.build_report", fail)
    code, out, err = call("train", *TINY[:-1], "--rounds", 1, "--out", tmp_path / "run")
    assert (code, err) == (0, "") and "report   not built (" in out and "prismfl report" in out
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_card_names_its_pages_and_reads_no_images_unasked(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run[0], copy)
    assert call("card", copy) == (0, f"{copy / 'card.html'}\n{copy / 'card.md'}\n", "")
    assert "leave to read the training images was not given" in (copy / "card.md").read_text()
    assert "--training-images as well" in refused("card", copy, "--data-dir", tmp_path)


def test_report_names_the_page(run, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("prismfl.report.page.build_report", lambda *words: asked.append(words) or "there")
    assert call("report", run[0], run[0], "--out", tmp_path / "a.html")[:2] == (0, "there\n")
    assert asked == [([run[0], run[0]], tmp_path / "a.html")]
    monkeypatch.undo()
    assert "no config.toml" in refused("report", tmp_path)


def test_the_summary_says_what_a_run_was_made_with(run):
    found = json.loads((run[0] / "summary.json").read_text())
    assert found["versions"]["torch"] == torch.__version__ and found["versions"]["prismfl"] == prismfl.__version__
    assert found["versions"]["numpy"] == np.__version__ and found["hardware"]["cores"] >= 1
    labels = json.loads((run[0] / "labels.json").read_text())
    assert labels["simulation"] and labels["classes"] == list("0123456789")
    assert sum(map(sum, labels["counts"])) == len(load_dataset("digits", None, 16, "train"))


def test_logs_hear_of_the_run_and_change_nothing_of_it(run, model, tmp_path, monkeypatch):
    class Kept(callbacks.Log):
        heard: ClassVar = []

        def begin(self, done):
            self.heard.append(("begin", done))

        def write(self, values, step):
            self.heard.append((sorted(values)[:2], step))

        def close(self, whole):
            self.heard.append(("close", whole))

    monkeypatch.setitem(callbacks.LOGS, "wandb", Kept)
    assert call("train", *TINY, "--log", "wandb", "--out", tmp_path / "run")[0] == 0
    first, one, two, last, end = Kept.heard
    assert (first, end) == (("begin", 0), ("close", True)) and (one[1], two[1], last[1]) == (1, 2, 2)
    assert one[0] == ["cohort", "density"] and last[0][0].startswith("summary/")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == model.read_bytes()
    assert (tmp_path / "run" / "config.toml").read_bytes() == (run[0] / "config.toml").read_bytes()


def test_a_log_that_cannot_be_kept_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "pip install wandb" in refused("train", *TINY, "--log", "wandb", "--out", tmp_path / "run")
    assert "expected some of tensorboard, wandb, mlflow" in refused("train", "--log", "csv", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------ resume


def test_resuming_a_finished_run_changes_nothing(run, model, tmp_path):
    copy = shutil.copytree(run[0], tmp_path / "copy")
    code, out, err = call("train", "--resume", copy)
    assert (code, err) == (0, "") and "going on after 2 of 2" in out
    assert (copy / "model.safetensors").read_bytes() == model.read_bytes()
    assert lines_of(copy) == lines_of(run[0])


def test_a_run_stopped_between_rounds_ends_alike(run, model, tmp_path, monkeypatch):
    class StopError(Exception):
        pass

    def stop(self, record, rounds):
        raise StopError

    with monkeypatch.context() as patched:
        patched.setattr("prismfl.run.progress.PlainWatcher.round_done", stop)
        with pytest.raises(StopError):
            call("train", *TINY, "--out", tmp_path / "run")
    assert len(lines_of(tmp_path / "run")) == 1
    # A kill in the middle of a line leaves part of it.
    with (tmp_path / "run" / "rounds.jsonl").open("a") as file:
        file.write('{"round": 1, "loss": 0.')
    assert call("train", "--resume", tmp_path / "run")[0] == 0
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == model.read_bytes()
    assert [line["round"] for line in lines_of(tmp_path / "run")] == [0, 1]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system knows no SIGKILL")
@pytest.mark.usefixtures("full_world")
def test_a_killed_run_ends_with_the_same_model(tmp_path):
    words = ["train", *TINY, "--rounds", "60"]
    killed, log = tmp_path / "killed", tmp_path / "killed" / "rounds.jsonl"
    command = [sys.executable, "-m", "prismfl", *words, "--out", str(killed)]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as process:
        while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") >= 2):
            time.sleep(0.005)
        process.kill()
    assert process.returncode == -signal.SIGKILL, "it was still training"
    assert not (killed / "model.safetensors").exists() and len(lines_of(killed)) < 60
    assert call("train", "--resume", killed)[0] == 0
    assert call(*words, "--out", tmp_path / "whole")[0] == 0
    one, two = (tmp_path / name / "model.safetensors" for name in ("killed", "whole"))
    assert one.read_bytes() == two.read_bytes()
    assert [line["loss"] for line in lines_of(killed)] == [line["loss"] for line in lines_of(tmp_path / "whole")]


@pytest.mark.parametrize("extra", [["--rounds", "9"], ["--out", "other"], ["--dry-run"], ["--config", "a.toml"]])
def test_a_resumed_run_cannot_become_another(run, extra):
    assert "options of running" in refused("train", "--resume", run[0], *extra)


def test_a_resumed_run_may_run_otherwise_and_find_its_files_elsewhere(run, tmp_path, monkeypatch, write_sites):
    monkeypatch.chdir(tmp_path)
    write_sites(tmp_path / "sites", {"north": 5, "south": 9})
    words = ["train", "--data-dir", "sites/*", *SMALL]
    assert call(*words, "--out", "whole")[0] == 0
    with monkeypatch.context() as patched:
        patched.setattr("prismfl.run.progress.PlainWatcher.round_done", lambda *_: sys.exit(1))
        assert call(*words, "--out", "stopped")[0] == 1
    (tmp_path / "sites").rename(tmp_path / "moved")
    assert "no folder or zip matches" in refused("train", "--resume", "stopped")
    write_sites(tmp_path / "others", {"north": 1, "south": 1})
    asked = (tmp_path / "stopped" / "config.toml").read_text()
    assert "come to another run" in refused("train", "--resume", "stopped", "--data-dir", "others/*")
    assert (tmp_path / "stopped" / "config.toml").read_text() == asked
    code, _, err = call("train", "--resume", "stopped", "--data-dir", "moved/*", "--workers", 2)
    assert (code, err) == (0, "") and len(lines_of(tmp_path / "stopped")) == 2
    one, two = (tmp_path / name / "model.safetensors" for name in ("whole", "stopped"))
    assert one.read_bytes() == two.read_bytes()
    assert load_settings(tmp_path / "stopped" / "config.toml").running.workers == 2


def test_a_table_of_persons_may_move_and_its_place_is_told_to_nobody(tmp_path, write_sites):
    write_sites(tmp_path, {"images": 24})
    files = sorted(path.relative_to(tmp_path / "images") for path in (tmp_path / "images").rglob("*.png"))
    table = tmp_path / "bystanders.csv"
    table.write_text("".join(f"{path},p{index % 8}\n" for index, path in enumerate(files)))
    words = ["--data-dir", tmp_path / "images", "--dataset", "folder", "--partition", "iid", "--clients", 2, *SMALL]
    root = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("prismfl.run.progress.PlainWatcher.round_done", lambda *_: sys.exit(1))
        assert call("train", *words, "--people", table, "--out", root)[0] == 1
    table.rename(tmp_path / "moved.csv")
    assert call("train", "--resume", root)[0] == 2
    code, _, err = call("train", "--resume", root, "--people", tmp_path / "moved.csv")
    assert (code, err) == (0, "")
    told = [root / name for name in ("model.safetensors", "report.html", "summary.json")]
    assert all(b"bystanders" not in path.read_bytes() and b"moved.csv" not in path.read_bytes() for path in told)


def test_more_rounds_of_a_runs_config_are_resolved_anew(run, tmp_path):
    """What was filled in for two rounds is no wish in two thousand."""
    asked = load_settings(run[0] / "config.toml", {"rounds": 2000, "local_steps": 2})
    assert asked.search.learning_rate == 0 and resolved(asked, 1).search.learning_rate < 0.1
    told = (run[0] / "resolved.toml").read_text()
    assert "learning_rate = 1.0  # asked: 0.0; " in told and "network = " in told


def test_resume_of_what_is_no_run_is_refused(tmp_path):
    assert "no config.toml" in refused("train", "--resume", tmp_path)
    assert "no config.toml" in refused("train", "--resume", tmp_path / "nowhere")
    (tmp_path / "config.toml").write_text("[data]\nclients = 0\n")
    assert "data.clients = 0" in refused("train", "--resume", tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("config.toml", "", "it is empty"),
        ("resolved.toml", "resolved = 3", "it is empty"),
        ("resolved.toml", "seed = 0\nresolved = 3", "no run and network"),
        ("resolved.toml", "seed = 0", "no run and network"),
        ("rounds.jsonl", "{}\n{}\n", "line 1 has round = None"),
        ("rounds.jsonl", '{"round": "x"}\n', "line 1 has round = 'x'"),
    ],
)
def test_resume_with_damaged_files_is_refused(run, tmp_path, name, text, says):
    copy = shutil.copytree(run[0], tmp_path / "copy")
    (copy / name).write_text(text)
    assert f"{name} is damaged ({says}" in refused("train", "--resume", copy)


def test_resume_with_a_damaged_checkpoint_is_refused(run, tmp_path):
    copy = shutil.copytree(run[0], tmp_path / "copy")
    path = copy / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    assert "checkpoint.safetensors is damaged" in refused("train", "--resume", copy)


# ----------------------------------------------------------------------------------------- dry run


def test_a_dry_run_says_what_the_run_takes(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call("train", *TINY, "--dry-run")
    assert code == 0 and err.startswith("trying some steps") and not list(tmp_path.iterdir()), "nothing is written"
    shown = {line.split()[0]: line for line in out.splitlines()}
    assert {"minutes", "uplink", "downlink", "memory", "parameters"} <= set(shown)
    lines, found = lines_of(run[0]), forecast(prepare(load_settings(run[0] / "config.toml")), 1)
    for way, promised in (("uplink", found.uplink_bytes), ("downlink", found.downlink_bytes)):
        real = sum(line[f"{way}_bytes"] for line in lines)
        assert real / 3 < promised < 3 * real
        assert f"about {sized(promised)}" in shown[way]
    assert str(found.parameters) in shown["parameters"] and "MB" in shown["memory"]


# ------------------------------------------------------------------------------------------ sample


def tiles_of(path, rows, columns):
    """The images of a grid's file, row by row."""
    with Image.open(path) as grid:
        sheet = np.asarray(grid)[::2, ::2]
    assert sheet.shape == (17 * rows + 1, 17 * columns + 1)
    return sheet[1:, 1:].reshape(rows, 17, columns, 17)[:, :16, :, :16].swapaxes(1, 2).reshape(-1, 1, 16, 16)


def test_a_grid_is_decided_by_its_seed(model, tmp_path):
    paths = [tmp_path / f"{name}.png" for name in ("one", "again", "other")]
    for path, seed in zip(paths, (4, 4, 5), strict=True):
        code, out, _ = call("sample", model, "--count", 20, "--seed", seed, "--out", path)
        assert code == 0 and out.strip() == str(path)
    one, again, other = (path.read_bytes() for path in paths)
    assert one == again != other
    assert np.array_equal(tiles_of(paths[0], 2, 10), prismfl.load(model).sample(20, seed=4)), "a column a label"


def test_single_files_hold_the_images(model, tmp_path):
    assert call("sample", model, "--count", 3, "--seed", 1, "--out", tmp_path / "new" / "singles")[0] == 0
    found = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "new" / "singles").iterdir())]
    assert np.array_equal(np.stack(found)[:, None], prismfl.load(model).sample(3, seed=1))


def test_a_label_is_sampled_alone(model, tmp_path):
    words = ["sample", model, "--count", 4, "--seed", 1, "--label", "7", "--out"]
    for out in (tmp_path / "grid.png", tmp_path / "singles"):
        assert call(*words, out)[0] == 0
    sevens = prismfl.load(model).sample(4, seed=1, labels=np.full(4, 7))
    assert np.array_equal(tiles_of(tmp_path / "grid.png", 2, 2), sevens)
    found = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "singles").iterdir())]
    assert np.array_equal(np.stack(found)[:, None], sevens)


def test_images_of_each_class_are_a_data_set(model, tmp_path):
    code, out, _ = call("sample", model, "--per-class", 3, "--seed", 2, "--out", tmp_path / "made")
    assert code == 0 and out.strip() == str(tmp_path / "made")
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == list("0123456789")
    wanted = prismfl.load(model).per_class(3, seed=2)
    # A folder without splits holds every tenth image back for testing.
    parts = [load_dataset("folder", tmp_path / "made", 16, split) for split in ("train", "test")]
    assert {part.classes for part in parts} == {tuple("0123456789")}
    images, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "labels"))
    for label in range(10):
        assert {i.tobytes() for i in images[labels == label]} == {i.tobytes() for i in wanted[str(label)]}
    assert np.bincount(labels).tolist() == [3] * 10


def test_labels_of_a_foreign_model_write_nothing_elsewhere(model, tmp_path):
    held = prismfl.load(model).model
    for name in ("..", str(tmp_path / "elsewhere"), "a\\b"):
        path = tmp_path / "foreign" / "m.safetensors"
        save_model(replace(held, labels=(name, *held.labels[1:])), path)
        assert "can name folders" in refused("sample", path, "--per-class", 1, "--out", tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["foreign"]


def test_a_run_may_do_without_labels(tmp_path):
    """Its images have labels; its model takes none, and says so where one is asked for."""
    assert call("train", *TINY, "--no-conditional", "--rounds", 1, "--out", tmp_path / "run")[0] == 0
    path = tmp_path / "run" / "model.safetensors"
    assert prismfl.load(path).model.labels == ()
    assert call("sample", path, "--count", 4, "--out", tmp_path / "grid.png")[0] == 0
    assert tiles_of(tmp_path / "grid.png", 2, 2).shape == (4, 1, 16, 16)
    assert "takes no label" in refused("sample", path, "--label", "7", "--out", tmp_path / "other.png")
    assert "takes no label" in refused("sample", path, "--per-class", 1, "--out", tmp_path / "made")
    assert not (tmp_path / "other.png").exists() and not (tmp_path / "made").exists()


# ---------------------------------------------------------------------------------------- evaluate


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(evaluation, "Classifier", functools.partial(Classifier, steps=2))


def test_evaluate_prints_text_and_json_alike(model, few_steps):
    words = ["evaluate", model, "--samples", 30, "--seed", 2]
    (code, text, _), (json_code, raw, _) = call(*words), call(*words, "--json")
    found = json.loads(raw)
    assert (code, json_code) == (0, 0) and found["samples"] == 30
    shown = dict(line.split(maxsplit=1) for line in text.splitlines() if len(line.split()) > 1)
    assert float(shown["fid_judge"].split()[0]) == pytest.approx(found["fid_judge"], abs=1e-4)
    assert float(shown["readable"]) == pytest.approx(found["readable"], abs=1e-4)
    names = [pair.split("=")[0] for pair in shown["class_shares"].split()]
    assert names == found["class_names"] and len(found["class_shares"]) == 10
    assert float(shown["label_agreement"]) == pytest.approx(found["label_agreement"], abs=1e-4)


def test_evaluate_saves_for_the_report(run, tmp_path):
    copy = shutil.copytree(run[0], tmp_path / "copy")
    pairs = copy / "pairs.png"
    words = ["evaluate", copy / "model.safetensors", "--samples", 20, "--metrics", "fid", "--pairs", pairs, "--save"]
    code, out, err = call(*words, "--json")
    assert code == 0 and "evaluation.json" in err
    assert json.loads((copy / "evaluation.json").read_text()) == {"model": "model.safetensors"} | json.loads(out)
    assert json.loads(out)["pairs"]["file"] == "pairs.png" and pairs.is_file()


def test_evaluate_over_seeds_gives_intervals_of_what_was_asked_for(model):
    words = ["evaluate", model, "--samples", 30, "--repeats", 2, "--metrics", "fid,prdc"]
    (code, text, _), (_, raw, _) = call(*words), call(*words, "--json")
    found = json.loads(raw)
    low, high = found["fid_judge_interval"]
    assert code == 0 and low < found["fid_judge"] < high and "readable" not in found
    assert f"[{low:.4f}, {high:.4f}]" in text and "recall_judge" in text


# ---------------------------------------------------------------------------------------- pretrain


def write_tree(root, splits=("train", "test")):
    rng = np.random.default_rng(0)
    for split in splits:
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for index in range(3):
                image = rng.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(image).save(root / split / name / f"{index}.png")
    return root


def test_pretrain_makes_a_network_to_train_with(tmp_path):
    out = tmp_path / "mine.safetensors"
    code, shown, _ = call("pretrain", "--images", write_tree(tmp_path / "im"), "--out", out, "--epochs", 1)
    assert code == 0 and "test accuracy" in shown
    assert call("train", *TINY, "--features", out, "--rounds", 1, "--out", tmp_path / "run")[0] == 0


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--epochs", "0", "epochs 0"),
        ("--rate", "-1", "rate"),
        ("--rate", "nan", "rate"),
        ("--size", "0", "size"),
        ("--size", "4", "size"),
        ("--seed", str(2**70), "seed"),
        ("--colour", "2", "colour 2.0"),
        ("--grey", "-1", "grey -1.0"),
        ("--images", "nowhere", "nowhere does not exist"),
    ],
)
def test_pretrain_refuses_what_cannot_work(tmp_path, option, value, says):
    images = write_tree(tmp_path / "im")
    words = ["pretrain", "--images", images, "--out", tmp_path / "f", "--epochs", 1, option, value]
    assert says in refused(*words).replace(str(tmp_path), "")
    assert not (tmp_path / "f").exists()


def test_pretrain_keeps_the_shares_of_colour_and_grey(tmp_path):
    out = tmp_path / "mine.safetensors"
    words = ["pretrain", "--images", write_tree(tmp_path / "im"), "--out", out, "--epochs", 1]
    assert call(*words, "--colour", 0, "--grey", 0.1)[0] == 0
    recipe = load_features(out).about["recipe"]
    assert (recipe["colour"], recipe["grey"]) == (0.0, 0.1)


def test_pretrain_takes_some_classes(tmp_path):
    out = tmp_path / "mine.safetensors"
    words = ["pretrain", "--images", write_tree(tmp_path / "im"), "--out", out, "--epochs", 1]
    assert call(*words, "--classes", "b")[0] == 0
    assert load_features(out).about["classes"] == ["b"] and load_features(out).about["all_classes"] == ["a", "b"]
    assert "class '2'" in refused(*words, "--classes", "0-1,2")


# ------------------------------------------------------------------------------------------ networks


def test_training_takes_random_convolutions_and_some_classes(tmp_path):
    root = tmp_path / "run"
    words = ["--features", "random", "--classes", "5-9", "--rounds", 1, "--out", root]
    assert call("train", *TINY, *words)[0] == 0
    settings = load_settings(root / "config.toml")
    assert (settings.features.features, settings.data.classes) == ("random", "5-9")
    assert read_toml(root / "resolved.toml")["resolved"]["network"] == random_vgg().sha256
    assert prismfl.load(root / "model.safetensors").model.labels == tuple("56789")


def test_weights_that_cannot_be_had_are_refused(model, tmp_path):
    assert "expected a network" in refused(
        "fetch-weights", "vgg19", "--out", tmp_path / "w", "--url", "http://127.0.0.1:1"
    )
    assert "'resnet'" in refused("fetch-weights", "resnet", "--out", tmp_path / "w")
    assert "fetch-weights vgg19" in refused("train", *TINY, "--features", "vgg19", "--out", tmp_path / "run")
    assert "fetch-weights inception" in refused("evaluate", model, "--inception", tmp_path / "none.pth")
    assert list(tmp_path.iterdir()) == []


def test_pretrain_refuses_a_folder_as_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused("pretrain", "--images", write_tree(tmp_path / "im"), "--epochs", 1, "--out", ".")


# --------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trian"], "trian"),
        (["train", "--colour", "3"], "--colour"),
        (["train", "extra"], "extra"),
        (["train", "--clients"], "--clients"),
        (["train", "--clients", "many"], "--clients many; expected a whole number"),
        (["train", "--clients", "2.5"], "--clients 2.5"),
        (["train", "--clients", "0"], "--clients 0; expected"),
        (["train", "--alpha", "2"], "--alpha 2.0"),
        (["train", "--alpha", "nan"], "--alpha nan"),
        (["train", "--learning-rate", "inf"], "--learning-rate inf"),
        (["train", "--size", "28"], "--size 28; expected one of 0, 16, 32, 64; change --size"),
        (["train", "--control-variate", "true"], "there is --uplink: whole"),
        (["train", "--epsilon", "-8"], "--epsilon -8.0"),
        (["train", "--epsilon", "8", "--delta", "0.01"], "--delta 0.01 with"),
        (["train", "--epsilon", "90"], "a smaller ε"),
        (["train", "--epsilon", "8", "--noise", "none"], "--noise none"),
        (["train", "--dataset", "cifar10"], "no folder for data set 'cifar10'"),
        (["train", "--dataset", "cifar10", "--data-dir", "nowhere"], "no data_batch_1.bin in nowhere"),
        (["train", "--dataset", "celeba", "--data-dir", "nowhere"], "list_eval_partition.txt"),
        (["train", "--partition", "attribute"], "--clients 2 with 10 labels"),
        (["train", "--partition", "shards:800"], "--partition shards:800 with --clients 2"),
        (["train", "--seed", "-1"], "--seed -1"),
        (["train", "--seed", str(2**64)], f"--seed {2**64}"),
        (["train", "--dataset", "mnist"], "--data-dir"),
        (["train", "--dataset", "mnist", "--data-dir", "nowhere"], "nowhere"),
        (["train", "--dataset", "folder", "--data-dir", "nowhere"], "nowhere does not exist"),
        (["train", "--features", "nowhere.safetensors"], "nowhere.safetensors"),
        (["train", "--config", "nowhere.toml"], "nowhere.toml"),
        (["train", "--device", "nonsense"], "--device nonsense: torch knows no such device; expected cpu"),
        (["train", "--device", "cuda:77"], "--device cuda:77: torch cannot compute on it here"),
        (["train", "--clients", "1439", "--partition", "iid"], "--clients 1439"),
        (["train", "--data-dir", "\udcff"], "--data-dir"),
        (["sample", "nowhere.safetensors"], "nowhere.safetensors cannot be read"),
        (["sample"], "Missing argument"),
        (["sample", "MODEL", "--count", "0"], "--count 0"),
        (["sample", "MODEL", "--count", "-1"], "count -1"),
        (["sample", "MODEL", "--count", "x"], "--count"),
        (["sample", "MODEL", "--count", str(10**17)], f"count {10**17}"),
        (["sample", "MODEL", "--seed", "-1"], "--seed -1"),
        (["sample", "MODEL", "--label", "ten"], "--label 'ten'; expected one of '0', '1'"),
        (["sample", "MODEL", "--label", "1", "--count", "0"], "--count 0"),
        (["sample", "MODEL", "--label", "1", "--count", str(10**17)], f"count {10**17}"),
        (["sample", "MODEL", "--per-class", "3"], "--per-class 3 with --label or a .png"),
        (["sample", "MODEL", "--per-class", "3", "--label", "1", "--out", "made"], "--per-class 3"),
        (["sample", "MODEL", "--per-class", "x", "--out", "made"], "--per-class"),
        (["sample", "MODEL", "--per-class", "-1", "--out", "made"], "-1"),
        (["sample", "MODEL", "--per-class", str(10**17), "--out", "made"], str(10**17)),
        (["sample", "MODEL", "--device", "nonsense"], "--device nonsense"),
        (["sample", "MODEL", "--out", "MODEL/below/grid.png"], "cannot write"),
        (["sample", "MODEL", "--out", "MODEL/below"], "cannot write"),
        (["evaluate", "nowhere.safetensors"], "nowhere.safetensors"),
        (["evaluate", "MODEL", "--samples", "1"], "--samples 1"),
        (["evaluate", "MODEL", "--dataset", "imagenet", "--data-dir", "."], "'imagenet'"),
        (["evaluate", "MODEL", "--dataset", "mnist", "--data-dir", "nowhere"], "nowhere"),
        (["evaluate", "MODEL", "--seed", "-1"], "--seed -1"),
        (["evaluate", "MODEL", "--repeats", "0"], "--repeats 0"),
        (["evaluate", "MODEL", "--metrics", "fid,beauty"], "'beauty'"),
        (["evaluate", "MODEL", "--metrics", "prdc", "--samples", "5"], "prdc of 5 images"),
        (["pretrain"], "--images"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_bad_input_is_refused_in_one_line(model, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    words = [word.replace("MODEL", str(model)) for word in words]
    if words[0] == "train":
        words = ["train", *TINY, *words[1:]]
    assert says in refused(*words)
    assert not list(tmp_path.rglob("*.safetensors")), "nothing was made"


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_models_that_are_none_are_refused(model, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    raw, path = model.read_bytes(), tmp_path / "m.safetensors"
    flipped = bytearray(raw)
    flipped[-40] ^= 4
    for damaged in (raw[:-1], raw[:100], b"", b"hello", bytes(flipped), b"\xff" * 64):
        path.write_bytes(damaged)
        assert "m.safetensors" in refused(command, path)
    foreign = tmp_path / "foreign.safetensors"
    from importlib import resources

    foreign.write_bytes((resources.files("prismfl") / "features" / "weights" / "vgg.safetensors").read_bytes())
    assert "foreign.safetensors" in refused(command, foreign)
    assert "without model.safetensors" in refused(command, tmp_path)


def test_a_run_is_never_written_over(run, model):
    before = {path: path.read_bytes() for path in run[0].rglob("*") if path.is_file()}
    line = refused("train", *TINY, "--seed", 9, "--out", run[0])
    assert f"--resume {run[0]}" in line
    assert before == {path: path.read_bytes() for path in run[0].rglob("*") if path.is_file()}


def test_leftovers_of_another_run_are_refused_or_without_effect(run, model, tmp_path):
    """A folder that holds a checkpoint and no settings must not lend θ to a new run."""
    assert call("train", *TINY, "--seed", 8, "--out", tmp_path / "eight")[0] == 0
    left = tmp_path / "left"
    left.mkdir()
    shutil.copy(tmp_path / "eight" / "checkpoint.safetensors", left)
    code, _, err = call("train", *TINY, "--out", left)
    if code == 0:
        assert (left / "model.safetensors").read_bytes() == model.read_bytes()
    else:
        assert code == 2 and err.startswith("error: ")


@pytest.mark.parametrize("below", ["file", "file/below", "file/below/deeper"])
def test_an_unwritable_out_is_refused(tmp_path, below):
    (tmp_path / "file").write_text("kept")
    assert "file" in refused("train", *TINY, "--out", tmp_path / below)
    assert (tmp_path / "file").read_text() == "kept"


def test_an_interrupt_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupted(*_args, **_keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(inprocess, "_run", interrupted)
    code, _, err = call("train", *TINY, "--out", tmp_path / "run")
    assert code == 130 and f"`prismfl train --resume {tmp_path / 'run'}`" in err
    monkeypatch.setattr(inprocess, "prepare", interrupted)
    code, _, err = call("train", *TINY, "--out", tmp_path / "other")
    assert code == 130 and "the run had not begun" in err and "--resume" not in err
    assert "files in" in refused("train", *TINY, "--out", tmp_path / "run"), "before anything is read"


def test_a_defect_is_not_hidden(monkeypatch, tmp_path):
    """Only what a user can mend becomes one line; a defect keeps its traceback."""

    def broken(*_args, **_keywords):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(inprocess, "train", broken)
    monkeypatch.setattr("sys.argv", ["prismfl", "train", *TINY, "--out", str(tmp_path / "run")])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_help_and_version():
    code, out, _ = call("--version")
    assert (code, out.strip()) == (0, prismfl.__version__)
    code, out, _ = call("--help")
    assert code == 0 and all(name in out for name in ("train", "sample", "evaluate", "pretrain"))


def test_no_command_shows_the_help():
    _, out, err = call()
    shown = (out + err).splitlines()
    assert any("train" in line for line in shown) and any("sample" in line for line in shown)
    assert max(map(len, shown)) < 200, "help is laid out in lines"


def test_the_installed_command_works_from_anywhere(tmp_path):
    command = [sys.executable, "-m", "prismfl", "train", "--clients", "0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: --clients 0") and done.stderr.count("\n") == 1


# -------------------------------------------------------------------------------------- Python API


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(3)
    return rng.integers(0, 256, (40, 3, 16, 16), np.uint8), np.arange(40) % 4


@pytest.fixture(scope="module")
def from_python(tiny, arrays, tmp_path_factory):
    return prismfl.train(tiny(), *arrays, out=tmp_path_factory.mktemp("api") / "run")


def test_arrays_become_a_model_that_makes_such_arrays(from_python):
    sampler = prismfl.load(from_python.folder.model)
    images = sampler.sample(5, seed=2)
    assert images.shape == (5, 3, 16, 16) and images.dtype == np.uint8 and images.std() > 0
    assert np.array_equal(images, prismfl.load(str(from_python.folder.model)).sample(5, seed=2))
    assert not np.array_equal(images, sampler.sample(5, seed=3))
    assert np.array_equal(sampler.sample(2, seed=2), images[:2]), "more images begin with the same"
    assert from_python.summary["rounds"] == 2 == len(lines_of(from_python.folder.root))


def test_the_same_call_makes_the_same_model(tiny, arrays, from_python, tmp_path):
    torch.manual_seed(5)
    np.random.seed(5)
    again = prismfl.train(tiny(), *arrays, out=str(tmp_path / "run"))
    assert again.folder.model.read_bytes() == from_python.folder.model.read_bytes()


def test_a_run_of_arrays_is_resumed_with_them(arrays, from_python, tmp_path):
    copy = shutil.copytree(from_python.folder.root, tmp_path / "copy")
    (copy / "model.safetensors").unlink()
    again = prismfl.resume(copy, *arrays)
    assert again.folder.model.read_bytes() == from_python.folder.model.read_bytes()


def test_a_run_of_arrays_is_not_resumed_on_other_data(from_python, tmp_path):
    """Its settings name a data set that it never saw."""
    copy = shutil.copytree(from_python.folder.root, tmp_path / "copy")
    (copy / "checkpoint.safetensors").unlink()
    with pytest.raises(PrismError):
        prismfl.resume(copy)


def test_arrays_with_labels_become_a_model_of_them(arrays, from_python):
    sampler = prismfl.load(from_python.folder.model)
    assert sampler.model.labels == ("0", "1", "2", "3")
    assert not np.array_equal(*(sampler.sample(4, labels=np.full(4, label)) for label in (0, 3)))


def test_a_run_with_labels_is_not_resumed_without_them(arrays, from_python, tmp_path):
    copy = shutil.copytree(from_python.folder.root, tmp_path / "copy")
    with pytest.raises(PrismError):
        prismfl.resume(copy, arrays[0])


@pytest.mark.parametrize("count", [0, -3])
def test_no_images_cannot_be_sampled(from_python, count):
    with pytest.raises(PrismError, match=f"count {count}"):
        prismfl.load(from_python.folder.model).sample(count)


def test_bad_arrays_make_no_folder(tiny, arrays, tmp_path):
    for images, labels in [(arrays[0].astype(float), None), (arrays[0], arrays[1][:-1]), (arrays[0][:3], None)]:
        with pytest.raises(PrismError, match="expected"):
            prismfl.train(tiny(), images, labels, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------- data of one's own


SMALL = shlex.split("""
    --size 16 --width 2 --rounds 2 --local-steps 1 --batch-size 4
    --distance-samples 0 --finished-mask half --workers 1
""")


def test_a_pattern_of_folders_is_one_client_each(tmp_path, monkeypatch, write_sites):
    monkeypatch.chdir(tmp_path)
    write_sites(tmp_path / "sites", {"north": 5, "south": 9, "west": 6})
    words = ["train", "--data-dir", "sites/*", *SMALL]
    code, _, err = call(*words, "--out", "run")
    assert (code, err) == (0, "") and [line["cohort"] for line in lines_of(tmp_path / "run")] == [[0, 1, 2]] * 2
    settings = runfolder.reopen(tmp_path / "run")[1]
    assert (settings.data.clients, settings.data.pattern) == (3, "sites/*")
    assert b"sites" not in (tmp_path / "run" / "model.safetensors").read_bytes()
    as_given = ["--dataset", "folder", "--data-dir", "sites", "--partition", "given", "--clients", 3]
    assert call("train", *as_given, *SMALL, "--out", "given")[0] == 0
    one, two = (tmp_path / name / "model.safetensors" for name in ("run", "given"))
    assert one.read_bytes() == two.read_bytes(), "one folder of clients is the same run"
    assert call("train", "--resume", "run")[0] == 0
    assert "images a client    5 … 9" in call(*words, "--dry-run")[1]
    model = tmp_path / "run" / "model.safetensors"
    assert "trained on all of them" in refused("evaluate", model)
    shutil.copytree("sites/north", "sites/zone")
    assert "data.clients = 3; expected 4, the folders found" in refused("train", "--resume", "run")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere/*"], "no folder or zip matches 'nowhere/*'"),
        (["sites/*", "--clients", "5"], "--clients 5; expected 2, the folders found"),
        (["sites/*", "--partition", "iid"], "--partition iid with --data-dir 'sites/*'"),
        (["sites/*", "--dataset", "mnist"], "--dataset mnist with --data-dir 'sites/*'"),
        (["sites/*", "--cohort", "3"], "--cohort 3; expected 0 … 2"),
    ],
)
def test_patterns_that_cannot_work_are_refused(tmp_path, monkeypatch, words, says, write_sites):
    monkeypatch.chdir(tmp_path)
    write_sites(tmp_path / "sites", {"north": 5, "south": 9})
    assert says in refused("train", *SMALL, "--data-dir", *words)
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def cifar(tmp_path):
    """CIFAR-10's binary batches, of twenty images each."""
    rng = np.random.default_rng(4)
    for stem in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        records = rng.integers(0, 256, (20, 3073), np.uint8)
        records[:, 0] = np.arange(20) % 10
        (tmp_path / f"{stem}.bin").write_bytes(records.tobytes())
    return tmp_path


def test_cifar10_is_trained_on_and_judged_against(cifar, monkeypatch):
    monkeypatch.setattr(evaluation, "Classifier", functools.partial(Classifier, steps=1))
    words = ["--dataset", "cifar10", "--data-dir", cifar, "--partition", "attribute", "--clients", 10]
    code, _, err = call("train", *words, *SMALL, "--out", cifar / "run")
    assert (code, err) == (0, "")
    model = cifar / "run" / "model.safetensors"
    code, out, err = call("evaluate", model, "--data-dir", cifar, "--samples", 20, "--json")
    assert (code, err) == (0, "") and json.loads(out)["fid_judge"] > 0
    assert prismfl.load(model).model.labels[3] == "cat"


def test_fetched_files_are_printed_and_trained_on(tmp_path, monkeypatch):
    from prismfl.data.fetch import PUBLISHED, Remote

    raw = b"what a publisher has"
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a.gz").write_bytes(raw)
    monkeypatch.setitem(PUBLISHED, "kmnist", (Remote("a.gz", hashlib.md5(raw).hexdigest(), ("http://127.0.0.1:9/",)),))
    words = ["fetch", "kmnist", "--data-dir", tmp_path / "got"]
    assert "cannot fetch http://127.0.0.1:9/a.gz" in refused(*words)
    code, out, err = call(*words, "--mirror", (tmp_path / "there").as_uri())
    assert (code, out.strip(), err) == (0, str(tmp_path / "got" / "a.gz"), "")
    assert (tmp_path / "got" / "a.gz").read_bytes() == raw
    assert "'celeba'" in refused("fetch", "celeba", "--data-dir", tmp_path)
    assert "data-dir" in refused("fetch", "mnist")
