"""Fetching: files come whole and right, or not at all.  The server is on this machine."""

import errno
import functools
import hashlib
import http.server
import os
import threading

import pytest

from prismfl.data import fetch as fetch_module
from prismfl.data.datasets import IDX_FAMILIES
from prismfl.data.fetch import PUBLISHED, Remote, fetch
from prismfl.errors import DataError, RunFolderError

FILES = {"one.gz": os.urandom(3_000_000), "two.gz": b"small"}


@pytest.fixture
def published(tmp_path):
    """A folder of what a publisher has."""
    (tmp_path / "published").mkdir()
    for name, raw in FILES.items():
        (tmp_path / "published" / name).write_bytes(raw)
    return tmp_path / "published"


class Quiet(http.server.SimpleHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012 (one server at a time)

    def do_GET(self):
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(published):
    """Its address, with a path."""
    Quiet.asked.clear()
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(published))
    ) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}/"
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def sums(monkeypatch):
    """The made-up files stand in for MNIST's; no address of theirs is reachable."""
    made = tuple(
        Remote(name, hashlib.md5(raw).hexdigest(), ("http://127.0.0.1:9/closed/",)) for name, raw in FILES.items()
    )
    monkeypatch.setitem(PUBLISHED, "mnist", made)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(fetch_module, "_PATIENCE", 5)


def there(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_come_from_a_server(server, tmp_path):
    paths = list(fetch("mnist", tmp_path / "new" / "mnist", server))
    assert there(tmp_path / "new" / "mnist") == FILES and [path.name for path in paths] == list(FILES)


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_folder_can_be_the_mirror(published, tmp_path, slash):
    list(fetch("mnist", tmp_path / "got", published.as_uri() + slash))
    assert there(tmp_path / "got") == FILES


def test_what_is_there_and_right_is_left_alone(server, tmp_path):
    list(fetch("mnist", tmp_path / "got", server))
    (tmp_path / "got" / "two.gz").write_bytes(b"damaged")
    Quiet.asked.clear()
    list(fetch("mnist", tmp_path / "got", server))
    assert there(tmp_path / "got") == FILES and Quiet.asked == ["/two.gz"]


def test_a_second_address_is_asked_where_the_first_fails(server, published, tmp_path, monkeypatch):
    (published / "wrong").mkdir()
    (published / "wrong" / "two.gz").write_bytes(b"other")
    bases = ("http://127.0.0.1:9/", server + "wrong/", server)
    made = tuple(Remote(remote.name, remote.digits, bases) for remote in PUBLISHED["mnist"])
    monkeypatch.setitem(PUBLISHED, "mnist", made)
    list(fetch("mnist", tmp_path / "got"))
    assert there(tmp_path / "got") == FILES


def test_a_wrong_sum_is_refused_and_not_kept(server, published, tmp_path):
    (published / "two.gz").write_bytes(b"other")
    with pytest.raises(
        DataError, match=r"two\.gz has MD5 sum .*; expected one that begins with [0-9a-f]{32}; .*not kept"
    ):
        list(fetch("mnist", tmp_path / "got", server))
    assert list(there(tmp_path / "got")) == ["one.gz"]


def test_a_file_that_was_there_outlives_a_failure(server, published, tmp_path):
    (tmp_path / "got").mkdir()
    (tmp_path / "got" / "two.gz").write_bytes(b"mine")
    (published / "two.gz").write_bytes(b"other")
    with pytest.raises(DataError):
        list(fetch("mnist", tmp_path / "got", server))
    assert there(tmp_path / "got")["two.gz"] == b"mine"


def test_offline_is_said_in_one_line(tmp_path):
    with pytest.raises(DataError, match=r"cannot fetch http://127\.0\.0\.1:9/closed/one\.gz.*go online") as caught:
        list(fetch("mnist", tmp_path / "got"))
    assert "\n" not in str(caught.value) and not there(tmp_path / "got")


@pytest.mark.parametrize("mirror", ["nonsense", "ftp:/", "http://", "file:///nowhere", "http://127.0.0.1:99999"])
def test_a_mirror_that_is_none_is_refused(tmp_path, mirror):
    with pytest.raises(DataError, match="cannot fetch"):
        list(fetch("mnist", tmp_path / "got", mirror))
    assert not there(tmp_path / "got")


def test_a_missing_file_is_named(server, published, tmp_path):
    (published / "one.gz").unlink()
    with pytest.raises(DataError, match=r"one\.gz.*404"):
        list(fetch("mnist", tmp_path / "got", server))


def test_a_file_cut_off_on_its_way_is_refused(published, tmp_path):
    class Cut(Quiet):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "3000000")
            self.end_headers()
            self.wfile.write(FILES["one.gz"][:1000])

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Cut) as running:
        threading.Thread(target=running.serve_forever).start()
        with pytest.raises(DataError, match=r"one\.gz"):
            list(fetch("mnist", tmp_path / "got", f"http://127.0.0.1:{running.server_address[1]}"))
        running.shutdown()
    assert not there(tmp_path / "got")


def test_a_server_that_never_ends_is_left(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_module, "_MOST_BYTES", 2_000_000)
    with pytest.raises(DataError, match="sends more than 2000000 bytes"):
        list(fetch("mnist", tmp_path / "got", server))
    assert not there(tmp_path / "got")


def test_a_full_disk_is_said_and_nothing_is_left(server, tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match=r"cannot write .*one\.gz \(No space left.*with room"):
        list(fetch("mnist", tmp_path / "got", server))
    assert not there(tmp_path / "got")


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="this system has no /dev/full")
def test_a_disk_that_fills_up_on_the_way_is_said(server, tmp_path, monkeypatch):
    opened = open

    def full(path, mode="r", *rest, **options):
        return opened("/dev/full" if mode == "wb" else path, mode, *rest, **options)

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(RunFolderError, match=r"one\.gz \(No space left.*free space"):
        list(fetch("mnist", tmp_path / "got", server))


def test_a_place_that_is_none_is_said(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"cannot write .*file"):
        list(fetch("mnist", tmp_path / "file", server))
    (tmp_path / "got" / "one.gz").mkdir(parents=True)
    with pytest.raises(RunFolderError, match=r"cannot write .*one\.gz"):
        list(fetch("mnist", tmp_path / "got", server))


def test_an_unknown_set_is_refused_with_the_known(tmp_path):
    with pytest.raises(DataError, match="'celeba'; expected one of mnist, fmnist, kmnist, cifar10"):
        list(fetch("celeba", tmp_path))


def test_every_published_file_has_a_sum_and_an_address():
    assert set(PUBLISHED) == {*IDX_FAMILIES, "cifar10"}
    for remote in (one for name, files in PUBLISHED.items() if name != "mnist" for one in files):
        assert len(bytes.fromhex(remote.digits)) == 16 and remote.name.endswith(".gz")
        assert all(base.startswith("http") and base.endswith("/") for base in remote.bases)
