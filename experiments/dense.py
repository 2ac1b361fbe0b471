"""Federated averaging of dense weights on the same loss: what masks are compared with.

A row of `run.py` whose `[row]` has `dense = 0.01` is run like this.  Everything is that of other rows but:
clients descend the weights themselves (Adam, the row's schedule scaled to that rate), send them as float32 and
the server averages them.  Weights begin as the frozen ones.  With ε the moments are those of a release, as ever.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prismfl.engines.clientdisk import ClientDisk, releases_of
from prismfl.engines.processes import keep_freed_memory
from prismfl.generator.network import label_turns, latent_batch, recompute_statistics, render
from prismfl.generator.sampling import labels_like
from prismfl.metrics.distances import balls, compare, frechet, judge_features
from prismfl.run.folder import RunFolder
from prismfl.run.prepare import Prepared, prepare
from prismfl.search import Searcher, rate_at
from prismfl.seeding.device import Tape
from prismfl.seeding.philox import Purpose, Stream
from prismfl.settings.resolve import SearchPlan, plan_of
from prismfl.settings.schema import Settings


def one_run(settings: Settings, rate: float, folder: Path, metrics: list[str]) -> dict[str, Any]:
    """All rounds, and figures of the averaged weights.

    folder: of the run; metrics: what is measured besides the distance, `prdc` or nothing.
    """
    if set(metrics) - {"prdc"}:
        raise SystemExit(f"of dense weights prdc alone is measured, not {', '.join(metrics)}")
    keep_freed_memory()
    ready = prepare(settings)
    begun, samples = time.monotonic(), settings.running.distance_samples
    weights = averaged(ready, rate, folder)
    seconds = round(time.monotonic() - begun, 1)
    messages = settings.federation.rounds * settings.data.clients
    return {
        **measured(ready, weights, samples, "prdc" in metrics),
        "up_bits": 32.0,
        "down_bits": 32.0,
        "uplink_bytes": 4 * weights.numel() * messages,
        "downlink_bytes": 4 * weights.numel() * messages,
        "model_bytes": 4 * weights.numel(),
        "seconds": seconds,
    }


def averaged(ready: Prepared, rate: float, folder: Path) -> torch.Tensor:
    """The server's weights `[N]` after all rounds."""
    agreement, kit = ready.agreement, ready.kit
    plan, weights, rounds = plan_of(agreement.settings), kit.weights.clone(), agreement.settings.federation.rounds
    root = RunFolder(folder)
    disk = ClientDisk(agreement, kit, root, releases_of(agreement, kit, ready.clients, root))
    targets = [disk.target(client, mine) for client, mine in enumerate(ready.clients)]
    draws = [Tape(Stream(agreement.settings.seed, Purpose.SEARCH, 0, client)) for client in range(len(targets))]
    pairs = zip(targets, draws, strict=True)
    searchers = [Searcher(agreement.layout, weights, kit.features, target, plan, one) for target, one in pairs]
    adams = [adam_of(plan, weights) for _ in searchers]
    for index in range(rounds):
        size = rate * rate_at(agreement.settings, index) / agreement.settings.search.learning_rate
        if not plan.keeps_adam:
            adams = [adam_of(plan, weights) for _ in searchers]
        clients = zip(searchers, adams, strict=True)
        weights = torch.stack([descended(*client, weights, size, plan.local_steps) for client in clients]).mean(0)
        print(f"dense round {index + 1}/{rounds}", flush=True)
    return weights


def adam_of(plan: SearchPlan, weights: torch.Tensor) -> torch.optim.Adam:
    """A client's Adam, on weights `[N]` of its own."""
    return torch.optim.Adam([weights.clone().requires_grad_()], betas=(plan.beta1, 0.999), eps=1e-16)


def descended(
    searcher: Searcher, adam: torch.optim.Adam, weights: torch.Tensor, rate: float, steps: int
) -> torch.Tensor:
    """One client's weights `[N]` after its local steps of Adam from the server's."""
    (group,) = adam.param_groups
    (mine,) = group["params"]
    group["lr"] = rate
    with torch.no_grad():
        mine.copy_(weights)
    for _ in range(steps):
        adam.zero_grad()
        searcher.losses(mine)[0].backward()
        adam.step()
    return mine.detach().clone()


def measured(ready: Prepared, weights: torch.Tensor, count: int, manifold: bool) -> dict[str, float]:
    """Figures of `count` samples made with dense weights `[N]`; manifold: precision, recall, density, coverage too."""
    if ready.test is None:
        raise SystemExit("no test images to measure against")
    fake = samples_of(ready, weights, labels_like(ready.test.labels, count))
    real, fake = judge_features(ready.test.images), judge_features(fake)
    found = {"fid_judge": frechet(real, fake)}
    return found | vars(compare(balls(real), balls(fake))) if manifold else found


def samples_of(ready: Prepared, weights: torch.Tensor, labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """A sample for each label int64 `[B]`, uint8 `[B, C, H, W]`; a generator without labels only counts them."""
    layout, seed = ready.agreement.layout, ready.agreement.settings.seed
    statistics = recompute_statistics(layout, weights, seed)
    latents = latent_batch(layout, Stream(seed, Purpose.LATENT), len(labels))
    wanted = torch.from_numpy(labels) if layout.classes else label_turns(layout, len(labels))
    return render(layout, weights, statistics, latents, wanted)
