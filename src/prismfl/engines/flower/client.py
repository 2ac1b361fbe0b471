"""The ClientApp: says who it is, and answers broadcasts with what lies on its own disk.

In a deployment every message starts a new process, so torch is imported only for a search, and all that
is to last lies in the client's state folder.
"""

import contextlib
import faulthandler
import json
import secrets
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from prismfl.data.files import write_atomic
from prismfl.data.partition import uncovered
from prismfl.data.site import conform, load_site, only, reported
from prismfl.engines.flower.envelope import Ask, Hello, Request, Response, Terms, hello_to, request_from, response_to
from prismfl.errors import ClientError, PrismError, SettingError
from prismfl.settings.schema import FEATURE_NETS, Running, Settings
from prismfl.settings.toml import settings_from, toml_from

if TYPE_CHECKING:
    from prismfl.data.datasets import ImageSet
    from prismfl.engines.clientdisk import ClientDisk
    from prismfl.federation.agreement import Agreement
    from prismfl.federation.client import ClientKit
    from prismfl.privacy.policy import Policy
    from prismfl.privacy.source import SourceLedger
    from prismfl.run.prepare import Prepared

_GRACE = 20.0  # seconds after which a search that cannot be interrupted is ended with its process

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Answer a greeting."""
    return answer(message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer a broadcast."""
    return answer(message, context)


def answer(message: Message, context: Context) -> Message:
    """The reply to any message; what goes wrong is told in its place."""
    try:
        content = _reply(message, Site.of(context))
    except PrismError as error:
        content = _failure(error)
    except Exception as error:
        what = f"the client failed ({type(error).__name__}: {error})"
        content = _failure(ClientError(what, "a reply", "look at its own log"))
    return Message(content, reply_to=message)


def _failure(error: PrismError) -> RecordDict:
    # Whoever runs this client sees it too.
    print(f"error: {error}", file=sys.stderr, flush=True)
    return response_to(Response(error=error))


def _reply(message: Message, site: "Site") -> RecordDict:
    request = request_from(message.content)
    if request.ask == Ask.HELLO:
        return hello_to(greet(site, request))
    with bounded(0.0 if site.simulated else request.seconds):
        return response_to(respond(site, request))


# ------------------------------------------------------------------------------------ who it is


@dataclass(frozen=True)
class Site:
    """One client's place: its number, and what is local to it.

    state: folder of what it keeps, or None where Flower simulates it; data_dir: its images; rules: what it answers;
    ledger: file of all that was ever released of its images; people: pattern that tells in file names whose image each
    is.  A run's own pattern is never searched for here: what it finds and what not would tell the server of names.
    """

    client: int
    state: Path | None
    data_dir: Path | None
    device: str = "cpu"
    features: str = ""
    weights: str = ""
    rules: "Policy | None" = None
    ledger: Path | None = None
    people: str = ""

    @classmethod
    def of(cls, context: Context) -> "Site":
        """From the node's configuration.  Raises SettingError, PrivacyError."""
        config: Mapping[str, Any] = context.node_config
        client = config.get("partition-id")
        if type(client) is not int or client < 0:
            raise SettingError(f"partition-id = {client!r}", "the client's number", "set it in --node-config")
        state = config.get("state-dir")
        if not state and "num-partitions" not in config:
            raise SettingError("no state-dir", "the client's own folder", "set state-dir in --node-config")
        text = {name: str(config.get(name) or "") for name in ("data-dir", "device", "features", "weights", "people")}
        folder = Path(text["data-dir"]) if text["data-dir"] else None
        place = Path(str(state)) if state else None
        device, files = text["device"] or "cpu", (text["features"], text["weights"])
        if place is None:
            return cls(client, None, folder, device, *files, people=text["people"])
        if not config.get("ledger"):
            raise SettingError("no ledger", "the file of all that its images release", "set ledger in --node-config")
        return cls(client, place, folder, device, *files, _rules(config), Path(str(config["ledger"])), text["people"])

    @property
    def simulated(self) -> bool:
        """Whether Flower simulates this client: then its data are those of the run's settings."""
        return self.state is None

    def token(self) -> bytes:
        """Sixteen bytes that only this client knows, made once.  Raises RunFolderError."""
        if self.state is None:
            return bytes(16)
        path = self.state / "token"
        if not path.is_file():
            write_atomic(path, secrets.token_hex(16) + "\n")
        return bytes.fromhex(path.read_text(encoding="ascii"))

    def local(self, settings: Settings) -> Settings:
        """Public settings with what is this machine's own: feature files, device, and where releases are kept.

        Raises SettingError where the run matches a network that is in a file of no known place, PolicyError for a run
        beyond this site's rules.
        """
        name = settings.features.features
        if settings.data.people and settings.data.partition != "given":
            raise SettingError(
                "a run that deals persons to clients on other machines",
                "partition given, each client with its own",
                "leave --people out at the server",
            )
        if name not in FEATURE_NETS and not self.features:
            raise SettingError("a run that matches a network in a file", "that file here too", "pass --features FILE")
        features = replace(
            settings.features, features=name if name in FEATURE_NETS else self.features, weights=self.weights
        )
        running = Running(device=self.device, cache_dir=str(self.state) if self.state else "")
        found = replace(settings, features=features, running=running)
        if self.rules is not None:
            self.rules.check(found, self.source())
        return found

    def source(self) -> "SourceLedger":
        """The ledger of this site's images, with the budget of its rules.  Raises SettingError where there is none."""
        from prismfl.privacy.source import SourceLedger

        if self.ledger is None or self.rules is None:
            raise SettingError("no ledger", "the file of all that its images release", "set ledger in --node-config")
        return SourceLedger(self.ledger, self.rules.budget())


def _rules(config: Mapping[str, Any]) -> "Policy":
    """The site's rules as they stand now: of its policy file, and of options over that."""
    from prismfl.privacy.policy import policy_from, read_policy

    asked = {"budget_epsilon": "budget-epsilon", "budget_delta": "budget-delta", "largest_epsilon": "most-epsilon"}
    changes = {name: float(config[option]) for name, option in asked.items() if config.get(option)}
    return read_policy(Path(config["policy"]), **changes) if config.get("policy") else policy_from(changes)


def greet(site: Site, request: Request) -> Hello:
    """Who this is, and what classes its images have.  Raises PrismError subclasses."""
    if site.simulated or request.terms is None:
        return Hello(site.client, site.token(), site.simulated)
    settings = site.local(settings_from(toml_from(request.terms.settings)))
    mine = _images(site, settings)
    if settings.privacy.epsilon:
        from prismfl.privacy.release import check_sizes

        check_sizes(settings.privacy, [len(mine)])
        for line in uncovered([mine], settings.privacy.images_per_person):
            print(line, flush=True)  # for whoever runs this client, and nobody else
    return Hello(site.client, site.token(), False, mine.classes, mine.images.shape[1])


def _images(site: Site, settings: Settings) -> "ImageSet":
    settings = replace(settings, data=replace(settings.data, people=site.people))
    mine = load_site(settings, site.data_dir, site.client, site.state)
    return only(mine, names) if (names := reported(mine, settings)) != mine.classes else mine


# ------------------------------------------------------------------------------------ its rounds


def respond(site: Site, request: Request) -> Response:
    """A reply to a broadcast, with the ledger of all that this client released.  Raises PrismError subclasses."""
    if site.state is not None and request.terms is not None:
        write_atomic(_terms_path(site.state, request.run), json.dumps(asdict(request.terms)) + "\n")
    terms = request.terms or _stored_terms(site, request.run)
    if terms is None:
        return Response(strange=True)
    told = request.terms is not None
    world = _simulated(site, terms) if site.state is None else _deployed(site, site.state, request.run, terms, told)
    if world.agreement.run != request.run:
        raise ClientError(
            f"a request of run {request.run.hex()}",
            f"run {world.agreement.run.hex()}, which follows from the settings that came with it",
            "use the same version of prismfl, and the same feature network, everywhere",
        )
    frame = world.train(request) if request.ask == Ask.TRAIN else world.compare(request)
    if not site.simulated:
        print(f"round {request.round}: answered with {len(frame)} bytes", flush=True)
    return Response(frame, ledger=world.ledger() if world.agreement.settings.privacy.epsilon else "")


@dataclass(frozen=True)
class _World:
    """What a client computes with in one run."""

    site: Site
    agreement: "Agreement"
    kit: "ClientKit"
    disk: "ClientDisk"
    images: "ImageSet | None"
    terms: Terms
    anew: bool = False

    def train(self, request: Request) -> bytes:
        from prismfl.federation.client import client_update

        client, disk = self.site.client, self.disk
        target = self.target()
        disk.forget_after(client, request.counted)
        memory = disk.recall(client, request.round)
        made = client_update(
            self.agreement, self.kit, request.frame, request.round, client, target, memory, disk.held(client)
        )
        # It counts only once the next message says so: until then the memory of an earlier round stays beside it.
        disk.remember(client, request.round, made.memory)
        disk.hold(client, made.held)
        return made.frame

    def compare(self, request: Request) -> bytes:
        from prismfl.federation.client import client_distances

        client = self.site.client
        return client_distances(self.agreement, self.kit, request.frame, client, self.target(), self.disk.held(client))

    def target(self) -> Any:
        if self.images is not None:
            return self.disk.target(self.site.client, self.images)
        return self.disk.run_target(self.site.client, self._load, self.anew)

    def _load(self) -> "ImageSet":
        settings = self.agreement.settings
        return conform(_images(self.site, settings), settings, self.terms.classes, self.terms.channels)

    def ledger(self) -> str:
        path = self.disk.folder.client(self.site.client) / "ledger.json"
        return json.dumps(json.loads(path.read_text())["releases"]) if path.is_file() else ""


def _terms_path(state: Path, run: bytes) -> Path:
    return state / run.hex() / "terms.json"


def _stored_terms(site: Site, run: bytes) -> Terms | None:
    path = _terms_path(site.state, run) if site.state else None
    if path is None or not path.is_file():
        return None
    held = json.loads(path.read_text(encoding="utf-8"))
    return Terms(held["settings"], tuple(held["classes"]), held["channels"], held["folder"])


def _deployed(site: Site, state: Path, run: bytes, terms: Terms, anew: bool) -> _World:
    import torch

    from prismfl.engines.clientdisk import ClientDisk
    from prismfl.privacy.store import Releases
    from prismfl.run.folder import RunFolder
    from prismfl.run.prepare import agree_on, site_kit

    settings = site.local(settings_from(toml_from(terms.settings)))
    torch.set_num_threads(settings.running.threads)
    agreement = agree_on(settings, terms.channels, terms.classes)
    if site.rules is not None:
        site.rules.check(agreement.settings, site.source(), agreement.network)
    kit = site_kit(agreement)
    private, classes = agreement.settings.privacy, agreement.layout.classes
    releases = Releases(kit.features, classes, private, site.source()) if private.epsilon else None
    disk = ClientDisk(agreement, kit, RunFolder(state / run.hex()), releases)
    return _World(site, agreement, kit, disk, None, terms, anew)


def _simulated(site: Site, terms: Terms) -> _World:
    import torch

    from prismfl.engines.clientdisk import ClientDisk, releases_of
    from prismfl.run.folder import RunFolder

    ready = _prepared(terms.settings)
    torch.set_num_threads(ready.agreement.settings.running.threads)
    folder = RunFolder(Path(terms.folder))
    releases = releases_of(ready.agreement, ready.kit, ready.clients, folder)
    disk = ClientDisk(ready.agreement, ready.kit, folder, releases)
    return _World(site, ready.agreement, ready.kit, disk, ready.clients[site.client], terms)


@lru_cache(maxsize=1)
def _prepared(settings: str) -> "Prepared":
    """The data of a simulated run, loaded once a process."""
    from prismfl.run.prepare import prepare

    return prepare(settings_from(toml_from(settings)))


# ------------------------------------------------------------------------------------- its time


@contextlib.contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Stop after so many seconds (0: never): a search that nobody waits for holds up the next round.

    Raises ClientError inside; a computation that does not hear that is ended with its process.
    """
    if not seconds:
        yield
        return
    before = signal.signal(signal.SIGALRM, _too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(seconds + _GRACE, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def _too_long(_number: int, _frame: FrameType | None) -> None:
    raise ClientError("a round longer than its deadline", "a reply in time", "raise --deadline, or lower --local-steps")
