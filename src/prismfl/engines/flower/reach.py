"""How a site reaches its server: as Flower's SuperNode does, by HTTP, through a proxy where there is one."""

import contextlib
import datetime
import http.client
import socket
import ssl
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from cryptography import x509

from prismfl.errors import SettingError

_FLEET = "/v1/fleet/send-node-heartbeat"  # of Flower's SuperLink; it takes POST alone, so a GET changes nothing
_EXPIRES = 30  # days before a certificate's end that it is time to speak of it
_CLOCK, _MOST_CLOCK = 5.0, 60.0  # seconds that clocks may differ without a word; Flower refuses keys from 300 on
_PATIENCE = 5.0  # seconds that a connection may take
_PROBE, _REMIND = 15.0, 300.0  # seconds between looks at how a client stands, and between lines that say so


def host_and_port(server: str) -> tuple[str, int]:
    """Parts of a HOST:PORT, an IPv6 address without its brackets.  Raises SettingError."""
    host, _, port = server.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise SettingError(f"--server {server}", "HOST:PORT, as server.example:8443", "mend it")
    return host, int(port)


def proxy_of(server: str, tls: bool) -> tuple[str, int] | None:
    """Host and port of the proxy that the environment names for this server; without the password that it may hold."""
    host, port = host_and_port(server)
    if urllib.request.proxy_bypass(f"{host}:{port}"):
        return None
    named = urllib.request.getproxies()
    found = named.get("https" if tls else "http") or named.get("all")
    if not found:
        return None
    try:
        parts = urlsplit(found if "//" in found else f"//{found}")
        return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise SettingError(f"a proxy of the environment ({error})", "one as http://host:port", "mend it") from None


def listens(server: str, tls: bool) -> bool:
    """Whether somebody takes connections there, or where a proxy is in between, at the proxy."""
    try:
        socket.create_connection(proxy_of(server, tls) or host_and_port(server), timeout=_PATIENCE).close()
    except (OSError, UnicodeError):  # the latter of a name that cannot be one
        return False
    return True


@dataclass
class Standing:
    """How a client stands with its server, said when that changes, and now and then.

    log: the site's own, which grows with each answer.
    """

    server: str
    tls: bool
    log: Path
    say: Callable[[str], None]
    begun: float = field(default_factory=time.time)
    _said: str = ""
    _next: float = 0.0
    _due: float = 0.0

    def look(self) -> None:
        """Say it where it is due.  Cheap when called often."""
        if (now := time.monotonic()) < self._next:
            return
        self._next, text = now + _PROBE, self._text()
        if text != self._said or now > self._due:
            self._said, self._due = text, now + _REMIND
            self.say(text)

    def _text(self) -> str:
        if not listens(self.server, self.tls):
            return f"no server at {self.server}: this client tries again until there is one"
        if not self.log.exists() or self.log.stat().st_mtime < self.begun:
            return f"the server at {self.server} has asked nothing yet: it may be waiting for other clients"
        return f"the server at {self.server} is there, and was answered"


# ------------------------------------------------------------------------------------ by steps


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, and what was found."""

    about: str
    text: str
    fault: bool = False
    note: bool = False

    def __str__(self) -> str:
        mark = "FAULT" if self.fault else "note" if self.note else "ok"
        return f"{mark:<6} {self.about:<14} {self.text}"


def reach(server: str, root_certificates: Path | None) -> Iterator[Finding]:
    """The way to a server step by step, up to the first that fails; asks it one question that changes nothing."""
    tls = root_certificates is not None
    (host, port), proxy = host_and_port(server), proxy_of(server, tls)
    yield Finding("proxy", f"{proxy[0]}:{proxy[1]}, from the environment" if proxy else "none for this server")
    context = None
    if root_certificates is not None:
        try:
            context = ssl.create_default_context(cafile=root_certificates)
        except (OSError, ssl.SSLError) as error:
            yield Finding("TLS", f"--root-certificates holds no certificate ({error.strerror or error})", fault=True)
            return
    connection = _connection(server, tls, context)
    begun = time.perf_counter()
    try:
        connection.connect()
    except ssl.SSLCertVerificationError as error:
        yield Finding("TLS", f"the server's certificate does not hold: {error.verify_message}", fault=True)
        yield from _certificate(server, host)
        return
    except ssl.SSLError as error:
        yield Finding("TLS", f"{_reason(error)}: is this a port with TLS, and nothing in between?", fault=True)
        return
    except (OSError, UnicodeError, http.client.HTTPException) as error:
        yield Finding("connection", f"{'the proxy' if proxy else server}: {_why(error)}", fault=True)
        return
    with contextlib.closing(connection):
        yield Finding("connection", f"{server} in {1000 * (time.perf_counter() - begun):.0f} ms")
        if isinstance(connection.sock, ssl.SSLSocket):
            yield from _secured(connection.sock, host)
        else:
            yield Finding("TLS", "none: whoever is on the way reads everything", note=True)
        yield from _answer(connection, f"http://{host}:{port}{_FLEET}" if proxy and not tls else _FLEET)


def _connection(server: str, tls: bool, context: ssl.SSLContext | None) -> http.client.HTTPConnection:
    """A connection to the server, or by way of the proxy, not made yet."""
    (host, port), proxy = host_and_port(server), proxy_of(server, tls)
    near = proxy or (host, port)
    if not tls:
        return http.client.HTTPConnection(*near, timeout=_PATIENCE)
    found = http.client.HTTPSConnection(*near, timeout=_PATIENCE, context=context)
    if proxy:
        found.set_tunnel(host, port, _credentials())
    return found


def _credentials() -> dict[str, str]:
    named = urllib.request.getproxies()
    parts = urlsplit(named.get("https") or named.get("all", ""))
    if not parts.username:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Proxy-Authorization": f"Basic {b64encode(pair.encode()).decode()}"}


def _why(error: Exception) -> str:
    """Words for why a connection was not made."""
    if isinstance(error, UnicodeError):
        return "a name that cannot be one: is it spelt right?"
    if isinstance(error, http.client.HTTPException):
        return "an answer that is no HTTP: what listens there?"
    if isinstance(error, socket.gaierror):
        return "no such name: is it spelt right, and does this machine's DNS know it?"
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there: does the server run, and on this port?"
    if isinstance(error, TimeoutError):
        return f"no answer within {_PATIENCE:g} s: a firewall may drop what goes there"
    return getattr(error, "strerror", None) or str(error)


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or "no TLS").replace("_", " ").lower()


def _secured(sock: ssl.SSLSocket, host: str) -> Iterator[Finding]:
    yield Finding("TLS", f"{sock.version()}, signed by the given authority, for {host}")
    yield _validity(x509.load_der_x509_certificate(sock.getpeercert(binary_form=True) or b""))


def _validity(found: x509.Certificate) -> Finding:
    days = (found.not_valid_after_utc - datetime.datetime.now(datetime.UTC)).days
    text = f"valid until {found.not_valid_after_utc:%Y-%m-%d}, {days} days more"
    return Finding("certificate", text, fault=days < 0, note=0 <= days < _EXPIRES)


def _certificate(server: str, host: str) -> Iterator[Finding]:
    """What a certificate says that did not hold: only to be told of, nothing is sent over this connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = _connection(server, True, context)
    with contextlib.closing(connection), contextlib.suppress(OSError, ValueError, x509.ExtensionNotFound):
        connection.connect()
        sock: Any = connection.sock
        found = x509.load_der_x509_certificate(sock.getpeercert(binary_form=True))
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        told = ", ".join(str(name.value) for name in names)
        text = f"is for {told}, signed by {found.issuer.rfc4514_string()}; asked was {host}"
        yield Finding("names", text, note=True)
        yield _validity(found)


def _answer(connection: http.client.HTTPConnection, path: str) -> Iterator[Finding]:
    """Whether it is Flower's port that answers, and what time it is there."""
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException) as error:
        yield Finding("server", f"no HTTP answer ({type(error).__name__}): is this a port with TLS?", fault=True)
        return
    flower = response.status == http.client.METHOD_NOT_ALLOWED
    text = "Flower's port answers" if flower else f"HTTP {response.status}: another program than Flower answers"
    yield Finding("server", text, fault=not flower)
    with contextlib.suppress(TypeError, ValueError):
        apart = time.time() - parsedate_to_datetime(response.headers["Date"]).timestamp()
        text = f"{abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'} the server's"
        yield Finding("clock", text, fault=abs(apart) > _MOST_CLOCK, note=_CLOCK < abs(apart) <= _MOST_CLOCK)
