"""The experiment runner: what rows ask for is measured, of the data set that they ran on."""

import functools
import importlib.util
import os
import struct
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from prismfl.metrics.readability import Classifier
from prismfl.privacy.source import read_ledger
from prismfl.run import evaluate as evaluation
from prismfl.seeding.device import Tape
from prismfl.seeding.philox import Purpose, Stream
from prismfl.server import empty_tally
from prismfl.settings.resolve import plan_of
from prismfl.settings.toml import to_toml

RUN = Path(__file__).parent.parent / "experiments" / "run.py"
ROW = """
[row]
about = "tiny"
{asked}
[data]
dataset = "mnist"
clients = 2
partition = "shards:2"
[generator]
size = 16
width = 2
[search]
local_steps = 1
batch_size = 4
[federation]
rounds = 1
finished_mask = "half"
[running]
distance_samples = 0
workers = 1
"""


@pytest.fixture(scope="module")
def runner():
    sys.path.insert(0, str(RUN.parent))  # where a script's own folder is
    spec = importlib.util.spec_from_file_location("experiments_run", RUN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path, runner):
    """A folder of forty IDX images, few samples, and a classifier that hardly learns."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        pixels = rng.integers(0, 256, (40, 28, 28), np.uint8)
        header = struct.pack(">BBBB3I", 0, 0, 8, 3, *pixels.shape)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = (np.arange(40) % 10).astype(np.uint8)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, 40) + labels.tobytes())
    monkeypatch.setenv("PRISMFL_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(evaluation, "Classifier", functools.partial(Classifier, steps=2))
    monkeypatch.setattr(runner, "evaluate_model", functools.partial(evaluation.evaluate_model, samples=20))


def result_of(runner, tmp_path, asked):
    path = tmp_path / "tiny.toml"
    path.write_text(ROW.format(asked=asked))
    return runner.one_run(path, 0, tmp_path / "out", tmp_path / "runs")


def test_readability_is_measured_against_the_runs_own_data(runner, tmp_path):
    """A model file holds no path: the runner has to say where the data lies."""
    found = result_of(runner, tmp_path, "readability = true")
    assert 0 <= found["readable"] <= 1 and "recall_judge" not in found
    assert "readable" in runner.markdown([found]) and "readable" in runner.csv_text([found]).splitlines()[0]


def test_metrics_that_a_row_asks_for_have_columns(runner, tmp_path):
    found = result_of(runner, tmp_path, 'metrics = "kid, prdc"')
    header = runner.markdown([found]).splitlines()[0]
    names = ("kid_judge", "precision_judge", "recall_judge", "density_judge", "coverage_judge")
    assert all(name in header for name in names) and "readable" not in header


def test_a_row_that_asks_for_more_is_measured_anew_but_not_run_anew(runner, tmp_path, monkeypatch):
    plain = result_of(runner, tmp_path, "")
    assert "kid_judge" not in plain

    def never(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(runner.inprocess, "train", never)
    more = result_of(runner, tmp_path, 'metrics = "kid"')
    assert more["kid_judge"] == result_of(runner, tmp_path, 'metrics = "kid"')["kid_judge"]
    assert result_of(runner, tmp_path, "") == plain


@pytest.mark.parametrize("path", sorted(RUN.parent.rglob("*.toml")), ids=lambda path: path.stem)
def test_every_row_is_a_run_that_differs_from_the_yardstick(runner, path, tmp_path):
    values, row = runner.load_row(path)
    assert row["about"]
    settings = runner.row_settings(values, 1, tmp_path)
    yardstick = runner.row_settings(runner.load_row(RUN.parent / "yardstick.toml")[0], 1, tmp_path)
    same = settings == yardstick and not {"dense", "pooled"} & set(row)
    assert settings.seed == 1 and same == (path.stem == "yardstick")


def dense_run(runner, tmp_path, rate, extra=""):
    row = tmp_path / "row.toml"
    text = ROW.format(asked=f"dense = {rate}\nmetrics = 'prdc'").replace(
        "distance_samples = 0", "distance_samples = 20"
    )
    row.write_text(text + extra)
    return runner.one_run(row, 0, tmp_path / "out", tmp_path / "runs")


def test_dense_weights_are_averaged_and_the_rate_is_of_the_row(runner, tmp_path):
    moved, still = dense_run(runner, tmp_path, 0.01), dense_run(runner, tmp_path, 0.0)
    assert moved["fid_judge"] != still["fid_judge"] and 0 <= moved["coverage_judge"] <= 1
    assert moved["up_bits"] == 32 and moved["uplink_bytes"] == 2 * moved["model_bytes"]
    again = runner.one_run(tmp_path / "row.toml", 0, tmp_path / "other", tmp_path / "others")
    assert again["fid_judge"] == still["fid_judge"]


def test_dense_weights_follow_a_release_where_epsilon_is_set(runner, tmp_path):
    """Which the ledger of the data has, as that of any private run."""
    plain = dense_run(runner, tmp_path, 0.01)
    private = dense_run(runner, tmp_path, 0.01, "[privacy]\nepsilon = 9.8\ndelta = 0.01\ndistances = true\n")
    assert private["fid_judge"] != plain["fid_judge"]
    (ledger,) = Path(os.environ["XDG_STATE_HOME"]).rglob("ledger.jsonl")
    assert len(read_ledger(ledger)) == 2


def test_a_step_of_dense_weights_is_repeatable_and_as_long_as_its_rate(runner, tmp_path):
    dense = runner.dense
    row = tmp_path / "row.toml"
    row.write_text(ROW.format(asked=""))
    ready = dense.prepare(runner.row_settings(runner.load_row(row)[0], 0, tmp_path / "targets"))
    mine = ready.clients[0]
    target = ready.kit.features.target(mine.images, mine.labels, ready.agreement.layout.classes)
    made = (ready.agreement.layout, ready.kit.weights, ready.kit.features, target, plan_of(ready.agreement.settings))
    search, weights = plan_of(ready.agreement.settings), ready.kit.weights
    found = [
        dense.descended(
            dense.Searcher(*made, Tape(Stream(1, Purpose.SEARCH))), dense.adam_of(search, weights), weights, 0.01, 2
        )
        for _ in range(2)
    ]
    assert torch.equal(*found)
    assert float((found[0] - ready.kit.weights).abs().max()) == pytest.approx(0.02, rel=0.6)


def test_an_adversary_changes_the_model_and_a_screen_leaves_it_out(runner, tmp_path, monkeypatch):
    adversary = importlib.import_module("adversary")
    row = tmp_path / "row.toml"
    row.write_text(
        ROW.format(asked="")
        .replace("distance_samples = 0", "distance_samples = 20")
        .replace("rounds = 1", "rounds = 2")
        .replace("clients = 2", "clients = 4")
    )
    settings = runner.row_settings(runner.load_row(row)[0], 0, tmp_path / "targets")
    screened = replace(settings, federation=replace(settings.federation, screen=1.2))
    settings = replace(settings, federation=replace(settings.federation, screen=0.0))
    found = {attack: adversary.one_run(settings, attack) for attack in ("absent", *adversary.ATTACKS)}
    assert len({one["fid_judge"] for one in found.values()}) == len(found)
    assert [one["adversary_left_out"] for one in found.values()] == [1, 0, 0, 0, 0, 0]
    assert adversary.one_run(screened, "flipped")["adversary_left_out"] == 1


def test_what_honest_clients_send_is_noted_by_round(runner, tmp_path, monkeypatch):
    honest = importlib.import_module("honest")
    row = tmp_path / "row.toml"
    row.write_text(ROW.format(asked="").replace("clients = 2", "clients = 4"))
    monkeypatch.setattr(honest.rounds, "_heard", honest.watched_heard(honest.rounds._heard))
    monkeypatch.setattr(honest.rounds, "Screen", honest.Watched)
    lines = honest.one_run(row, 0, 2)
    assert [(line["round"], line["client"]) for line in lines] == [
        (turn, client) for turn in (0, 1) for client in range(4)
    ]
    assert all(0.5 < line["ratio"] < 2 and not line["left_out"] for line in lines)


def test_who_flips_against_all_others_is_told_by_the_sign(runner):
    honest = importlib.import_module("honest")
    way, honest.Watched.lines = np.tile(np.array([1, 0, -1, 0], np.int8), 25), []
    screen, tally = honest.Watched(0.0), empty_tally(100, 4)
    for client, sign in enumerate((1, 1, 1, -1)):
        honest.Watched.flips[client] = (sign * way).astype(np.int8)
        tally = screen.add(tally, client, honest.Vote(way > 0, np.zeros(0, np.uint16), 1, client, 0.1))
    assert screen.close(tally)[1] == {}
    assert [np.sign(line["agreement"]) for line in honest.Watched.lines] == [1, 1, 1, -1]
    assert [line["ratio"] for line in honest.Watched.lines] == [1] * 4


def test_clients_that_share_a_target_have_the_mean_of_theirs(runner, tmp_path):
    """Outside the block they have their own again."""
    row = tmp_path / "row.toml"
    row.write_text(ROW.format(asked=""))
    ready = runner.dense.prepare(runner.row_settings(runner.load_row(row)[0], 0, tmp_path / "targets"))
    inprocess = runner.inprocess
    engine = inprocess.InProcess(ready.agreement, ready.kit, ready.clients, inprocess.RunFolder(tmp_path / "run"))
    own = [engine.target(client).moments for client in (0, 1)]
    with runner.pooled_targets():
        shared = [engine.target(client).moments for client in (0, 1)]
    assert np.array_equal(shared[0], shared[1]) and not np.array_equal(own[0], own[1])
    assert shared[0] == pytest.approx((own[0] + own[1]) / 2, abs=1e-6)
    assert np.array_equal(engine.target(0).moments, own[0])
    engine.close()


# ------------------------------------------------------------------------------ the table of the field


def test_every_cell_of_the_field_is_a_run_of_its_own_and_none_is_made_twice(runner, tmp_path, monkeypatch):
    field = importlib.import_module("field")
    monkeypatch.setenv("PRISMFL_DATA", str(tmp_path))
    cells = [(data, cell) for data in field.DATA for cell in field.CELLS if field.exists(data, cell)]
    asked = [runner.row_settings(field.values_of(*cell), 0, tmp_path / "targets") for cell in cells]
    assert len({to_toml(one) for one in asked}) == len(cells) == 38
    table = tmp_path / "field.csv"
    assert not field.known(table, *cells[0], 0)
    for data, cell in cells[:2]:
        field.add(table, {"data": data, "cell": cell, "seed": 0, "accuracy": 0.9, "seconds": 1})
    assert field.known(table, *cells[1], 0) and not field.known(table, *cells[1], 1)
    assert [line["accuracy"] for line in field.lines_of(table)] == ["0.9", "0.9"]
