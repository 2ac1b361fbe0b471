"""A machine with a GPU in one call of at most ten minutes: is it right, how fast is it, and how fast could it be.

    python benchmarks/gpu.py [--device cuda] [--out results] [--minutes 9.5] [--train MNIST_DIR [--settings FILE]]

Right: moments and the gradient of one step against the processor's, with the same draws; and a search whose step is
compiled and recorded against the processor's, on a small network.
Fast: a round of searches (draws, steps and Adam; no coding) at the paper's sizes (see `search_step.py`; 10 clients,
100 steps), as it is run by default and in other ways, beside one client's step.
Could be: the larger of the step's operations over the rate of a large matrix product, and of the bytes that its
products must read and write over the rate of a large copy.

Prints a table, and writes it with hardware and date as gpu.md and gpu.json into --out.  With --train it then trains at
the paper's sizes on MNIST's IDX files, as many rounds as fit into the time that is left; --settings lays a TOML file of
settings over these.  `--device cpu --tiny` runs all of it on a processor in seconds.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from search_step import PRODUCTS, colour_size, default_size, made, paper_size
from timing import hardware
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from prismfl.engines import simulator as inprocess
from prismfl.errors import PrismError
from prismfl.features.networks import load_features
from prismfl.generator.layout import Layout
from prismfl.generator.network import check_device
from prismfl.moments import FeatureMap, Target
from prismfl.run.loop import Silent
from prismfl.search import Searcher, local_search
from prismfl.seeding.device import Tape
from prismfl.seeding.philox import Purpose, Stream
from prismfl.settings.resolve import Matching, SearchPlan
from prismfl.settings.toml import merged, read_toml, settings_from

# Largest relative error of a gradient that is still the same gradient, by precision.
LIMITS = {"float32": 1e-3, "tf32": 0.1, "bfloat16": 0.6}
# Adam's first steps are as long for the least gradients as for the largest: what rounding turns shows.
SEARCH_LIMIT = 0.1
World = tuple[Layout, FeatureMap, int]


@dataclass(frozen=True)
class Check:
    """A comparison with the processor: a relative error, and whether it is small enough."""

    what: str
    error: float
    passed: bool


@dataclass(frozen=True)
class Way:
    """One way to search a round's clients: numbers, searches at a time, step compiled or not."""

    precision: str
    workers: int
    compile: str


@dataclass(frozen=True)
class Row:
    """A way, timed: seconds of a round of all clients after the first, which is apart, and ms of a client's step."""

    clients: int
    way: Way
    first_s: float
    round_s: float
    step_ms: float
    operations: float
    bytes: float
    floor_ms: float
    peak_gb: float


WAYS = (
    Way("bfloat16", 5, "on"),
    Way("bfloat16", 1, "on"),
    Way("bfloat16", 5, "off"),
    Way("bfloat16", 1, "off"),
    Way("tf32", 5, "off"),
    Way("float32", 5, "off"),
)


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    world: Callable[[], World]
    clients: int
    steps: int
    repeats: int
    matrix: int
    copy: int


PLANS = {
    "paper": Plan(paper_size, 10, 100, 3, 8192, 2**30),
    "default": Plan(default_size, 10, 25, 3, 8192, 2**30),
    "colour": Plan(colour_size, 10, 50, 3, 8192, 2**30),
    "tiny": Plan(
        lambda: (Layout(16, 1, 2, 8), FeatureMap(load_features("vgg"), Matching(layers=(0, 1)), 1, 16), 8),
        3,
        2,
        2,
        128,
        2**20,
    ),
}


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=("paper", "default", "colour"), default="paper")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--train", type=Path, metavar="MNIST_DIR")
    parser.add_argument("--settings", type=Path, metavar="FILE")
    args = parser.parse_args(words)
    ends = time.monotonic() + 60 * args.minutes
    try:
        check_device(args.device)
    except PrismError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    plan = PLANS["tiny" if args.tiny else args.size]
    found = measured(plan, torch.device(args.device), ends - 20, args.out)
    print(as_markdown(found), flush=True)
    if args.train:
        tables = read_toml(args.settings) if args.settings else {}
        values = {name: value for table in tables.values() for name, value in table.items()}
        found["training"] = trained(args.train, args.device, ends - 30, args.tiny, args.out, values)
        write(found, args.out)
        print(as_sentence(found["training"]), flush=True)


def write(found: dict[str, Any], out: Path | None) -> None:
    """Both forms in the folder."""
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
        (out / "gpu.md").write_text(as_markdown(found))


def measured(plan: Plan, device: torch.device, ends: float, out: Path | None) -> dict[str, Any]:
    """Checks and rows, as many as there is time for, written as they come."""
    precisions = [name for name in LIMITS if name != "tf32" or device.type == "cuda"]
    rates = {name: matrix_rate(plan.matrix, device, name) for name in precisions}
    bandwidth = copy_rate(plan.copy, device)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else hardware(),
        "date": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "matrix_tflops": {name: rate / 1e12 for name, rate in rates.items()},
        "copy_gb_s": bandwidth / 1e9,
        "steps_a_round": plan.steps,
        "checks": [asdict(one) for one in all_checked(plan, device, precisions)],
        "rows": [],
        "left_out": [name_of(way) for way in WAYS if way.precision in precisions],
    }
    worlds = {name: moved(plan, device, name) for name in ("float32", "bfloat16")}
    for way in (one for one in WAYS if one.precision in precisions):
        if time.monotonic() <= ends:
            with multiplying(way.precision):
                row = timed_row(plan, worlds[dtype_of(way.precision)], way, rates[way.precision], bandwidth)
            found["rows"].append(asdict(row))
            found["left_out"].remove(name_of(way))
            write(found, out)
            print(as_line(found["rows"][-1]), file=sys.stderr, flush=True)
    return found


def name_of(way: Way) -> str:
    """A way in words."""
    return f"{way.precision}, {way.workers} at a time" + (", compiled" if way.compile == "on" else "")


@contextmanager
def multiplying(precision: str) -> Iterator[None]:
    """float32 products exactly, or as TF32, and as it was before after that."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        for backend, was in zip(backends, before, strict=True):
            backend.allow_tf32 = was


def dtype_of(precision: str) -> str:
    """The setting `running.precision` behind a name here."""
    return "bfloat16" if precision == "bfloat16" else "float32"


# ------------------------------------------------------------------------------------------ right


def all_checked(plan: Plan, device: torch.device, precisions: Sequence[str]) -> Iterator[Check]:
    """Steps in each precision, and a whole search."""
    for precision in precisions:
        with multiplying(precision):
            yield from checked(plan, device, precision)
    yield from searched(device)


def checked(plan: Plan, device: torch.device, precision: str) -> Iterator[Check]:
    """Moments and gradients on the device against the processor's float32."""
    layout, features, batch = plan.world()
    here = made(layout, features, SearchPlan(batch_size=batch, precision="float32"))
    there = moved(plan, device, precision)
    theta = torch.rand(layout.count, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1
    images = torch.rand(batch, layout.channels, layout.size, layout.size, generator=torch.Generator().manual_seed(2))
    if precision != "bfloat16":
        wanted = here.features.moments(images * 2 - 1)
        yield check(f"moments, {precision}", there.features.moments((images * 2 - 1).to(device)), wanted, precision)
    gradient, _ = here.gradient(theta)
    yield check(f"gradient, {precision}", there.gradient(theta.to(device))[0], gradient, precision)


def searched(device: torch.device) -> Iterator[Check]:
    """A short search of a small network on the device, its step compiled and recorded, against the processor's."""
    layout, features, batch = PLANS["tiny"].world()
    settings = SearchPlan(local_steps=20, batch_size=batch, precision="float32", compiled=True)
    with multiplying("float32"):
        moved_by, target = [], None
        for place in (torch.device("cpu"), device, device):
            one = made(layout, features, settings, place)
            # A target computed elsewhere would be another one, in its last bits.
            target = target or Target(one.target.cpu().numpy(), 64, one.shares.cpu().numpy())
            q = np.full(layout.count, 32768, np.uint16)
            # Other weights, if equal ones: the second search of a device compiles and records anew.
            found = local_search(layout, one.weights, features, q, target, settings, 0.02, tape(1, place))
            moved_by.append(torch.from_numpy(found.q.astype(np.float32) - 32768))
    yield check("a search, compiled, float32", moved_by[1], moved_by[0], "search")
    again = float((moved_by[1] != moved_by[2]).float().mean())
    yield Check("the same search again", again, again == 0)


def check(what: str, found: torch.Tensor, wanted: torch.Tensor, precision: str) -> Check:
    """The relative error of a vector."""
    error = float((found.cpu() - wanted).norm() / wanted.norm())
    return Check(what, error, error <= LIMITS.get(precision, SEARCH_LIMIT))


def moved(plan: Plan, device: torch.device, precision: str) -> Searcher:
    """A client's search on the device."""
    layout, features, batch = plan.world()
    return made(layout, features, SearchPlan(batch_size=batch, precision=dtype_of(precision)), device)


def tape(client: int, device: torch.device) -> Tape:
    """A client's draws."""
    return Tape(Stream(0, Purpose.SEARCH, 0, client), device)


# ------------------------------------------------------------------------------------------- fast


def timed_row(plan: Plan, one: Searcher, way: Way, rate: float, bandwidth: float) -> Row:
    """Rounds of all clients, and what they need at least."""
    device = one.weights.device
    alone = torch.full((one.layout.count,), 0.5, device=device)
    operations, moved_bytes = work_of(lambda: one.gradient(alone))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = rounds_of(plan, one, way)
    peak = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0
    floor = max(operations / rate, moved_bytes / bandwidth)
    whole = median(seconds[1:])
    step = whole / plan.clients / plan.steps
    return Row(plan.clients, way, seconds[0], whole, step * 1e3, operations, moved_bytes, floor * 1e3, peak)


def rounds_of(plan: Plan, one: Searcher, way: Way) -> list[float]:
    """Seconds of rounds of all clients' searches, the first with all that is made once."""
    asked = replace(one.plan, local_steps=plan.steps, compiled=way.compile == "on", keeps_adam=False)
    target = Target(one.target.cpu().numpy(), 64, one.shares.cpu().numpy())
    q, device = np.full(one.layout.count, 32768, np.uint16), one.weights.device
    shared = one.layout, one.weights, one.features

    def search(draws: Tape) -> None:
        local_search(*shared, q, target, asked, 0.1, draws)

    found = []
    with ThreadPoolExecutor(way.workers, initializer=inprocess.begin_worker, initargs=(1, device)) as pool:
        for _ in range(plan.repeats + 1):
            draws = [tape(client, device) for client in range(plan.clients)]
            wait(device)
            begun = time.perf_counter()
            list(pool.map(search, draws))
            found.append(time.perf_counter() - begun)
    return found


def timed(call: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Median seconds of a call on the device, after two to warm up."""
    found = []
    for _ in range(repeats + 2):
        wait(device)
        begun = time.perf_counter()
        call()
        wait(device)
        found.append(time.perf_counter() - begun)
    return median(found[2:])


def wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --------------------------------------------------------------------------------------- could be


def matrix_rate(size: int, device: torch.device, precision: str) -> float:
    """Operations a second of a large square product."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    one, two = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    with multiplying(precision):
        return 2 * size**3 / timed(lambda: one @ two, 5, device)


def copy_rate(count: int, device: torch.device) -> float:
    """Bytes a second, read and written, of a large copy of `count` bytes."""
    source = torch.zeros(count, dtype=torch.uint8, device=device)
    into = torch.empty_like(source)
    return 2 * count / timed(lambda: into.copy_(source), 5, device)


def work_of(call: Callable[[], Any]) -> tuple[float, float]:
    """Operations of a call, and the bytes that its products read and write at least."""
    with FlopCounterMode(display=False) as counter:
        call()
    with Bytes() as moved_bytes:
        call()
    return float(counter.get_total_flops()), float(moved_bytes.total)


class Bytes(TorchDispatchMode):
    """Adds up arguments and results of every product that is dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and count."""
        found = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in PRODUCTS:
            tensors = [one for one in tree_leaves((args, found)) if isinstance(one, torch.Tensor)]
            self.total += sum(one.numel() * one.element_size() for one in tensors)
        return found


# ------------------------------------------------------------------------------------------ train


class Kept(Silent):
    """Keeps what rounds were like."""

    def __init__(self) -> None:
        self.records = list[dict[str, Any]]()

    def round_done(self, record: Any, *_: int) -> None:
        """Note a round."""
        self.records.append(dict(record))


def trained(
    folder: Path, device: str, ends: float, tiny: bool, out: Path | None, changes: dict[str, Any]
) -> dict[str, Any]:
    """A run at the paper's sizes on MNIST of so many rounds as fit, kept in --out."""
    values: dict[str, Any] = {
        "data": {"dataset": "mnist", "data_dir": str(folder), "clients": 10, "partition": "shards"},
        "generator": {"width": 64},
        "search": {"local_steps": 100, "batch_size": 64},
        "federation": {"rounds": 4},
        "running": {"device": device, "distance_samples": 0},
    }
    if tiny:
        values["generator"] |= {"size": 16, "width": 2}
        values["search"] |= {"local_steps": 1, "batch_size": 4}
    values, records, why = merged(values, changes), list[dict[str, Any]](), ""
    try:
        with tempfile.TemporaryDirectory(prefix="prismfl-gpu-") as scratch:
            # A few rounds first say what the others take.
            seconds = [one["seconds"] for one in rounds_done(values, Path(scratch) / "run")]
            left = ends - time.monotonic() - (seconds[0] - seconds[-1])
            rounds = max(1, int(left / median(seconds[2:])))
            values = merged(values, {"rounds": rounds})
            records = rounds_done(values, (out or Path(scratch) / "whole") / "run")
    except PrismError as error:
        why = str(error)
    return {
        "rounds": len(records),
        "seconds_a_round": median([one["seconds"] for one in records]) if records else None,
        "loss": [one["loss"] for one in records],
        "why_none": why,
    }


def rounds_done(values: dict[str, Any], out: Path) -> list[dict[str, Any]]:
    """What the rounds of a run were like."""
    watcher = Kept()
    inprocess.train(settings_from(values), out=out, watcher=watcher)
    return watcher.records


# ----------------------------------------------------------------------------------------- report


def as_markdown(found: dict[str, Any]) -> str:
    """The report as a page."""
    rates = ", ".join(f"{name} {rate:.3g}" for name, rate in found["matrix_tflops"].items())
    lines = [
        f"{found['device']}, torch {found['torch']}, {found['date']}; matrix product, TFLOP/s: {rates}; "
        f"copy {found['copy_gb_s']:.3g} GB/s",
        "",
        "| against the processor | relative error | |",
        "|---|---|---|",
        *(
            f"| {one['what']} | {one['error']:.2g} | {'good' if one['passed'] else 'WRONG'} |"
            for one in found["checks"]
        ),
        "",
        f"| clients | how | a round of {found['steps_a_round']} steps, s | the first, s | a step, ms | floor, ms "
        "| share | GB |",
        "|---|---|---|---|---|---|---|---|",
        *map(as_line, found["rows"]),
    ]
    lines += [f"\nno time was left for: {'; '.join(found['left_out'])}"] if found["left_out"] else []
    lines += [as_sentence(found["training"])] if "training" in found else []
    return "\n".join(lines) + "\n"


def as_line(row: dict[str, Any]) -> str:
    """A row of the table."""
    return (
        f"| {row['clients']} | {name_of(Way(**row['way']))} | {row['round_s']:.3g} | {row['first_s']:.3g} "
        f"| {row['step_ms']:.3g} | {row['floor_ms']:.3g} | {row['floor_ms'] / row['step_ms']:.2f} "
        f"| {row['peak_gb']:.1f} |"
    )


def as_sentence(done: dict[str, Any]) -> str:
    """What came of the training."""
    if not done["rounds"]:
        return f"\ntraining: no round ({done['why_none']})"
    return (
        f"\ntraining: {done['rounds']} rounds, {done['seconds_a_round']:.2f} s each, last loss {done['loss'][-1]:.4g}"
    )


if __name__ == "__main__":
    main()
