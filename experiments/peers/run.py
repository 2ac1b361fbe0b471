"""Run peers and prismfl on the same data, clients, generator and budget, and append a line for each to one table.

    PYTHONPATH=experiments PRISMFL_DATA=data python -m peers.run --peers fedavg-gan md-gan prism --steps 200

`prism` is prismfl's default, `prism-published` the row `study/published.toml`.  Every client takes `--steps` steps of
64 images, unless `--seconds` of all clients together end first; prismfl, whose rates follow from the number of rounds,
plans as many as two rounds say will fit.  A step of a GAN trains its discriminator, and mostly its generator too; one
of prismfl searches a mask.  With ε each has δ = 1e-5 for one image of one client, replaced (see each peer).
"""

import argparse
import csv
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from peers import dp_merf, fedavg_gan, md_gan
from peers.common import DELTA, Budget, Task, Trained, load_task, measure, samples_of, save_grid, wanted_labels
from run import load_row, provenance, row_settings

import prismfl
from prismfl.engines.processes import keep_freed_memory
from prismfl.run.folder import read_rounds
from prismfl.run.progress import PlainWatcher
from prismfl.settings.resolve import resolved
from prismfl.settings.schema import Settings

PEERS: dict[str, Callable[[Task, Budget, float], Trained]] = {
    "fedavg-gan": fedavg_gan.train,
    "md-gan": md_gan.train,
    "dp-merf": dp_merf.train,
    "dp-merf-federated": dp_merf.train_federated,
}
ROWS = Path(__file__).parents[1]
OURS = {"prism": ROWS / "yardstick.toml", "prism-published": ROWS / "study" / "published.toml"}
NAMES = (
    "peer", "data", "epsilon", "seed", "steps", "seconds", "fid_judge", "taught", "bytes_up_a_client", "date",
    "hardware",
)  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="+", default=[*PEERS, *OURS], choices=[*PEERS, *OURS])
    parser.add_argument("--data", nargs="+", default=["mnist"], choices=["mnist", "fmnist", "digits"])
    parser.add_argument("--epsilons", nargs="+", type=float, default=[0.0], help="0: none")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=200, help="of each client")
    parser.add_argument("--seconds", type=float, default=3600.0, help="of all clients together")
    parser.add_argument("--samples", type=int, default=10_000, help="that figures are of")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/peers.csv"))
    parser.add_argument("--grids", type=Path, default=Path("runs/peers"))
    args = parser.parse_args()
    keep_freed_memory()
    budget = Budget(args.steps, args.seconds)
    for data in args.data:
        for seed in args.seeds:
            task = task_of(data, seed)
            for epsilon in args.epsilons:
                for peer in args.peers:
                    if peer == "md-gan" and epsilon:
                        continue  # it has no private form
                    print(f"== {peer}, {data}, ε = {epsilon:g}, seed {seed}", flush=True)
                    grid = args.grids / f"{peer}-{data}-{epsilon:g}-{seed}.png"
                    append(one_run(peer, task, epsilon, budget, args.samples, grid), args.out)


def settings_of(row: Path, data: str, seed: int, epsilon: float = 0.0) -> Settings:
    """A row's settings on another data set and with ε."""
    values, _ = load_row(row)
    values["data"]["dataset"] = data
    values["running"] = {"distance_samples": 0}
    values["privacy"] = {"epsilon": epsilon, "delta": DELTA} if epsilon else {}
    settings = row_settings(values, seed, Path())
    # No moments kept from other runs: to compute them is part of what a run takes.
    return replace(settings, running=replace(settings.running, cache_dir=""))


def task_of(data: str, seed: int) -> Task:
    """A data set as the yardstick deals it."""
    settings = settings_of(OURS["prism"], data, seed)
    folder = Path(settings.data.data_dir) if settings.data.data_dir else None
    return load_task(data, folder, seed, settings.data, settings.generator.size, settings.generator.width)


def one_run(peer: str, task: Task, epsilon: float, budget: Budget, count: int, grid: Path) -> dict[str, Any]:
    """A line of the table; the grid is saved."""
    labels = wanted_labels(task, count)
    if peer in OURS:
        images, spent = prism(OURS[peer], task, epsilon, budget, labels)
    else:
        found = PEERS[peer](task, budget, epsilon)
        images = samples_of(task, found.weights, labels)
        spent = {"steps": found.steps, "seconds": round(found.seconds, 1), "bytes_up_a_client": found.sent}
    save_grid(images, labels, grid)
    line = {"peer": peer, "data": task.data, "epsilon": epsilon, "seed": task.seed, **spent}
    return line | measure(task, images, labels) | provenance()


def prism(row: Path, task: Task, epsilon: float, budget: Budget, labels: Any) -> tuple[Any, dict[str, Any]]:
    """Samples of a run of prismfl, and what it took."""
    settings = settings_of(row, task.data, task.seed, epsilon)
    steps = resolved(settings, task.layout.channels, len(task.clients[0])).search.local_steps
    with tempfile.TemporaryDirectory() as root:
        rounds = max(1, budget.steps // steps)
        if budget.seconds < 3600:
            # Without ε, or it would be spent on this as well.
            pilot = settings_of(row, task.data, task.seed)
            rounds = max(1, min(rounds, rounds_within(pilot, budget.seconds, Path(root))))
        begun = time.monotonic()
        finished = prismfl.train(rounds_of(settings, rounds), out=Path(root) / "run", watcher=PlainWatcher())
        seconds = time.monotonic() - begun
        images = prismfl.load(finished.folder.model).sample(len(labels), seed=task.seed, labels=labels)
    sent = round(finished.summary["uplink_bytes"] / len(task.clients))
    return images, {"steps": rounds * steps, "seconds": round(seconds, 1), "bytes_up_a_client": sent}


def rounds_within(settings: Settings, seconds: float, root: Path) -> int:
    """Rounds that fit into so many seconds, by what two take."""
    begun = time.monotonic()
    finished = prismfl.train(rounds_of(settings, 2), out=root / "pilot")
    each = [line["seconds"] for line in read_rounds(finished.folder)]
    around = time.monotonic() - begun - sum(each)
    return int((seconds - around) / each[-1])


def rounds_of(settings: Settings, rounds: int) -> Settings:
    """The settings with so many rounds."""
    return replace(settings, federation=replace(settings.federation, rounds=rounds))


def append(line: dict[str, Any], path: Path) -> None:
    """Add a line to the table, and its header where it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as table:
        writer = csv.DictWriter(table, NAMES, extrasaction="ignore", lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerow(line)
        table.flush()
        os.fsync(table.fileno())
    print({name: line[name] for name in NAMES}, flush=True)


if __name__ == "__main__":
    main()
