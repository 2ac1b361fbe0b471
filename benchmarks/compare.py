"""Time of a local step against that of an earlier commit, measured in the same run.

    python benchmarks/compare.py [--against HEAD~1] [--rounds 5] [--seconds 40]

The default-size step of both sources is timed in processes that take turns, in seconds of processor time on one
thread, so that whatever else the machine does falls on both or on neither; the ratio is of their least times, below 1
where the step became faster.  It never fails on a time, and says in one line why there is nothing to compare where
there is no history.
"""

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Reads no more of the package than both sides have had for long.
STEP = """
import sys, time, numpy as np, torch
from prismfl.search import Searcher
try:
    from prismfl.features.networks import load_features
    from prismfl.generator.layout import Layout, frozen_weights
    from prismfl.moments import FeatureMap
    from prismfl.seeding.device import Tape
    from prismfl.seeding.philox import Purpose, Stream
    from prismfl.settings.resolve import Matching, SearchPlan
except ImportError:  # as the house was until 29 November 2026
    from prismfl.config import Features as Matching, Search as SearchPlan
    from prismfl.layout import Layout, frozen_weights
    from prismfl.mmd import FeatureMap
    from prismfl.nets.features import load_features
    from prismfl.nets.tape import Tape
    from prismfl.seeding import Purpose, Stream
torch.set_num_threads(1)
tiny = sys.argv[1] == "tiny"
layout = Layout(16, 1, 2, 8, 10) if tiny else Layout(32, 1, 16, 64, 10)
features = FeatureMap(load_features("vgg"), Matching(), 1, layout.size)
images = np.random.default_rng(0).integers(0, 256, (40, 1, layout.size, layout.size), np.uint8)
target = features.target(images, np.arange(40) % 10, 10)
weights = torch.from_numpy(frozen_weights(layout, 0).copy())
settings = SearchPlan(batch_size=4 if tiny else 64)
draws = Tape(Stream(0, Purpose.SEARCH))
searcher = Searcher(layout, weights, features, target, settings, draws)
theta, found = torch.full((layout.count,), 0.5), []
for _ in range(2 if tiny else 6):
    begun = time.process_time()
    searcher.gradient(theta)
    found.append(time.process_time() - begun)
print(min(found))
"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default="HEAD~1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    print(compared(ROOT, args.against, args.rounds, args.seconds, "tiny" if args.tiny else "default"))


def compared(root: Path, against: str, rounds: int, seconds: float, size: str) -> str:
    """The line to print."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        why = _taken(root, against, Path(folder))
        if why:
            return f"step time: nothing to compare with ({why})"
        sides: dict[str, list[float]] = {"here": [], "before": []}
        sources = {"here": root / "src", "before": Path(folder) / "src"}
        for turn in range(max(1, rounds)):
            # A turn that would not end in time is left out, but one there must be.
            if turn and (time.monotonic() - begun) * (turn + 1) / turn > seconds:
                break
            for side, source in sources.items():
                found, why = _step_seconds(source, size)
                if why:
                    return f"step time: nothing to compare with ({side} does not run: {why})"
                sides[side].append(found)
    here, before, turns = min(sides["here"]), min(sides["before"]), len(sides["here"])
    times = f"{here * 1e3:.1f} ms, {before * 1e3:.1f} ms at {against}"
    return f"step time: {times}, ratio {here / before:.2f} ({turns} turns)"


def _taken(root: Path, against: str, folder: Path) -> str:
    """Unpack an earlier commit and compile what it has to be compiled, as here; why there is none."""
    try:
        done = subprocess.run(["git", "archive", against], cwd=root, capture_output=True, check=False)
    except OSError as error:
        return f"no git: {error.strerror}"
    if done.returncode:
        return f"no {against} here"
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.0 to 3.11.3 have none
        archive.extractall(folder)
    if any(folder.glob("src/prismfl/*/_fast.c")):
        words = [sys.executable, "-c", "import setuptools; setuptools.setup()", "build_ext", "--inplace"]
        if subprocess.run(words, cwd=folder, capture_output=True, check=False).returncode:
            return f"what {against} compiles does not compile here"
    return ""


def _step_seconds(source: Path, size: str) -> tuple[float, str]:
    """Seconds of a step with the package in a folder, or why it does not run."""
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", STEP, size]
    done = subprocess.run(words, env=environment, cwd=source, capture_output=True, text=True, check=False)
    if done.returncode:
        return 0.0, (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
    return float(done.stdout), ""


if __name__ == "__main__":
    main()
