"""How a site reaches its server: as Flower's SuperNode does, by HTTP, through a proxy where there is one."""

import socket
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from prismfl.errors import SettingError

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
    parts = urlsplit(found if "//" in found else f"//{found}")
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def listens(server: str, tls: bool) -> bool:
    """Whether somebody takes connections there, or where a proxy is in between, at the proxy."""
    try:
        socket.create_connection(proxy_of(server, tls) or host_and_port(server), timeout=_PATIENCE).close()
    except OSError:
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
