"""Flower's program for a message: a fork of a SuperExec that has imported all of it."""

import subprocess
import sys

import pytest

pytest.importorskip("flwr")

from prismfl.engines.flower import warm

pytestmark = pytest.mark.skipif(not warm.SUPPORTED, reason="forks are for Linux")


def python(text):
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120)


def test_each_message_is_answered_by_a_fork_of_its_own():
    """Forks have the program's arguments and start programs as ever; the process itself stays, and starts no other."""
    told = """
import os, subprocess, sys
from prismfl.engines.flower import warm
def answer():
    seen = subprocess.run(["echo", "from a fork"], capture_output=True, text=True).stdout
    print(sys.argv, os.getppid() == parent, seen, flush=True)
    sys.exit(3)
parent, start = os.getpid(), warm.forking(answer)
forks = [start([warm.PROGRAM, "--token", word]) for word in ("a b", "")]
for fork in forks:
    fork.join()
print([fork.exitcode for fork in forks], sys.argv, start(["flwr-agentapp"]).wait())
"""
    said = python(told).stdout
    for word in ("a b", ""):
        assert f"['flwr-clientapp', '--token', '{word}'] True from a fork" in said
    assert said.endswith("[3, 3] ['-c'] 1\n")


def test_a_fork_runs_flowers_own_program():
    told = """
from prismfl.engines.flower import warm
fork = warm.forking(warm.program(warm.PROGRAM))([warm.PROGRAM, "--help"])
fork.join()
print(fork.exitcode)
"""
    said = python(told).stdout
    assert "Run a Flower ClientApp" in said and said.endswith("0\n")


def test_the_process_is_flowers_superexec():
    said = subprocess.run([*warm.superexec(1), "--help"], capture_output=True, text=True, timeout=120)
    assert "Run Flower SuperExec" in said.stdout and said.returncode == 0


def test_what_is_imported_beforehand_draws_nothing_and_starts_no_thread():
    """Forks that shared a generator would share noise; threads would not live on in a fork."""
    told = """
import sys, threading, importlib
from prismfl.engines.flower import warm
for name in warm._IMPORTED:
    importlib.import_module(name)
print("opendp" in sys.modules, threading.active_count())
"""
    assert python(told).stdout.split() == ["False", "1"]
