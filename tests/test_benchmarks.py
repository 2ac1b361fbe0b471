"""The benchmarks' own logic, at sizes that take seconds; none is judged by a time."""

import importlib.util
import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent / "benchmarks"

pytestmark = pytest.mark.skipif(not ROOT.is_dir(), reason="no benchmarks beside the tests")


@pytest.fixture(scope="module")
def load():
    """Import a benchmark by its name, with its neighbours at hand."""
    sys.path.insert(0, str(ROOT))
    yield lambda name: importlib.import_module(name)
    sys.path.remove(str(ROOT))


# ---------------------------------------------------------------------------------------- compare


def git(folder, *words):
    who = ["-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def history(tmp_path):
    """Two commits of a package that takes a step in no time, the second half as quick."""
    for seconds in (1, 2):
        (tmp_path / "src" / "prismfl").mkdir(parents=True, exist_ok=True)
        (tmp_path / "src" / "prismfl" / "__init__.py").write_text(f"seconds = {seconds}\n")
        if seconds == 1:
            git(tmp_path, "init", "-q")
        git(tmp_path, "add", "-A")
        git(tmp_path, "commit", "-qm", str(seconds))
    return tmp_path


def test_both_sides_are_measured_each_with_its_own_source(load, history, monkeypatch):
    compare = load("compare")
    monkeypatch.setattr(compare, "STEP", "import prismfl, sys; print(prismfl.seconds, file=sys.stdout)")
    assert "ratio 2.00 (3 turns)" in compare.compared(history, "HEAD~1", 3, 1000, "tiny")
    assert "ratio 1.00 (1 turns)" in compare.compared(history, "HEAD", 3, 0, "tiny")


def test_no_history_or_a_side_that_does_not_run_is_one_line(load, history, tmp_path_factory, monkeypatch):
    compare = load("compare")
    nothing = tmp_path_factory.mktemp("empty")
    for root, against in ((history, "HEAD~2"), (nothing, "HEAD~1")):
        found = compare.compared(root, against, 1, 10, "tiny")
        assert found.startswith("step time: nothing to compare with (no HEAD~") and "\n" not in found
    monkeypatch.setattr(compare, "STEP", "import prismfl.nothing")
    assert "here does not run: ModuleNotFoundError" in compare.compared(history, "HEAD~1", 1, 10, "tiny")


def test_the_step_is_one_of_this_package(load):
    compare = load("compare")
    seconds, why = compare._step_seconds(ROOT.parent / "src", "tiny")
    assert not why and seconds > 0


# ------------------------------------------------------------------------------------------ scale


def test_scale_measures_a_population_in_a_process_of_its_own():
    words = [sys.executable, str(ROOT / "scale.py"), "--populations", "6", "--cohort", "3", "--rounds", "2"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\| 6 \|( [\d.]+ \|){6}", done.stdout.splitlines()[-1])


# -------------------------------------------------------------------------------------------- gpu

WITHOUT = ("flwr", "constriction", "opendp", "dp_accounting")


def test_the_gpu_benchmark_runs_small_on_a_processor_without_optional_libraries(tmp_path):
    text = f"""
import sys
for name in {WITHOUT!r}:
    sys.modules[name] = None
sys.path.insert(0, {str(ROOT)!r})
import gpu
gpu.main(["--device", "cpu", "--tiny", "--out", {str(tmp_path)!r}])
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    table = (tmp_path / "gpu.md").read_text()
    assert table.strip() in done.stdout
    assert found["device"] and found["date"] and found["torch"]
    assert {check["what"] for check in found["checks"]} >= {"gradient, float32", "moments, float32"}
    assert all(check["passed"] for check in found["checks"])
    ways = [row["way"] for row in found["rows"]]
    assert {way["workers"] for way in ways} == {1, 5}
    assert {way["precision"] for way in ways} == {"float32", "bfloat16"}  # TF32 is a GPU's
    for row in found["rows"]:
        assert row["step_ms"] > 0 and row["floor_ms"] > 0 and row["operations"] > 0 and row["bytes"] > 0
        assert row["round_s"] > 0 and f"| {row['clients']} | {row['way']['precision']}, " in table


def test_the_gpu_benchmark_refuses_a_device_that_is_not_there(load, capsys):
    gpu = load("gpu")
    with pytest.raises(SystemExit) as caught:
        gpu.main(["--device", "cuda:99", "--tiny"])
    assert caught.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_gpu_benchmark_trains_as_long_as_there_is_time(load, tmp_path, capsys):
    rng, folder = np.random.default_rng(0), tmp_path / "mnist"
    folder.mkdir()
    for prefix in ("train", "t10k"):
        header = struct.pack(">BBBB3I", 0, 0, 8, 3, 40, 28, 28)
        pixels = rng.integers(0, 256, (40, 28, 28), np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = (np.arange(40) % 10).astype(np.uint8)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, 40) + labels.tobytes())
    gpu = load("gpu")
    changes = {"clients": 2, "partition": "iid", "local_steps": 2}
    found = gpu.trained(folder, "cpu", 0.0, True, tmp_path / "out", changes)
    assert found["rounds"] == len(found["loss"]) == 1 and found["seconds_a_round"] > 0
    assert "training: 1 rounds" in gpu.as_sentence(found)
    again = gpu.trained(folder, "cpu", 0.0, True, tmp_path / "out", changes)  # a run is there already
    assert again["rounds"] == 0 and "--resume" in gpu.as_sentence(again)


# ------------------------------------------------------------------------------------- secure sums


@pytest.mark.parametrize("masks", [False, True])
def test_a_secure_sum_is_measured_and_checked(load, masks):
    found = load("secure_sum").measured(10, 3000, 1, masks=masks)
    assert found["survivors"] == 9 and found["bytes_an_entry"] < 8
    if masks:
        assert found["bits_a_weight_over_log2"] <= 1.1
