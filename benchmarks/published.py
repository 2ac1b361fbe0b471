"""This package beside the code that the paper published, in turns in one process.

    git clone https://github.com/tjrudrnr2/PRISM_ICLR25 published
    python benchmarks/published.py published [--threads 1] [--turns 5]
    python benchmarks/published.py published --data-dir data/mnist [--rounds 20] [--every 2]

The first compares a local step at the paper's size: VGG-19's sixteen ReLU outputs, width 64, 128 latents, batches of
64, 32×32 pixels, grey.  The second compares seconds to a distance on MNIST: ten clients on label shards, ten steps of
64 images a client and round, width 16, both matched in the embedded network, `fid_judge` of 2,000 samples; seconds are
of rounds alone, and the published form in this package's kernels (`--preset paper`) stands beside both.

Of the published code its clients and its server run, unchanged: local training, masks, the average with MADA.  What
they import and never use here is an empty stand-in.  VGG-19 has random weights, which take as long as ImageNet's.
"""

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, patch

import numpy as np
import torch
from reach import SAMPLES, Course, compared, report, values_of
from search_step import paper_size
from torch import Tensor, nn

from prismfl.data.datasets import load_dataset
from prismfl.data.images import ImageSet, deal
from prismfl.data.partition import partition
from prismfl.engines.processes import keep_freed_memory
from prismfl.features.networks import FeatureNet, load_features
from prismfl.generator.layout import frozen_weights
from prismfl.metrics.distances import Reference
from prismfl.search import local_search
from prismfl.seeding.device import Tape
from prismfl.seeding.philox import Purpose, Stream
from prismfl.settings.resolve import SearchPlan
from prismfl.settings.toml import settings_from

BATCH = 64
STEPS = 3  # at a time
_UNUSED = (
    "matplotlib", "matplotlib.pyplot", "metrics", "metrics.evaluate", "metrics.fid_score", "metrics.inception_score",
    "metrics.prdc", "pandas", "seaborn", "sklearn.manifold", "torchvision", "torchvision.transforms",
    "torchvision.utils", "wandb",
)  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder of the published code")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--data-dir", type=Path, help="of MNIST: compare seconds to a distance")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--every", type=int, default=2, help="rounds between two distances")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    with published(args.checkout.resolve()) as theirs:
        if args.data_dir:
            values = values_of("mnist", os.fspath(args.data_dir.resolve()), args.rounds, args.every, seed=0)
            report({"the published code": theirs.course(values), **compared(values)})
        else:
            steps(theirs, args.turns)


def steps(theirs: "Published", turns: int) -> None:
    """Print seconds of a step of each, in turns."""
    layout, features, batch = paper_size()
    weights, q = torch.from_numpy(frozen_weights(layout, 0).copy()), np.full(layout.count, 32768, np.uint16)
    target = features.target(np.random.default_rng(0).integers(0, 256, (BATCH, 1, 32, 32), np.uint8))
    calls = {"published": theirs.step()}
    for precision in ("float32", "bfloat16"):
        plan = SearchPlan(local_steps=STEPS, batch_size=batch, precision=precision)
        draws = Tape(Stream(0, Purpose.SEARCH))
        calls[precision] = partial(local_search, layout, weights, features, q, target, plan, 0.1, draws)
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 1):
        for name, call in calls.items():
            seconds = seconds_of_steps(call)
            if turn:  # the first warms up
                found[name].append(seconds)
    for name, seconds in found.items():
        ratios = [one / mine for one, mine in zip(found["published"], seconds, strict=True)]
        print(f"{name}: {median(seconds):.2f} s a step, {median(ratios):.1f} times as fast as published")


def seconds_of_steps(call: Callable[[], object]) -> float:
    """Seconds of one of the STEPS that a call takes."""
    begun = time.perf_counter()
    call()
    return (time.perf_counter() - begun) / STEPS


class Matched(nn.Module):
    """One of this package's networks as the published code asks for its classifier."""

    def __init__(self, net: FeatureNet, size: int) -> None:
        super().__init__()
        self.net = net
        maps = self(torch.zeros(1, 3, size, size))[1]
        self.numberOfFeaturesPerLayer = np.array([phi[0].numel() for phi in reversed(maps)])

    def forward(self, x: Tensor) -> tuple[None, list[Tensor]]:
        """Images `[B, 3, H, W]` → nothing, and the maps."""
        return None, self.net.stages(x, None)


class Published:
    """The published code's clients and server, on a processor."""

    def __init__(self) -> None:
        import utils.utils

        utils.utils.compare_mask = None  # its server imports it, and it is not there
        from clients.prism import Client
        from models.vgg_pytorch import VGG19
        from servers.prism import Server
        from src.options import args_parser

        self.client, self.server, self.vgg = Client, Server, VGG19
        with patch.object(sys, "argv", ["run"]):
            self.defaults = vars(args_parser())
        # As its README starts it on shards: MADA, masks alone; its own batches, rates and latents.
        self.defaults |= {"MADA": True, "dataset": "mnist", "nc": 1, "iid": 0, "aggregation": "BA"}

    def _args(self, **changed: Any) -> SimpleNamespace:
        return SimpleNamespace(**self.defaults | changed)

    def step(self) -> Any:
        """One local step at the paper's size, as a call."""
        with (
            patch.object(torch.hub, "load_state_dict_from_url", MagicMock()),
            patch.object(nn.Module, "load_state_dict"),
        ):
            net = self.vgg(num_classes=1000, image_size=32, batch_norm=True, setEncToEval=False)
        images = torch.rand(BATCH, 1, 32, 32) * 2 - 1
        client = self.client(self._args(local_ep=STEPS), net.requires_grad_(False), [(images, None)], 0, "cpu")
        real = client.precomputed_real_datas()
        client.Load_precomputed_realData = lambda: real

        def call() -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                client.local_train(0, None, None)

        return call

    def course(self, values: Mapping[str, Any]) -> Course:
        """Seconds of rounds so far and the distance, wherever it was measured."""
        settings = settings_from(values)
        data, size = settings.data, 32
        train, test = (load_dataset(data.dataset, Path(data.data_dir), size, split) for split in ("train", "test"))
        parts = deal(train, partition(train, data, settings.seed))
        args = self._args(local_ep=settings.search.local_steps, ngf=settings.generator.width, nz=64)
        torch.manual_seed(settings.seed)
        net = Matched(load_features("vgg").net, size)
        clients = [self.client(args, net, batches(part), number, "cpu") for number, part in enumerate(parts)]
        server, reference = self.server(args, net, clients, None, "cpu"), Reference(test)
        spent, found = 0.0, Course()
        for turn in range(settings.federation.rounds):
            begun = time.monotonic()
            with contextlib.redirect_stdout(io.StringIO()):
                server.train(turn)
            spent += time.monotonic() - begun
            if (turn + 1) % settings.running.distance_every == 0:
                found.append((spent, reference.distance(samples(server.global_model, args.nz))))
        return found


def batches(images: ImageSet) -> list[tuple[Tensor, None]]:
    """A client's images in [-1, 1], batch by batch, as the published code reads them."""
    x = torch.from_numpy(images.images).float().div(127.5).sub(1)
    return [(some, None) for some in x.split(500)]


@torch.no_grad()
def samples(model: nn.Module, latent: int) -> Any:
    """Images of the published generator, by batches' statistics as it trains: uint8 `[2000, 1, 32, 32]`."""
    parts = [model(torch.randn(BATCH, latent, 1, 1)) for _ in range(-(-SAMPLES // BATCH))]
    return torch.cat(parts)[:SAMPLES].add(1).mul(127.5).round().clamp(0, 255).byte().numpy()


@contextlib.contextmanager
def published(checkout: Path) -> Iterator[Published]:
    """The code in a folder, imported beside stand-ins; what it writes goes to a folder that is removed."""
    absent = {name: MagicMock() for name in _UNUSED if name not in sys.modules}
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        Path("embeddings/precompute").mkdir(parents=True)
        sys.path.insert(0, os.fspath(checkout))
        sys.modules.update(absent)
        try:
            theirs = Published()
        finally:
            sys.path.remove(os.fspath(checkout))
            for name in absent:
                del sys.modules[name]
        yield theirs


if __name__ == "__main__":
    main()
