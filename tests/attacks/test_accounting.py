"""Attacks on the accounting of simulated runs: whatever is changed or removed, nothing is released unsaid."""

import contextlib
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prismfl.engines.simulator import resume, train
from prismfl.errors import ClientError, RunFolderError
from prismfl.privacy.source import spent_of
from prismfl.run.folder import alone_in, read_rounds, reopen
from prismfl.run.loop import Silent
from prismfl.run.prepare import prepare
from prismfl.run.source import source_of

ONE = {"epsilon": 1.0, "delta": 1e-3, "noise": "fast"}


@pytest.fixture
def pictures(tmp_path):
    """Thirty grey pictures of two classes."""
    rng = np.random.default_rng(0)
    for index in range(30):
        path = tmp_path / "pictures" / "ab"[index % 2] / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).save(path)
    return tmp_path / "pictures"


@pytest.fixture
def asked(tiny, pictures):
    """A maker of settings of a private run on the pictures."""

    def make(**changes):
        data = {"dataset": "folder", "data_dir": str(pictures), "clients": 2} | changes.pop("data", {})
        generator = {"channels": 1} | changes.pop("generator", {})
        return tiny(data=data, generator=generator, privacy=ONE | changes.pop("privacy", {}), **changes)

    return make


def ledger_of(settings, root):
    return source_of(settings, root).releases()


def renamed(pictures):
    (pictures / "b").rename(pictures / "c")


def extended(pictures):
    shutil.copy(pictures / "a" / "00.png", pictures / "a" / "99.png")


def reordered(pictures):
    (pictures / "a" / "00.png").rename(pictures / "a" / "98.png")


CHANGES = {
    "size": ({"generator": {"size": 32}}, None),
    "channels": ({"generator": {"channels": 3}}, None),
    "labels": ({"generator": {"conditional": False}}, None),
    "classes": ({"data": {"classes": "a"}}, None),
    "seed of the partition": ({"seed": 1}, None),
    "number of clients": ({"data": {"clients": 3}}, None),
    "epsilon": ({"privacy": {"epsilon": 0.9}}, None),
    "a class's name": ({}, renamed),
    "one image more": ({}, extended),
    "another order": ({}, reordered),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_is_changed_is_one_more_release_and_the_budget_stops_it(change, asked, pictures, tmp_path):
    train(asked(), out=tmp_path / "first")
    settings, act = CHANGES[change]
    if act is not None:
        act(pictures)
    limit = {"budget_epsilon": 1.0}
    before = spent_of(ledger_of(asked(), tmp_path))
    if change == "a class's name":  # which changes no released number: the release is the one that was
        train(asked(running=limit), out=tmp_path / "same")
        assert spent_of(ledger_of(asked(), tmp_path)) == before
        return
    with pytest.raises(ClientError, match="budget"):
        train(asked(**settings, running=limit), out=tmp_path / "refused")
    train(asked(**settings), out=tmp_path / "second")
    assert spent_of(ledger_of(asked(), tmp_path)).epsilon > 1.2 * before.epsilon


def test_many_runs_spend_no_more_than_the_budget(asked, tmp_path):
    limit, refused = {"budget_epsilon": 2.0}, 0
    for seed in range(12):
        try:
            train(asked(seed=seed, running=limit), out=tmp_path / str(seed))
        except ClientError:
            refused += 1
    assert spent_of(ledger_of(asked(), tmp_path), 1e-3).epsilon <= 2.0 * (1 + 1e-6)
    assert 8 <= refused < 12


class Kill(Silent):
    def round_done(self, record, rounds):
        raise KeyboardInterrupt(f"{record['round']} of {rounds}")


@pytest.mark.parametrize("gone", ["releases", "one release", "ledger"])
def test_what_was_removed_is_not_drawn_again(gone, asked, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(asked(), out=tmp_path / "run", watcher=Kill())
    ledger = source_of(asked(), tmp_path)
    files = sorted(ledger.folder.glob("*.safetensors"))
    for path in {"releases": files, "one release": files[:1], "ledger": [ledger.path]}[gone]:
        path.unlink()
    with contextlib.nullcontext() if gone == "one release" else pytest.raises(ClientError):
        resume(tmp_path / "run")
    lines = read_rounds(reopen(tmp_path / "run")[0])
    assert [len(line["cohort"]) for line in lines] == ([2, 1] if gone == "one release" else [2])
    assert not ledger.path.exists() or len(ledger.releases()) == 2


@pytest.mark.usefixtures("full_world")
def test_a_run_is_not_gone_on_with_twice(asked, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(asked(), out=tmp_path / "run", watcher=Kill())
    with alone_in(reopen(tmp_path / "run")[0]), pytest.raises(RunFolderError, match=r"in use by process \d+ since"):
        resume(tmp_path / "run")
    words = [sys.executable, "-m", "prismfl", "train", "--resume", str(tmp_path / "run"), "--no-report"]
    both = [subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert sorted(process.returncode for process in both) in ([0, 0], [0, 2]), said
    assert [line["round"] for line in read_rounds(reopen(tmp_path / "run")[0])] == [0, 1]


def test_one_red_value_makes_no_other_generator(asked, pictures, tmp_path):
    """Grey or colour is said, not seen: one image must not decide the shape of the model."""
    path, found = pictures / "a" / "00.png", []
    red = np.asarray(Image.open(path).convert("RGB")).copy()
    red[0, 0, 0] ^= 1
    for image in (Image.open(path).copy(), Image.fromarray(red)):
        image.save(path)
        found.append([prepare(asked(generator={"channels": said})) for said in (0, 1, 3)])
    assert [one.agreement.layout.channels for one in found[0]] == [3, 1, 3], "colour, where nothing is said"
    for before, after in zip(*found, strict=True):
        assert before.agreement.run == after.agreement.run
        assert before.described.as_json() == after.described.as_json()


def test_a_ledger_does_not_lie_in_the_data(asked, pictures, tmp_path):
    train(asked(), out=tmp_path / "run")
    assert not list(pictures.rglob("*ledger*"))


def test_what_a_client_keeps_is_its_owners_alone(asked, tmp_path):
    plain = replace(asked(), privacy=replace(asked().privacy, epsilon=0.0))
    for name, settings in (("private", asked()), ("plain", plain)):
        root = train(settings, out=tmp_path / name).folder.root
        for path in (root / "clients").rglob("*"):
            assert path.stat().st_mode & 0o077 == 0, path
    ledger = source_of(asked(), tmp_path)
    for path in (ledger.path, ledger.folder, *ledger.folder.iterdir()):
        assert Path(path).stat().st_mode & 0o077 == 0, path
