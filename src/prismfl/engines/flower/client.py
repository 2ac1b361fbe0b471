"""The ClientApp: says who it is, and answers broadcasts with what lies on its own disk.

In a deployment every message has a process of its own, so all that is to last lies in the client's state folder.
"""

import contextlib
import faulthandler
import json
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import FrameType

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from prismfl.data.datasets import ImageSet
from prismfl.data.description import describe
from prismfl.data.files import write_atomic
from prismfl.data.site import conform, load_site, only, reported
from prismfl.engines.clientdisk import ClientDisk, releases_of
from prismfl.engines.flower.envelope import Ask, Hello, Request, Response, Terms, request_from, to_records
from prismfl.engines.flower.site import Site, asked_of
from prismfl.engines.sums import Member, answer_sum, simulated_members
from prismfl.errors import BudgetError, ClientError, MessageError, PolicyError, PrismError, SettingError
from prismfl.federation.agreement import Agreement
from prismfl.federation.client import ClientKit, client_distances, client_update
from prismfl.federation.handed import is_target, taken, wanted
from prismfl.moments import Target
from prismfl.privacy.release import check_sizes, covered_note
from prismfl.privacy.store import Releases
from prismfl.run.folder import RunFolder, read_json
from prismfl.run.prepare import Prepared, agree_on, prepare, site_kit
from prismfl.settings.schema import Settings
from prismfl.settings.toml import settings_from, toml_from
from prismfl.sums.frames import step_of
from prismfl.sums.site import SumSite

_GRACE = 20.0  # seconds after which a search that cannot be interrupted is ended with its process

app = ClientApp()


@app.query()
@app.train()
def answer(message: Message, context: Context) -> Message:
    """The reply to any message, greeting or broadcast; what goes wrong is told in its place.

    Of what went wrong with the site's images, files or ledger only the class leaves: the site's own log has the rest.
    """
    site = None
    try:
        request = request_from(message.content)
        site = Site.of(context)
        content = _reply(request, site)
    except Exception as error:
        print(f"error: {_in_full(error)}", file=sys.stderr, flush=True)  # for whoever runs this client
        told = _told(error)
        if site is not None:
            with contextlib.suppress(PrismError):  # a disk that is full has its own words above
                site.note(refused=f"{told.got}; expected {told.expected}")
        content = to_records(Response(error=told))
    return Message(content, reply_to=message)


def _in_full(error: Exception) -> str:
    return str(error) if isinstance(error, PrismError | _Private) else f"{type(error).__name__}: {error}"


def _told(error: Exception) -> PrismError:
    """What a server hears of an error: words that were written for it, or no more than the error's class."""
    if isinstance(error, BudgetError):
        return PolicyError("a release beyond what this site may spend", "one that its budget has room for", "ask it")
    if isinstance(error, ClientError | MessageError | PolicyError):
        return error
    name = error.name if isinstance(error, _Private) else type(error).__name__
    return ClientError(f"one {name} at the site", "a reply", "ask the site: its own log says more")


@contextlib.contextmanager
def _at_home() -> Iterator[None]:
    """What goes wrong inside stays at home but for its class: it may name files, labels or numbers of images."""
    try:
        yield
    except (BudgetError, PolicyError):
        raise
    except PrismError as error:
        raise _Private(type(error).__name__, error) from None


class _Private(Exception):  # noqa: N818 - it stands for another error
    """An error whose words stay at the site."""

    def __init__(self, name: str, error: PrismError) -> None:
        super().__init__(str(error))
        self.name = name


def _reply(request: Request, site: Site) -> RecordDict:
    if request.ask == Ask.HELLO:
        hello = greet(site, request)
        site.note(asked="hello", **(asked_of(request.terms.settings) if request.terms else {}))
        return to_records(hello)
    with bounded(0.0 if site.simulated else request.seconds):
        return to_records(respond(site, request))


# ------------------------------------------------------------------------------------ who it is


def greet(site: Site, request: Request) -> Hello:
    """Who this is, and what classes its images have.  Raises PrismError subclasses."""
    if site.simulated or request.terms is None:
        return Hello(site.client, site.token(), site.simulated)
    settings = site.local(_settings(request.terms))
    if settings.federation.secure_sum:
        member = site.member()
        SumSite(member.rules, member.identity, site.client, {})  # checks that the key is the one that others pin
    with _at_home():
        mine = _images(site, settings)
        # For whoever runs this client, and nobody else, as all that is printed here.
        print(describe(mine, 0, settings.data.fit, private=settings.privacy.epsilon > 0).line(), flush=True)
        if settings.privacy.epsilon:
            check_sizes(settings.privacy, [mine.units])
            for line in covered_note(settings.privacy, persons=mine.people is not None):
                print(line, flush=True)
    return Hello(site.client, site.token(), False, mine.classes, mine.images.shape[1])


def _settings(terms: Terms) -> Settings:
    """The settings that a server sent.  Raises PolicyError for what is none."""
    try:
        return settings_from(toml_from(terms.settings))
    except SettingError as error:
        raise PolicyError(error.got, error.expected, "use the same version of prismfl everywhere") from None


def _images(site: Site, settings: Settings) -> ImageSet:
    settings = replace(settings, data=replace(settings.data, people=site.people))
    mine = load_site(settings, site.data_dir, site.client, site.state)
    return only(mine, names) if (names := reported(mine, settings)) != mine.classes else mine


# ------------------------------------------------------------------------------------ its rounds


def respond(site: Site, request: Request) -> Response:
    """A reply to a broadcast, with the ledger of all that this client released.  Raises PrismError subclasses."""
    path = site.state and site.state / request.run.hex() / "terms.json"
    if path and request.terms:
        write_atomic(path, json.dumps(asdict(request.terms)) + "\n", private=True)
    stored = read_json(path) if path and not request.terms else None
    terms = request.terms or (Terms(**stored | {"classes": tuple(stored["classes"])}) if stored else None)
    if terms is None:
        return Response(strange=True)
    world = _deployed(site, path.parent, terms) if path else _simulated(site, terms)
    if world.agreement.run != request.run:
        raise ClientError(
            f"a request of run {request.run.hex()}",
            f"run {world.agreement.run.hex()}, which follows from the settings that came with it",
            "use the same version of prismfl, and the same feature network, everywhere",
        )
    _check_ask(world.agreement, request)
    torch.set_num_threads(world.agreement.settings.running.threads)
    client, disk = site.client, world.disk
    if request.terms and not site.simulated:
        disk.begin(client)
    if request.ask == Ask.SUM:
        frame = _summed(client, world, request)
    elif request.ask == Ask.TRAIN:
        frame = _searched(client, world, request)
    else:
        target, held = world.target(), disk.held(client)
        frame = client_distances(world.agreement, world.kit, request.frame, client, target, held)
    private = world.agreement.settings.privacy
    if not site.simulated:
        step = step_of(request.frame)
        what = str(request.ask) if step is None else f"{request.ask}, {step.name.lower()}"
        print(f"round {request.round + 1}, {what}: answered with {len(frame)} bytes", flush=True)
        said = asked_of(terms.settings) | {"run": request.run.hex(), "asked": what}
        site.note(**said, round=request.round, bytes=len(frame), epsilon=private.epsilon)
    ledger = read_json(disk.folder.client(client) / "ledger.json") if private.epsilon else None
    return Response(frame, ledger=json.dumps(ledger["releases"]) if ledger else "")


def _check_ask(agreement: Agreement, request: Request) -> None:
    """Raises PolicyError where a run of secure sums asks for what is of one site alone."""
    federation = agreement.settings.federation
    towards = agreement.pooled and federation.mode == "masks" and request.ask == Ask.TRAIN  # the opened sum
    if federation.secure_sum and request.ask != Ask.SUM and not towards:
        raise PolicyError(f"{request.ask} in a run with secure_sum", "sums alone", "ask whoever runs the server")


@dataclass(frozen=True)
class _World:
    """What a client computes with in one run; target: finds its moments, images: loads them, which may take long."""

    agreement: Agreement
    kit: ClientKit
    disk: ClientDisk
    images: Callable[[], ImageSet]
    target: Callable[[], Target]
    member: Callable[[], Member]


def _summed(client: int, world: _World, request: Request) -> bytes:
    """An answer to a message of a secure sum."""
    disk = world.disk
    disk.forget_after(client, request.counted, request.round)
    held, asked = disk.held(client), (request.frame, request.round)
    made = answer_sum(disk, world.member(), client, *asked, world.images, world.target, held)
    disk.hold(client, made.held)
    return made.frame


def _searched(client: int, world: _World, request: Request) -> bytes:
    disk = world.disk
    if world.agreement.pooled:
        place = world.agreement.place(request.round, client)
        if is_target(request.frame):
            found, reply = taken(world.agreement, world.kit.features.dimension, request.frame, place)
            disk.take(client, found)
            return reply
        if disk.handed(client) is None:
            return wanted(place)
    target = world.target()
    disk.forget_after(client, request.counted, request.round)
    memory, held = disk.recall(client, request.round), disk.held(client)
    made = client_update(world.agreement, world.kit, request.frame, request.round, client, target, memory, held)
    # It counts only once the next message says so: until then the memory of an earlier round stays beside it.
    disk.remember(client, request.round, made.memory)
    disk.hold(client, made.held)
    return made.frame


def _deployed(site: Site, root: Path, terms: Terms) -> _World:
    agreement = agree_on(site.local(_settings(terms)), terms.channels, terms.classes)
    settings = agreement.settings
    site.local(settings, agreement.network)  # by now it is known what is matched
    kit, private = site_kit(agreement), settings.privacy
    releases = Releases(kit.features, agreement.layout.classes, private, site.source()) if private.epsilon else None
    disk = ClientDisk(agreement, kit, RunFolder(root), releases)

    def load() -> ImageSet:
        with _at_home():
            return conform(_images(site, settings), settings, terms.classes, terms.channels)

    def target() -> Target:
        with _at_home():
            return _handed(disk, site.client) or disk.run_target(site.client, load)

    return _World(agreement, kit, disk, load, target, site.member)


def _handed(disk: ClientDisk, client: int) -> Target | None:
    """The pooled target, in a run that has one."""
    return disk.handed(client) if disk.agreement.pooled else None


def _simulated(site: Site, terms: Terms) -> _World:
    ready, folder = _prepared(terms.settings), RunFolder(Path(terms.folder))
    releases = releases_of(ready.agreement, ready.kit, ready.clients, folder)
    disk, mine = ClientDisk(ready.agreement, ready.kit, folder, releases), ready.clients[site.client]
    return _World(
        ready.agreement,
        ready.kit,
        disk,
        lambda: mine,
        lambda: _handed(disk, site.client) or disk.target(site.client, mine),
        lambda: simulated_members(folder, len(ready.clients))[site.client],
    )


@lru_cache(maxsize=1)
def _prepared(settings: str) -> Prepared:
    """The data of a simulated run, loaded once a process."""
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
