"""What a site's engineer looks at before a run: the way to the server, keys, machine, data, and a made-up round.

Nothing is sent but one question to the server's port, and nothing is released.  What `check` finds holds nothing of the
images and may be mailed; what `look` says of them stays at the site.
"""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

from prismfl.data.description import Description, describe
from prismfl.data.files import check_writable
from prismfl.data.images import ImageSet
from prismfl.data.lock import is_held
from prismfl.data.site import conform, load_site
from prismfl.engines.flower.reach import Finding, reach
from prismfl.engines.flower.site import Site
from prismfl.errors import ClientError, PrismError
from prismfl.federation.agreement import Agreement, Reply, agree, cohort, init, next_theta
from prismfl.federation.client import seal_found
from prismfl.federation.round import server_update
from prismfl.generator.network import check_device
from prismfl.privacy.release import check_sizes, covered_note
from prismfl.run.environment import available_mb, hardware, versions
from prismfl.run.forecast import forecast
from prismfl.run.prepare import Prepared, agree_on, site_kit
from prismfl.run.progress import sized
from prismfl.settings.schema import Data, Running, Settings
from prismfl.wire import frames as message

_LEAST_DISK = 1.0  # GB that a site should have room for
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True)
class Checked:
    """What is looked at: a site, the way to its server, and the settings of the run where they are known."""

    site: Site
    root_certificates: Path | None
    key: Path | None
    settings: Settings | None

    @cached_property
    def local(self) -> Settings:
        """The run's settings, or those that a server has by default, with what is this machine's own."""
        site, settings = self.site, self.settings or Settings(data=Data(dataset="folder", partition="given"))
        features = site.matched(settings.features.network)
        data = replace(settings.data, people=site.people)
        return replace(settings, data=data, features=features, running=Running(device=site.device))

    @cached_property
    def images(self) -> ImageSet:
        """The site's images.  Raises PrismError subclasses."""
        return load_site(self.local, self.site.data_dir, self.site.client)


def check(asked: Checked) -> Iterator[Finding]:
    """All that may be mailed, one finding after another."""
    yield Finding("versions", ", ".join(f"{name} {told}" for name, told in (versions() | _flower()).items()))
    yield from reach(asked.site.server, asked.root_certificates)
    yield from _key(asked.key)
    yield from _machine(asked.site)
    yield from _kept(asked.site)
    yield _guarded("made-up round", lambda: _made_up_round(asked.settings or Settings()))
    yield _guarded("data", lambda: "they read" if len(asked.images) else "there are none")


def _flower() -> dict[str, str]:
    return {"flwr": version("flwr")}


def _guarded(about: str, found: Callable[[], str]) -> Finding:
    """What was found, or of an error its class alone: its words may name files of the site."""
    try:
        return Finding(about, found())
    except PrismError as error:
        return Finding(about, f"{type(error).__name__}: see below, on the site's screen", fault=True)


# --------------------------------------------------------------------------------------- keys


def _key(path: Path | None) -> Iterator[Finding]:
    """The site's private key: that Flower can use it, that nobody else reads it, and its public half."""
    if path is None:
        yield Finding("key", "none: a server with --keys lets this site not in", note=True)
        return
    try:
        key = load_ssh_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        why = error.strerror if isinstance(error, OSError) else "no OpenSSH key without a passphrase"
        yield Finding("key", f"does not read ({why})", fault=True)
        return
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        yield Finding("key", "is no ECDSA key: make one by ssh-keygen -t ecdsa -b 384", fault=True)
        return
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    yield Finding("key", f"reads; its public half, which the server needs: {public}")
    yield from _own(path, "key")


def _own(path: Path, about: str) -> Iterator[Finding]:
    """That a file or folder is its owner's alone, where the system knows such a thing."""
    if os.name != "posix" or not path.exists():
        return
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & _OTHERS:
        remedy = "chmod 700" if path.is_dir() else "chmod 600"
        yield Finding(about, f"mode {mode:03o}: others may read or change it: {remedy}", fault=True)
    else:
        yield Finding(about, f"mode {mode:03o}: its owner's alone")


# ------------------------------------------------------------------------------------ machine


def _machine(site: Site) -> Iterator[Finding]:
    told = hardware()
    yield Finding("machine", f"{told['system']}, {told['cores']} cores, {available_mb():.0f} MB of memory free")
    try:
        check_device(site.device)
        yield Finding("device", f"{site.device} computes")
    except PrismError:
        yield Finding("device", f"--device {site.device}: torch cannot compute on it here", fault=True)
    place = next(path for path in (_state(site), *_state(site).parents) if path.exists())
    free = shutil.disk_usage(place).free / 1e9
    yield Finding("disk", f"{free:.1f} GB free for --state", fault=free < _LEAST_DISK)


def _state(site: Site) -> Path:
    return (site.state or Path()).resolve()


def _kept(site: Site) -> Iterator[Finding]:
    """The state folder, the ledger and the rules."""
    yield _guarded("state", lambda: _writable(_state(site)))
    yield from _own(_state(site), "state")
    yield _guarded("ledger", lambda: _whole(site))
    yield from _own(site.ledger, "ledger")
    yield _guarded("policy", lambda: "reads" if site.rules() else "")


def _whole(site: Site) -> str:
    site.source().releases()
    return "reads and is whole, or is new"


def _writable(state: Path) -> str:
    check_writable(state / "token.try")
    running = "; a client runs with it now" if is_held(state / ".lock") else ""
    return f"can be written{running}"


# ------------------------------------------------------------------------------ made-up round


def _made_up_round(settings: Settings) -> str:
    """A round of random bytes, coded as a client codes its mask and decoded as the server does, both here."""
    agreement = agree(Settings(generator=settings.generator), settings.generator.channels or 1, ("0", "1"))
    before, sizes = init(agreement), list[int]()
    random = np.frombuffer(os.urandom(2 * len(before.q)), np.uint16)

    def exchange(frames: dict[int, bytes]) -> Iterator[tuple[int, Reply]]:
        client = next(iter(cohort(agreement, 0)))
        told = message.open_broadcast(frames[client], agreement.place(0, client), len(before.q))
        reply = seal_found(agreement, agreement.place(0, client), told, before.q, random)
        sizes.append(len(reply))
        yield client, reply

    after, record = server_update(agreement, before, exchange)  # type: ignore[arg-type]
    again = next_theta(agreement, before.q, 0, after.steps[-1]) if after.steps else after.q
    if len(record.replied) != 1 or not np.array_equal(again, after.q):
        raise ClientError("a round that comes out otherwise than it went in", "the same", "install prismfl anew")
    return f"a mask of random bytes, {sizes[0]} when coded, is decoded alike; all of it here: nothing was sent"


# ---------------------------------------------------------------------------------- the images


def look(asked: Checked) -> Iterator[str]:
    """What the images are, and what a run would take: for the site's own screen.  Raises PrismError subclasses."""
    settings, mine = asked.local, asked.images
    described = describe(mine, 0, settings.data.fit, private=settings.privacy.epsilon > 0)
    yield described.line()
    if described.private:  # the line leaves them out, for it stands in files as well; this is the site's own screen
        counts = np.bincount(mine.labels, minlength=len(mine.classes))
        yield "classes: " + ", ".join(f"{name} {count}" for name, count in zip(mine.classes, counts, strict=True))
    if mine.people is None:
        yield "whose each image is, is not told: with ε each counts as a person (else say --people)"
    if asked.settings is not None:
        asked.site.rules().check(asked.settings, asked.site.source(), persons=bool(asked.site.people))
        yield "this site's policy answers such a run"
    if settings.privacy.epsilon:
        check_sizes(settings.privacy, [mine.units])
        yield from covered_note(settings.privacy, persons=mine.people is not None)
    yield from _forecast(settings, mine, described, "such a run" if asked.settings else "a run of default settings")


def _forecast(settings: Settings, mine: ImageSet, described: Description, what: str) -> Iterator[str]:
    channels = mine.images.shape[1]
    agreement: Agreement = agree_on(settings, channels, mine.classes)
    members = len(cohort(agreement, 0))
    same = [conform(mine, agreement.settings, mine.classes, channels)] * members
    found = forecast(Prepared(agreement, site_kit(agreement), same, None, described), members)
    rounds = agreement.settings.federation.rounds
    wanted = f"{found.minutes:.0f} minutes" if found.minutes > 2 else f"{60 * found.minutes:.0f} seconds"
    yield f"{what} ({rounds} rounds) takes this machine about {wanted} and {found.memory_mb:.0f} MB of memory"
    yield f"and sends about {sized(found.uplink_bytes / members)}"
    if 0 < available_mb() < found.memory_mb:
        yield f"FAULT: only {available_mb():.0f} MB of memory are free"
