"""The ledger of a source: all that was ever released of one body of images, and what is left of a budget.

A source is a site's data directory, or the data of a simulated run.  Every release of it, whatever the size, the
labels, the channels, the partition or the order, is a line of one file, written before any noise is drawn: a privacy
odometer (Rogers, Roth, Ullman, Vadhan 2016) with a limit.  Beside the file lie the releases themselves.  What is asked
for a second time is read, and costs nothing; one that is missing or does not read is refused, never drawn again.

The unit is the images of one person, the largest `images_per_person` of all entries; adjacency is replace-one.  Clients
that one run deals a source to hold different persons, so that such a dealing counts as the most that one of them
released; dealings, and all else, add up as `compose` adds up.
"""

import hashlib
import json
import math
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import platformdirs

from prismfl.data.files import make_folder, write_atomic
from prismfl.data.lock import alone
from prismfl.errors import BudgetError, PrivacyError
from prismfl.privacy.chain import Chain
from prismfl.privacy.ledger import (
    Entry,
    Guarantee,
    against_text,
    covered,
    epsilon_of,
    from_json,
    protected,
    spent_by_client,
    to_json,
)

_PATIENCE = 3600.0  # seconds to wait for another run that draws the same release

_SOLVED = 1e-6  # σ and ε are solved for by iteration: the one release that a budget was made for must fit into it


@dataclass(frozen=True)
class Budget:
    """The most that a source may ever release: ε at δ, of all its entries together.

    Raises PrivacyError for numbers that are none.
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if not (0 < self.epsilon <= 1e6 and 0 < self.delta < 1):
            raise PrivacyError(
                f"a budget of ε = {self.epsilon:g} at δ = {self.delta:g}",
                "ε above 0, and δ between 0 and 1",
                "set both --budget-epsilon and --budget-delta",
            )


@dataclass(frozen=True)
class Release:
    """A line of the ledger: one release, and of which dealing to clients it is part; stored: SHA-256 of its file.

    definition: name of what was released of which images, made of them; it stays on this disk.
    """

    id: str
    definition: str
    dealing: str
    time: str
    entry: Entry
    stored: str = ""


class SourceLedger:
    """One source's ledger file, its releases in the folder `FILE.releases` beside it; see the module.

    budget: None for none, and then the ledger only says what was spent.
    """

    def __init__(self, path: Path, budget: Budget | None = None) -> None:
        self.path, self.budget = path, budget
        self.folder = path.with_name(f"{path.name}.releases")
        self._chain = Chain(path, "ledger")
        self._generation, self._parsed, self._checked = 0, 0, False
        self._held: dict[str, Release] = {}

    def releases(self) -> list[Release]:
        """All releases of the source, oldest first.  Raises PrivacyError for a ledger that is not whole."""
        with self._locked():
            return self._read()

    def summary(self) -> str:
        """What all releases of the source, of which there is one at least, come to so far: a line for people."""
        spent = spent_of(self.releases())
        return (
            f"all releases of these images so far: ε = {_epsilon(spent)} at δ = {spent.delta:g}, "
            f"{spent.releases} of them ({self.path})"
        )

    def once(self, definition: str, dealing: str, entry: Entry, draw: Callable[[], bytes]) -> tuple[Release, bytes]:
        """The release of a definition: as it is stored, or entered in the ledger, drawn, and stored first.

        Args:
            definition: names the released numbers and the images; equal names, equal releases.
            dealing: names the dealing of the source's images to clients that this is part of.
            entry: what the release costs, known before the images are looked at.
            draw: makes the stored form of the release.

        Returns:
            The line of the ledger, and the stored form.

        Raises:
            PrivacyError: past the budget; for a release that is missing, damaged or in no ledger.
            RunFolderError: where the ledger or the release cannot be written, and nothing was drawn or used.
        """
        make_folder(self.folder, private=True)
        path = self.folder / f"{definition}.safetensors"
        # Whoever draws the same release at this moment is waited for, others are not.
        with alone(self.folder / f".{definition}.lock", f"a release in {self.folder}", _PATIENCE):
            found = self._enter(definition, dealing, entry, path)
            if found.stored:
                return found, self._stored(path, found)
            raw = draw()
            write_atomic(path, raw, private=True)
            with self._locked():
                self._chain.append({"stored": found.id, "sha256": hashlib.sha256(raw).hexdigest()})
            return found, raw

    def _enter(self, definition: str, dealing: str, entry: Entry, path: Path) -> Release:
        """The release that is stored, or else a new line for it, where the budget has room."""
        with self._locked():
            held = self._read()
            if not self._checked:  # once: it looks at every file
                self._check_store(held)
                self._checked = True
            known = [one for one in held if one.definition == definition and one.stored]
            if known:
                return known[-1]
            if path.exists():
                # Between its file and its last line a crash leaves a release that nobody has used.
                path.unlink()
            found = Release(secrets.token_hex(16), definition, dealing, _now(), entry)
            self._check_budget([*held, found])
            self._chain.append(
                {
                    "release": found.id,
                    "definition": definition,
                    "dealing": dealing,
                    "time": found.time,
                    "entry": to_json([entry])[0],
                }
            )
            return found

    def _check_store(self, held: Sequence[Release]) -> None:
        """Releases of which the ledger says nothing are those of a ledger that is gone."""
        known = {one.definition for one in held}
        strange = [path for path in self.folder.glob("*.safetensors") if path.stem not in known]
        if strange:
            raise PrivacyError(
                f"{len(strange)} releases in {self.folder} that {self.path.name} says nothing of",
                "the ledger that they were entered in",
                "restore it from a backup: what was spent cannot be told without it",
            )

    def _stored(self, path: Path, found: Release) -> bytes:
        try:
            raw = path.read_bytes()
        except OSError:
            raw = b""
        if hashlib.sha256(raw).hexdigest() != found.stored:
            raise PrivacyError(
                f"{path}, a release that is {'damaged' if raw else 'missing'}",
                "the release as it was stored",
                "restore the file from a backup: drawing again would release the images twice",
            )
        return raw

    def _check_budget(self, held: Sequence[Release]) -> None:
        if self.budget is None:
            return
        spent = spent_of(held, self.budget.delta).epsilon
        if spent > self.budget.epsilon * (1 + _SOLVED):
            before = f"{spent_of(held[:-1], self.budget.delta).epsilon:.4g}" if held[:-1] else "0"
            raise BudgetError(
                f"a release that takes what this source has spent from ε = {before} to {spent:.4g}",
                f"at most its budget, ε = {self.budget.epsilon:g} at δ = {self.budget.delta:g}",
                "keep to settings that were released before, ask for a smaller --epsilon, or raise the budget: "
                "--budget-epsilon, or budget_epsilon of a policy",
            )

    def _read(self) -> list[Release]:
        """The chain's lines as releases, of which only new ones are parsed.  Whoever calls holds the lock."""
        records = self._chain.read()
        if self._chain.generation != self._generation:
            self._generation, self._parsed, self._held = self._chain.generation, 0, {}
        for record in records[self._parsed :]:
            try:
                self._take(record)
            except (KeyError, TypeError):
                raise PrivacyError(
                    f"a line of {self.path} that says nothing of a release",
                    "the ledger as it was written",
                    "use the version of prismfl that wrote it",
                ) from None
        self._parsed = len(records)
        return list(self._held.values())

    def _take(self, record: dict[str, Any]) -> None:
        if "stored" in record:
            self._held[record["stored"]] = replace(self._held[record["stored"]], stored=record["sha256"])
            return
        name, definition, dealing = (str(record[key]) for key in ("release", "definition", "dealing"))
        (entry,) = from_json([record["entry"]])
        self._held[name] = Release(name, definition, dealing, str(record["time"]), entry)

    def _locked(self) -> Any:
        return alone(self.path.with_name(f".{self.path.name}.lock"), str(self.path), _PATIENCE)


def spent_of(releases: Sequence[Release], delta: float = 0.0) -> Guarantee:
    """(ε, δ) of all that a source released.

    The unit is the images of one person, the largest `images_per_person` among the entries; adjacency is replace-one.
    Clients of one dealing hold different persons and compose in parallel, dealings compose exactly as Gaussian noise
    does (Dong, Roth, Su 2022, corollary 3.3).

    Args:
        releases: lines of the ledger.
        delta: at which ε is told; 0: the largest δ among the entries.

    Returns:
        The sum; its ε is infinite where it is past all that can be told.

    Raises:
        PrivacyError: for an empty ledger, and a δ that is none.
    """
    if delta and not 0 < delta < 1:
        raise PrivacyError(f"δ = {delta:g}", "a number between 0 and 1", "choose δ well below 1 / images")
    if not releases:
        raise PrivacyError("a ledger without entries", "at least one release", "there is no guarantee to state")
    entries = [one.entry for one in releases]
    most = max(entry.images_per_person for entry in entries)
    dealings: dict[str, list[Entry]] = defaultdict(list)
    for one in releases:
        dealings[one.dealing].append(one.entry)
    spent = [spent_by_client(dealt, most) for dealt in dealings.values()]
    square = sum(max(square for square, _ in clients.values()) for clients in spent)
    slack = sum(max(slack for _, slack in clients.values()) for clients in spent)
    delta = delta or max(entry.delta for entry in entries)
    try:
        epsilon = epsilon_of(square**-0.5, delta, slack)
    except PrivacyError:  # so much that δ cannot pay for the sampler: what is spent must be told all the same
        epsilon = math.inf
    return Guarantee(epsilon, delta, -1, len(releases), len(dealings))


def ledger_of(source: str) -> Path:
    """Where `prismfl train` keeps the ledger of a source: in the user's state folder, never beside the data.

    source: the data's real path, or the name of a data set that is in the package.
    """
    name = hashlib.sha256(source.encode()).hexdigest()[:16]
    return Path(platformdirs.user_state_dir("prismfl", appauthor=False)) / "sources" / name / "ledger.jsonl"


def _epsilon(spent: Guarantee) -> str:
    return f"{spent.epsilon:.4g}" if spent.epsilon < math.inf else "∞ (more than δ can tell)"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def is_ledger(path: Path) -> bool:
    """Whether a file is a ledger, whole or not, rather than data that have one."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(12) == b'{"previous":'


def read_ledger(path: Path) -> list[Release]:
    """The releases in a ledger file, its chain checked.  Raises PrivacyError."""
    if not path.is_file():
        raise PrivacyError(f"no ledger {path}", "the ledger file of a source", "check the path")
    return SourceLedger(path).releases()


def as_text(releases: Sequence[Release], delta: float = 0.0) -> str:
    """A source's ledger for people: a line a release, and what they come to."""
    lines = ["time                  ε       δ       n       a person's  sampler"]
    for one in releases:
        entry = one.entry
        state = "" if one.stored else "  (never finished; counted all the same)"
        lines.append(
            f"{one.time:<21} {entry.epsilon:<7.4g} {entry.delta:<7.1g} {entry.images:<7} {covered(entry):<11} "
            f"{entry.sampler}{state}"
        )
    lines += [f"  {text}" for text in sorted({against_text(one.entry) for one in releases if one.entry.sites})]
    total = spent_of(releases, delta)
    person = protected([one.entry for one in releases])
    lines.append(
        f"spent: ε = {_epsilon(total)} at δ = {total.delta:g}, for {person}; "
        f"releases: {total.releases}, ways to deal the images to clients: {total.clients}; the chain is whole"
    )
    return "\n".join(lines)


def as_json(releases: Sequence[Release], delta: float = 0.0) -> str:
    """The same for programs."""
    total = spent_of(releases, delta)
    lines = [{"time": one.time, "dealing": one.dealing, **to_json([one.entry])[0]} for one in releases]
    return json.dumps(
        {"epsilon": total.epsilon if total.epsilon < math.inf else None, "delta": total.delta, "releases": lines},
        indent=1,
    )
