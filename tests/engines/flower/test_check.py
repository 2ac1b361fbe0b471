"""`prismfl federate check`: each step of the way to a server, keys, and what of a site may be mailed."""

import contextlib
import http.server
import socket
import ssl
import subprocess
import sys
import threading
import time
from email.utils import formatdate

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("flwr", reason="Flower is not installed")

from prismfl.engines.flower import reach as reaching
from prismfl.engines.flower.certificates import make_certificates
from prismfl.engines.flower.check import Checked, check, look
from prismfl.engines.flower.reach import Standing, host_and_port, listens, proxy_of, reach
from prismfl.engines.flower.site import Site
from prismfl.errors import PolicyError, SettingError
from prismfl.privacy.policy import Policy, policy_text
from prismfl.settings.schema import Federation, Settings


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(reaching, "_PATIENCE", 2.0)


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """Certificates of a server on this machine, and two clients' keys."""
    root = tmp_path_factory.mktemp("tls") / "tls"
    make_certificates(root, ["localhost"], 2)
    return root


class Port(http.server.BaseHTTPRequestHandler):
    """A server's port, which takes nothing but POST as Flower's does; as a proxy it passes on what is asked."""

    status, offset = 405, 0.0
    tunnelled = ()

    def do_GET(self):
        self.send_response_only(self.status)
        self.send_header("Date", formatdate(time.time() + self.offset, usegmt=True))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_CONNECT(self):
        type(self).tunnelled = (*self.tunnelled, (self.path, self.headers["Proxy-Authorization"]))
        self.send_response_only(200)
        self.end_headers()
        with socket.create_connection(host_and_port(self.path)) as there:
            back = threading.Thread(target=self._pass, args=(there, self.connection), daemon=True)
            back.start()
            self._pass(self.connection, there)
        self.close_connection = True

    def _pass(self, source, sink):
        with contextlib.suppress(OSError):
            while part := source.recv(65536):
                sink.sendall(part)
            sink.shutdown(socket.SHUT_WR)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def listening(tls=None, **changes):
    """A port of this machine that answers: its address, and what handles its requests."""
    handler = type("Handler", (Port,), changes)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls / "server.crt", tls / "server.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"localhost:{server.server_address[1]}", handler
    finally:
        server.shutdown()
        server.server_close()


def told(findings):
    """Findings by what they are about, and the faults."""
    found = list(findings)
    return {one.about: one.text for one in found}, [one.about for one in found if one.fault]


# ----------------------------------------------------------------------------------------- the way


def test_a_server_is_reached_step_by_step(tls):
    with listening(tls) as (address, _):
        found, faults = told(reach(address, tls / "ca.crt"))
    assert not faults and list(found) == ["proxy", "connection", "TLS", "certificate", "server", "clock"]
    assert "for localhost" in found["TLS"] and "364 days" in found["certificate"]


def test_each_fault_on_the_way_is_named(tls, tmp_path):
    make_certificates(tmp_path / "other", ["elsewhere.example"], 0)
    with listening(tls) as (address, _):
        found, faults = told(reach(address, tmp_path / "other" / "ca.crt"))
        assert faults == ["TLS"] and "signed by CN=prismfl trial authority" in found["names"]
        found, faults = told(reach(address, None))
        assert faults == ["server"] and "port with TLS?" in found["server"]
    with listening(tmp_path / "other") as (address, _):
        found, faults = told(reach(address.replace("localhost", "127.0.0.2"), tmp_path / "other" / "ca.crt"))
        assert faults == ["connection"], "it listens on another address"
    with listening() as (address, _):
        found, faults = told(reach(address, tls / "ca.crt"))
        assert faults == ["TLS"] and "port with TLS" in found["TLS"]
    found, faults = told(reach(address, None))
    assert faults == ["connection"] and "nobody listens there" in found["connection"]
    found, faults = told(reach("nowhere.invalid:1", tls / "ca.crt"))
    assert faults == ["connection"] and "no such name" in found["connection"]
    found, faults = told(reach("a..b:1", tls / "ca.crt"))
    assert faults == ["connection"] and "cannot be one" in found["connection"] and not listens("a..b:1", tls=True)
    assert told(reach(address, tls / "ca.key"))[1] == ["TLS"]


def test_a_certificate_for_another_name_is_shown(tls, monkeypatch):
    with listening(tls) as (address, _):
        monkeypatch.setattr(socket, "getaddrinfo", _local(socket.getaddrinfo))
        found, faults = told(reach(address.replace("localhost", "server.example"), tls / "ca.crt"))
    assert faults == ["TLS"] and "mismatch" in found["TLS"]
    assert "is for localhost" in found["names"] and "asked was server.example" in found["names"]


def _local(before):
    return lambda host, *more, **options: before("127.0.0.1" if host == "server.example" else host, *more, **options)


@pytest.mark.parametrize(("offset", "fault"), [(0, False), (-600, True), (600, True)])
def test_clocks_are_compared(tls, offset, fault):
    with listening(tls, offset=offset) as (address, _):
        found, faults = told(reach(address, tls / "ca.crt"))
    assert (faults == ["clock"]) == fault and ("behind" in found["clock"]) == (offset > 0)


def test_another_program_on_the_port_is_no_server():
    with listening(status=200) as (address, _):
        found, faults = told(reach(address, None))
    assert faults == ["server"] and "another program" in found["server"]


def test_a_proxy_that_cannot_be_one_is_named(tls, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:80a")
    with pytest.raises(SettingError, match="a proxy of the environment"):
        proxy_of("server.example:1", tls=True)
    with listening(status=200) as (port, _), socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: server.accept()[0].sendall(b"220 mail\r\n\r\n"), daemon=True).start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{server.getsockname()[1]}")
        found, faults = told(reach(port.replace("localhost", "server.example"), tls / "ca.crt"))
    assert faults == ["connection"] and "no HTTP" in found["connection"]


def test_a_proxy_is_taken_as_flower_takes_it_and_its_password_is_not_shown(tls, monkeypatch):
    with listening(tls) as (address, _), listening() as (proxy, handler):
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:secret@{proxy}")
        found, faults = told(reach(address, tls / "ca.crt"))
        assert not faults and proxy in found["proxy"] and "secret" not in str(found)
        assert handler.tunnelled == ((address, "Basic bWU6c2VjcmV0"),)
        assert listens(address, tls=True)
        monkeypatch.setenv("NO_PROXY", "localhost")
        assert proxy_of(address, tls=True) is None and told(reach(address, tls / "ca.crt"))[1] == []
        assert len(handler.tunnelled) == 1


@pytest.mark.parametrize("server", ["here", "here:", ":1", "here:0", "here:70000", "https://here:1/x", "[]:3"])
def test_a_server_is_host_and_port(server):
    with pytest.raises(SettingError, match="HOST:PORT"):
        host_and_port(server)
    assert host_and_port("[::1]:80") == ("::1", 80)


# ------------------------------------------------------------------------------------------ a site


@pytest.fixture
def place(tmp_path):
    """A site of seven images whose names nobody else is to know."""
    for index in range(7):
        path = tmp_path / "images" / ("melanoma" if index % 2 else "naevus") / f"jane-doe-{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16), 30 * index, np.uint8)).save(path)
    (tmp_path / "policy.toml").write_text(policy_text(Policy(10.0, 1e-5)))
    (tmp_path / "state").mkdir(mode=0o700)
    return tmp_path


def checked(place, key=None, settings=None, **changes):
    names = {"data-dir": place / "images", "state-dir": place / "state", "policy": place / "policy.toml"}
    config = {"partition-id": 0, "ledger": str(place / "ledger.jsonl"), "server": "localhost:1"}
    return Checked(Site.read(config | {name: str(path) for name, path in names.items()} | changes), None, key, settings)


def test_what_may_be_mailed_holds_nothing_of_the_images(place, tls):
    asked = checked(place, tls / "client-0.key")
    text, screen = "\n".join(map(str, check(asked))), "\n".join(look(asked))
    for secret in ("melanoma", "naevus", "jane-doe", "7 images", str(place)):
        assert secret not in text
    assert (tls / "client-0.pub").read_text().split()[1] in text, "the key's public half"
    assert "ok     data           they read" in text and "decoded alike" in text and "nothing was sent" in text
    assert "7 images, 2 classes" in screen and "melanoma 3, naevus 4" in screen and "MB of memory" in screen
    assert not (place / "ledger.jsonl").exists(), "nothing was released"


def test_a_fault_of_the_data_is_told_by_its_class_alone(place):
    (place / "images" / "naevus" / "jane-doe-0.png").write_bytes(b"no picture")
    (place / "ledger.jsonl").write_text("jane\n")
    found, faults = told(check(checked(place)))
    assert {"data", "ledger"} <= set(faults) and "jane" not in str(found) and "naevus" not in str(found)
    assert found["data"].startswith("DataError: see below")


@pytest.mark.skipif(sys.platform == "win32", reason="no file modes there")
def test_keys_and_folders_that_others_read_are_faults(place, tls):
    key = place / "client-0.key"
    key.write_bytes((tls / "client-0.key").read_bytes())
    key.chmod(0o640)
    (place / "state").chmod(0o755)
    found, faults = told(check(checked(place, key)))
    assert {"key", "state"} <= set(faults) and "mode 640" in found["key"] and "chmod 700" in found["state"]
    key.write_text("no key")
    assert "does not read" in told(check(checked(place, key)))[0]["key"]


def test_the_sites_policy_is_asked_where_the_run_is_known(place):
    with pytest.raises(PolicyError, match="clients a round = 1; expected at least 2, by this site's policy"):
        list(look(checked(place, settings=Settings(federation=Federation(cohort=1)))))


def test_the_command_writes_the_mail_and_fails_for_faults(place):
    words = [
        "--client",
        "0",
        "--data-dir",
        place / "images",
        "--ledger",
        place / "l",
        "--policy",
        place / "policy.toml",
    ]
    words += ["--state", place / "state", "--server", "localhost:1", "--out", place / "mail.txt"]
    command = [sys.executable, "-m", "prismfl", "federate", "check", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    mail, rest = done.stdout.split("\nwritten to ")
    assert done.returncode == 2 and done.stderr.startswith("error: faults: 1") and done.stderr.count("\n") == 1
    assert (place / "mail.txt").read_text() == mail and "melanoma" not in mail
    assert "do not mail what follows" in rest and "melanoma 3" in rest


# ------------------------------------------------------------------------------------- while it waits


def test_a_client_says_how_it_stands(tmp_path, monkeypatch):
    monkeypatch.setattr(reaching, "_PROBE", 0.0)
    said = []
    with listening() as (address, _):
        standing = Standing(address, False, tmp_path / "audit.jsonl", said.append)
        standing.look()
        standing.look()
        (tmp_path / "audit.jsonl").write_text("{}\n")
        standing.begun -= 10
        standing.look()
    standing.look()
    assert [line.partition(address)[2] for line in said] == [
        " has asked nothing yet: it may be waiting for other clients",
        " is there, and was answered",
        ": this client tries again until there is one",
    ], "once each"
