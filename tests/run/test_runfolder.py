"""Run folders: what is committed counts, leftovers are dropped, and a full disk harms nothing."""

import contextlib
import errno
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save as save_tensors

from prismfl.data.files import write_atomic
from prismfl.errors import RunFolderError
from prismfl.run import folder as runfolder
from prismfl.run.folder import RunFolder, create, load_arrays, load_state, read_rounds, reopen, save_arrays, save_state
from prismfl.server import ServerState

COUNT, CLIENTS = 11, 3


def state_of(done):
    steps = tuple(bytes(range(turn, 3 * turn)) for turn in range(done))  # the first of them empty
    return ServerState(np.arange(done, done + COUNT).astype(np.uint16), done, steps, np.arange(CLIENTS) % (done + 1))


def load_ours(folder):
    return load_state(folder, COUNT, CLIENTS)


@pytest.fixture
def folder(tmp_path, tiny):
    return create(tmp_path / "run", tiny())


@pytest.fixture
def after_three(folder):
    for done in (1, 2, 3):
        save_state(folder, state_of(done), {"round": done - 1, "loss": done / 3})
    return folder


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def leftovers(root):
    return [path for path in Path(root).rglob("*") if path.name.endswith(".tmp")]


# ------------------------------------------------------------------------------------ whole files


@pytest.mark.parametrize("content", ["text ü\n", b"\x00\xff", b""])
def test_files_are_written_whole(tmp_path, content):
    path = tmp_path / "new" / "folder" / "file"
    write_atomic(path, content)
    write_atomic(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), full_disk)
    with pytest.raises(RunFolderError, match=r"file \(No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert not leftovers(tmp_path)


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "a").write_text("x")
    with pytest.raises(RunFolderError, match="cannot write"):
        write_atomic(tmp_path / "a" / "b", b"")


def test_two_threads_may_write_one_file(tmp_path, monkeypatch):
    """Clients of equal images share one file of a common cache folder."""
    both, path = threading.Barrier(2), tmp_path / "file"

    def wait(_):
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(timeout=2)

    monkeypatch.setattr(os, "fsync", wait)
    with ThreadPoolExecutor(2) as pool:
        outcomes = [pool.submit(write_atomic, path, b"content") for _ in range(2)]
    assert [outcome.exception() for outcome in outcomes] == [None, None]
    assert path.read_bytes() == b"content"


# -------------------------------------------------------------------------------- create and reopen


def test_a_new_folder_has_settings_and_an_empty_ledger(folder, tiny):
    again, settings = reopen(folder.root)
    assert again == folder
    assert settings == tiny()
    assert json.loads(folder.ledger.read_text()) == {"releases": []}
    assert load_ours(folder) is None


def test_an_existing_run_is_not_overwritten(folder, tiny):
    before = folder.config.read_bytes()
    with pytest.raises(RunFolderError, match="--resume"):
        create(folder.root, tiny(seed=9))
    assert folder.config.read_bytes() == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path, tiny):
    (tmp_path / "a").write_text("x")
    for root in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(RunFolderError, match="cannot write"):
            create(root, tiny())


def test_what_is_no_run_is_not_resumed(tmp_path):
    for root in (tmp_path, tmp_path / "none"):
        with pytest.raises(RunFolderError, match=r"no config\.toml"):
            reopen(root)


@pytest.mark.parametrize("text", [b"seed = ", b"\xff\xfe", b"unknown = 1", b"[federation]\nrounds = -1"])
def test_damaged_settings_are_named(folder, text):
    folder.config.write_bytes(text)
    with pytest.raises(RunFolderError, match=r"config\.toml"):
        reopen(folder.root)


# --------------------------------------------------------------------------------------------- state


def test_the_last_committed_round_comes_back(after_three):
    state = load_ours(after_three)
    assert state.round == 3
    np.testing.assert_array_equal(state.q, state_of(3).q)
    assert [record["round"] for record in read_rounds(after_three)] == [0, 1, 2]


@pytest.mark.parametrize("done", [1, 2, 5])
def test_steps_and_what_clients_hold_come_back(folder, done):
    wanted = state_of(done)
    save_state(folder, wanted, {"round": done - 1})
    found = load_ours(folder)
    assert found.steps == wanted.steps and len(found.steps) == done
    np.testing.assert_array_equal(found.held, wanted.held)
    assert (found.q.dtype, found.held.dtype, type(found.round)) == (np.uint16, np.int64, int)


def test_a_state_without_steps_comes_back(folder):
    save_state(folder, replace(state_of(4), steps=()), {"round": 3})
    assert load_ours(folder).steps == ()


@pytest.mark.parametrize(
    "tail", ['{"round": 3, "loss": 1.0}\n', '{"round": 3, "lo', '{"round": 3}\n{"round": 4}\n{"r', ""]
)
def test_log_lines_beyond_the_checkpoint_are_dropped(after_three, tail):
    before = after_three.rounds.read_text()
    with after_three.rounds.open("a") as file:
        file.write(tail)
    assert load_ours(after_three).round == 3
    assert after_three.rounds.read_text() == before
    save_state(after_three, state_of(4), {"round": 3, "loss": 2.0})
    assert [record["round"] for record in read_rounds(after_three)] == [0, 1, 2, 3]


def test_a_log_without_a_checkpoint_is_dropped(folder):
    folder.rounds.write_text('{"round": 0}\n')
    assert load_ours(folder) is None
    assert read_rounds(folder) == []


def test_the_log_line_comes_before_the_checkpoint(after_three, monkeypatch):
    def killed(path, content, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(runfolder, "write_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        save_state(after_three, state_of(4), {"round": 3})
    monkeypatch.undo()
    assert len(read_rounds(after_three)) == 4
    assert load_ours(after_three).round == 3
    assert len(read_rounds(after_three)) == 3


@pytest.mark.parametrize("size", [COUNT, COUNT - 1])
def test_adams_moments_come_back_or_are_refused(after_three, size):
    moments = np.arange(size, dtype=np.float32)
    save_state(after_three, replace(state_of(4), memory=(moments, moments + 1, np.array([7]))), {"round": 3})
    with contextlib.nullcontext() if size == COUNT else pytest.raises(RunFolderError, match="damaged"):
        first, second, steps = load_ours(after_three).memory
        assert first.tolist() == moments.tolist() and second.tolist() == (moments + 1).tolist() and steps == [7]


@pytest.mark.parametrize("keep", [0, 4, 8, 40, -1])
def test_a_checkpoint_cut_short_is_named(after_three, keep):
    raw = after_three.checkpoint.read_bytes()
    after_three.checkpoint.write_bytes(raw[:keep])
    with pytest.raises(RunFolderError, match=r"checkpoint\.safetensors is damaged"):
        load_ours(after_three)


@pytest.mark.parametrize(
    "changes",
    [
        {"round": None},
        {"q": None},
        {"held": None},
        {"steps": None},
        {"lengths": None},
        {"q": np.zeros(COUNT + 1, np.uint16)},
        {"q": np.zeros(COUNT, np.int32)},
        {"q": np.zeros((1, COUNT), np.uint16)},
        {"round": np.zeros(0, np.int64)},
        {"held": np.zeros(CLIENTS + 1, np.int64)},
        {"lengths": np.array([2, 2])},
        {"lengths": np.array([2, 4])},
        {"lengths": np.zeros(0, np.int64)},
        {"lengths": np.array([9, -4])},
        {"lengths": np.array([2.0, 3.0])},
        {"held": np.array([0, 3, 0])},
    ],
    ids=[
        "no round",
        "no q",
        "no held",
        "no steps",
        "no lengths",
        "other layout",
        "other type",
        "other shape",
        "empty round",
        "other clients",
        "lengths short",
        "lengths long",
        "no length",
        "negative length",
        "broken lengths",
        "held beyond the round",
    ],
)
def test_foreign_checkpoints_are_refused(folder, changes):
    whole = {
        "q": np.zeros(COUNT, np.uint16),
        "round": np.array([2]),
        "held": np.zeros(CLIENTS, np.int64),
        "steps": np.arange(5).astype(np.uint8),
        "lengths": np.array([2, 3]),
    }
    folder.checkpoint.write_bytes(save_tensors(whole))
    assert load_ours(folder).steps == (b"\x00\x01", b"\x02\x03\x04")
    tensors = {name: value for name, value in (whole | changes).items() if value is not None}
    folder.checkpoint.write_bytes(save_tensors(tensors))
    with pytest.raises(RunFolderError, match="damaged"):
        load_ours(folder)


@pytest.mark.parametrize("flip", [0x01, 0x0F, 0x80])
def test_any_damaged_byte_of_a_checkpoint_is_named_or_harmless(after_three, flip):
    whole = after_three.checkpoint.read_bytes()
    for place in range(len(whole)):
        after_three.checkpoint.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
        try:
            found = load_ours(after_three)
        except RunFolderError as error:
            assert "checkpoint.safetensors is damaged" in str(error)
        else:
            assert found.q.shape == (COUNT,) and found.held.shape == (CLIENTS,)
            assert all(isinstance(step, bytes) for step in found.steps)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_loses_one_round_only(after_three, monkeypatch, step):
    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), full_disk)
    with pytest.raises(RunFolderError, match="No space left"):
        save_state(after_three, state_of(4), {"round": 3})
    monkeypatch.undo()
    assert load_ours(after_three).round == 3
    assert not leftovers(after_three.root)


def test_a_log_that_cannot_be_written_is_named(folder):
    folder.rounds.mkdir()
    with pytest.raises(RunFolderError, match=r"rounds\.jsonl"):
        save_state(folder, state_of(1), {"round": 0})
    assert not folder.checkpoint.exists()


# -------------------------------------------------------------------------------------------- arrays


def test_arrays_come_back_and_unusable_ones_are_none(tmp_path):
    path = tmp_path / "clients" / "1" / "x.safetensors"
    assert load_arrays(path) is None
    save_arrays(path, {"a": np.arange(5), "b": np.ones((2, 2), np.float32)})
    found = load_arrays(path)
    np.testing.assert_array_equal(found["a"], np.arange(5))
    assert found["b"].shape == (2, 2)
    path.write_bytes(path.read_bytes()[:-3])
    assert load_arrays(path) is None


def test_places_in_the_folder():
    folder = RunFolder(Path("r"))
    assert folder.samples(7) == Path("r/samples/round-00007.png")
    assert folder.client(12) == Path("r/clients/12")
