"""What all commands have in common: their help, `~`, run folders as models, errors in the words of the command line."""

import shlex
import sys

import numpy as np
import pytest
from PIL import Image

from prismfl.cli import main as cli
from prismfl.cli.commands import in_options
from prismfl.cli.federate import _placed
from prismfl.generator.layout import Layout
from prismfl.generator.modelfile import save_model
from prismfl.generator.sampling import finish
from prismfl.settings.schema import all_fields
from prismfl.settings.toml import settings_from


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command in this process: exit status, standard output, standard error."""

    def run(words):
        monkeypatch.setattr(sys, "argv", ["prismfl", *shlex.split(words)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return (caught.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user's folder with a finished run in it."""
    layout = Layout(16, 1, 2, 8)
    model = finish(layout, 0, np.ones(layout.count, np.bool_), "")
    save_model(model, tmp_path / "home" / "run" / "model.safetensors")
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


# -------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("words", ["", "train", "sample", "report", "privacy", "federate", "federate client"])
def test_help_has_no_stray_signs_and_says_what_arguments_are(call, words):
    code, out, err = call(f"{words} --help")
    assert (code, err) == (0, "") and out.startswith("Usage: prismfl ") and "\\" not in out
    assert "\n  MODEL  A model file, or a run's folder.  [required]\n" in out or words != "sample"


def test_commands_and_options_stand_in_groups(call):
    _, out, _ = call("--help")
    assert (
        out.index("\nTrain:\n  train ")
        < out.index("\nFinished models and runs:\n  sample ")
        < out.index("\nPrivacy:\n")
    )
    _, out, _ = call("train --help")
    assert out.index("\nOptions:\n") < out.index("\nMost used:\n  --dataset ") < out.index("\nPrivacy:\n  --delta ")


# ------------------------------------------------------------------------------------------- paths


def test_a_tilde_is_the_users_folder_in_options_arguments_and_settings(call, home):
    assert call("sample ~/run --count 1 --out=~/made.png")[0] == 0 and (home / "made.png").is_file()
    assert "no config.toml in " + str(home) in call("report ~ --out=~/report.html")[2]
    assert str(home / "none.toml") in call("train --config=~/none.toml")[2]
    code, _, err = call("train --dataset folder --data-dir=~/pictures --cache-dir=~/cache")
    assert code == 2 and str(home / "pictures") in err
    (home.parent / "work" / "a.toml").write_text('[data]\ndataset = "folder"\ndata_dir = "~/pictures"\n')
    assert str(home / "pictures") in call("train --config a.toml")[2]
    assert sorted(path.name for path in (home.parent / "work").iterdir()) == ["a.toml"], "no folder is called ~"
    paths = {name for name, (_, item) in all_fields().items() if item.metadata["path"]}
    assert paths == {"data_dir", "features", "cache_dir"}
    assert settings_from({"data": {"data_dir": "~nobody-of-this-name/x"}}).data.data_dir == "~nobody-of-this-name/x"


def test_the_folder_of_a_run_is_its_model(call, home):
    assert call("sample ~/run --count 3 --out grid.png")[:2] == (0, "grid.png\n")
    with Image.open(home.parent / "work" / "grid.png") as grid:
        assert grid.size == (2 * 35, 2 * 35) and grid.mode == "L"
    assert "model.onnx" in call("export ~/run")[1]
    for words in ("sample", "evaluate", "export"):
        code, _, err = call(f"{words} ~")
        assert code == 2 and f"{home} is a folder without model.safetensors" in err and err.count("\n") == 1


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.tiff", "a.webp"])
def test_a_picture_of_another_kind_is_no_folder(call, home, name):
    code, _, err = call(f"sample ~/run --out {name}")
    assert code == 2 and f"--out {name}; expected a .png, or a folder" in err
    assert not list((home.parent / "work").iterdir())


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("train --size 28", "--size 28; expected one of 0, 16, 32, 64; change --size"),
        ("federate server --clients 3 --least-cohort 4", "--least-cohort 4; expected 1 … 3, the clients of a round"),
        ("train --mode one-shot --screen 1.5", "--screen 1.5 with --mode one-shot"),
        ("train --people '(' --dataset folder", "--people '(' (missing )"),
        ("privacy --sizes 100 --epsilon -1", "--epsilon -1.0; expected"),
        ("sample ~/run --count 0", "--count 0; expected"),
        ("sample ~/run --device mps", "--device mps: torch cannot compute on it here; expected cpu"),
        ("train --control-variate 1", "there is --uplink: whole, half or fewest now"),
    ],
)
def test_errors_name_options(call, home, words, says):
    code, _, err = call(words)
    assert code == 2 and says in err and err.count("\n") == 1
    assert not [section for section in ("generator.", "running.", "federation.", "privacy.") if section in err]


def test_what_a_file_says_is_told_in_the_files_words(call, tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("[generator]\nsize = 28\n")
    assert "generator.size = 28" in call(f"train --config {path}")[2]
    path.write_text("[generator]\nsize = 32\n[search]\nmask = 'soft'\n")
    err = call(f"train --config {path} --uplink half")[2]
    assert "--uplink half with search.mask = 'soft'" in err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("data.clients = 3 with data.partition", "--clients 3 with data.partition"),
        ("features.features = ''", "no --features"),
        ("data.data_dir = 'my pictures'", "--data-dir 'my pictures'"),
        ("the file data.clients.toml; seed it; seed = 3", "the file data.clients.toml; seed it; --seed 3"),
        ("generator.conditional = True", "--conditional"),
    ],
)
def test_settings_become_the_options_that_were_asked_for(text, told):
    assert in_options(text, {"clients", "data_dir", "features", "seed", "conditional"}) == told
    assert in_options(text, ()) == text


def test_places_of_a_sites_files_are_told_from_the_root_and_networks_by_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = [_placed(text) for text in ("", "vgg19", "vgg19:net.pth", "net.safetensors", str(tmp_path / "net"))]
    assert found == [
        "",
        "vgg19",
        f"vgg19:{tmp_path / 'net.pth'}",
        f"{tmp_path / 'net.safetensors'}",
        f"{tmp_path / 'net'}",
    ]
