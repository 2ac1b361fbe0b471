"""What clients release of their images: entered in a ledger, drawn once, stored before it is used, and reused."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from prismfl.data.images import ImageSet
from prismfl.moments import FeatureMap
from prismfl.privacy.ledger import Entry
from prismfl.privacy.pooled import plan, site_sums
from prismfl.privacy.release import Released, entry_of, from_bytes, grid_of, release, to_bytes
from prismfl.privacy.source import SourceLedger
from prismfl.settings.schema import Privacy
from prismfl.sums.frames import Advert


class Releases:
    """The releases of a run's clients, all of one source.

    classes: labels of the run, 0 for none; dealing: names the dealing of the source's images to clients; none where the
    source is one client's alone.
    """

    def __init__(
        self, features: FeatureMap, classes: int, privacy: Privacy, source: SourceLedger, dealing: str = ""
    ) -> None:
        self.features, self.classes, self.privacy = features, classes, privacy
        self.source, self.dealing = source, dealing

    def of(self, client: int, mine: ImageSet) -> tuple[str, Released]:
        """A client's release, and its name in the source's ledger.

        Unit: the images of one person at this client, `images_per_person` at most, or where persons are known all of
        them; adjacency: replace-one.  Nothing else of the images is ever computed.  Raises PrivacyError,
        RunFolderError, DataError.
        """
        definition = self._definition(client, mine)
        persons = mine.people is not None
        entry = entry_of(self.features, self.classes, self.privacy, mine.units, client, persons=persons)
        line, raw = self.source.once(
            definition, self.dealing or definition, entry, lambda: to_bytes(self._drawn(client, mine))
        )
        found = from_bytes(raw)
        return line.id, replace(found, entry=replace(found.entry, client=client))

    def summed(
        self, client: int, mine: ImageSet, name: bytes, adverts: Mapping[int, Advert]
    ) -> tuple[str, NDArray[np.int64], Entry]:
        """A client's exact sums with its share of the noise of a secure sum, drawn once for the sum of that name.

        Unit: the images of one person at this client, `images_per_person` at most; adjacency: replace-one.  The entry
        says what the opened sum costs; see `privacy.pooled`.

        Args:
            client: whose images they are.
            mine: the images.
            name: of the sum; another attempt at it has another, and is paid for again.
            adverts: what the sites of the sum say of themselves.

        Returns:
            The name of the release in the source's ledger, int64 `[G · E]`, and its entry.

        Raises:
            PrivacyError, RunFolderError, DataError.
        """
        grid, one = grid_of(self.features, self.classes), next(iter(adverts.values()))
        images = sum(advert.images for advert in adverts.values())
        rules = (one.sites, one.colluders, one.dropouts)
        entry, own = plan(grid, self.privacy, images, *rules, client, persons=mine.people is not None)
        asked = (*self._rules(client), name.hex(), own)
        definition = name_of(key_of(self.features.fingerprint() + repr(asked), mine, self.classes))
        line, raw = self.source.once(
            definition,
            self.dealing or definition,
            entry,
            lambda: save({"sums": site_sums(self.features, grid, mine.images, mine.labels, own, mine.people)}),
        )
        return line.id, load(raw)["sums"], entry

    def _drawn(self, client: int, mine: ImageSet) -> Released:
        return release(self.features, mine.images, mine.labels, self.classes, self.privacy, client, mine.people)

    def _definition(self, client: int, mine: ImageSet) -> str:
        rules = repr(self._rules(client))
        return name_of(key_of(self.features.fingerprint() + rules, mine, self.classes))

    def _rules(self, client: int) -> tuple[Any, ...]:
        asked = self.privacy
        # Noise that clients shared would tell that they hold the same images; a site is asked by whatever number.
        whose = client if self.dealing else -1
        return asked.epsilon, asked.delta, asked.images_per_person, asked.noise, whose


def dealing_of(clients: Iterable[ImageSet]) -> str:
    """Names a dealing of images and labels to clients: equal ones alone are named alike."""
    digest = hashlib.sha256()
    for mine in clients:
        digest.update(key_of("", mine, 1).tobytes())
    return digest.hexdigest()[:32]


def key_of(rules: str, mine: ImageSet, classes: int) -> NDArray[np.uint8]:
    """Equal keys, equal targets: uint8 `[32]` of the rules, the images and, where they count, labels and persons."""
    digest = hashlib.sha256(rules.encode())
    digest.update(np.ascontiguousarray(mine.images).reshape(-1).data)  # in place: a client's images may be large
    digest.update(repr((mine.images.shape, classes)).encode())
    digest.update(mine.labels.tobytes() if classes else b"")
    digest.update(b"persons" + mine.people.tobytes() if mine.people is not None else b"")
    return np.frombuffer(digest.digest(), np.uint8)


def name_of(key: NDArray[np.uint8]) -> str:
    """A key's first half, for the name of a file."""
    return key.tobytes().hex()[:32]
