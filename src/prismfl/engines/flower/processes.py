"""Flower's own commands as child processes: a SuperLink, SuperNodes, `flwr run`.

Children end with this process, report nothing to anybody, and install nothing.
"""

import contextlib
import ctypes
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from prismfl.data.files import check_writable, write_atomic
from prismfl.data.lock import alone, is_held
from prismfl.engines.flower import QUIET, warm
from prismfl.engines.flower.events import NAME, read_events, replay
from prismfl.engines.flower.reach import Standing, host_and_port
from prismfl.engines.flower.site import AUDIT
from prismfl.errors import ClientError, DataError, DependencyError, RunFolderError, SettingError
from prismfl.run.environment import cores
from prismfl.run.folder import lock_of
from prismfl.run.loop import Watcher

APP = Path(__file__).parent / "app"
LOCAL = ("localhost", "127.0.0.1", "::1")
_PROFILE = "prismfl"
_START = 120.0  # seconds that a SuperLink may take to listen
_STOP = 10.0  # seconds that a child may take to end
_LOOK = 0.3  # seconds between looks at a run's events, and at a SuperNode
_GONE = 10.0  # seconds after which a server that does not hold its folder is gone
_ANSWER = 120.0  # seconds that one of Flower's commands may take
_AGAIN = 5.0  # seconds before a SuperNode is started again
_QUICK, _MOST_QUICK = 20.0, 5  # a SuperNode that ends so soon, so many times, will not mend by itself
_DEATH = 1  # PR_SET_PDEATHSIG

Say = Callable[[str], None]


def _check_files(*paths: Path) -> None:
    for path in paths:
        if not path.exists():
            raise SettingError(f"no {path}", "files as `prismfl federate certificates` makes them", "mend the path")


@dataclass(frozen=True)
class Link:
    """Where a SuperLink listens, and its certificates (`ca.crt`, `server.crt`, `server.key`), none for plain HTTP.

    keys: folder of the clients' public keys (`client-N.pub`): then only these may connect.
    """

    host: str
    port: int
    certificates: Path | None = None
    keys: Path | None = None
    simulation: bool = False

    def check(self, insecure: bool) -> None:
        """Raises SettingError for a place that others reach in plain text, unless that is asked for."""
        if not self.certificates and self.host not in LOCAL and not insecure:
            raise SettingError(
                f"--host {self.host} without TLS",
                "--certificates DIR: whoever listens on the way would read everything and could answer for the server",
                "make some for a trial with `prismfl federate certificates`, or say --insecure",
            )
        if self.keys and not self.certificates:
            raise SettingError("--keys without --certificates", "both: Flower proves keys over TLS alone", "add them")
        _check_files(*self._files(), *([self.keys] if self.keys else []))
        self.public_keys()

    def public_keys(self) -> list[Path]:
        """The clients' public keys.  Raises SettingError for a name that binds a key to no client."""
        found = sorted(self.keys.glob("*.pub")) if self.keys else []
        for path in found:
            if not re.fullmatch(r"client-(0|[1-9][0-9]*)", path.stem):
                raise SettingError(
                    f"a key {path.name}", "client-N.pub, of client N alone", "rename it, or move it away"
                )
        return found

    def _files(self) -> list[Path]:
        folder = self.certificates
        return [folder / name for name in ("ca.crt", "server.crt", "server.key")] if folder else []

    @property
    def reached(self) -> str:
        """The host by which this machine itself reaches it."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)

    @property
    def address(self) -> str:
        """Where this machine itself reaches it."""
        return f"[{self.reached}]:{self.port}" if ":" in self.reached else f"{self.reached}:{self.port}"

    def words(self) -> list[str]:
        """The command that starts it."""
        options = ("--ssl-ca-certfile", "--ssl-certfile", "--ssl-keyfile")
        tls = [word for pair in zip(options, map(str, self._files()), strict=False) for word in pair] or ["--insecure"]
        known = ["--enable-supernode-auth"] if self.keys else []
        simulation = ["--simulation"] if self.simulation else []
        place = ["--host", self.host, "--port", str(self.port)]
        return ["flower-superlink", *place, *tls, *known, *simulation, "--disable-runtime-dependency-installation"]

    def profile(self) -> str:
        """The connection for `flwr`, as its configuration file says it."""
        way = f"root-certificates = {json.dumps(str(self._files()[0].resolve()))}" if self.certificates else ""
        return (
            f'[superlink]\ndefault = "{_PROFILE}"\n\n[superlink.{_PROFILE}]\n'
            f'address = "{self.address}"\n{way or "insecure = true"}\n'
        )


# ------------------------------------------------------------------------------------ processes


def environment(home: Path) -> dict[str, str]:
    """Our environment for Flower's commands, which keep their files in `home`."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    encoding = os.environ.get("PYTHONIOENCODING", "").partition(":")[0]
    # Flower prints signs that not every console has, and would end of it.
    ours = {"PATH": path, "FLWR_HOME": str(home), "PYTHONIOENCODING": f"{encoding}:backslashreplace"}
    return {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1", **os.environ, **QUIET, **ours}


def command(words: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """The words with the program's full path.  Raises DependencyError."""
    if (found := shutil.which(words[0], path=env["PATH"])) is None:
        raise DependencyError(f"no command {words[0]}", "Flower's commands", "pip install 'prismfl[flower]'")
    return [found, *words[1:]]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def child(words: Sequence[str], home: Path, log: IO[bytes] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A running command, ended with the block.  log: takes its output, else it goes where ours does."""
    env = environment(home)
    home.mkdir(parents=True, exist_ok=True)
    output = {"stdout": log, "stderr": subprocess.STDOUT} if log else {}
    started: subprocess.Popen[bytes] = subprocess.Popen(
        command(words, env), env=env, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with(), **output
    )  # type: ignore[call-overload]
    try:
        yield started
    finally:
        stop(started)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a child that was started here, gently first."""
    process.terminate()
    try:
        process.wait(_STOP)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _die_with() -> Callable[[], None] | None:
    """On Linux a child is told when this process is gone, even killed: a port is not held by an orphan."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(_DEATH, signal.SIGTERM)


@contextlib.contextmanager
def ending_on_terminate() -> Iterator[None]:
    """SIGTERM ends this process as Ctrl-C does, children included."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# --------------------------------------------------------------------------------------- server


@contextlib.contextmanager
def superlink(link: Link, place: Path, say: Say) -> Iterator[subprocess.Popen[bytes]]:
    """A SuperLink that listens, its files and log in `place`.  Raises RunFolderError with the end of its log."""
    home = place / "home"
    write_atomic(home / "config.toml", link.profile())
    say(shlex.join(link.words()))
    with (place / "superlink.log").open("ab") as log, child(link.words(), home, log) as process:
        end = time.monotonic() + _START
        while not _listens(link):
            if process.poll() is not None or time.monotonic() > end:
                raise _refuse(place, f"flower-superlink does not listen on {link.address}")
            time.sleep(0.1)
        time.sleep(0.2)
        if process.poll() is not None:  # the port was another's
            raise _refuse(place, f"port {link.port} is another program's")
        for path in link.public_keys():
            _flwr(["supernode", "register", str(path), _PROFILE, "--name", path.stem], place, say)
        yield process


def _listens(link: Link) -> bool:
    try:
        socket.create_connection((link.reached, link.port), timeout=1).close()
    except OSError:
        return False
    return True


def _refuse(place: Path, what: str) -> RunFolderError:
    log = place / "superlink.log"
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    said = " / ".join(line.strip() for line in lines if line.strip())[-300:]
    return RunFolderError(f"{what}: {said}", "a SuperLink that listens", f"read {log}, or choose another --port")


def submit(out: Path, place: Path, say: Say, app: Path = APP, more: Sequence[str] = ()) -> None:
    """`flwr run`: hand the app to the SuperLink, for the run folder `out`.  Raises RunFolderError."""
    _flwr(["run", str(app), _PROFILE, "--run-config", f"out={quoted(str(out.resolve()))}", *more], place, say)


def _flwr(words: Sequence[str], place: Path, say: Say) -> None:
    full, env = ["flwr", *words], environment(place / "home")
    say(shlex.join(full))
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "errors": "replace"}
    try:
        done = subprocess.run(command(full, env), env=env, timeout=_ANSWER, **quiet)
    except subprocess.TimeoutExpired:
        raise RunFolderError(f"flwr {words[0]} took {_ANSWER:g} s", "an answer", "try again") from None
    if done.returncode:
        said = " ".join((done.stdout + done.stderr).split())[-400:]
        raise RunFolderError(f"flwr {words[0]} failed: {said}", "exit status 0", f"read {place / 'superlink.log'}")


def quoted(text: str) -> str:
    """Text as a value for Flower's `key=value` options.  Raises SettingError for text with both kinds of quotes."""
    if "'" not in text:
        return f"'{text}'"
    if '"' in text or "\\" in text:
        raise SettingError(f"path {text!r}", "one without quotes or backslashes", "rename the folder")
    return f'"{text}"'


def follow(root: Path, start: int, link: subprocess.Popen[bytes], watcher: Watcher) -> Any:
    """Tell a watcher of a run's events until it ends, and return its summary.

    start: byte of `events.jsonl` where this session begins.  Raises ClientError when the run failed,
    RunFolderError when its processes ended without a word.
    """
    patience, remedy = time.monotonic() + _START, f"read {root / 'flower'}, and go on with --resume {root}"
    while True:
        for end, event in read_events(root, start):
            start = end
            replay(event, watcher)
            if event["event"] == "finished":
                return event["summary"]
            if event["event"] == "failed":
                raise ClientError(event["got"], event["expected"], f"{event['remedy']}; go on with --resume {root}")
        if link.poll() is not None:
            raise RunFolderError("flower-superlink ended", "it, to the end of the run", remedy)
        patience = time.monotonic() + _GONE if is_held(lock_of(root)) else patience
        if time.monotonic() > patience:
            raise RunFolderError("the server's process ended", "a whole run", remedy)
        time.sleep(_LOOK)


def simulated(clients: int, threads: int, workers: int = 0) -> list[str]:
    """Options of `flwr run` that simulate so many clients, `workers` at a time (0: one a core)."""
    most = max(threads, cores() if not workers else workers * threads)
    told = {"num-supernodes": clients, "client-resources-num-cpus": threads, "init-args-num-cpus": most}
    return ["--federation-config", " ".join(f"{name}={value}" for name, value in told.items())]


def run_server(out: Path, link: Link, watcher: Watcher, say: Say, app: Path = APP, more: Sequence[str] = ()) -> Any:
    """A SuperLink and one run on it, from first to last.  Returns the run's summary.  Raises PrismError subclasses."""
    place = out / "flower"
    start = (out / NAME).stat().st_size if (out / NAME).exists() else 0
    with ending_on_terminate(), superlink(link, place, say) as process:
        submit(out, place, say, app, more)
        return follow(out, start, process, watcher)


# --------------------------------------------------------------------------------------- client


@dataclass(frozen=True)
class Node:
    """One client's SuperNode: `config` is its node configuration, `state` the folder of what it keeps.

    root_certificates: the authority of the server's certificate; key: what proves who the client is.
    """

    server: str
    state: Path
    config: Mapping[str, str | int | float | bool]
    root_certificates: Path | None = None
    key: Path | None = None
    insecure: bool = False

    def check(self) -> None:
        """Raises SettingError for a way to the server that others can read, unless that is asked for.

        Raises DataError for images that are not there, RunFolderError where nothing can be kept.
        """
        host, _ = host_and_port(self.server)
        if not self.root_certificates and not self.insecure and host not in LOCAL:
            raise SettingError(
                f"--server {self.server} without --root-certificates",
                "the authority's ca.crt, as the server's operator hands it out",
                "pass it, or say --insecure",
            )
        _check_files(*(path for path in (self.root_certificates, self.key) if path))
        data = str(self.config.get("data-dir", ""))
        if data and not Path(data).exists():
            raise DataError(f"{data} does not exist", "the client's images", "check --data-dir")
        check_writable(self.state / "token.try")

    def words(self, port: int) -> list[str]:
        """The command that starts it; its own processes talk on `port` of this machine."""
        pairs = " ".join(f"{name}={_value(value)}" for name, value in self.config.items())
        tls = ["--root-certificates", str(self.root_certificates)] if self.root_certificates else ["--insecure"]
        # Flower proves keys over TLS alone; without it the key signs secure sums and nothing else.
        key = ["--auth-supernode-private-key", str(self.key)] if self.key and self.root_certificates else []
        way = ["--superlink", self.server, "--port", str(port)]
        return ["flower-supernode", *way, *tls, *key, "--node-config", pairs]


def _value(value: str | int | float | bool) -> str:
    return quoted(value) if isinstance(value, str) else json.dumps(value)


@contextlib.contextmanager
def supernode(node: Node, say: Say, log: IO[bytes] | None = None) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A client's SuperNode and, on Linux, the SuperExec that answers its messages.  log: takes what both print."""
    port = free_port()
    words, beside = node.words(port), []
    if warm.SUPPORTED:
        # Who else is on this machine cannot take messages that are this client's to answer.
        secret = node.state / "flower" / "superexec-secret"
        write_atomic(secret, secrets.token_bytes(32), private=True)
        shared = ["--superexec-auth-secret-file", str(secret)]
        words, beside = [*words, "--isolation", "process", *shared], [[*warm.superexec(port), *shared]]
    say(shlex.join(words))
    with contextlib.ExitStack() as exits:
        yield [exits.enter_context(child(one, node.state / "flower", log)) for one in (words, *beside)]


def run_client(node: Node, say: Say) -> None:
    """A SuperNode, started again whenever it ends, until this process is stopped.

    A server that starts anew does not know its nodes: they must come to it again.  Raises ClientError when it
    ends at once, again and again, RunFolderError where another client has the state folder.
    """
    quick, standing = 0, Standing(node.server, node.root_certificates is not None, node.state / AUDIT, say)
    with alone(node.state / ".lock", f"the client's folder {node.state}"), ending_on_terminate():
        while quick < _MOST_QUICK:
            begun = time.monotonic()
            with supernode(node, say) as processes:
                while all(process.poll() is None for process in processes):
                    standing.look()
                    time.sleep(_LOOK)
            quick = quick + 1 if time.monotonic() - begun < _QUICK else 0
            say(f"flower-supernode ended; it is started again in {_AGAIN:g} s")
            time.sleep(_AGAIN)
    raise ClientError(
        f"flower-supernode ended {quick} times within {_QUICK:g} s",
        "a connection to the server",
        "read what it said above: the address, the certificate or the key may be wrong",
    )
