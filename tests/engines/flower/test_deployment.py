"""A SuperLink and three SuperNodes as processes on loopback: a whole run, and what goes wrong in one.

Machines may be busy: waiting times are generous, and nothing is asserted about time.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

pytest.importorskip("flwr", reason="Flower is not installed")

from prismfl.engines import simulator as inprocess
from prismfl.engines.flower.processes import APP, free_port, stop
from prismfl.generator.modelfile import load_model
from prismfl.run import folder as runfolder
from prismfl.run.folder import RunFolder, read_rounds

pytestmark = pytest.mark.timeout(900)
LIMITED = (
    sys.executable,
    "-c",
    "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)); "
    "os.execvp(sys.argv[1], sys.argv[1:])",
)


@pytest.fixture
def patient(site_settings):
    """Settings that give processes of a busy machine their time."""

    def make(deadline=120.0, **changes):
        running = {"deadline": deadline} | changes.pop("running", {})
        return site_settings(running=running, **changes)

    return make


def cohorts(out):
    return [line["cohort"] for line in read_rounds(RunFolder(out))]


@pytest.mark.usefixtures("full_world")
def test_two_rounds_of_three_clients_give_the_simulators_model(deployment, patient, tmp_path):
    settings = patient()
    out = deployment.begin(settings, APP)
    summary = deployment.finish(out)
    data = replace(settings.data, data_dir=str(deployment.sites / "*"))
    inprocess.train(replace(settings, data=data), out=tmp_path / "plain")
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "plain" / "model.safetensors").read_bytes()
    assert cohorts(out) == [[0, 1, 2]] * 2
    assert summary["rounds"] == 2
    states = [deployment.root / f"state-{number}" for number in range(3)]
    assert all((state / "token").is_file() for state in states)


@pytest.mark.slow
def test_bad_replies_are_left_out_one_by_one(deployment, patient):
    deployment.faults(0, r0="garbage", r3="oversized")
    deployment.faults(1, r1="wrong round")
    deployment.faults(2, r2="nan")
    out = deployment.begin(patient(federation={"rounds": 4}))
    deployment.finish(out)
    assert cohorts(out) == [[1, 2], [0, 2], [0, 1], [1, 2]]
    said = "\n".join(deployment.notes(out))
    for words in ("format", "round 2, client 1", "loss nan", "20000000 bytes"):
        assert words in said


@pytest.mark.slow
def test_a_hanging_client_and_a_killed_search_miss_a_round(deployment, patient):
    deployment.faults(0, r0="hang")
    deployment.faults(1, r0="die")
    out = deployment.begin(patient(deadline=30.0, federation={"rounds": 2}))
    deployment.finish(out)
    assert cohorts(out)[0] == [2]
    assert len(cohorts(out)) == 2
    notes = "\n".join(deployment.notes(out))
    assert all(f"round 1: client {client} is left out" in notes for client in (0, 1))
    assert "client 0 is left out: no reply within 30 s" in notes


@pytest.mark.slow
def test_a_machine_that_dies_in_a_round_and_comes_back_takes_part_in_it(deployment, patient):
    deployment.faults(1, r0="die with the node")
    out = deployment.begin(patient(deadline=300.0, federation={"rounds": 1}))
    dying = deployment.root / "state-1" / "dying"
    until(dying.exists)
    deployment.kill(1)
    dying.unlink()
    deployment.start(1)
    deployment.finish(out)
    assert cohorts(out) == [[0, 1, 2]]
    assert any("client 1 is back as" in note for note in deployment.notes(out))


@pytest.mark.slow
def test_of_two_that_claim_one_identity_one_is_refused_and_a_full_disk_is_named(deployment, patient):
    deployment.kill(2)
    deployment.start(2, prefix=LIMITED)
    deployment.start(0, name="rival", state="state-rival")
    until(lambda: "SuperNode ID" in (deployment.root / "node-rival.log").read_text())
    out = deployment.begin(patient(deadline=300.0, federation={"rounds": 2}))
    deployment.finish(out)
    deployment.kill("rival")
    notes = "\n".join(deployment.notes(out))
    assert cohorts(out) == [[0, 1]] * 2
    assert "client 0 a second time" in notes
    assert "client 2 is left out: one RunFolderError at the site" in notes


def until(what, seconds=300):
    """Wait for something to be true."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never was"
        time.sleep(0.2)


# ------------------------------------------------------------------------------------ the commands


def start(words, log):
    """A command of ours as a child."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "prismfl", "federate", *map(str, words)],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


SMALL = shlex.split("""
    --size 16 --width 2 --rounds 3 --local-steps 1 --batch-size 4 --finished-mask half
    --deadline 300
""")


@pytest.mark.slow
@pytest.mark.usefixtures("full_world")
def test_flowers_simulation_gives_the_simulators_model(tmp_path):
    words = ["--clients", 3, "--partition", "iid", *SMALL, "--distance-samples", 0, "--workers", 2]
    simulated = start(["simulate", *words, "--out", tmp_path / "flower"], tmp_path / "log")
    try:
        assert simulated.wait(400) == 0, (tmp_path / "log").read_text()[-2000:]
    finally:
        stop(simulated)
    settings = runfolder.reopen(tmp_path / "flower")[1]
    inprocess.train(settings, out=tmp_path / "plain")
    mine, plain = tmp_path / "flower" / "model.safetensors", tmp_path / "plain" / "model.safetensors"
    assert mine.read_bytes() == plain.read_bytes()


@pytest.mark.slow
def test_a_server_that_is_killed_goes_on_over_tls_with_keys(write_sites, tmp_path):
    """The commands as `docs/guide/deploy.md` has them; clients find the server again by themselves."""
    sites, port = write_sites(tmp_path / "sites", {"a": 9, "b": 8}), free_port()
    made = start(["certificates", "--out", tmp_path / "tls", "--host", "127.0.0.1", "--clients", 2], tmp_path / "log")
    assert made.wait(120) == 0
    tls, keys = tmp_path / "tls", tmp_path / "keys"
    keys.mkdir()
    for public in tls.glob("*.pub"):
        public.rename(keys / public.name)
    listen = ["--port", port, "--certificates", tls, "--keys", keys]
    server = start(["server", "--clients", 2, *SMALL, "--out", tmp_path / "run", *listen], tmp_path / "server.log")
    running = [server]
    try:
        for number, site in enumerate("ab"):
            who = ["--client", number, "--data-dir", sites / site, "--state", tmp_path / f"state-{number}"]
            way = ["--server", f"127.0.0.1:{port}", "--root-certificates", tls / "ca.crt"]
            proof = ["--key", tls / f"client-{number}.key", "--ledger", tmp_path / f"ledger-{number}"]
            proof += ["--budget-epsilon", 1, "--budget-delta", 1e-5]
            running.append(start(["client", *who, *way, *proof], tmp_path / f"client-{number}.log"))
        until((tmp_path / "run" / "checkpoint.safetensors").exists, 400)
        server.send_signal(signal.SIGKILL)
        server.wait()
        again = start(["server", "--resume", tmp_path / "run", *listen], tmp_path / "server.log")
        running.append(again)
        assert again.wait(400) == 0, (tmp_path / "server.log").read_text()[-2000:]
    finally:
        for process in running:
            stop(process)
    assert len(load_model(tmp_path / "run" / "model.safetensors").mask)
    assert [line["round"] for line in read_rounds(RunFolder(tmp_path / "run"))] == [0, 1, 2]
    assert "going on after" in (tmp_path / "server.log").read_text()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rounds"] == 3
