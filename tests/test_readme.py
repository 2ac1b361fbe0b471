"""The README's commands: each is run as it stands, at a size that takes seconds."""

import gzip
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
SMALL = shlex.split(
    "--rounds 1 --local-steps 1 --batch-size 4 --width 2 --finished-mask half --distance-samples 20 --workers 1"
)

pytestmark = pytest.mark.skipif(not (ROOT / "README.md").is_file(), reason="no README beside the tests")


def blocks(language, page="README.md"):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.S)


def commands():
    """Lines of the README's shell blocks that call the command, and those that make runs."""
    lines = [line.split("  #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    made = subprocess.run(["make", "-n", "demo", "VENV=x"], cwd=ROOT, capture_output=True, text=True, check=True)
    demo = [line.strip().removeprefix("x/bin/") for line in made.stdout.splitlines() if "prismfl train" in line]
    assert len(demo) == 1
    return demo + [line for line in lines if line.startswith("prismfl ")]


def run(words, cwd):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "prismfl", *words], cwd=cwd, capture_output=True, text=True, env=env)


def write_idx(folder, split, count):
    """MNIST's two files of a split, with made-up images."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.arange(count, dtype=np.uint8) % 10
    images = np.random.default_rng(0).integers(0, 25 * (labels[:, None, None] + 1), (count, 28, 28)).astype(np.uint8)
    header = struct.pack(">I3I", 0x803, *images.shape)
    (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
    (folder / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels.tobytes())


@pytest.fixture
def place(tmp_path):
    """A folder with what the README's commands name: data, a run and pictures in class folders."""
    write_idx(tmp_path / "data" / "mnist", "train", 400)
    write_idx(tmp_path / "data" / "mnist", "t10k", 60)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for index in range(24):
                Image.new("RGB", (32, 32), (index * 10, 40, 90 if name == "cat" else 200)).save(folder / f"{index}.png")
    for site in range(3):
        shutil.copytree(tmp_path / "pictures" / "train", tmp_path / "sites" / f"site-{site}")
    return tmp_path


def test_the_readme_names_the_two_commands():
    text = "\n".join(blocks("sh"))
    assert "make demo" in text and "make test" in text


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_command_of_the_readme_runs(place):
    assert len(commands()) >= 5
    for line in commands():
        words = shlex.split(line)[1:]
        if words[0] == "train" and "--dry-run" not in words and "--resume" not in words:
            words += [*SMALL, *(["--finished-mask", "best"] if "soft" in words else [])]
        if words[0] == "pretrain":
            words += ["--epochs", "1"]
        done = run(words, place)
        assert done.returncode == 0, (line, done.stderr)


@pytest.mark.parametrize("page", ["README.md", "docs/guide/deploy.md"])
def test_commands_that_need_the_network_or_large_data_name_options_that_exist(page, tmp_path):
    joined = [block.replace("\\\n", " ") for block in blocks("console", page)]
    lines = [shlex.split(line, comments=True) for block in joined for line in block.splitlines()]
    lines = [words for words in lines if words[0] == "prismfl"]
    names = {tuple(words[1 : 3 if words[1] == "federate" else 2]) for words in lines}
    helps = {name: run([*name, "--help"], tmp_path).stdout.split() for name in names}
    assert len(lines) >= 3
    for words in lines:
        known = next(text for name, text in helps.items() if tuple(words[1 : 1 + len(name)]) == name)
        assert {word for word in words if word.startswith("--")} <= set(known)


@pytest.mark.slow
def test_the_python_of_the_readme_runs(place):
    code = "\n".join(blocks("python"))
    small = "import prismfl\nsmall = dict(rounds=1, local_steps=1, batch_size=4, width=2, finished_mask='half',"
    small += " distance_samples=0, workers=1)\n"
    done = subprocess.run([sys.executable, "-c", small + code], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_pictures_and_links_of_the_readme_exist():
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text())
    assert links
    for link in links:
        assert link.startswith("http") or (ROOT / link).exists(), link


def test_pages_that_follow_from_the_code_are_as_it_has_them():
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_readme_is_short_and_its_lines_are():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120 and len(text.split()) <= 900
    assert max(map(len, text.splitlines())) <= 100
