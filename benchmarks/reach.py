"""Seconds to a distance: this package's defaults beside PRISM as published, in turns on one machine.

    python benchmarks/reach.py --dataset mnist --data-dir data/mnist [--rounds 20] [--seeds 0 1]

Ten clients on label shards, ten steps of 64 images a client and round, a generator of width 16, both matched in the
same network.  Seconds are of rounds alone, distances `fid_judge` of 2,000 samples after some of them.  The last line
says how soon the defaults are as near as the published form ever comes.
"""

import argparse
import tempfile
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import prismfl
from prismfl.engines.processes import keep_freed_memory
from prismfl.run.folder import read_rounds
from prismfl.settings.presets import preset
from prismfl.settings.toml import laid_over, settings_from

Course = list[tuple[float, float]]  # seconds and distance


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--every", type=int, default=2, help="rounds between two distances")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    keep_freed_memory()
    for seed in args.seeds:
        common = {
            "data": {"dataset": args.dataset, "data_dir": args.data_dir},
            "generator": {"width": 16},
            "search": {"local_steps": 10, "batch_size": 64},
            "federation": {"rounds": args.rounds},
            "running": {"distance_every": args.every, "distance_samples": 2000},
            "seed": seed,
        }
        published, ours = (course(laid_over(form, common)) for form in (preset("paper"), {}))
        for name, found in (("as published", published), ("defaults", ours)):
            print(f"seed {seed}, {name}: " + ", ".join(f"{far:.1f} after {spent:.0f} s" for spent, far in found))
        spent, goal = min(published, key=lambda one: one[1])
        first = next((seconds for seconds, far in ours if far <= goal), None)
        told = "never come there" if first is None else f"{first:.0f} s, {spent / first:.1f} times less"
        print(f"seed {seed}: {goal:.1f} takes {spent:.0f} s as published, defaults {told}")


def course(values: Mapping[str, Any]) -> Course:
    """Seconds of rounds so far and the distance, wherever it was measured."""
    with tempfile.TemporaryDirectory() as root:
        finished = prismfl.train(settings_from(values), out=Path(root) / "run")
        lines = read_rounds(finished.folder)
        whole = list(accumulate(line["seconds"] for line in lines))
        found = [(spent, line["distance"]) for spent, line in zip(whole, lines, strict=True) if "distance" in line]
        return [*found, (whole[-1], finished.summary["fid_judge"])]


if __name__ == "__main__":
    main()
