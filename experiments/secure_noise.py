"""How much noise is in the pooled target: one secure sum of all sites beside the mean of their own releases.

    python experiments/secure_noise.py                              # the noise itself, by ε
    python experiments/secure_noise.py --runs runs/experiments/…    # how far runs' targets are from the exact one

The noise is that of the exact sampler at the scales that both ways have for ten sites of 6,000 images, on as many
entries as are asked for: it depends on no image.  A run's target is what its clients search towards, or the mean of
what they do; its labels that drowned are gone.
"""

import argparse
import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from prismfl.engines.simulator import InProcess
from prismfl.federation.one_shot import pool
from prismfl.privacy.ledger import calibrate
from prismfl.privacy.pooled import share
from prismfl.privacy.release import NORM, noisy
from prismfl.run.folder import RunFolder, load_arrays, reopen
from prismfl.run.prepare import prepare
from prismfl.settings.schema import Privacy
from prismfl.sums.rules import usual

SITES, EACH = 10, 6000


def drawn(epsilon: float, entries: int) -> tuple[float, float]:
    """σ of the pooled mean, in 1e-6 of a vector's norm: of ten releases, and of one secure sum."""
    steps, zeros = math.sqrt(2) * NORM, np.zeros(entries, np.int64)
    sigma = calibrate(epsilon, 1e-5, 224_527, steps) * steps
    colluders, dropouts = usual(SITES)
    own = share(sigma, SITES - colluders - dropouts)
    scales = (math.ceil(sigma), own)
    return tuple(
        float(sum(noisy(zeros, scale, "exact") for _ in range(SITES)).std()) / (NORM * SITES * EACH) * 1e6
        for scale in scales
    )


def errors(roots: list[Path]) -> None:
    """Root mean square of each run's pooled target less the exact one, over that of the exact one."""
    exact = None
    for root in roots:
        folder, settings = reopen(root)
        ready = prepare(settings)
        held = load_arrays(folder.gathered)
        if held is None:
            engine = InProcess(ready.agreement, ready.kit, ready.clients, folder)
            moments = pool([engine.target(client) for client in range(len(ready.clients))]).moments
            engine.close()
        else:
            moments = held["moments"]
        if exact is None:
            plain = replace(ready.agreement.settings, privacy=Privacy())
            agreement = replace(ready.agreement, settings=plain)
            engine = InProcess(agreement, ready.kit, ready.clients, RunFolder(root / "exact"))
            exact = pool([engine.target(client) for client in range(len(ready.clients))]).moments
            engine.close()
        print(f"{root}: {np.linalg.norm(moments - exact) / np.linalg.norm(exact):.4f}", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", nargs="+", type=Path, default=[])
    parser.add_argument("--entries", type=int, default=20_000)
    args = parser.parse_args()
    if args.runs:
        return errors(args.runs)
    print("epsilon  releases  secure sum  ratio")
    for epsilon in (9.8, 3.0, 1.0, 0.3):
        releases, summed = drawn(epsilon, args.entries)
        print(f"{epsilon:<8} {releases:<9.3f} {summed:<11.3f} {releases / summed:.3f}", flush=True)
    return None


if __name__ == "__main__":
    main()
