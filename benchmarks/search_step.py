"""Seconds and GFLOP/s of one local step, beside what its own matrix products take alone.

    python benchmarks/search_step.py [--threads 1] [--repeats 9] [--only default]
    python benchmarks/search_step.py --against-vgg [--threads 1] [--repeats 9]

Three sizes: the default (embedded network, width 16, batch 64, grey, ten labels), the same in colour
(EfficientNet-Lite0, width 32) and the paper's (VGG-19
with random weights, all 16 ReLU outputs, width 64, latent 128, batch 64, grey, no labels), both at 32×32 pixels,
in each precision.  `alone` replays every convolution and matrix product that the step
dispatched, with the same shapes, strides and dtypes and nothing between them: the share says how much of a
step is spent in them.  Times are medians.  The last line is `paper_step_seconds X`, the best precision.

`--against-vgg` steps in turns with the embedded network and with EfficientNet-Lite0 (colour, as a run matches it), by
its kernels and by its modules in plain torch, and has the least seconds of processor time of each, and its ratio to
the embedded network's; in bfloat16 too where the processor multiplies it.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch
from timing import seconds_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from prismfl.engines.processes import keep_freed_memory
from prismfl.features.efficientnet import EfficientNetLite, load_lite
from prismfl.features.networks import Activation, FeatureNet, HeadlessVgg, LoadedNet, averaged, load_features, rectify
from prismfl.features.vgg19 import VGG19_PLAN
from prismfl.generator.layout import Layout, frozen_weights
from prismfl.moments import FeatureMap, label_shares
from prismfl.search import Searcher, precision_of
from prismfl.seeding.device import Tape
from prismfl.seeding.philox import Purpose, Stream
from prismfl.settings.resolve import Matching, SearchPlan
from prismfl.settings.schema import Search

LITE = Matching(scale=2, shift=2, pool=4, second_weight=0.0, tone_weight=0.3)  # as a run of labels matches it
PRODUCTS = ("convolution", "convolution_backward", "mm", "addmm", "bmm")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--only", choices=tuple(SIZES))
    parser.add_argument("--against-vgg", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    print(f"{args.threads} threads\n")
    if args.against_vgg:
        for row in against_vgg(args.repeats):
            print(row, flush=True)
        return
    print("| size | precision | ms a step | GFLOP/s | alone, ms | share |\n|---|---|---|---|---|---|")
    best = {}
    for size in [args.only] if args.only else SIZES:
        for precision in ("float32", "bfloat16"):
            seconds, text = line(size, precision, args.repeats)
            best[size] = min(seconds, best.get(size, seconds))
            print(text, flush=True)
    print("\n" + "\n".join(f"{size}_step_seconds {seconds:.4f}" for size, seconds in best.items()))


def line(size: str, precision: str, repeats: int) -> tuple[float, str]:
    """Seconds of a step, and its row of the table."""
    layout, features, batch = SIZES[size]()
    searcher = made(layout, features, SearchPlan(batch_size=batch, precision=precision))
    theta = torch.full((layout.count,), 0.5)
    step = lambda: searcher.gradient(theta)  # noqa: E731
    with FlopCounterMode(display=False) as counter:
        step()
    with Recorder() as recorder:
        step()
    seconds = timed(step, repeats)
    alone = sum(timed(call, repeats) for call in recorder.calls)
    rate = counter.get_total_flops() / seconds / 1e9
    row = f"| {size} | {precision} | {seconds * 1e3:.0f} | {rate:.0f} | {alone * 1e3:.0f} | {alone / seconds:.2f} |"
    return seconds, row


class Plain(FeatureNet):
    """EfficientNet-Lite by its modules, without its kernels."""

    def __init__(self, net: EfficientNetLite) -> None:
        super().__init__(net.width)
        self.net, self.matched = net, net.matched

    def walk(self, x: torch.Tensor, activate: Activation = rectify, most: int = 0) -> Iterator[torch.Tensor]:  # noqa: ARG002
        """See `FeatureNet.walk`."""
        return (averaged(phi, most) for phi in self.net.walk_plain(x))


def against_vgg(repeats: int) -> Iterator[str]:
    """A table of steps that were taken in turns, each matched as colour is by default in its network."""
    yield "| precision | features | ms of processor time | by vgg's |\n|---|---|---|---|"
    lite, layout, theta = load_lite("efficientnet-lite0"), Layout(32, 3, 16, 64, 10), torch.full((1,), 0.5)
    plain = LoadedNet(Plain(lite.net), lite.sha256, lite.about)
    loaded = {"vgg": load_features("vgg"), "lite0": lite, "lite0, plain torch": plain}
    for precision in dict.fromkeys(("float32", precision_of("auto", "cpu"))):
        settings = SearchPlan(batch_size=64, precision=precision)
        maps = {name: FeatureMap(net, Matching() if name == "vgg" else LITE, 3, 32) for name, net in loaded.items()}
        steps = {name: made(layout, features, settings) for name, features in maps.items()}
        least = dict.fromkeys(steps, float("inf"))
        for _ in range(repeats):
            for name, searcher in steps.items():
                begun = time.process_time()
                searcher.gradient(theta.expand(layout.count))
                least[name] = min(least[name], time.process_time() - begun)
        for name, seconds in least.items():
            yield f"| {precision} | {name} | {seconds * 1e3:.0f} | {seconds / least['vgg']:.2f} |"


def default_size() -> tuple[Layout, FeatureMap, int]:
    """What `prismfl train --dataset mnist` searches with."""
    return Layout(32, 1, 16, 64, 10), FeatureMap(load_features("vgg"), Matching(), 1, 32), 64


def colour_size() -> tuple[Layout, FeatureMap, int]:
    """What `prismfl train --dataset cifar10` searches with."""
    features = FeatureMap(load_lite("efficientnet-lite0"), LITE, 3, 32)
    return Layout(32, 3, 32, 64, 10), features, 64


def paper_size() -> tuple[Layout, FeatureMap, int]:
    """The paper's: weights do not change how long anything takes, so random ones stand for ImageNet's."""
    net = HeadlessVgg(VGG19_PLAN).eval().requires_grad_(False)
    for unit in net.units:
        torch.nn.init.kaiming_normal_(unit.conv.weight, generator=torch.Generator().manual_seed(0))
        torch.nn.init.zeros_(unit.conv.bias)
    return Layout(32, 1, 64, 128), FeatureMap(LoadedNet(net, "0" * 64, {}), Matching(), 1, 32), 64


SIZES = {"default": default_size, "colour": colour_size, "paper": paper_size}


def made(layout: Layout, features: FeatureMap, settings: Search, device: torch.device | None = None) -> Searcher:
    """A client's search, its target of random images; the feature map is moved to the device."""
    draws = np.random.default_rng(0)
    images = draws.integers(0, 256, (64, layout.channels, layout.size, layout.size), np.uint8)
    labels = np.arange(64) % max(1, layout.classes)
    target = replace(features.target(images, labels, layout.classes), shares=label_shares(labels, layout.classes))
    weights = torch.from_numpy(frozen_weights(layout, 0).copy()).to(device or "cpu")
    features.to(str(device or "cpu"))
    return Searcher(layout, weights, features, target, settings, Tape(Stream(0, Purpose.SEARCH), device or "cpu"))


def timed(call: Callable[[], Any], repeats: int) -> float:
    """Median seconds of a call, after one to warm up."""
    return median(seconds_of(call, repeats))


class Recorder(TorchDispatchMode):
    """Notes every product that is dispatched, with arguments of the same shape, strides and dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and keep how to run it again."""
        if func.overloadpacket.__name__ in PRODUCTS:
            copies = tree_map(lambda x: x.detach().clone() if isinstance(x, torch.Tensor) else x, args)
            self.calls.append(lambda: torch.no_grad()(func)(*copies, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


if __name__ == "__main__":
    main()
