"""A machine with a GPU in one call of at most ten minutes: is it right, how fast is it, and how fast could it be.

    python benchmarks/gpu.py [--device cuda] [--out results] [--minutes 9.5] [--train MNIST_DIR]

Right: moments and the gradient of one step against the processor's, with the same draws.
Fast: a local step of all clients, and a round of theirs (draws, steps and Adam; no coding), at the paper's sizes (see
`search_step.py`; 10 clients, 100 steps), one client after another and as one batch, in each precision.
Could be: the larger of the step's operations over the rate of a large matrix product, and of the bytes that its
products must read and write over the rate of a large copy.

Prints a table, and writes it with hardware and date as gpu.md and gpu.json into --out.  With --train it then trains the
paper's settings on MNIST's IDX files for as many rounds as fit into the time that is left.  `--device cpu --tiny`
runs all of it on a processor in seconds.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from search_step import PRODUCTS, default_size, made, paper_size
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from prismfl.bench import hardware
from prismfl.config import Features, Search, settings_from
from prismfl.coordinator import Silent
from prismfl.engines import inprocess
from prismfl.errors import PrismError
from prismfl.layout import Layout
from prismfl.mmd import FeatureMap, Target
from prismfl.nets.features import load_features
from prismfl.nets.generator import check_device
from prismfl.nets.tape import Tape
from prismfl.search import BatchSearcher, Searcher, local_search, search_many
from prismfl.seeding import Purpose, Stream

# Largest relative error of a gradient that is still the same gradient, by precision.
LIMITS = {"float32": 1e-3, "tf32": 0.1, "bfloat16": 0.6}
World = tuple[Layout, FeatureMap, int]


@dataclass(frozen=True)
class Check:
    """A comparison with the processor: a relative error, and whether it is small enough."""

    what: str
    error: float
    passed: bool


@dataclass(frozen=True)
class Row:
    """One way to search, timed: ms of a step and seconds of a round, of all clients."""

    clients: int
    precision: str
    batching: str
    step_ms: float
    round_s: float
    operations: float
    bytes: float
    floor_ms: float
    peak_gb: float


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
    "paper": Plan(paper_size, 10, 100, 9, 8192, 2**30),
    "default": Plan(default_size, 10, 20, 9, 8192, 2**30),
    "tiny": Plan(
        lambda: (Layout(16, 1, 2, 8), FeatureMap(load_features("vgg"), Features(layers=(0, 1)), 1, 16), 8),
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
    parser.add_argument("--size", choices=("paper", "default"), default="paper")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--train", type=Path, metavar="MNIST_DIR")
    args = parser.parse_args(words)
    ends = time.monotonic() + 60 * args.minutes
    try:
        check_device(args.device)
    except PrismError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    plan = PLANS["tiny" if args.tiny else args.size]
    found = measured(plan, torch.device(args.device), ends - 20)
    write(found, args.out)
    if args.train:
        found["training"] = trained(args.train, args.device, ends - 15, args.tiny, args.out)
        write(found, args.out)


def write(found: dict[str, Any], out: Path | None) -> None:
    """The table on the screen, and both forms in the folder."""
    table = as_markdown(found)
    print(table, flush=True)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
        (out / "gpu.md").write_text(table)


def measured(plan: Plan, device: torch.device, ends: float) -> dict[str, Any]:
    """Checks and rows, as many as there is time for."""
    precisions = [name for name in LIMITS if name != "tf32" or device.type == "cuda"]
    checks, rows, left_out = [], [], []
    rates = {name: matrix_rate(plan.matrix, device, name) for name in precisions}
    bandwidth = copy_rate(plan.copy, device)
    for precision in precisions:
        with multiplying(precision):
            checks += list(checked(plan, device, precision))
            for batching in ("none", "vmap"):
                if time.monotonic() > ends:
                    left_out.append(f"{precision}, {batching}")
                else:
                    rows.append(timed_row(plan, device, precision, batching, rates[precision], bandwidth))
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else hardware(),
        "date": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "matrix_tflops": {name: rate / 1e12 for name, rate in rates.items()},
        "copy_gb_s": bandwidth / 1e9,
        "steps_a_round": plan.steps,
        "checks": [asdict(one) for one in checks],
        "rows": [asdict(one) for one in rows],
        "left_out": left_out,
    }


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
    """The setting `search.precision` behind a name here."""
    return "bfloat16" if precision == "bfloat16" else "float32"


# ------------------------------------------------------------------------------------------ right


def checked(plan: Plan, device: torch.device, precision: str) -> Iterator[Check]:
    """Moments and gradients on the device against the processor's float32, and a batch against each client alone."""
    layout, features, batch = plan.world()
    here = made(layout, features, Search(batch_size=batch, precision="float32"))
    there = moved(plan, device, precision)
    theta = torch.rand(layout.count, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1
    images = torch.rand(batch, layout.channels, layout.size, layout.size, generator=torch.Generator().manual_seed(2))
    if precision != "bfloat16":
        wanted = here.features.moments(images * 2 - 1)
        yield check(f"moments, {precision}", there.features.moments((images * 2 - 1).to(device)), wanted, precision)
    gradient, _ = here.gradient(theta)
    yield check(f"gradient, {precision}", there.gradient(theta.to(device))[0], gradient, precision)
    together = batched(moved(plan, device, precision), 2)
    found = together.gradient(theta.to(device).expand(2, -1).contiguous())[0]
    yield check(f"gradient in a batch, {precision}", found[0], gradient, precision)


def check(what: str, found: torch.Tensor, wanted: torch.Tensor, precision: str) -> Check:
    """The relative error of a vector."""
    error = float((found.cpu() - wanted).norm() / wanted.norm())
    return Check(what, error, error <= LIMITS[precision])


def moved(plan: Plan, device: torch.device, precision: str) -> Searcher:
    """A client's search on the device."""
    layout, features, batch = plan.world()
    return made(layout, features, Search(batch_size=batch, precision=dtype_of(precision)), device)


def batched(one: Searcher, clients: int) -> BatchSearcher:
    """So many clients like one, each with draws of its own; the first draws as the one does."""
    target = Target(one.target.cpu().numpy(), 64, one.shares.cpu().numpy())
    draws = [tape(client, one.weights.device) for client in range(clients)]
    shared = one.layout, one.weights, one.features
    return BatchSearcher(*shared, [target] * clients, one.settings, draws)


def tape(client: int, device: torch.device) -> Tape:
    """A client's draws."""
    return Tape(Stream(0, Purpose.SEARCH, 0, client), device)


# ------------------------------------------------------------------------------------------- fast


def timed_row(plan: Plan, device: torch.device, precision: str, batching: str, rate: float, bandwidth: float) -> Row:
    """A step and a round of all clients."""
    one = moved(plan, device, precision)
    alone = torch.full((one.layout.count,), 0.5, device=device)
    operations, moved_bytes = (plan.clients * total for total in work_of(lambda: one.gradient(alone)))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    if batching == "vmap":
        many, thetas = batched(one, plan.clients), alone.expand(plan.clients, -1).contiguous()
        seconds = timed(lambda: many.gradient(thetas), plan.repeats, device)
    else:
        seconds = plan.clients * timed(lambda: one.gradient(alone), plan.repeats, device)
    peak = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0
    floor = max(operations / rate, moved_bytes / bandwidth)
    whole = round_seconds(plan, one, batching)
    return Row(plan.clients, precision, batching, seconds * 1e3, whole, operations, moved_bytes, floor * 1e3, peak)


def round_seconds(plan: Plan, one: Searcher, batching: str) -> float:
    """Seconds of all clients' searches of a round."""
    layout, device = one.layout, one.weights.device
    settings = replace(one.settings, local_steps=plan.steps)
    target = Target(one.target.cpu().numpy(), 64, one.shares.cpu().numpy())
    q = np.full(layout.count, 32768, np.uint16)
    draws = [tape(client, device) for client in range(plan.clients)]
    shared = layout, one.weights, one.features
    begun = time.perf_counter()
    if batching == "vmap":
        many = plan.clients
        search_many(*shared, [q] * many, [target] * many, settings, 0.1, draws, [None] * many)
    else:
        for mine in draws:
            local_search(*shared, q, target, settings, 0.1, mine)
    return time.perf_counter() - begun


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


class EnoughError(Exception):
    """The time is over."""


class Until(Silent):
    """Ends a run after the last round that fits, and keeps what rounds were like."""

    def __init__(self, ends: float) -> None:
        self.ends, self.records = ends, list[dict[str, Any]]()

    def round_done(self, record: Any, *_: int) -> None:
        """Note a round."""
        self.records.append(dict(record))
        if time.monotonic() + 1.2 * record["seconds"] > self.ends:
            raise EnoughError


def trained(folder: Path, device: str, ends: float, tiny: bool, out: Path | None) -> dict[str, Any]:
    """Rounds of the paper's settings on MNIST; the run folder is kept in --out and can be resumed."""
    values: dict[str, dict[str, Any]] = {
        "data": {"dataset": "mnist", "data_dir": str(folder)},
        "generator": {"width": 64, "latent": 128, "conditional": False},
        "search": {"local_steps": 100, "batch_size": 64, "learning_rate": 0.1, "final_rate": 1.0, "batching": "auto"},
        "federation": {"rounds": 500, "mada": "published", "parts": 1},
        "output": {"device": device, "grid_every": 10, "distance_samples": 2000, "distance_every": 25},
    }
    if tiny:
        values["generator"] |= {"size": 16, "width": 2, "latent": 8}
        values["search"] |= {"local_steps": 1, "batch_size": 4}
        values["output"] |= {"distance_samples": 0}
    watcher, why = Until(ends), ""
    try:
        with tempfile.TemporaryDirectory(prefix="prismfl-gpu-") as scratch:
            inprocess.train(settings_from(values), out=(out or Path(scratch)) / "run", watcher=watcher)
    except EnoughError:
        pass
    except PrismError as error:
        why = str(error)
    records = watcher.records
    return {
        "rounds": len(records),
        "seconds_a_round": median([one["seconds"] for one in records]) if records else None,
        "loss": [one["loss"] for one in records],
        "distances": {one["round"]: one["distance"] for one in records if "distance" in one},
        "why_none": why,
    }


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
        f"| clients | precision | batching | step, ms | floor, ms | share | {found['steps_a_round']} steps, s | GB |",
        "|---|---|---|---|---|---|---|---|",
        *map(as_line, found["rows"]),
    ]
    lines += [f"\nno time was left for: {'; '.join(found['left_out'])}"] if found["left_out"] else []
    lines += [as_sentence(found["training"])] if "training" in found else []
    return "\n".join(lines) + "\n"


def as_line(row: dict[str, Any]) -> str:
    """A row of the table."""
    return (
        f"| {row['clients']} | {row['precision']} | {row['batching']} | {row['step_ms']:.3g} | {row['floor_ms']:.3g} "
        f"| {row['floor_ms'] / row['step_ms']:.2f} | {row['round_s']:.3g} | {row['peak_gb']:.1f} |"
    )


def as_sentence(done: dict[str, Any]) -> str:
    """What came of the training."""
    if not done["rounds"]:
        return f"\ntraining: no round ({done['why_none']})"
    told = f"{done['seconds_a_round']:.2f} s each, last loss {done['loss'][-1]:.4g}, distances {done['distances']}"
    return f"\ntraining: {done['rounds']} rounds, {told}"


if __name__ == "__main__":
    main()
