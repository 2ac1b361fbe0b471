"""The folder of a run: the only writer of its state, whatever the engine.

A round is on disk once `checkpoint.safetensors` names it; lines of `rounds.jsonl` beyond it and
clients' memories of other rounds are leftovers of a killed run, and are dropped on resume.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from prismfl.data.description import Description
from prismfl.data.files import write_atomic
from prismfl.data.lock import alone
from prismfl.errors import ModelFileError, RunFolderError, SettingError
from prismfl.generator.modelfile import Model, load_model, save_model
from prismfl.server import ServerState
from prismfl.settings.resolve import notes_of
from prismfl.settings.schema import Running, Settings
from prismfl.settings.toml import merged, read_toml, settings_from, to_toml, toml_value

if TYPE_CHECKING:
    from prismfl.federation.agreement import Agreement

_RESOLVED = "resolved"  # table of what is no setting


@dataclass
class RunFolder:
    """Paths of a run folder; tables are TOML, `rounds` is one JSON object a line and round, all else of text JSON."""

    root: Path

    def __post_init__(self) -> None:
        root = self.root
        self.config = root / "config.toml"  # settings as they were asked for
        self.pending = root / "pending.toml"  # the same as a resume asks, until it is known to be the same run
        self.resolved = root / "resolved.toml"  # what the settings came to, and why
        self.rounds = root / "rounds.jsonl"
        self.checkpoint = root / "checkpoint.safetensors"  # θ and the number of rounds done
        self.gathered = root / "gathered.safetensors"  # moments that clients sent, or their sum
        self.masks = root / "masks"  # of an ensemble: masks that are finished, a model each
        self.sum = root / "sum.safetensors"  # of a secure sum under way: what its sites have told
        self.model = root / "model.safetensors"  # the finished model
        self.ledger = root / "ledger.json"  # releases of private data
        self.summary = root / "summary.json"  # closing figures
        self.evaluation = root / "evaluation.json"  # figures of the finished model, by `prismfl evaluate --save`
        self.data = root / "data.json"  # what was read, in a line and in figures; with ε none that is private
        self.skipped = root / "skipped.txt"  # files of a simulated run's data that were not read, and why
        self.labels = root / "labels.json"  # images of each label at each simulated client; none with ε set
        self.report = root / "report.html"  # its plots are pictures in `plots/` beside it
        self.real = root / "samples" / "real.png"  # held-back real images, laid out as the samples; none with ε set

    def samples(self, round_index: int) -> Path:
        """Grid of samples after a number of rounds."""
        return self.root / "samples" / f"round-{round_index:05d}.png"

    def client(self, client: int) -> Path:
        """A simulated client's own folder: its cached target and its memory."""
        return self.root / "clients" / str(client)


def create(root: Path, settings: Settings) -> RunFolder:
    """A new run folder with its settings.  Raises RunFolderError when a run is there already."""
    check_new(root)
    folder = RunFolder(root)
    write_atomic(folder.config, to_toml(settings))
    gather_ledger(folder)
    return folder


def check_new(root: Path) -> None:
    """Raises RunFolderError where a folder has files already."""
    if root.is_dir() and any(root.iterdir()):
        raise RunFolderError(
            f"files in {root}", "a new or empty folder", f"choose another --out, or continue with --resume {root}"
        )


def lock_of(root: Path) -> Path:
    """What whoever writes to a run folder holds."""
    return root / ".lock"


def alone_in(folder: RunFolder, patience: float = 0.0) -> AbstractContextManager[None]:
    """Hold a run folder against whoever else would go on with its run.  Raises RunFolderError."""
    return alone(lock_of(folder.root), str(folder.root), patience)


_MOVABLE = {"data_dir", "features", "people"}  # files that may have moved since the run began


def reopen(
    root: Path, changes: Mapping[str, Any] | None = None, *, going_on: bool = False
) -> tuple[RunFolder, Settings]:
    """An existing run folder and its settings: what they came to, on this machine anew.

    changes: settings of the section `running` and places of files; they are the run's once `record` took them, and
    until then of who is going_on in another process.  Raises RunFolderError, and SettingError for other changes.
    """
    folder = RunFolder(root)
    if not folder.config.is_file():
        raise RunFolderError(f"no config.toml in {root}", "the folder of a run", "check the path")
    asked = _stored(folder.pending if going_on and folder.pending.is_file() else folder.config)
    if changes is not None:
        folder.pending.unlink(missing_ok=True)
    if changes:
        if wrong := sorted(set(changes) - {item.name for item in fields(Running)} - _MOVABLE):
            raise SettingError(
                f"--resume with --{wrong[0].replace('_', '-')}",
                "options of running, as --workers or --device, and places of files: what is agreed on stays",
                "leave it out, or begin a new run",
            )
        asked = settings_from(merged(asdict(asked), changes))
        write_atomic(folder.pending, to_toml(asked))
    return folder, _here(_stored(folder.resolved), asked) if folder.resolved.is_file() else asked


def _stored(path: Path) -> Settings:
    try:
        values = read_toml(path)
        values.pop(_RESOLVED, None)
        if not values:
            raise damaged(path, "it is empty")
        return settings_from(values)
    except SettingError as error:
        raise RunFolderError(f"{path}: {error.got}", error.expected, error.remedy) from None


def _here(found: Settings, asked: Settings) -> Settings:
    """Resolved settings with this machine's own options and places."""
    data = replace(found.data, data_dir=asked.data.data_dir, people=asked.data.people)
    features = asked.features if asked.features.weights else found.features
    return replace(found, data=data, features=features, running=asked.running)


def record(folder: RunFolder, asked: Settings, agreement: "Agreement") -> None:
    """Write down what the settings came to, with reasons; in a run that goes on, check that it is the same.

    Then changes that a resume asked for are the run's.
    Raises ModelFileError for another feature network than the run began with, RunFolderError for anything else that
    makes it another run.
    """
    if not folder.resolved.is_file():
        about = {"run": agreement.run.hex(), "network": agreement.network, **asdict(agreement.matching)}
        table = "".join(f"{name} = {toml_value(value)}\n" for name, value in about.items())
        text = to_toml(agreement.settings, notes_of(asked, agreement.settings))
        write_atomic(folder.resolved, f"{text}\n[{_RESOLVED}]\n{table}")
    began = read_toml(folder.resolved).get(_RESOLVED)
    if not isinstance(began, dict) or not {"run", "network"} <= set(began):
        raise damaged(folder.resolved, f"no run and network in its table {_RESOLVED}")
    if began["network"] != agreement.network:
        raise ModelFileError(
            f"feature network {agreement.settings.features.features} with SHA-256 {agreement.network}",
            f"{began['network']}, of the network that the run began with",
            "name its file with --features",
        )
    if began["run"] != agreement.run.hex():
        raise RunFolderError(
            f"settings and data in {folder.root} that come to another run",
            f"run {began['run']}",
            "go on with the version of prismfl and the data that it began with, by --data-dir where they moved",
        )
    if folder.pending.is_file():
        folder.pending.replace(folder.config)


_MEMORY = ("adam_first", "adam_second", "adam_steps")


def save_state(folder: RunFolder, state: ServerState, record: Mapping[str, Any]) -> None:
    """Commit a round: its log line first, then the checkpoint that makes it count.  Raises RunFolderError."""
    try:
        with folder.rounds.open("a") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        got = f"cannot write {folder.rounds} ({error.strerror})"
        raise RunFolderError(got, "a writable place with room", "free space and resume the run") from None
    tensors: dict[str, NDArray[Any]] = {
        "q": state.q,
        "round": np.array([state.round], np.int64),
        "held": state.held,
        "steps": np.frombuffer(b"".join(state.steps), np.uint8),
        "lengths": np.array([len(step) for step in state.steps], np.int64),
    }
    if state.memory is not None:
        tensors |= dict(zip(_MEMORY, state.memory, strict=True))
    save_arrays(folder.checkpoint, tensors)


def load_state(folder: RunFolder, count: int, clients: int) -> ServerState | None:
    """State of the last committed round, or None before the first.  Raises RunFolderError.

    Log lines beyond it are removed.
    """
    if not folder.checkpoint.is_file():
        if folder.rounds.exists():
            write_atomic(folder.rounds, "")
        return None
    try:
        state = _state_of(load_tensors(folder.checkpoint.read_bytes()), count, clients)
    except (OSError, SafetensorError, KeyError, ValueError, IndexError) as error:
        raise damaged(folder.checkpoint, str(error), "start the run anew") from None
    lines = [record for record in read_rounds(folder) if record["round"] < state.round]
    write_atomic(folder.rounds, "".join(json.dumps(record) + "\n" for record in lines))
    return state


def _state_of(tensors: Mapping[str, NDArray[Any]], count: int, clients: int) -> ServerState:
    q, held, lengths, raw = tensors["q"], tensors["held"], tensors["lengths"], tensors["steps"].tobytes()
    done, memory = int(tensors["round"][0]), tuple(tensors[name] for name in _MEMORY if name in tensors)
    if q.dtype != np.uint16 or q.shape != (count,):
        raise ValueError(f"θ of shape {q.shape}, {count} parameters expected")
    if held.shape != (clients,) or (held > done).any():
        raise ValueError(f"clients of shape {held.shape}, {clients} expected, none beyond round {done}")
    if lengths.dtype != np.int64 or (lengths < 0).any() or int(lengths.sum()) != len(raw):
        raise ValueError(f"{len(raw)} bytes of steps, {lengths.sum()} expected")
    if memory and [part.shape for part in memory] != [(count,), (count,), (1,)]:
        raise ValueError("Adam's moments of other sizes")
    ends = np.cumsum(lengths).tolist()
    steps = tuple(raw[start:end] for start, end in zip([0, *ends], ends, strict=False))
    return ServerState(q, done, steps, held, (memory[0], memory[1], memory[2]) if memory else None)


def save_ledger(folder: RunFolder, client: int, releases: Sequence[Any], names: Sequence[str] = ()) -> None:
    """A client's releases in this run, in its own folder; see `gather_ledger`.  Raises RunFolderError.

    names: those that they have in the ledger of their source, which stay on this disk.
    """
    text = json.dumps({"releases": list(releases), "names": list(names)}, indent=1)
    write_atomic(_ledger_of(folder, client), text + "\n", private=True)


def note_release(folder: RunFolder, client: int, name: str, entry: Mapping[str, Any]) -> None:
    """Enter a release that a client uses in this run, once.  Raises RunFolderError."""
    path = _ledger_of(folder, client)
    held = read_json(path) or {"releases": [], "names": []}
    if name not in held.get("names", []):
        save_ledger(folder, client, [*_releases_in(path, held), entry], [*held.get("names", []), name])


def _ledger_of(folder: RunFolder, client: int) -> Path:
    return folder.client(client) / "ledger.json"


def _releases_in(path: Path, held: Mapping[str, Any]) -> list[Any]:
    if not isinstance(releases := held.get("releases"), list):
        raise damaged(path, "no releases")
    return releases


def gather_ledger(folder: RunFolder) -> list[Any]:
    """Write the run's ledger anew of what its clients released, and return it.  Raises RunFolderError."""
    found: list[Any] = []
    for path in sorted(folder.root.glob("clients/*/ledger.json"), key=lambda path: (len(path.parent.name), path)):
        found += _releases_in(path, read_json(path) or {})
    write_atomic(folder.ledger, json.dumps({"releases": found}, indent=1) + "\n")
    return found


def read_rounds(folder: RunFolder) -> list[dict[str, Any]]:
    """The log's lines; a last one cut short by a kill is left out.  Raises RunFolderError for any other damage."""
    found: list[dict[str, Any]] = []
    try:
        lines = folder.rounds.read_text(encoding="utf-8").splitlines() if folder.rounds.exists() else []
    except (OSError, ValueError) as error:
        raise damaged(folder.rounds, str(error)) from None
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):
                break
            raise damaged(folder.rounds, f"line {number} is no JSON") from None
        if not isinstance(record, dict):
            raise damaged(folder.rounds, f"line {number} is no object")
        if type(record.get("round")) is not int:
            raise damaged(folder.rounds, f"line {number} has round = {record.get('round')!r}")
        found.append(record)
    return found


def damaged(path: Path, why: str, remedy: str = "restore the file") -> RunFolderError:
    """The error of a file that holds something else than a run writes."""
    return RunFolderError(f"{path} is damaged ({why})", "what a run writes", remedy)


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


def save_description(folder: RunFolder, described: Description) -> None:
    """What was read of a simulated run's data; names of files that were not, for its owner alone.  Raises
    RunFolderError.
    """
    write_atomic(folder.data, json.dumps(described.as_json()) + "\n")
    if skipped := described.reading.skipped:
        text = "".join(f"{why}\t{name!r}\n" for name, why in skipped)
        write_atomic(folder.skipped, text, private=True)


def grids(folder: RunFolder) -> dict[int, Path]:
    """Sample grids by the number of rounds done, ascending."""
    found = (folder.root / "samples").glob("round-*.png")
    named = {path.stem.removeprefix("round-"): path for path in found}
    return dict(sorted((int(rounds), path) for rounds, path in named.items() if rounds.isdecimal()))


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """A client's arrays, whole, for nobody else to read.  Raises RunFolderError."""
    write_atomic(path, save_tensors(dict(arrays)), private=True)


def load_arrays(path: Path) -> dict[str, NDArray[Any]] | None:
    """A client's arrays, or None when there is no usable file: what is cached can be made again."""
    try:
        return load_tensors(path.read_bytes())
    except (OSError, SafetensorError):
        return None


def save_mask(folder: RunFolder, number: int, model: Model) -> None:
    """A finished mask of an ensemble, as a model of its own, whole.  Raises RunFolderError."""
    save_model(model, folder.masks / f"{number}.safetensors")


def load_masks(folder: RunFolder) -> tuple[Model, ...]:
    """The finished masks of an ensemble, from the first one on.  Raises ModelFileError for one that is damaged."""
    found: list[Model] = []
    while (path := folder.masks / f"{len(found)}.safetensors").is_file():
        found.append(load_model(path))
    return tuple(found)
