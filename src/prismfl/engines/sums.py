"""Secure sums as engines carry them: a client's answer with what it keeps on its disk, and simulated sites' keys."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from prismfl.data.files import write_atomic
from prismfl.data.images import ImageSet
from prismfl.engines.clientdisk import ClientDisk
from prismfl.errors import MessageError
from prismfl.federation.agreement import KnownTheta
from prismfl.federation.client import Answer
from prismfl.federation.secure_sum import Work, client_sum
from prismfl.moments import Target
from prismfl.run.folder import RunFolder
from prismfl.search import Memory
from prismfl.sums.frames import Purpose, step_of, sum_of
from prismfl.sums.rules import Rules, usual
from prismfl.sums.secrets import Identity
from prismfl.sums.site import SumSite

_KEYS = "sites.pem"  # private keys of simulated sites, in a run's folder


@dataclass(frozen=True)
class Member:
    """What a site brings to every sum: the rules of its policy, the key that proves who it is, and what it has summed.

    summed: file of vectors without noise that were summed, and with whom, over all runs; None of a simulated site.
    """

    rules: Rules
    identity: Identity
    summed: Path | None = None

    def once(self, vector: bytes, sites: bytes) -> bool:
        """Whether a vector was never summed with other sites; this sum is remembered.  Raises RunFolderError."""
        if self.summed is None:
            return True
        lines = self.summed.read_text(encoding="ascii").split() if self.summed.exists() else []
        before = {line.partition(":")[2] for line in lines if line.startswith(vector.hex())}
        if not before:
            write_atomic(self.summed, "\n".join([*lines, f"{vector.hex()}:{sites.hex()}"]) + "\n", private=True)
        return before <= {sites.hex()}


def simulated_members(folder: RunFolder, clients: int) -> list[Member]:
    """The sites of a simulated run, made with it: their policies pin each other's keys, and say what is usual.

    Raises SettingError for a number of clients that cannot sum.
    """
    path = folder.root / _KEYS
    if not path.is_file():
        write_atomic(path, b"".join(Identity.made().private() for _ in range(clients)), private=True)
    return _members(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _members(path: Path, _changed: int) -> list[Member]:
    end = b"-----END OPENSSH PRIVATE KEY-----\n"
    keys = [Identity.parsed(part + end) for part in path.read_bytes().split(end) if part]
    rules = Rules(tuple(key.public for key in keys), *usual(len(keys)))
    return [Member(rules, key) for key in keys]


def answer_sum(
    disk: ClientDisk,
    member: Member,
    client: int,
    frame: bytes,
    round_index: int,
    images: Callable[[], ImageSet],
    target: Callable[[], Target],
    held: KnownTheta | None,
) -> Answer:
    """A client's answer to a message of a sum; what it must not forget is on its disk when this is back.

    Args:
        disk: of the client.
        member: its key and rules.
        client: its number.
        frame: the message, as it came.
        round_index: t.
        images: loads the client's images.
        target: finds the moments of them, where masks are summed.
        held: θ of the client's last round.

    Raises:
        MessageError, ClientError, PolicyError, PrivacyError, RunFolderError: see `client_sum`.
    """
    agreement, place = disk.agreement, disk.agreement.place(round_index, client)
    step = step_of(frame)
    if step is None:
        raise MessageError("a frame that is no message of a sum", "one")
    of, memory = sum_of(frame, step, place), list[Memory | None]()

    def recalled() -> Memory | None:
        if not memory:
            memory.append(disk.recall(client, round_index))
        return memory[0]

    state = disk.sum_state(client, of.purpose)
    count = disk.counted(images()) if of.purpose == Purpose.RELEASE and state.get("name") != of.name else 0
    site = SumSite(member.rules, member.identity, client, state, count, member.once)
    work = Work(lambda name, own, adverts: disk.sums(client, images(), name, own, adverts), target, recalled, held)
    before = dict(state)
    found = client_sum(agreement, disk.kit, site, frame, place, of, work)
    disk.remember(client, round_index, found.memory)  # first: with the answer kept, nothing is searched again
    if state != before:
        disk.keep_sum_state(client, of.purpose, state)
    return found
