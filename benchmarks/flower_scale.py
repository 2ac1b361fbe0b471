"""Memory and seconds a round of Flower's simulation, by the number of clients and of rounds.

    PRISMFL_DATA=data python benchmarks/flower_scale.py [--runs 100x4,1000x4,1000x12] [--cohort 50]

MNIST at 16 pixels, a generator of width 4, one local step of eight images: what grows here is the engine.  Memory is
that of all processes together (each page that several share counted once), looked at every half second, over
what the first round's end had: `after the first round` and `most`.
"""

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

from prismfl.engines.flower import processes
from prismfl.run import folder as runfolder
from prismfl.run.loop import Silent
from prismfl.settings.schema import Settings
from prismfl.settings.toml import settings_from


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="100x4,1000x4,1000x12", help="clients x rounds, by commas")
    parser.add_argument("--cohort", type=int, default=50)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print(f"cohort {args.cohort}\n\n| clients | rounds | a round, s | MB after the first round | MB at most |")
    print("|---|---|---|---|---|")
    for part in args.runs.split(","):
        clients, rounds = map(int, part.split("x"))
        with tempfile.TemporaryDirectory() as root:
            seconds, first, most = measured(Path(root), settings_of(clients, rounds, args.cohort))
        print(f"| {clients} | {rounds} | {seconds:.2f} | {first:.0f} | {most:.0f} |", flush=True)


def settings_of(clients: int, rounds: int, cohort: int) -> Settings:
    """A small run of many clients."""
    return settings_from(
        {
            "data": {
                "dataset": "mnist",
                "data_dir": str(Path(os.environ["PRISMFL_DATA"]) / "mnist"),
                "clients": clients,
                "partition": "iid",
            },
            "generator": {"size": 16, "width": 4},
            "search": {"local_steps": 1, "batch_size": 8},
            "federation": {"rounds": rounds, "cohort": cohort, "finished_mask": "half"},
            "running": {"distance_samples": 0},
        }
    )


def measured(root: Path, settings: Settings) -> tuple[float, float, float]:
    """Median seconds of a round after the first, MB after the first round, and MB at most."""
    link, scale = processes.Link("127.0.0.1", processes.free_port(), simulation=True), Scale()
    with processes.superlink(link, root / "flower", lambda _: None) as process:
        out = runfolder.create(root / "run", settings).root
        processes.submit(out, root / "flower", lambda _: None, more=processes.simulated(settings.data.clients, 1))
        scale.start()
        processes.follow(out, 0, process, scale)
        scale.stop()
    seconds = [line["seconds"] for line in runfolder.read_rounds(runfolder.RunFolder(out))]
    return median(seconds[1:]), scale.first, scale.most


class Scale(Silent):
    """Weighs this process's descendants again and again."""

    def __init__(self) -> None:
        self.first, self.most, self._ended = 0.0, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._weigh, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._ended.set()
        self._thread.join()

    def round_done(self, *_: Any) -> None:
        """Note what a first round leaves behind."""
        self.first = self.first or weight()

    def _weigh(self) -> None:
        while not self._ended.wait(0.5):
            self.most = max(self.most, weight())


def weight() -> float:
    """MB of all descendants of this process, shared pages once."""
    return sum(map(_share, descendants(os.getpid()))) / 1024


def descendants(root: int) -> set[int]:
    """Processes that a process started, and those that these started."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:  # it has ended
            continue
    found, fresh = set[int](), {root}
    while fresh:
        fresh = {one for one, parent in parents.items() if parent in fresh} - found
        found |= fresh
    return found


def _share(process: int) -> int:
    """kB of a process, its shared pages divided among those that share them; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


if __name__ == "__main__":
    begun = time.monotonic()
    main()
    print(f"\n{time.monotonic() - begun:.0f} s in all")
