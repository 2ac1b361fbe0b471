"""Pictures of what was measured, for the documentation: distance against bytes, and against ε.

python experiments/plot.py experiments/results/*.csv --out docs/images
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path
from statistics import mean

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

EPSILON = {"epsilon-1": 1.0, "epsilon-3": 3.0, "epsilon-9-8": 9.8}
NAMES = {
    "spread": "2 parts, batches of 32",
    "spread-whole": "whole masks, batches of 32",
    "few-bits": "fewest bits, batches of 32",
    "few-bits-shrunk": "so, batches of 32, moves shortened",
    "wide-batch": "2 parts, batches of 64 (default)",
    "wide-batch-whole": "whole masks, batches of 64",
    "wide-batch-few-bits": "fewest bits, batches of 64",
    "wide-batch-long": "20 × 25 steps of 64 (default of a run)",
    "batch-128": "2 parts, batches of 128",
    "batch-128-whole": "whole masks, batches of 128",
    "batch-128-few-bits": "fewest bits, batches of 128",
    "today": "independent latents",
    "yardstick": "default before",
    "whole-masks-uncoded": "whole masks, uncoded",
    "parts-2": "2 parts, float32",
    "parts-3": "3 parts",
    "parts-10": "10 parts",
    "shards-one-shot": "one-shot, steps of one client",
    "shards-one-shot-long": "one-shot, steps of all",
    "one-shot-small-4": "one-shot, small maps, coarse moments",
    "shards-prism": "PRISM (published average)",
    "shards-alpha": "PRISM-α 0.8",
    "shards-dense": "dense weights",
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    args = parser.parse_args()
    runs = [row for path in args.tables for row in csv.DictReader(path.open(encoding="utf-8")) if "row" in row]
    figure, axes = plt.subplots(figsize=(9, 4.6), layout="constrained")
    bytes_of_runs(axes, runs)
    figure.savefig(args.out / "bytes.png", dpi=110)
    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    epsilons(axes, runs)
    figure.savefig(args.out / "privacy.png", dpi=110)


def bytes_of_runs(axes: Axes, runs: list[dict[str, str]]) -> None:
    """A point a run, a name a row, at its mean."""
    points = defaultdict(list)
    for run in runs:
        if run["row"] in NAMES and run.get("downlink_bytes"):
            total = (int(run["uplink_bytes"]) + int(run["downlink_bytes"])) / 1e6
            points[run["row"]].append((total, float(run["fid_embedded"])))
    for place, (row, found) in enumerate(points.items()):
        look = {"marker": "os^D"[place % 4], "color": f"C{place % 10}", "s": 26}
        axes.scatter(*zip(*found, strict=True), label=f"{NAMES[row]} ({len(found)})", **look)
    axes.set(xscale="log", yscale="log", xlabel="MB up and down, ten clients, whole run", ylabel="fid_embedded")
    for ticks, axis in (
        ([0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 500], axes.xaxis),
        ([1.5, 2, 3, 4, 5, 6, 8, 10, 20], axes.yaxis),
    ):
        axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    axes.grid(True, alpha=0.25)


def epsilons(axes: Axes, runs: list[dict[str, str]]) -> None:
    """Distances by ε, and those without privacy as a band."""
    plain = [float(run["fid_embedded"]) for run in runs if run["row"] == "yardstick"]
    for row, epsilon in EPSILON.items():
        found = [float(run["fid_embedded"]) for run in runs if run["row"] == row]
        axes.scatter([epsilon] * len(found), found, s=26, color="tab:blue")
    axes.axhspan(min(plain), max(plain), color="tab:grey", alpha=0.2, label="no privacy, three seeds")
    axes.axhline(mean(plain), color="tab:grey", label="their mean")
    axes.set(xscale="log", xlabel="ε of the whole run (δ = 1e-5)", ylabel="fid_embedded", ylim=(0, None))
    axes.set_xticks(list(EPSILON.values()), [f"{value:g}" for value in EPSILON.values()])
    axes.legend(fontsize=8, loc="lower right")


if __name__ == "__main__":
    main()
