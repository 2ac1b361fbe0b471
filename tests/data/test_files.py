"""Files appear whole or not at all."""

import errno
import os
import threading

import pytest

from prismfl.data.files import write_atomic
from prismfl.errors import RunFolderError


@pytest.mark.parametrize(("content", "raw"), [("grün\n", "grün\n".encode()), (b"\x00\xff", b"\x00\xff"), ("", b"")])
def test_what_is_written_is_read_back(tmp_path, content, raw):
    path = tmp_path / "new" / "folder" / "a.bin"
    write_atomic(path, content)
    assert path.read_bytes() == raw
    write_atomic(path, b"second")
    assert path.read_bytes() == b"second"
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.replace", "builtins.open"])
@pytest.mark.parametrize("before", [b"before", None])
def test_a_full_disk_leaves_what_stood_there(tmp_path, monkeypatch, call, before):
    path = tmp_path / "a.bin"
    if before is not None:
        path.write_bytes(before)

    def full(*_args, **_keywords):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(call, full)
        with pytest.raises(RunFolderError, match=r"a\.bin.*No space left"):
            write_atomic(path, b"after" * 1000)
    assert [p.name for p in tmp_path.iterdir()] == (["a.bin"] if before is not None else [])
    assert before is None or path.read_bytes() == before


def test_content_is_synced_before_it_is_renamed(tmp_path, monkeypatch):
    path, seen = tmp_path / "a.bin", []
    path.write_bytes(b"before")
    monkeypatch.setattr(os, "fsync", lambda number: seen.append((os.fstat(number).st_size, path.read_bytes())))
    write_atomic(path, b"afterwards")
    assert seen[0] == (10, b"before")
    assert path.read_bytes() == b"afterwards"


def test_a_folder_below_a_file_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(RunFolderError, match=r"file/below/a\.bin"):
        write_atomic(tmp_path / "file" / "below" / "a.bin", b"x")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_folder_in_the_place_of_the_file_is_refused(tmp_path):
    (tmp_path / "taken" / "inside").mkdir(parents=True)
    with pytest.raises(RunFolderError, match="taken"):
        write_atomic(tmp_path / "taken", b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_two_writers_at_a_time_both_succeed(tmp_path, monkeypatch):
    """Clients that share a cache may write the same file in the same moment."""
    path, real = tmp_path / "a.bin", os.fsync

    def meanwhile(number):
        monkeypatch.setattr(os, "fsync", real)
        other = threading.Thread(target=write_atomic, args=(path, b"other"))
        other.start()
        other.join()
        real(number)

    monkeypatch.setattr(os, "fsync", meanwhile)
    write_atomic(path, b"first")
    assert path.read_bytes() == b"first"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_pieces_are_written_as_they_come(tmp_path):
    write_atomic(tmp_path / "a.bin", (bytes([number]) * 3 for number in range(4)))
    assert (tmp_path / "a.bin").read_bytes() == bytes([0] * 3 + [1] * 3 + [2] * 3 + [3] * 3)


@pytest.mark.parametrize("error", [ValueError("a piece"), KeyboardInterrupt()])
def test_an_error_in_the_making_of_pieces_leaves_what_stood_there(tmp_path, error):
    path = tmp_path / "a.bin"
    path.write_bytes(b"before")

    def pieces():
        yield b"after"
        raise error

    with pytest.raises(type(error)):
        write_atomic(path, pieces())
    assert path.read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 1
