"""What a run folder has to report, read and checked; an unfinished run simply has less of it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prismfl.errors import PrivacyError, SettingError
from prismfl.generator.modelfile import load_model
from prismfl.privacy.ledger import Entry, from_json, summary_of
from prismfl.run import folder as runfolder
from prismfl.run.folder import RunFolder, damaged
from prismfl.settings.schema import Settings

MOST_RUNS = 10  # on one page: colours that can be told apart
WAYS = {"uplink": "up: clients to server", "downlink": "down: server to clients"}
_NUMBERS = ("round", "loss", "lambda", "density", "seconds", *(f"{way}_bytes" for way in WAYS))


@dataclass(frozen=True)
class Curve:
    """Values of a figure after so many rounds each: `values[i]` after `rounds[i]`."""

    rounds: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Run:
    """A run as its folder tells it.

    name: of the folder; rounds: lines of the log; summary, evaluation: None where not there (yet); labels: the names
    of all, and images of each at each simulated client, `[client][label]`; classes: names of the labels that grids
    have columns of, empty where unknown; grids: files by number of rounds done; real: grid of held-back real images,
    None where there is none to show; read: what data were read, in one line, where the run says so.
    """

    name: str
    folder: RunFolder
    settings: Settings
    rounds: tuple[Mapping[str, Any], ...]
    summary: Mapping[str, Any] | None
    evaluation: Mapping[str, Any] | None
    ledger: tuple[Entry, ...]
    labels: tuple[list[str], list[list[int]]] | None
    classes: tuple[str, ...]
    grids: Mapping[int, Path]
    real: Path | None
    read: str = ""

    @property
    def planned(self) -> int:
        """Rounds that the settings ask for."""
        return self.settings.federation.rounds

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.summary is not None

    @property
    def private(self) -> bool:
        """Whether the run promises (ε, δ): then what private images were measured for is outside the promise."""
        return bool(self.ledger) or self.settings.privacy.epsilon > 0

    @cached_property
    def privacy(self) -> str:
        """The guarantee in one line."""
        return str(self.summary["privacy"]) if self.summary and "privacy" in self.summary else summary_of(self.ledger)

    def curve(self, key: str) -> Curve:
        """A number of the log, where it was logged; of `theta_by_layer.NAME`, a layer's."""
        pairs = [(line["round"] + 1, _within(line, key)) for line in self.rounds]
        there = [(done, float(value)) for done, value in pairs if _number(value)]
        return Curve(tuple(done for done, _ in there), tuple(value for _, value in there))

    def distance(self) -> Curve:
        """Distances on the way and of the finished model."""
        found, last = self.curve("distance"), (self.summary or {}).get("fid_judge")
        if last is None or not _number(last):
            return found
        return Curve((*found.rounds, len(self.rounds)), (*found.values, float(last)))

    def total(self, key: str) -> float:
        """Sum of a figure over the rounds, and what the closing comparison took, once there is a summary."""
        found = (self.summary or {}).get(key)
        if found is not None and _number(found):
            return float(found)
        return sum(self.curve(key).values)

    def layers(self) -> tuple[str, ...]:
        """Names of the layers whose mean θ is logged."""
        return tuple(self.rounds[-1].get("theta_by_layer", ())) if self.rounds else ()

    def left_out(self) -> Iterator[tuple[int, str, str]]:
        """Round, client and reason of every reply that did not count."""
        for line in self.rounds:
            for client, why in line.get("left_out", {}).items():
                yield line["round"], client, str(why)


def read_runs(roots: Sequence[Path]) -> tuple[Run, ...]:
    """The runs in these folders, 1 … `MOST_RUNS` of them, named apart.  Raises PrismError subclasses for damage."""
    if not 1 <= len(roots) <= MOST_RUNS:
        raise SettingError(f"{len(roots)} run folders", f"1 … {MOST_RUNS}", "report on fewer at a time")
    return tuple(_read(root, name) for root, name in zip(roots, _names(roots), strict=True))


def _names(roots: Sequence[Path]) -> list[str]:
    whole = [root.resolve() for root in roots]
    names = [path.name for path in whole]
    if len(set(names)) < len(names):
        names = [f"{path.parent.name}/{path.name}" for path in whole]
    again = len(set(names)) < len(names)
    return [f"{name} ({index + 1})" for index, name in enumerate(names)] if again else names


def _read(root: Path, name: str) -> Run:
    folder, settings = runfolder.reopen(root)
    found = runfolder.read_json(folder.ledger) or {"releases": []}
    try:
        ledger = from_json(found.get("releases"))
    except PrivacyError as error:
        raise damaged(folder.ledger, error.got) from None
    # With ε set, labels of clients are outside the guarantee: whatever lies there is not even read.  Held-back images
    # are private too, unless distances to them were asked for.
    private = bool(ledger or settings.privacy.epsilon)
    labels = None if private else _labels(folder)
    shown = (not private or settings.privacy.distances) and folder.real.is_file()
    model = load_model(folder.model) if folder.model.is_file() else None
    conditional = tuple(labels[0]) if labels and settings.generator.conditional and len(labels[0]) > 1 else ()
    return Run(
        name=name,
        folder=folder,
        settings=settings,
        rounds=tuple(_rounds(folder)),
        summary=runfolder.read_json(folder.summary),
        evaluation=runfolder.read_json(folder.evaluation),
        ledger=ledger,
        labels=labels,
        classes=model.labels if model else conditional,
        grids=runfolder.grids(folder),
        real=folder.real if shown else None,
        read=read_line(folder),
    )


def read_line(folder: RunFolder) -> str:
    """What data were read, in one line; empty where the run folder does not say.  Raises RunFolderError."""
    line = (runfolder.read_json(folder.root / "data.json") or {}).get("line", "")
    return line if isinstance(line, str) else ""


def _rounds(folder: RunFolder) -> list[dict[str, Any]]:
    found = runfolder.read_rounds(folder)
    for number, line in enumerate(found, 1):
        wrong = [key for key in _NUMBERS if type(line.get(key)) not in (int, float)]
        wrong += [key for key in ("left_out", "theta_by_layer") if not isinstance(line.get(key, {}), dict)]
        if wrong:
            raise damaged(folder.rounds, f"line {number} has {wrong[0]} = {line.get(wrong[0])!r}")
    return found


def _labels(folder: RunFolder) -> tuple[list[str], list[list[int]]] | None:
    found = runfolder.read_json(folder.labels)
    if found is None:
        return None
    classes, counts = found.get("classes"), found.get("counts")
    if not (isinstance(classes, list) and classes and isinstance(counts, list) and counts):
        raise damaged(folder.labels, "no classes or no counts")
    whole = all(isinstance(row, list) and len(row) == len(classes) for row in counts)
    if not whole or any(type(count) is not int or count < 0 for row in counts for count in row):
        raise damaged(folder.labels, "counts that are not one a class")
    return list(map(str, classes)), counts


def _within(line: Mapping[str, Any], key: str) -> Any:
    name, _, part = key.partition(".")
    value = line.get(name)
    return value.get(part) if part and isinstance(value, Mapping) else value


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
