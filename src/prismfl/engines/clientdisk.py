"""What a client keeps on its own disk, whatever the engine: its target, its releases, Adam's memory, θ."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prismfl.data.datasets import ImageSet
from prismfl.errors import PrivacyError
from prismfl.federation.agreement import Agreement, KnownTheta
from prismfl.federation.client import ClientKit
from prismfl.moments import Target, label_shares
from prismfl.privacy.ledger import to_json
from prismfl.privacy.store import Releases, dealing_of, key_of, name_of
from prismfl.run import folder as runfolder
from prismfl.run.folder import RunFolder
from prismfl.run.source import source_of
from prismfl.search import Memory


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

    def run_target(self, client: int, images: Callable[[], ImageSet], anew: bool) -> Target:
        """The target that the client has in this run.

        images: loads them, which may take long; anew: load them even if a target is there, for a server that
        begins a run, or goes on with one.
        """
        path = self.folder.client(client) / "run-target.safetensors"
        if anew:
            path.unlink(missing_ok=True)  # what cannot be written anew must not be taken for it later
        held = runfolder.load_arrays(path)
        if held is not None:
            return Target(held["moments"], int(held["images"][0]), held["shares"])
        target = self.target(client, images())
        arrays = {"moments": target.moments, "images": np.array([target.images]), "shares": target.shares}
        runfolder.save_arrays(path, arrays)
        return target

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

    def forget_after(self, client: int, counted: int) -> None:
        """Remove memories of rounds after the last one in which the client counted (-1: none did)."""
        for path in self._memories(client):
            if path > self._memory(client, counted):
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


def releases_of(
    agreement: Agreement, kit: ClientKit, clients: Sequence[ImageSet], folder: RunFolder
) -> Releases | None:
    """With ε set, how simulated clients release what a run deals to them: all by the ledger of the run's data."""
    settings = agreement.settings
    if not settings.privacy.epsilon:
        return None
    source, dealing = source_of(settings, folder.root), dealing_of(clients)
    return Releases(kit.features, agreement.layout.classes, settings.privacy, source, dealing)
