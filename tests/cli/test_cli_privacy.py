"""The privacy commands: figures in a table, whole private runs, and one line for what cannot be."""

import json
from pathlib import Path

import pytest
from test_cli import TINY, call, refused

import prismfl
from prismfl.privacy.audit import TrainingFindings


def test_a_plan_is_a_table():
    code, out, err = call("privacy", "--epsilon", 9.8, "--sizes", "600,1200", "--dimension", 1000)
    assert (code, err) == (0, "")
    assert "0.5082" in out and "0.002357" in out and "1000 entries" in out
    assert "at 1 client: ε = 9.8" in out and "at 2 clients: ε = " in out
    assert "1 client: ε = 9.8" in call("privacy", "--sigma", 0.0011978, "--sizes", "600", "--dimension", 5)[1]


def test_a_plan_is_for_the_default_network():
    assert "224527 entries" in call("privacy", "--epsilon", 1, "--sizes", "600")[1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--epsilon", "1"], "sizes"),
        (["--sizes", "600"], "one of the two"),
        (["--sizes", "6x", "--epsilon", "1"], "--sizes '6x'"),
        (["--sizes", "", "--epsilon", "1"], "--sizes ''"),
        (["--sizes", "600", "--epsilon", "0"], "one of the two"),
        (["--sizes", "600", "--epsilon", "nan"], "--epsilon nan"),
        (["--sizes", "600", "--epsilon", "1", "--delta", "0"], "δ"),
        (["--sizes", "600", "--epsilon", "1", "--delta", "0.1"], "δ below 1 / images"),
        (["--sizes", "1", "--epsilon", "1"], "1 images"),
        (["--sizes", "600", "--sigma", "inf"], "1e-06 to 1e+09 times"),
        (["--sizes", "600", "--sigma", "1e-300"], "--sigma 1e-300"),
    ],
)
def test_impossible_plans_are_one_line(words, says):
    assert says in refused("privacy", *words, "--dimension", 5) if "--dimension" not in words else ""


def test_a_private_run_from_the_command_line(tmp_path):
    words = ["train", *TINY, "--epsilon", 9.8, "--delta", 1e-4, "--noise", "fast", "--distance-samples", 40]
    code, out, err = call(*words, "--out", tmp_path / "run")
    assert (code, err) == (0, "")
    assert "privacy  (9.8, 0.0001)-differentially private for one image" in out and "fid_judge" not in out
    assert not (tmp_path / "run" / "samples" / "real.png").exists(), "held-back images are private too"
    model = tmp_path / "run" / "model.safetensors"
    assert len(prismfl.load(model).model.ledger) == 2
    words = ["evaluate", model, "--samples", 20, "--metrics", "fid"]
    found = json.loads(call(*words, "--json")[1])
    assert "differentially private" in found["privacy"] and "ledger does not cover" in " ".join(found["warnings"])
    assert "Privacy: (9.8, 0.0001)" in call(*words)[1]
    line = refused("train", *TINY, "--epsilon", 9.8, "--delta", 0.002, "--out", tmp_path / "other")
    assert "--delta 0.002" in line and not (tmp_path / "other").exists()


def test_an_audit_is_printed_and_finds_nothing():
    words = ["audit", "--epsilon", 9.8, "--noise", "fast", "--runs", 150, "--canaries", 1_000]
    code, out, err = call(*words)
    assert code == 0 and all(line.startswith("releases attacked") for line in err.splitlines())
    assert "ε = 9.8 at δ = 1e-05" in out and "nothing contradicts" in out
    found = json.loads(call(*words, "--json")[1])
    assert 1 < found["one_run"] < 9.8 and found["fresh"] and found["kept"] and not found["broken"]
    assert 0.98 < found["noise_at_default_size"] < 1.05


def test_whole_runs_are_audited_too(monkeypatch):
    def once(train, images, features, privacy, runs):
        assert train(images).shape == (100, 1, 16, 16) and len(images) == 60
        return TrainingFindings(privacy.epsilon, runs, 0.25, 0.5)

    monkeypatch.setattr("prismfl.privacy.audit.audit_training", once)
    words = ["audit", "--epsilon", 9.8, "--noise", "fast", "--runs", 24, "--canaries", 20, "--training-runs", 4]
    assert "4 training runs of each kind   ε ≥ 0.25" in call(*words)[1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "--epsilon"),
        (["--epsilon", "0"], "--epsilon 0.0"),
        (["--epsilon", "-1"], "--epsilon -1.0"),
        (["--epsilon", "1", "--delta", "0.05"], "--delta 0.05"),
        (["--epsilon", "1", "--noise", "none"], "--noise none"),
        (["--epsilon", "1", "--runs", "3"], "3 runs"),
        (["--epsilon", "1", "--canaries", "0"], "0 images"),
    ],
)
def test_impossible_audits_are_one_line(words, says):
    assert says in refused("audit", *words)


def test_the_ledger_of_a_source_is_printed_by_its_data_and_verified(tmp_path, write_sites):
    images = write_sites(tmp_path / "images", {"a": 20}) / "a"
    words = ["--dataset", "folder", "--data-dir", images, "--clients", 2, "--partition", "iid", "--channels", 1]
    words += ["--size", 16, "--width", 2, "--rounds", 1, "--local-steps", 1, "--batch-size", 4, "--noise", "fast"]
    for epsilon in (2, 3):
        code, out, err = call("train", *words, "--epsilon", epsilon, "--delta", 1e-3, "--out", tmp_path / str(epsilon))
        assert (code, err) == (0, "") and "all releases of these images so far: ε = " in " ".join(out.split())
    code, out, _ = call("privacy", "ledger", images)
    assert code == 0 and "releases: 4, ways to deal the images to clients: 1; the chain is whole" in out
    path = Path(out.splitlines()[0])
    found = json.loads(call("privacy", "ledger", path, "--json")[1])
    assert 3 < found["epsilon"] < 5 and len(found["releases"]) == 4
    assert "--delta 2; expected a number between 0 and 1" in refused("privacy", "ledger", path, "--delta", 2)
    limit = ["--epsilon", 1, "--delta", 1e-3, "--budget-epsilon", 4]
    assert "at most its budget, ε = 4" in refused("train", *words, *limit, "--out", tmp_path / "more")
    path.write_text(path.read_text().replace('"epsilon": 3.0', '"epsilon": 0.1'))
    assert "does not follow from the one before" in refused("privacy", "ledger", path)
    assert "no ledger" in refused("privacy", "ledger", tmp_path)
