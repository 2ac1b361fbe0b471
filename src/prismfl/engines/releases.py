"""What simulated clients release of their images: once, stored before it is used, and reused.

A store of images is a client's part of the run, or with `running.cache_dir` the same images in any
run.  Reuse costs nothing; a release of the same store under other settings is refused unless
it was asked for, and then both stand in the ledger.
"""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prismfl.data.datasets import ImageSet
from prismfl.errors import PrivacyError
from prismfl.federation.agreement import Agreement
from prismfl.federation.client import ClientKit
from prismfl.moments import Target
from prismfl.privacy.ledger import to_json
from prismfl.privacy.release import from_arrays, release, to_arrays
from prismfl.run import folder as runfolder
from prismfl.run.folder import RunFolder


@dataclass(frozen=True)
class Releases:
    """Released targets by client; see the module."""

    agreement: Agreement
    kit: ClientKit
    folder: RunFolder
    _noted: set[int] = field(default_factory=set)

    def target(self, client: int, mine: ImageSet) -> Target:
        """The client's released target: stored, or drawn now and stored first.

        Raises PrivacyError for a stored release that is damaged, and for a second one.
        """
        classes, privacy = self.agreement.layout.classes, self.agreement.settings.privacy
        store = self._store(client, mine)
        rules = repr((privacy.epsilon, privacy.delta, privacy.images_per_person, privacy.noise))
        path = store / f"release-{name_of(key_of(self.kit.features.fingerprint() + rules, mine, classes))}.safetensors"
        if not path.exists():
            self._refuse_second(store, client)
            found = release(self.kit.features, mine.images, mine.labels, classes, privacy, client)
            runfolder.save_arrays(path, to_arrays(found))
        target = from_arrays(runfolder.load_arrays(path) or {}).target
        if client not in self._noted:
            self._note(client, store)
            self._noted.add(client)
        return target

    def _store(self, client: int, mine: ImageSet) -> Path:
        shared = self.agreement.settings.running.cache_dir
        # The name of a store is made of its images, and stays on the client's disk.
        return Path(shared) / f"store-{name_of(key_of('', mine, 1))}" if shared else self.folder.client(client)

    def _refuse_second(self, store: Path, client: int) -> None:
        before = list(store.glob("release-*.safetensors"))
        if before and not self.agreement.settings.privacy.another_release:
            raise PrivacyError(
                f"client {client} with {len(before)} earlier release of its store under other settings or images",
                "one release, reused",
                "keep the settings, or set privacy.another_release and let the ledger add up",
            )

    def _note(self, client: int, store: Path) -> None:
        """Bring the client's ledger up to date: all that was ever released of its store."""
        held = [from_arrays(runfolder.load_arrays(path) or {}) for path in sorted(store.glob("release-*.safetensors"))]
        runfolder.save_ledger(self.folder, client, to_json([replace(one.entry, client=client) for one in held]))


def key_of(rules: str, mine: ImageSet, classes: int) -> NDArray[np.uint8]:
    """Equal keys, equal targets: uint8 `[32]` of the rules, the images and, where they count, the labels."""
    digest = hashlib.sha256(rules.encode())
    digest.update(np.ascontiguousarray(mine.images).reshape(-1).data)  # in place: a client's images may be large
    digest.update(repr((mine.images.shape, classes)).encode())
    digest.update(mine.labels.tobytes() if classes else b"")
    return np.frombuffer(digest.digest(), np.uint8)


def name_of(key: NDArray[np.uint8]) -> str:
    """A key's first half, for the name of a file."""
    return key.tobytes().hex()[:32]
