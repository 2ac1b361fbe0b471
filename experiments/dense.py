"""Federated averaging of dense weights on the same loss: what masks are compared with.

    python experiments/dense.py experiments/yardstick.toml --rates 0.003 --seeds 0

Everything is that of a row of `run.py` but this: clients descend the weights themselves (Adam, the row's
schedule scaled to `--rates`), send them as float32 and the server averages them.  Weights begin as the frozen
ones.  `--alone` gives one client all images.  Prints a line a run, and writes it to `--out`.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from run import load_row, provenance, row_settings

from prismfl.config import Settings
from prismfl.engines.inprocess import keep_freed_memory
from prismfl.files import write_atomic
from prismfl.metrics.frechet import fid_embedded
from prismfl.nets.generator import label_turns, latent_batch, recompute_statistics, render
from prismfl.preparation import Prepared, prepare
from prismfl.sampling import labels_like
from prismfl.search import Searcher, rate_at
from prismfl.seeding import Purpose, Stream


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", type=Path)
    parser.add_argument("--rates", nargs="+", type=float, default=[0.003])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("experiments/results"))
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments"))
    args = parser.parse_args()
    keep_freed_memory()
    for path in args.rows:
        values, _ = load_row(path)
        name = f"dense-{path.stem}" + "-alone" * args.alone
        for seed in args.seeds:
            settings = row_settings(values, seed, args.runs / "targets")
            if args.alone:
                settings = replace(settings, data=replace(settings.data, clients=1, partition="iid"))
            for rate in args.rates:
                found = {"row": name, "seed": seed, "rate": rate, **provenance(), **one_run(settings, rate)}
                text = json.dumps(found)
                write_atomic(args.out / "dense" / f"{name}-{seed}-{rate:g}.json", text + "\n")
                print(text, flush=True)


def one_run(settings: Settings, rate: float) -> dict[str, Any]:
    """All rounds, and the distance of the averaged weights."""
    begun, ready = time.monotonic(), prepare(settings)
    classes, weights = ready.agreement.layout.classes, ready.kit.weights.clone()
    features, layout, search = ready.kit.features, ready.agreement.layout, ready.agreement.settings.search
    targets = [features.target(mine.images, mine.labels, classes) for mine in ready.clients]
    draws = [torch.Generator().manual_seed(1000 * settings.seed + client) for client in range(len(targets))]
    pairs = zip(targets, draws, strict=True)
    searchers = [Searcher(layout, weights, features, target, search, one) for target, one in pairs]
    rounds = settings.federation.rounds
    for index in range(rounds):
        size = rate * rate_at(search, index, rounds) / search.learning_rate
        weights = torch.stack([descended(one, weights, size, search.local_steps) for one in searchers]).mean(0)
    return {
        "fid_embedded": distance_of(ready, weights, settings.output.distance_samples),
        "up_bits": 32.0,
        "down_bits": 32.0,
        "model_bytes": 4 * layout.count,
        "seconds": round(time.monotonic() - begun, 1),
    }


def descended(searcher: Searcher, weights: torch.Tensor, rate: float, steps: int) -> torch.Tensor:
    """One client's weights `[N]` after its local steps of Adam."""
    mine = weights.clone().requires_grad_()
    settings = searcher.settings
    adam = torch.optim.Adam([mine], lr=rate, betas=(settings.beta1, settings.beta2), eps=1e-16)
    for _ in range(steps):
        adam.zero_grad()
        searcher.losses(mine)[0].backward()
        adam.step()
    return mine.detach()


def distance_of(ready: Prepared, weights: torch.Tensor, count: int) -> float:
    """`fid_embedded` of `count` samples made with dense weights `[N]`."""
    layout, seed, test = ready.agreement.layout, ready.agreement.settings.seed, ready.test
    if test is None:
        raise SystemExit("no test images to measure against")
    statistics = recompute_statistics(layout, weights, seed)
    latents = latent_batch(layout, Stream(seed, Purpose.LATENT), count)
    labels = torch.from_numpy(labels_like(test.labels, count)) if layout.classes else label_turns(layout, count)
    return fid_embedded(test.images, render(layout, weights, statistics, latents, labels))


if __name__ == "__main__":
    main()
