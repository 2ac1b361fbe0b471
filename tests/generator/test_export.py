"""ONNX files: the same images as PyTorch's, any batch, a byte a weight, and one error where it cannot be."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from prismfl.cli import main as cli
from prismfl.errors import DependencyError, ModelFileError
from prismfl.generator import onnx as export
from prismfl.generator.layout import Layout
from prismfl.generator.modelfile import save_model
from prismfl.generator.sampler import ModelSampler
from prismfl.generator.sampling import Sampler, finish
from prismfl.seeding.philox import Purpose, Stream

LEDGER = ({"client": 0, "epsilon": 9.8},)
LAYOUTS = [Layout(16, 1, 2, 8), Layout(16, 3, 3, 5, classes=3), Layout(32, 1, 4, 8, classes=2), Layout(64, 3, 2, 4)]


def model_of(layout, soft=False):
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 16, layout.count, np.uint8) if soft else rng.random(layout.count) < 0.5
    return replace(finish(layout, 1, mask, "seed = 1\n", tuple("abcd"[: layout.classes])), ledger=LEDGER)


@pytest.fixture
def path(tmp_path):
    save_model(model_of(LAYOUTS[1]), tmp_path / "m")
    return tmp_path / "m"


@pytest.fixture
def onnx(monkeypatch):
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "1")  # whoever imports it first
    pytest.importorskip("onnxruntime")
    return pytest.importorskip("onnx")


def images_of(raw, model: ModelSampler, count):
    latents = Stream(0, Purpose.LATENT).normals(count * model.model.layout.latent).reshape(count, -1)
    labels = np.arange(count) % max(1, model.model.layout.classes)
    fed = {"latents": latents} | ({"labels": labels} if model.model.layout.classes else {})
    return export.session(raw).run(["images", "values"], fed)


@pytest.mark.parametrize(("layout", "soft"), [*((one, False) for one in LAYOUTS), (LAYOUTS[1], True)], ids=str)
def test_onnx_makes_pytorchs_images_in_batches_of_any_size(onnx, tmp_path, layout, soft):
    model = model_of(layout, soft)
    save_model(model, tmp_path / "m")
    found = export.export(tmp_path / "m", tmp_path / "deep" / "m.onnx")
    raw = (tmp_path / "deep" / "m.onnx").read_bytes()
    assert found.difference < 1e-4 and found.size == len(raw)
    for count in (1, 7):
        images, values = images_of(raw, Sampler(model), count)
        wanted = Sampler(model).sample(count)
        assert images.shape == wanted.shape and images.dtype == np.uint8 and values.dtype == np.float32
        assert np.abs(images.astype(int) - wanted).max() <= 1
        assert np.abs((values + 1) * 127.5 - wanted).max() < 0.51


def test_of_an_ensemble_the_graph_is_told_which_mask(onnx, tmp_path):
    layout = LAYOUTS[1]
    one = model_of(layout)
    other = finish(layout, 1, ~one.mask, "")
    save_model(one.of_parts((*one.parts, *other.parts)), tmp_path / "m")
    assert export.export(tmp_path / "m", tmp_path / "m.onnx").difference < 1e-4
    latents = Stream(4, Purpose.LATENT).normals(6 * layout.latent).reshape(6, -1)
    session = export.session((tmp_path / "m.onnx").read_bytes())
    for number, alone in enumerate((one, one.of_parts(other.parts))):
        fed = {"latents": latents, "labels": np.arange(6) % 3, "mask": np.array(number)}
        (images,) = session.run(["images"], fed)
        assert np.abs(images.astype(int) - Sampler(alone).sample(6, seed=4)).max() <= 1


def test_a_weight_takes_a_byte(onnx, tmp_path):
    layout = Layout(32, 1, 16, 64)
    save_model(model_of(layout), tmp_path / "m")
    found = export.export(tmp_path / "m", tmp_path / "m.onnx")
    assert found.float_bytes == 4 * layout.count
    assert layout.count < found.size < 1.1 * layout.count


def test_the_file_says_what_the_model_says(onnx, path, tmp_path):
    export.export(path, tmp_path / "m.onnx")
    (held,) = onnx.load(tmp_path / "m.onnx").metadata_props
    about = json.loads(held.value)
    assert held.key == "prismfl"
    assert about == {"labels": ["a", "b", "c"], "seed": 1, "settings": "seed = 1\n", "ledger": list(LEDGER)}


def test_equal_models_are_equal_files(onnx, path, tmp_path):
    for name in "ab":
        export.export(path, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_images_that_differ_are_not_written(onnx, path, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "EPSILON", 0.5)
    with pytest.raises(ModelFileError, match="differ"):
        export.export(path, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("name", ["onnx", "onnxruntime"])
def test_without_the_extra_an_error_names_it(path, tmp_path, monkeypatch, name):
    for library in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, library, None if library == name else sys)
    with pytest.raises(DependencyError, match=rf"{name} .*pip install 'prismfl\[export\]'"):
        export.export(path, tmp_path / "m.onnx")


def test_a_file_that_is_no_model_is_refused(onnx, tmp_path):
    with pytest.raises(ModelFileError):
        export.export(tmp_path / "none", tmp_path / "m.onnx")


def test_the_command_says_what_it_wrote(onnx, path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prismfl", "export", str(path), "--out", str(tmp_path / "m.onnx")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert "m.onnx: " in (told := capsys.readouterr().out) and "differ from PyTorch's by at most" in told
    assert (tmp_path / "m.onnx").stat().st_size > 1000
