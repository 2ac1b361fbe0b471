"""What a client keeps on its own disk, whatever the engine: its target, its releases, Adam's memory, θ."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prismfl.data.datasets import ImageSet
from prismfl.errors import PrivacyError
from prismfl.federation.agreement import Agreement, KnownTheta
from prismfl.federation.client import ClientKit
from prismfl.moments import Target, label_shares
from prismfl.privacy.ledger import to_json
from prismfl.privacy.pooled import site_sums
from prismfl.privacy.release import grid_of
from prismfl.privacy.store import Releases, dealing_of, key_of, name_of
from prismfl.run import folder as runfolder
from prismfl.run.folder import RunFolder
from prismfl.run.source import source_of
from prismfl.search import Memory
from prismfl.sums.frames import Advert, Purpose


class ClientDisk:
    """The folders of a run's clients; a simulator's hold all of them, a deployed client's its own.

    folder: where `clients/NUMBER` lies; with `running.cache_dir` raw targets lie there, and outlive the run.
    releases: with ε set, of what source and by what ledger the clients release.
    """

    def __init__(
        self, agreement: Agreement, kit: ClientKit, folder: RunFolder, releases: Releases | None = None
    ) -> None:
        if agreement.settings.privacy.epsilon and releases is None:
            raise PrivacyError("clients with epsilon and no ledger", "the ledger of their source", "pass releases")
        self.agreement, self.kit, self.folder, self.releases = agreement, kit, folder, releases
        self._noted: set[int] = set()

    # --------------------------------------------------------------------------------- targets

    def target(self, client: int, mine: ImageSet) -> Target:
        """The client's moments: computed once, then kept in its own folder under a local key.

        The key names feature map and images; it never leaves the client's disk.  With ε set
        they are released moments: nothing else of the images is ever computed.
        """
        if not self.releases:
            return self._stored_target(client, mine)
        name, found = self.releases.of(client, mine)
        if client not in self._noted:
            runfolder.note_release(self.folder, client, name, to_json([found.entry])[0])
            self._noted.add(client)
        return found.target

    def _stored_target(self, client: int, mine: ImageSet) -> Target:
        classes = self.agreement.layout.classes
        key = key_of(self.kit.features.fingerprint(), mine, classes)
        path = self._cache(client, key)
        held = runfolder.load_arrays(path)
        if held is not None and np.array_equal(held.get("key", ()), key):
            return Target(held["moments"], len(mine), label_shares(mine.labels, classes))
        target = self.kit.features.target(mine.images, mine.labels, classes)
        runfolder.save_arrays(path, {"key": key, "moments": target.moments})
        return target

    def _cache(self, client: int, key: NDArray[np.uint8]) -> Path:
        shared = self.agreement.settings.running.cache_dir
        name = f"target-{name_of(key)}.safetensors"
        return Path(shared) / name if shared else self.folder.client(client) / "target.safetensors"

    def begin(self, client: int) -> None:
        """Forget the targets of this run, for a server that begins it or goes on with it: they are found anew."""
        for path in (self._run_target(client), self._handed(client)):
            path.unlink(missing_ok=True)  # what cannot be written anew must not be taken for it later

    def _run_target(self, client: int) -> Path:
        return self.folder.client(client) / "run-target.safetensors"

    def run_target(self, client: int, images: Callable[[], ImageSet]) -> Target:
        """The target that the client has in this run.

        images: loads them, which may take long.
        """
        path = self._run_target(client)
        held = runfolder.load_arrays(path)
        if held is not None:
            return Target(held["moments"], int(held["images"][0]), held["shares"])
        target = self.target(client, images())
        runfolder.save_arrays(path, _target_arrays(target))
        return target

    # ------------------------------------------------------------------------------ secure sums

    def counted(self, mine: ImageSet) -> int:
        """n of a client in a secure sum of images: with epsilon of persons, where they are known."""
        return len(mine) if self.releases is None else mine.units

    def sums(
        self, client: int, mine: ImageSet, name: bytes, own: int, adverts: Mapping[int, Advert]
    ) -> NDArray[np.int64]:
        """What the client adds to a secure sum of images: its own sums, with ε under its share `own` of the noise.

        int64 `[G · E]`.  Unit: the images of one person at one client; adjacency: replace-one.
        """
        if self.releases is None:
            classes = self.agreement.layout.classes
            return site_sums(self.kit.features, grid_of(self.kit.features, classes), mine.images, mine.labels, own)
        line, found, entry = self.releases.summed(client, mine, name, adverts)
        runfolder.note_release(self.folder, client, line, to_json([entry])[0])
        return found

    def sum_state(self, client: int, purpose: Purpose) -> dict[str, bytes]:
        """What the client keeps of its last sum of this purpose."""
        path = self._sum(client, purpose)
        held = runfolder.load_arrays(path)
        if held is None and path.exists():  # it says what was summed: without it a vector might enter another sum
            raise runfolder.damaged(path, "it does not read", "restore it, or begin a run with another --seed")
        return {name: part.tobytes() for name, part in (held or {}).items()}

    def keep_sum_state(self, client: int, purpose: Purpose, state: Mapping[str, bytes]) -> None:
        """Keep it, before an answer leaves.  Raises RunFolderError."""
        runfolder.save_arrays(self._sum(client, purpose), bytes_as_arrays(state))

    def _sum(self, client: int, purpose: Purpose) -> Path:
        return self.folder.client(client) / f"sum-{purpose.name.lower()}.safetensors"

    def handed(self, client: int) -> Target | None:
        """The pooled target that the server handed out to the client; None before."""
        held = runfolder.load_arrays(self._handed(client))
        return Target(held["moments"], int(held["images"][0]), held["shares"]) if held else None

    def take(self, client: int, target: Target) -> None:
        """Keep it.  Raises RunFolderError."""
        runfolder.save_arrays(self._handed(client), _target_arrays(target))

    def _handed(self, client: int) -> Path:
        return self.folder.client(client) / "pooled-target.safetensors"

    # --------------------------------------------------------------------------- between rounds

    def recall(self, client: int, round_index: int) -> Memory | None:
        """The client's memory of its last round before this one, and older ones removed."""
        if not self.agreement.settings.keeps_adam:
            return None
        usable = [path for path in self._memories(client) if path < self._memory(client, round_index)]
        for path in usable[:-1]:
            path.unlink()
        held = runfolder.load_arrays(usable[-1]) if usable else None
        return Memory(held["first"], held["second"], int(held["steps"][0])) if held else None

    def remember(self, client: int, round_index: int, memory: Memory | None) -> None:
        """Write the client's memory of a round, where Adam is kept between rounds."""
        if memory is not None and self.agreement.settings.keeps_adam:
            arrays = {"first": memory.first, "second": memory.second, "steps": np.array([memory.steps])}
            runfolder.save_arrays(self._memory(client, round_index), arrays)

    def forget_after(self, client: int, counted: int, round_index: int) -> None:
        """Remove memories of rounds after the last one in which the client counted (-1: none did), and before this one.

        That of this round stays: a round may have more than one message.
        """
        for path in self._memories(client):
            if self._memory(client, counted) < path < self._memory(client, round_index):
                path.unlink()

    def _memories(self, client: int) -> list[Path]:
        return sorted(self.folder.client(client).glob("adam-*.safetensors"))

    def _memory(self, client: int, round_index: int) -> Path:
        return self.folder.client(client) / f"adam-{round_index:08d}.safetensors"

    def held(self, client: int) -> KnownTheta | None:
        """The θ that the client kept, or None: then it knows θ_0 alone."""
        arrays = runfolder.load_arrays(self._theta(client))
        return KnownTheta(arrays["q"], int(arrays["round"][0])) if arrays else None

    def hold(self, client: int, held: KnownTheta | None) -> None:
        """Keep a θ for the next round."""
        if held is not None:
            runfolder.save_arrays(self._theta(client), {"q": held.q, "round": np.array([held.round])})

    def _theta(self, client: int) -> Path:
        return self.folder.client(client) / "theta.safetensors"


def _target_arrays(target: Target) -> dict[str, NDArray[Any]]:
    return {"moments": target.moments, "images": np.array([target.images]), "shares": target.shares}


def bytes_as_arrays(state: Mapping[str, bytes]) -> dict[str, NDArray[np.uint8]]:
    """Bytes by name as arrays of them, as they are stored."""
    return {name: np.frombuffer(value, np.uint8) for name, value in state.items()}


def releases_of(
    agreement: Agreement, kit: ClientKit, clients: Sequence[ImageSet], folder: RunFolder
) -> Releases | None:
    """With ε set, how simulated clients release what a run deals to them: all by the ledger of the run's data."""
    settings = agreement.settings
    if not settings.privacy.epsilon:
        return None
    source, dealing = source_of(settings, folder.root), dealing_of(clients)
    return Releases(kit.features, agreement.layout.classes, settings.privacy, source, dealing)
