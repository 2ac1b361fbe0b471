"""Seconds a round and peak memory of the simulator, by the number of clients that a cohort is drawn from.

    python benchmarks/scale.py [--populations 1000,10000] [--cohort 100] [--rounds 6]

Each population is a process of its own, so that its peak memory is its own: scanned digits of 16 pixels again and
again, two a client, a generator of width 4 with labels, one local step of eight images.  Nothing should grow with
the population but what its images take.  Seconds are medians over rounds, of the clock and of all processors
together (which other work on the machine hardly changes); `prepare` is everything before the first round.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from prismfl.data.datasets import load_dataset
from prismfl.engines import simulator as inprocess
from prismfl.run.loop import Silent
from prismfl.settings.schema import Settings
from prismfl.settings.toml import settings_from

EACH = 2  # images a client


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--populations", default="1000,10000")
    parser.add_argument("--cohort", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measured(args.one, args.cohort, args.rounds)))
        return
    print(f"cohort {args.cohort}, {args.rounds} rounds\n")
    print(
        "| clients | prepare, s | a round, s | of processors, s | peak MB | images, MB | downlink, bits a parameter |"
    )
    print("|---|---|---|---|---|---|---|")
    for population in map(int, args.populations.split(",")):
        words = ["--one", str(population), "--cohort", str(args.cohort), "--rounds", str(args.rounds)]
        done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
        print(row(json.loads(done.stdout.splitlines()[-1])), flush=True)


def row(found: dict[str, Any]) -> str:
    """A line of the table."""
    return (
        f"| {found['clients']} | {found['prepare']:.1f} | {found['round']:.2f} | {found['work']:.2f} "
        f"| {found['peak_mb']:.0f} "
        f"| {found['images_mb']:.0f} | {found['downlink']:.2f} |"
    )


def measured(population: int, cohort: int, rounds: int) -> dict[str, Any]:
    """One run, in this process."""
    digits = load_dataset("digits", None, 16, "train")
    rows = np.arange(-(-population * EACH * 10 // 9) + 10) % len(digits)
    watch, begun = Clock(), time.perf_counter()
    with tempfile.TemporaryDirectory() as root:
        settings = settings_of(population, min(cohort, population), rounds)
        done = inprocess.train(
            settings, digits.images[rows], digits.labels[rows], out=Path(root) / "run", watcher=watch
        )
    return {
        "clients": population,
        "prepare": watch.begun - begun,
        "round": median(watch.seconds),
        "work": median(watch.work),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "images_mb": digits.images[0].size * len(rows) / 2**20,
        "downlink": done.summary["downlink_bits_per_parameter"],
    }


def settings_of(population: int, cohort: int, rounds: int) -> Settings:
    """A small run of many clients."""
    return settings_from(
        {
            "data": {"clients": population, "partition": "iid"},
            "generator": {"size": 16, "width": 4},
            "search": {"local_steps": 1, "batch_size": 8},
            "federation": {"rounds": rounds, "cohort": cohort, "finished_mask": "half"},
            "running": {"distance_samples": 0},
        }
    )


class Clock(Silent):
    """Notes when the run begins, and each round's seconds."""

    def __init__(self) -> None:
        self.begun, self.seconds, self.work, self._worked = 0.0, list[float](), list[float](), 0.0

    def started(self, *_: int) -> None:
        """The first round begins."""
        self.begun, self._worked = time.perf_counter(), time.process_time()

    def round_done(self, record: Any, *_: int) -> None:
        """Its seconds as the log has them, and those that processors worked."""
        self.seconds.append(record["seconds"])
        self.work.append(time.process_time() - self._worked)
        self._worked = time.process_time()


if __name__ == "__main__":
    main()
