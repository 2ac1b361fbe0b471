"""Which source a simulated run's images are of, and where its ledger lies."""

import glob
from pathlib import Path

from prismfl.data.files import write_atomic
from prismfl.privacy.source import Budget, SourceLedger, ledger_of
from prismfl.settings.schema import Settings


def source_of(settings: Settings, root: Path) -> SourceLedger:
    """The ledger of a run's data: in the user's state folder, by their real path; of arrays, in the run folder `root`.

    Data at another path are another source: nothing tells that they are a copy.  Raises PrivacyError for a budget that
    is none.
    """
    budget = budget_of(settings)
    if settings.data.dataset == "arrays":
        return SourceLedger(root / "source-ledger.jsonl", budget)
    name = name_of(settings)
    path = ledger_of(name)
    if not (about := path.with_name("source.txt")).exists():
        write_atomic(about, f"{name}\n", private=True)  # for whoever looks through the folder
    return SourceLedger(path, budget)


def budget_of(settings: Settings) -> Budget | None:
    """What the user allows a source to spend, at the run's δ; None where nothing is said."""
    most = settings.running.budget_epsilon
    return Budget(most, settings.privacy.delta) if most else None


def name_of(settings: Settings) -> str:
    """A run's source: the real path of its data, or what the data set is called."""
    data = settings.data
    place = str(_above(data.pattern)) if data.pattern else data.data_dir
    if place and Path(place).exists():
        return str(Path(place).resolve())
    return f"{data.dataset}:{place}" if place else data.dataset


def _above(pattern: str) -> Path:
    """The folder of a pattern's clients that is no pattern itself: a client more is no other source."""
    place = Path(pattern)
    while glob.has_magic(str(place)):
        place = place.parent
    return place
