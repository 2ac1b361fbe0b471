"""The table of the field: accuracy by DPImageBench's protocol, distance, precision and recall, by ε and by who holds
what.

    PRISMFL_DATA=data python experiments/field.py --data mnist fmnist --out experiments/results/field.csv

A cell is one run of `prismfl train` at its defaults but for what the cell is about; of colour a search by soft masks.
A run that was stopped goes on, and one that is in the table is left out.  Faces have no labels, so no accuracy; their
persons are dealt, and shards and Dirichlet shares do not exist.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

from run import RunFolder, provenance, row_settings

from prismfl.engines import simulator
from prismfl.run.evaluate import evaluate_model
from prismfl.run.progress import PlainWatcher
from prismfl.run.protocol import evaluate_by_protocol
from prismfl.settings.toml import laid_over

_PRIVATE = {"privacy": {"epsilon": 10.0}}
# Rounds of masks on shards by ε; then, at ε = 10, one thing changed each.
CELLS: dict[str, dict[str, Any]] = {
    "none": {},
    **{f"epsilon-{epsilon}": {"privacy": {"epsilon": float(epsilon)}} for epsilon in ("10", "3", "1", "0.2")},
    "one-client": {**_PRIVATE, "data": {"clients": 1, "partition": "iid"}},
    "iid": {**_PRIVATE, "data": {"partition": "iid"}},
    "dirichlet-0.1": {**_PRIVATE, "data": {"partition": "dirichlet:0.1"}},
    "one-shot": {**_PRIVATE, "federation": {"mode": "one-shot"}},
    "secure-sum": {**_PRIVATE, "federation": {"mode": "one-shot", "secure_sum": True}},
}
_GREY = {"generator": {"size": 32}}
_COLOUR = {"generator": {"size": 32, "channels": 3}, "search": {"mask": "soft"}, "federation": {"rounds": 10}}
DATA: dict[str, dict[str, Any]] = {
    "mnist": {**_GREY, "data": {"dataset": "mnist"}},
    "fmnist": {**_GREY, "data": {"dataset": "fmnist"}},
    "cifar10": {**_COLOUR, "data": {"dataset": "folder", "data_dir": "cifar10/cifar10-jpeg.zip"}},
    "faces": {**_COLOUR, "data": {"dataset": "folder", "data_dir": "faces/faces-64.zip", "people": "person([0-9]+)"}},
}
# A server that searches alone takes as many steps as all ten clients together.
_STEPS = {"mnist": 250, "fmnist": 250, "cifar10": 400, "faces": 400}
FIGURES = ("accuracy", "fid_judge", "precision_judge", "recall_judge", "fid_judge_of_real")
KEYS = ("data", "cell", "seed")
SPENT = ("uplink_bytes", "downlink_bytes", "model_bytes", "seconds")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=Path("experiments/results/field.csv"))
    parser.add_argument("--runs", type=Path, default=Path("runs/field"))
    args = parser.parse_args()
    for seed in args.seeds:
        for data in args.data:
            for cell in args.cells:
                if exists(data, cell) and not known(args.out, data, cell, seed):
                    add(args.out, one_run(data, cell, seed, args.runs))


def exists(data: str, cell: str) -> bool:
    """Whether a cell is a run of its own: without labels nothing is dealt by them, and persons always are by chance."""
    return data != "faces" or cell not in ("dirichlet-0.1", "iid")


def values_of(data: str, cell: str) -> dict[str, Any]:
    """Nested settings of a cell."""
    base = laid_over(DATA[data], {"running": {"distance_samples": 0}})
    values = laid_over(base, CELLS[cell])
    if values.get("federation", {}).get("mode") == "one-shot":
        values = laid_over(values, {"search": {"local_steps": _STEPS[data]}})
    if data == "faces":
        values = laid_over(values, {"data": {"partition": "iid"}})
    return values


def one_run(data: str, cell: str, seed: int, runs: Path) -> dict[str, Any]:
    """One cell, run or resumed, and measured."""
    folder = RunFolder(runs / f"{data}-{cell}-{seed}")
    print(f"== {folder.root.name}", flush=True)
    settings = row_settings(values_of(data, cell), seed, runs / "targets")
    if folder.config.exists():
        summary = simulator.resume(folder.root, watcher=PlainWatcher()).summary
    else:
        summary = simulator.train(settings, out=folder.root, watcher=PlainWatcher()).summary
    where = settings.data.dataset, settings.data.data_dir
    found = evaluate_model(folder.model, *where, metrics="fid,prdc")
    if data != "faces":
        found |= evaluate_by_protocol(folder.model, "dpimagebench", *where, seed=seed)
    measured = {name: round(found[name], 5) for name in FIGURES if name in found}
    spent = {name: summary[name] for name in SPENT}
    return dict(zip(KEYS, (data, cell, seed), strict=True)) | measured | spent | provenance()


def known(path: Path, data: str, cell: str, seed: int) -> bool:
    """Whether the table has a line of it."""
    return any(tuple(line[key] for key in KEYS) == (data, cell, str(seed)) for line in lines_of(path))


def lines_of(path: Path) -> list[dict[str, str]]:
    """The table's lines."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def add(path: Path, line: dict[str, Any]) -> None:
    """One line more; columns as the first one has them."""
    names = [*KEYS, *FIGURES, *SPENT, "commit", "date", "hardware"]
    fresh = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, names, extrasaction="ignore", lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerow(line)


if __name__ == "__main__":
    main()
