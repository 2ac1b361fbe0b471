"""Sampling with NumPy alone: PyTorch's images, whatever the layout, and where nothing else is installed."""

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prismfl.errors import ModelFileError, SettingError
from prismfl.generator import numpy_runtime as runtime
from prismfl.generator.layout import Layout
from prismfl.generator.modelfile import save_model
from prismfl.generator.sampling import Sampler, finish

ROOT = Path(__file__).parents[2]
LAYOUTS = [
    Layout(16, 1, 2, 8),
    Layout(16, 3, 3, 5, classes=3),
    Layout(32, 1, 4, 8, classes=2),
    Layout(64, 3, 2, 4),
]


def model_of(layout, seed=0, soft=False):
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, 16, layout.count, np.uint8) if soft else rng.random(layout.count) < 0.5
    return finish(layout, seed, mask, "", tuple("abcd"[: layout.classes]))


@pytest.fixture(scope="module")
def model():
    return model_of(Layout(16, 1, 4, 8, classes=3))


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("runtime") / "model.safetensors"
    save_model(model, path)
    return path


def check_same(one, other):
    """Equal but for roundings that fall the other way, which are few."""
    assert one.shape == other.shape and one.dtype == other.dtype == np.uint8
    apart = np.abs(one.astype(int) - other)
    assert apart.max() <= 1 and (apart > 0).mean() < 0.01
    assert one.std() > 10  # there is something to compare


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("count", [1, 35])
def test_numpy_and_pytorch_make_the_same_images(layout, count):
    model = model_of(layout)
    check_same(runtime.Runtime(model).sample(count, seed=2), Sampler(model).sample(count, seed=2))


def test_numpy_and_pytorch_make_the_same_images_of_soft_masks(tmp_path):
    model = model_of(LAYOUTS[1], soft=True)
    assert model.layout.count % 2, "a last byte that is half full"
    save_model(model, tmp_path / "m")
    check_same(runtime.load(tmp_path / "m").sample(35, seed=2), Sampler(model).sample(35, seed=2))


@pytest.mark.parametrize("strip", [1, 1000, 10**9])
def test_strips_change_nothing(model, monkeypatch, strip):
    whole = Sampler(model).sample(5)
    monkeypatch.setattr(runtime, "_STRIP", strip)
    check_same(runtime.Runtime(model).sample(5), whole)


def test_the_same_seed_gives_the_same_bytes(model):
    sampler = runtime.Runtime(model)
    assert np.array_equal(sampler.sample(40, seed=9), sampler.sample(40, seed=9))
    assert not np.array_equal(sampler.sample(40, seed=9), sampler.sample(40, seed=8))


def test_labels_choose_as_they_do_with_pytorch(model, path):
    labels = np.array([2, 0, 0, 1, 2])
    mine, theirs = runtime.load(path), Sampler(model)
    check_same(mine.sample(5, seed=1, labels=labels), theirs.sample(5, seed=1, labels=labels))
    found, wanted = mine.per_class(3, seed=4), theirs.per_class(3, seed=4)
    assert list(found) == list(wanted) == ["a", "b", "c"]
    for name in found:
        check_same(found[name], wanted[name])


def test_what_cannot_be_made_is_refused(model, path, tmp_path):
    sampler = runtime.load(path)
    for asked in (
        lambda: sampler.sample(0),
        lambda: sampler.sample(2, labels=np.array([0, 3])),
        lambda: runtime.Runtime(model_of(LAYOUTS[0])).per_class(2),
    ):
        with pytest.raises(SettingError):
            asked()
    with pytest.raises(ModelFileError):
        runtime.load(tmp_path / "none")


# ----------------------------------------------------------------------------------------- command


def test_the_command_writes_grids_and_arrays(model, path, tmp_path, capsys):
    grid, array = tmp_path / "new" / "grid.png", tmp_path / "images.npy"
    assert runtime.main([str(path), "--count", "6", "--seed", "5", "--out", str(grid)]) == 0
    assert np.asarray(Image.open(grid)).shape == (2 * (17 * 2 + 1), 2 * (17 * 3 + 1))
    assert runtime.main([str(path), "--count", "6", "--seed", "5", "--label", "b", "--out", str(array)]) == 0
    check_same(np.load(array), Sampler(model).sample(6, seed=5, labels=np.ones(6, np.int64)))
    assert capsys.readouterr().out.split() == [str(grid), str(array)]


@pytest.mark.parametrize("wrong", [["none"], ["MODEL", "--count", "0"], ["MODEL", "--label", "x"]])
def test_the_command_refuses_with_one_line(path, tmp_path, capsys, wrong):
    arguments = [str(path) if part == "MODEL" else part for part in wrong]
    assert runtime.main([*arguments, "--out", str(tmp_path / "x.png")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1
    assert not (tmp_path / "x.png").exists()


def test_without_pillow_the_command_writes_an_array(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert runtime.main([str(path), "--count", "2", "--out", str(tmp_path / "grid.png")]) == 0
    assert np.load(tmp_path / "grid.npy").shape == (2, 1, 16, 16)
    assert "array" in capsys.readouterr().err


# ----------------------------------------------------------------------------------- nothing else


def digest_of(images):
    return hashlib.sha256(images.tobytes()).hexdigest()


SCRIPT = """
import hashlib, sys
import prismfl.generator.numpy_runtime
images = prismfl.generator.numpy_runtime.load(sys.argv[1]).sample(9, seed=7)
print(images.shape, hashlib.sha256(images.tobytes()).hexdigest(), sorted({"torch", "scipy", "PIL"} & set(sys.modules)))
"""


def test_numpy_and_safetensors_are_enough(path):
    """Whatever else a process could import is kept from it."""
    hide = "import sys\nfor name in ('torch', 'scipy', 'constriction', 'PIL', 'sklearn'): sys.modules[name] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", hide + SCRIPT.replace("& set(sys.modules)", "& set()"), str(path)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert digest_of(runtime.load(path).sample(9, seed=7)) in done.stdout


@pytest.mark.long
def test_the_installed_wheel_samples_without_pytorch(path, tmp_path):
    """The wheel alone, with NumPy and safetensors, in an environment of its own."""

    def run(*command):
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, cwd=tmp_path, env=bare)
        assert done.returncode == 0, done.stderr
        return done.stdout

    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run(sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path / "dist"), str(ROOT))
    venv.create(tmp_path / "env", with_pip=True)
    python = str(tmp_path / "env" / "bin" / "python")
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "-c", str(ROOT / "constraints.txt"), "numpy", "safetensors")
    run(*pip, "--no-deps", *map(str, (tmp_path / "dist").glob("*.whl")))
    told = run(python, "-c", SCRIPT, str(path))
    assert told.split(") ")[1].split() == [digest_of(runtime.load(path).sample(9, seed=7)), "[]"]
    assert "torch" not in run(python, "-m", "pip", "list")
