"""The container images: what they hold, that their commands are ours, and the steps of both without a container."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

pytest.importorskip("yaml", reason="PyYAML is not installed")
pytest.importorskip("flwr", reason="Flower is not installed")

import yaml

from prismfl.cli.main import app
from prismfl.engines.flower.certificates import make_certificates
from prismfl.privacy.policy import Policy, policy_text

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "containers"
CONTEXT = ("constraints.txt", "containers/install.sh", "LICENSE", "pyproject.toml", "README.md", "src")

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="no images beside the tests")


def services():
    return yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]


def stages():
    """Stages of the Containerfile by name, each with its lines."""
    text = re.sub(r"\\\n", " ", (FOLDER / "Containerfile").read_text())
    parts = re.split(r"^FROM ", text, flags=re.M)[1:]
    return {part.splitlines()[0].split()[-1]: part.splitlines() for part in parts}


def options_of(name):
    """The options that a service's command line comes to."""
    command = typer.main.get_command(app).commands["federate"].commands["server" if name == "server" else "client"]
    return command.make_context(name, shlex.split(services()[name]["command"])).params


def test_images_hold_what_is_listed_and_run_as_nobody_special():
    listed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sorted(listed) == sorted(CONTEXT)
    found = stages()
    assert set(found) == {"build", "runtime", "server", "site"}
    last = [line for name in ("runtime", "server", "site") for line in found[name]]
    assert not [line for line in last if line.startswith("RUN")], "no tool is installed in what is run"
    assert [line for line in last if line.startswith("COPY")] == ["COPY --from=build /opt/prismfl /opt/prismfl"]
    assert "USER 10001:10001" in found["runtime"]


def test_commands_of_the_services_are_ours_and_each_sees_its_own():
    asked = {name: options_of(name) for name in services()}
    assert [asked[f"site-{name}"]["client"] for name in "abc"] == [0, 1, 2]
    for name, service in services().items():
        mounted = dict(reversed(volume.removesuffix(":ro").split(":")) for volume in service["volumes"])
        read_only = {volume.split(":")[1] for volume in service["volumes"] if volume.endswith(":ro")}
        keys = [source for source in mounted.values() if source.endswith(".key")]
        assert len(keys) == 1 and service["read_only"] and service["cap_drop"] == ["ALL"]
        assert not any(source.endswith(("ca.key", "/tls", "/sites")) for source in mounted.values())
        paths = [value for value in map(str, asked[name].values()) if value.startswith("/")]
        assert all(any(path.startswith(place) or place.startswith(path) for place in mounted) for path in paths)
        if name != "server":
            assert {"/images", "/client.key", "/ca.crt", "/policy.toml"} <= read_only
            assert len(service["networks"]) == 1, "sites do not see each other"


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.skipif(sys.platform != "linux", reason="images are of Linux")
def test_the_steps_of_the_images_train_a_model(tmp_path, write_sites):
    environment = _installed(tmp_path)
    for program in ("pip", "ray", "flower-simulation"):
        assert not (environment / "bin" / program).exists()
    _prepare(tmp_path, write_sites)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = {name: _start(environment, tmp_path, name, port) for name in ("site-a", "site-b", "site-c", "server")}
    try:
        assert running["server"].wait(600) == 0, (tmp_path / "server.log").read_text()[-2000:]
    finally:
        for process in running.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(30)
    assert (tmp_path / "runs" / "trial" / "model.safetensors").is_file()
    assert (tmp_path / "sites" / "a" / "kept" / "ledger.jsonl").is_file(), "ε was spent at the site"


def _installed(tmp_path):
    """An environment as the image's build stage makes it, from what is listed and nothing else."""
    context = tmp_path / "build"
    for name in CONTEXT:
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, context / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
            )
        else:
            shutil.copy(ROOT / name, context / name)
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TORCH_INDEX")}
    place = tmp_path / "opt"
    words = ["sh", "containers/install.sh", str(place)]
    done = subprocess.run(words, cwd=context, env=env, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-2000:]
    return place


def _prepare(tmp_path, write_sites):
    """The files that the compose file mounts."""
    make_certificates(tmp_path / "tls", ["server", "localhost"], 3)
    write_sites(tmp_path / "images", {"a": 30, "b": 30, "c": 30})
    for name in "abc":
        site = tmp_path / "sites" / name
        (site / "kept").mkdir(parents=True)
        (tmp_path / "images" / name).rename(site / "images")
        (site / "policy.toml").write_text(policy_text(Policy(10.0, 1e-5)))
    (tmp_path / "runs").mkdir()
    small = "[generator]\nsize = 16\nwidth = 2\nchannels = 1\n[search]\nlocal_steps = 1\nbatch_size = 4\n"
    data = '[data]\ndataset = "folder"\npartition = "given"\n[federation]\nrounds = 2\n[privacy]\nepsilon = 3.0\n'
    (tmp_path / "run.toml").write_text(data + small)


def _start(environment, tmp_path, name, port):
    """A service's command, its paths as they are mounted, on this machine."""
    command, service = stages()["server" if name == "server" else "site"], services()[name]
    entry = next(yaml.safe_load(line.partition(" ")[2]) for line in command if line.startswith("ENTRYPOINT"))
    words = [*entry, *shlex.split(service["command"])]
    mounts = dict(reversed(volume.removesuffix(":ro").split(":")) for volume in service["volumes"])
    if name == "server":
        folder = tmp_path / "server-tls"
        for source in ("ca.crt", "server.crt", "server.key"):
            _link(tmp_path / "tls" / source, folder / "tls" / source)
        for client in range(3):
            _link(tmp_path / "tls" / f"client-{client}.pub", folder / "keys" / f"client-{client}.pub")
        mounts |= {"/tls": str(folder / "tls"), "/keys": str(folder / "keys")}
    longest = sorted(mounts, key=len, reverse=True)
    for index, word in enumerate(words):
        place = next((one for one in longest if word == one or word.startswith(one + "/")), None)
        words[index] = word if place is None else str(tmp_path / mounts[place]) + word[len(place) :]
    swapped = {"server:8443": f"localhost:{port}", "8443": str(port), "0.0.0.0": "127.0.0.1"}
    words = [str(environment / "bin" / words[0]), *(swapped.get(word, word) for word in words[1:])]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HOME": str(tmp_path)}
    with (tmp_path / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(words, cwd=tmp_path, env=env, stdout=log, stderr=log, start_new_session=True)
    time.sleep(0.2)
    return process


def _link(source, place):
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, place)
