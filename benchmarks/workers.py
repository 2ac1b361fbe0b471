"""Seconds a round with searches in threads of one process, beside searches in processes of their own.

    python benchmarks/workers.py [--workers 2] [--clients 10] [--rounds 5] [--repeats 2]

Three sizes: the digits of `make demo` (16 pixels, 32 images a step), the default at 32 pixels (64 images), and
batches of two images, of which nearly all is what the interpreter does between operations.  Runs take turns;
seconds are medians over all rounds but each run's first.  Both ways leave the same bytes, which is checked.
"""

import argparse
import os
import tempfile
from pathlib import Path
from statistics import median

import numpy as np

from prismfl.data.datasets import load_dataset
from prismfl.engines import processes
from prismfl.engines.simulator import train
from prismfl.run.folder import read_rounds
from prismfl.settings.schema import Settings
from prismfl.settings.toml import settings_from

# Pixels, images a step, steps a round.
SIZES = {"digits, 16 pixels": (16, 32, 50), "default, 32 pixels": (32, 64, 25), "two images a step": (32, 2, 50)}
WAYS = {"threads": 10**9, "processes": 1}  # steps from which on processes are started


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    print(f"{args.clients} clients a round, {args.workers} at a time\n")
    print("| | threads, s a round | processes, s a round | ratio |\n|---|---|---|---|")
    for name, (pixels, batch, steps) in SIZES.items():
        settings = settings_of(pixels, batch, steps, args)
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        models = set()
        for _ in range(args.repeats):
            for way, worth in WAYS.items():
                found, model = run(settings, worth, args.clients)
                seconds[way] += found
                models.add(model)
        if len(models) > 1:
            raise SystemExit(f"{name}: threads and processes made different models")
        one, other = (median(found) for found in seconds.values())
        print(f"| {name} | {one:.2f} | {other:.2f} | {one / other:.2f} |", flush=True)


def settings_of(pixels: int, batch: int, steps: int, args: argparse.Namespace) -> Settings:
    """A short run that measures nothing but its rounds."""
    return settings_from(
        {
            "data": {"clients": args.clients},
            "generator": {"size": pixels},
            "search": {"batch_size": batch, "local_steps": steps},
            "federation": {"rounds": args.rounds, "finished_mask": "half"},
            "running": {"distance_samples": 0, "workers": args.workers},
        }
    )


def run(settings: Settings, worth: int, clients: int) -> tuple[list[float], bytes]:
    """Seconds of the rounds after the first, and the model."""
    digits = load_dataset("digits", None, settings.generator.size, "train")
    rows = np.arange(100 * clients) % len(digits)
    processes._WORTH_STARTING = worth
    with tempfile.TemporaryDirectory() as root:
        folder = train(settings, digits.images[rows], digits.labels[rows], out=Path(root) / "run").folder
        return [line["seconds"] for line in read_rounds(folder)][1:], folder.model.read_bytes()


if __name__ == "__main__":
    main()
