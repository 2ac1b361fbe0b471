"""The folder of a run: the only writer of its state, whatever the engine.

A round is on disk once `checkpoint.safetensors` names it; lines of `rounds.jsonl` beyond it and
clients' memories of other rounds are leftovers of a killed run, and are dropped on resume.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from prismfl.config import Settings, load_settings, to_toml
from prismfl.errors import RunFolderError, SettingError
from prismfl.files import write_atomic
from prismfl.server import ServerState


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run folder."""

    root: Path

    @property
    def config(self) -> Path:
        """Settings of the run, TOML."""
        return self.root / "config.toml"

    @property
    def rounds(self) -> Path:
        """One JSON object a line and round."""
        return self.root / "rounds.jsonl"

    @property
    def checkpoint(self) -> Path:
        """θ and the number of rounds done."""
        return self.root / "checkpoint.safetensors"

    @property
    def model(self) -> Path:
        """The finished model."""
        return self.root / "model.safetensors"

    @property
    def ledger(self) -> Path:
        """Releases of private data, JSON."""
        return self.root / "ledger.json"

    @property
    def summary(self) -> Path:
        """Closing figures, JSON."""
        return self.root / "summary.json"

    @property
    def gathered(self) -> Path:
        """What clients sent to a server that searches alone."""
        return self.root / "gathered.safetensors"

    @property
    def evaluation(self) -> Path:
        """Figures of the finished model, JSON: what `prismfl evaluate --save` writes."""
        return self.root / "evaluation.json"

    @property
    def labels(self) -> Path:
        """Images of each label at each simulated client, JSON; none with ε set."""
        return self.root / "labels.json"

    @property
    def report(self) -> Path:
        """The report, one HTML page; its plots are pictures in `plots/` beside it."""
        return self.root / "report.html"

    @property
    def real(self) -> Path:
        """Grid of held-back real images, laid out as the samples; none with ε set."""
        return self.root / "samples" / "real.png"

    def samples(self, round_index: int) -> Path:
        """Grid of samples after a number of rounds."""
        return self.root / "samples" / f"round-{round_index:05d}.png"

    def client(self, client: int) -> Path:
        """A simulated client's own folder: its cached target and its memory."""
        return self.root / "clients" / str(client)


def create(root: Path, settings: Settings) -> RunFolder:
    """A new run folder with its settings.  Raises RunFolderError when a run is there already."""
    folder = RunFolder(root)
    if root.is_dir() and any(root.iterdir()):
        raise RunFolderError(
            f"files in {root}", "a new or empty folder", f"choose another --out, or continue with --resume {root}"
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(
            f"cannot make {root} ({error.strerror})", "a writable place", "choose another --out"
        ) from None
    write_atomic(folder.config, to_toml(settings))
    gather_ledger(folder)
    return folder


def reopen(root: Path) -> tuple[RunFolder, Settings]:
    """An existing run folder and its settings.  Raises RunFolderError."""
    folder = RunFolder(root)
    if not folder.config.is_file():
        raise RunFolderError(f"no config.toml in {root}", "the folder of a run", "check the path")
    try:
        return folder, load_settings(folder.config)
    except SettingError as error:
        raise RunFolderError(f"{folder.config}: {error.got}", error.expected, error.remedy) from None


_MEMORY = ("adam_first", "adam_second", "adam_steps")


def save_state(folder: RunFolder, state: ServerState, record: Mapping[str, Any]) -> None:
    """Commit a round: its log line first, then the checkpoint that makes it count."""
    _append(folder.rounds, json.dumps(record))
    tensors: dict[str, NDArray[Any]] = {
        "q": state.q,
        "round": np.array([state.round], np.int64),
        "held": state.held,
        "steps": np.frombuffer(b"".join(state.steps), np.uint8),
        "lengths": np.array([len(step) for step in state.steps], np.int64),
    }
    if state.memory is not None:
        tensors |= dict(zip(_MEMORY, state.memory, strict=True))
    write_atomic(folder.checkpoint, save_tensors(tensors))


def load_state(folder: RunFolder, count: int, clients: int) -> ServerState | None:
    """State of the last committed round, or None before the first.  Raises RunFolderError.

    Log lines beyond it are removed.
    """
    if not folder.checkpoint.is_file():
        write_atomic(folder.rounds, "") if folder.rounds.exists() else None
        return None
    try:
        state = _state_of(load_tensors(folder.checkpoint.read_bytes()))
        if state.q.dtype != np.uint16 or state.q.shape != (count,) or state.held.shape != (clients,):
            raise ValueError(f"θ of shape {state.q.shape}, {count} parameters expected")
        if state.memory is not None and [part.shape for part in state.memory] != [(count,), (count,), (1,)]:
            raise ValueError("Adam's moments of other sizes")
    except (OSError, SafetensorError, KeyError, ValueError, IndexError) as error:
        raise RunFolderError(
            f"{folder.checkpoint} is damaged ({error})", "a whole checkpoint", "start the run anew"
        ) from None
    lines = [record for record in read_rounds(folder) if record["round"] < state.round]
    write_atomic(folder.rounds, "".join(json.dumps(record) + "\n" for record in lines))
    return state


def _state_of(tensors: Mapping[str, NDArray[Any]]) -> ServerState:
    done, lengths, raw = int(tensors["round"][0]), tensors["lengths"], tensors["steps"].tobytes()
    if lengths.dtype != np.int64 or (lengths < 0).any() or int(lengths.sum()) != len(raw):
        raise ValueError(f"{len(raw)} bytes of steps, {lengths.sum()} expected")
    if (tensors["held"] > done).any():
        raise ValueError(f"a client beyond round {done}")
    ends = np.cumsum(lengths).tolist()
    steps = tuple(raw[start:end] for start, end in zip([0, *ends], ends, strict=False))
    first, second, taken = _MEMORY
    memory = (tensors[first], tensors[second], tensors[taken]) if first in tensors else None
    return ServerState(tensors["q"], done, steps, tensors["held"], memory)


def save_ledger(folder: RunFolder, client: int, releases: list[dict[str, Any]]) -> None:
    """All releases of one client, in its own folder; see `gather_ledger`.  Raises RunFolderError."""
    write_atomic(_ledger_of(folder, client), json.dumps({"releases": releases}, indent=1) + "\n")


def client_ledger(folder: RunFolder, client: int) -> list[Any]:
    """All releases of one client.  Raises RunFolderError for a ledger that does not read."""
    path = _ledger_of(folder, client)
    return _releases_in(path) if path.exists() else []


def _ledger_of(folder: RunFolder, client: int) -> Path:
    return folder.client(client) / "ledger.json"


def _releases_in(path: Path) -> list[Any]:
    try:
        return list(json.loads(path.read_text())["releases"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{path} does not read ({error})", "a client's ledger", "restore the file") from None


def gather_ledger(folder: RunFolder) -> list[Any]:
    """Write the run's ledger anew of what its clients released, and return it.  Raises RunFolderError."""
    found: list[Any] = []
    for path in sorted(folder.root.glob("clients/*/ledger.json"), key=lambda path: (len(path.parent.name), path)):
        found += _releases_in(path)
    write_atomic(folder.ledger, json.dumps({"releases": found}, indent=1) + "\n")
    return found


def read_rounds(folder: RunFolder) -> list[dict[str, Any]]:
    """The log's whole lines; a last line cut short by a kill is left out."""
    found = []
    for line in folder.rounds.read_text().splitlines() if folder.rounds.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object of the run folder, or None where the file is not there.  Raises RunFolderError."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} does not read ({error})", "a JSON object", "restore or remove it") from None
    if not isinstance(found, dict):
        raise RunFolderError(f"{path} holds {type(found).__name__}", "a JSON object", "restore or remove it")
    return found


def save_labels(
    folder: RunFolder, classes: Sequence[str], counts: Sequence[Sequence[int]], people: Sequence[int] = ()
) -> None:
    """How many images of each class, and persons if known, each simulated client has.  Raises RunFolderError."""
    found: dict[str, Any] = {"simulation": True, "classes": list(classes), "counts": [list(row) for row in counts]}
    found |= {"people": list(people)} if people else {}
    write_atomic(folder.labels, json.dumps(found) + "\n")


def grids(folder: RunFolder) -> dict[int, Path]:
    """Sample grids by the number of rounds done, ascending."""
    found = (folder.root / "samples").glob("round-*.png")
    named = {path.stem.removeprefix("round-"): path for path in found}
    return dict(sorted((int(rounds), path) for rounds, path in named.items() if rounds.isdecimal()))


def _append(path: Path, line: str) -> None:
    try:
        with path.open("a") as file:
            file.write(line + "\n")
    except OSError as error:
        raise RunFolderError(
            f"cannot write {path} ({error.strerror})", "a writable place with room", "free space and resume the run"
        ) from None


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """A client's arrays, whole.  Raises RunFolderError."""
    write_atomic(path, save_tensors(dict(arrays)))


def load_arrays(path: Path) -> dict[str, NDArray[Any]] | None:
    """A client's arrays, or None when there is no usable file: what is cached can be made again."""
    try:
        return load_tensors(path.read_bytes())
    except (OSError, SafetensorError):
        return None
