"""Seconds to a distance: this package's defaults beside PRISM as published, in turns on one machine.

    python benchmarks/reach.py --dataset mnist --data-dir data/mnist [--rounds 20] [--seeds 0 1]

Ten clients on label shards, ten steps of 64 images a client and round, a generator of width 16, both matched in the
same network.  Seconds are of rounds alone, distances `fid_judge` of 2,000 samples after some of them.  The last line
says how soon the defaults are as near as the published form ever comes.  `published.py` sets the published code itself
beside both.
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
SAMPLES = 2000  # of a distance


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
        common = values_of(args.dataset, args.data_dir, args.rounds, args.every, seed)
        print(f"seed {seed}")
        report(compared(common))


def values_of(dataset: str, data_dir: str, rounds: int, every: int, seed: int) -> dict[str, Any]:
    """What both forms have in common, as values of settings."""
    return {
        "data": {"dataset": dataset, "data_dir": data_dir},
        "generator": {"width": 16},
        "search": {"local_steps": 10, "batch_size": 64},
        "federation": {"rounds": rounds},
        "running": {"distance_every": every, "distance_samples": SAMPLES},
        "seed": seed,
    }


def compared(common: Mapping[str, Any]) -> dict[str, Course]:
    """The courses of the published form and of the defaults, one after the other."""
    forms = {"the published form": preset("paper"), "defaults": {}}
    return {name: course(laid_over(form, common)) for name, form in forms.items()}


def report(forms: Mapping[str, Course]) -> None:
    """Print the courses, and how soon the last is as near as each of the others ever comes."""
    for name, found in forms.items():
        print(f"{name}: " + ", ".join(f"{far:.1f} after {spent:.0f} s" for spent, far in found))
    *others, ours = forms
    for name in others:
        spent, goal = min(forms[name], key=lambda one: one[1])
        first = next((seconds for seconds, far in forms[ours] if far <= goal), None)
        told = "never" if first is None else f"after {first:.0f} s, {spent / first:.1f} times sooner"
        print(f"{name} is at {goal:.1f} after {spent:.0f} s, {ours} are {told}")


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
