"""Weights come over the loopback whole, checked and atomically, or not at all."""

import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from prismfl.data import fetch as module
from prismfl.data.fetch import WEIGHTS, Remote
from prismfl.data.fetch import fetch_weights as fetch
from prismfl.errors import DataError, RunFolderError, SettingError

BODY = bytes(range(256)) * 9000
DIGITS = hashlib.sha256(BODY).hexdigest()[:8]


class Handler(BaseHTTPRequestHandler):
    """Serves the body by the path asked for."""

    def do_GET(self):
        """One answer."""
        self.send_response(404 if self.path == "/none" else 302 if self.path == "/moved" else 200)
        if self.path == "/moved":
            self.send_header("Location", "/whole")
        if self.path != "/unsized":
            self.send_header("Content-Length", str(0 if self.path in ("/none", "/moved", "/empty") else len(BODY)))
        self.end_headers()
        if self.path in ("/whole", "/unsized"):
            self.wfile.write(BODY)
        elif self.path == "/short":
            self.wfile.write(BODY[: len(BODY) // 2])
        elif self.path == "/changed":
            self.wfile.write(BODY[:-1] + b"x")

    def log_message(self, *_):
        """Nothing."""


@pytest.fixture(scope="module")
def server():
    found = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}"
    found.shutdown()


@pytest.fixture(autouse=True)
def published(monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(WEIGHTS, "vgg19", Remote("vgg19.pth", DIGITS, ("https://nowhere.invalid/",)))


@pytest.mark.parametrize("path", ["/whole", "/unsized", "/moved"])
def test_a_right_file_arrives_whole(server, tmp_path, path):
    out = tmp_path / "new" / "vgg19.pth"
    assert fetch("vgg19", out, server + path) == hashlib.sha256(BODY).hexdigest()
    assert out.read_bytes() == BODY
    assert [file.name for file in out.parent.iterdir()] == ["vgg19.pth"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/none", "404"),
        ("/short", "breaks off|IncompleteRead"),
        ("/changed", f"expected one that begins with {DIGITS}"),
        ("/empty", f"expected one that begins with {DIGITS}"),
    ],
)
@pytest.mark.parametrize("before", [b"before", None])
def test_anything_else_leaves_what_stood_there(server, tmp_path, path, says, before):
    out = tmp_path / "vgg19.pth"
    if before is not None:
        out.write_bytes(before)
    with pytest.raises(DataError, match=says):
        fetch("vgg19", out, server + path)
    assert [file.name for file in tmp_path.iterdir()] == ([] if before is None else ["vgg19.pth"])
    assert before is None or out.read_bytes() == before


def test_no_connection_says_what_to_do(tmp_path):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}/vgg19.pth"
        with pytest.raises(DataError, match=f"cannot fetch {url}.*expected a network.*another machine"):
            fetch("vgg19", tmp_path / "w", url)


def test_a_silent_server_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(DataError, match="timed out"):
        fetch("vgg19", tmp_path / "w", f"http://127.0.0.1:{silent.getsockname()[1]}/w")


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://a/b", "vgg19.pth", "//a/b", "HTTP"])
def test_only_the_web_is_fetched_from(tmp_path, url):
    with pytest.raises(SettingError, match="https://"):
        fetch("vgg19", tmp_path / "w", url)


@pytest.mark.parametrize("url", ["http://", "http://a b/", "http://127.0.0.1:99999999/", "http://[::"])
def test_broken_urls_are_refused(tmp_path, url):
    with pytest.raises(DataError, match="cannot fetch"):
        fetch("vgg19", tmp_path / "w", url)


def test_unknown_names_and_places_are_refused_before_fetching(tmp_path):
    with pytest.raises(SettingError, match="'resnet'; expected one of vgg19, vgg19_bn, inception"):
        fetch("resnet", tmp_path / "w")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="file/below"):
        fetch("vgg19", tmp_path / "file" / "below")


def test_published_names_carry_eight_digits(monkeypatch):
    monkeypatch.undo()
    assert all(one.name.removesuffix(".pth").endswith(f"-{one.digits}") for one in WEIGHTS.values())
    assert {name: one.digits for name, one in WEIGHTS.items()} == {
        "vgg19": "dcbb9e9d",
        "vgg19_bn": "c79401a0",
        "inception": "6726825d",
    }
    assert all(base.startswith("https://") and base.endswith("/") for one in WEIGHTS.values() for base in one.bases)
