"""Flower's program for a message: taken over by a process that is there already, and started anew where none is."""

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

pytest.importorskip("flwr")

from prismfl.engines.flower import warm
from prismfl.engines.flower.processes import child, command, environment

pytestmark = pytest.mark.skipif(not warm.SUPPORTED, reason="forks are for Linux")


@pytest.fixture
def own(tmp_path):
    """A stand-in for Flower's own program: it writes its arguments down."""
    path = tmp_path / "own"
    path.write_text(f'#!/bin/sh\nprintf "%s|" "$@" > {tmp_path}/own.txt\n')
    path.chmod(0o700)
    return path


def small(folder, *words):
    return subprocess.run([folder / warm.PROGRAM, *words], capture_output=True, text=True, timeout=60)


def test_where_nobody_answers_the_program_is_flowers_own(tmp_path, own):
    warm.furnish(tmp_path, str(own))
    assert small(tmp_path, "--token", "a b", "").returncode == 0
    assert (tmp_path / "own.txt").read_text() == "--token|a b||"


def test_a_process_that_is_gone_is_not_waited_for(tmp_path, own):
    words = warm.furnish(tmp_path, str(own))
    with (tmp_path / "log").open("ab") as log, child(words, tmp_path / "home", log) as process:
        door = tmp_path / "door"
        wait(door.exists)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert small(tmp_path, "x").returncode == 0 and (tmp_path / "own.txt").read_text() == "x|"


def test_each_message_is_answered_by_a_fork_of_its_own(tmp_path, own):
    """Flower's program is asked for its help: the fork prints it and ends, and the process stays."""
    words, log = warm.furnish(tmp_path, str(own)), tmp_path / "log"
    with log.open("ab") as printed, child(words, tmp_path / "home", printed) as process:
        wait((tmp_path / "door").exists)
        for times in (1, 2):
            assert small(tmp_path, "--help").returncode == 0
            wait(lambda times=times: log.read_text().count("Run a Flower ClientApp") == times)
        assert process.poll() is None
        assert not (tmp_path / "own.txt").exists()


def test_what_is_imported_beforehand_draws_nothing_and_starts_no_thread():
    """Forks that shared a generator would share noise; threads would not live on in a fork."""
    told = """
import sys, threading, importlib
from prismfl.engines.flower import warm
for name in warm._IMPORTED:
    importlib.import_module(name)
print("opendp" in sys.modules, threading.active_count())
"""
    found = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.split() == ["False", "1"]


def test_the_small_program_comes_before_flowers(tmp_path, own):
    warm.furnish(tmp_path, str(own))
    assert command([warm.PROGRAM], environment(tmp_path, tmp_path)) == [str(tmp_path / warm.PROGRAM)]
    assert command([warm.PROGRAM], environment(tmp_path)) != [str(tmp_path / warm.PROGRAM)]


def say(door, words):
    with contextlib.suppress(OSError):
        door.sendall(words)
        door.shutdown(socket.SHUT_WR)


def wait(until):
    end = time.monotonic() + 60
    while not until():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_guests_that_say_too_much_or_nothing_whole_are_not_heard(tmp_path, monkeypatch):
    monkeypatch.setattr(warm, "_WAIT", 0.2)
    for said, heard in ((b"a\0b", ["a", "b"]), (b"x" * (warm._MOST + 1), None), (b"\xff", None)):
        one, other = socket.socketpair()
        with one, other:
            one.settimeout(warm._WAIT)
            sender = threading.Thread(target=say, args=(other, said))
            sender.start()
            assert warm._heard(one) == heard
            one.close()
            sender.join()
    one, other = socket.socketpair()
    with one, other:
        one.settimeout(0.05)
        assert warm._heard(one) is None
