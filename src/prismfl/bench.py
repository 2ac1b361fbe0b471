"""What this machine takes for the parts of a run, in about a minute, beside figures of a known one."""

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prismfl.config import Settings, settings_from
from prismfl.errors import PrismError
from prismfl.federation import Agreement, ClientKit, Reply, agree, client_update, init, make_kit, server_update
from prismfl.layout import frozen_weights
from prismfl.mmd import PRECISIONS, FeatureMap, Target
from prismfl.nets.features import load_features
from prismfl.nets.tape import Tape
from prismfl.privacy.release import noisy
from prismfl.sampling import Sampler, finish
from prismfl.search import Searcher, processor_threads
from prismfl.seeding import Purpose, Stream
from prismfl.wire.codec import Entries, decode_mask, encode_mask

_SCALE = 10**6  # σ of the noise that is timed, in steps of the grid: it makes no difference
_LAYERS = 8


@dataclass(frozen=True)
class Sizes:
    """How much is measured: the default network of `train` on 32 pixels with ten labels, unless told."""

    size: int = 32
    width: int = 16
    latent: int = 64
    batch: int = 64
    layers: tuple[int, ...] = ()
    round_steps: int = 5
    mask: int = 1_000_000
    released: int = 20_000
    samples: int = 1_000
    repeats: int = 5


@dataclass(frozen=True)
class Row:
    """One figure; value: None where what it needs is missing, and `why` says so."""

    name: str
    unit: str
    value: float | None
    why: str = ""


# The best of three runs of `prismfl bench`.
REFERENCE: Mapping[str, Any] = {
    "hardware": "2 cores of a shared Intel Xeon (AVX-512, AMX)",
    "torch": "2.13.0+cpu",
    "date": "2026-11-26",
    "rows": {
        "local step, float32": 119.0,
        "local step, bfloat16": 49.3,
        "round of two clients, 5 steps each": 0.607,
        "mask coder, encode": 119.0,
        "mask coder, decode": 165.0,
        "noise of a private release": 10.2,
        "sampling": 2441.0,
    },
}


def bench(sizes: Sizes | None = None) -> list[Row]:
    """Measure everything, on one processor thread: what a simulated client searches on by default.

    Each figure is the best of a few repeats: other work on the machine only ever slows them.
    """
    sizes = sizes or Sizes()
    with processor_threads(1):
        return list(_rows(sizes))


def _rows(sizes: Sizes) -> Iterator[Row]:
    settings = _settings(sizes)
    agreement, kit = _world(settings)
    target = _target(agreement, kit)
    for precision in PRECISIONS:
        searcher = _searcher(agreement, kit, target, precision)
        theta = torch.full((agreement.layout.count,), 0.5)
        yield Row(f"local step, {precision}", "ms", 1e3 * best(lambda: searcher.gradient(theta), sizes.repeats))  # noqa: B023
    taken = best(lambda: _round(agreement, kit, target), max(1, sizes.repeats // 2))
    yield Row(f"round of two clients, {sizes.round_steps} steps each", "s", taken)
    yield from _coder(sizes)
    yield _released(sizes)
    sampler = _sampler(agreement)
    yield Row("sampling", "images/s", sizes.samples / best(lambda: sampler.sample(sizes.samples), 2))


def _settings(sizes: Sizes) -> Settings:
    return settings_from(
        {
            "data": {"clients": 2, "partition": "iid"},
            "generator": {"size": sizes.size, "width": sizes.width, "latent": sizes.latent},
            "features": {"layers": list(sizes.layers)},
            "search": {"local_steps": sizes.round_steps, "batch_size": sizes.batch},
            "federation": {"rounds": 1},
        }
    )


def _world(settings: Settings) -> tuple[Agreement, ClientKit]:
    agreement = agree(settings, 1, tuple("0123456789"))
    features = FeatureMap(load_features("vgg"), settings.features, 1, agreement.layout.size)
    return agreement, make_kit(agreement, features)


def _target(agreement: Agreement, kit: ClientKit) -> Target:
    size, labels = agreement.layout.size, np.arange(50) % 10
    images = np.random.default_rng(0).integers(0, 256, (50, 1, size, size), np.uint8)
    return kit.features.target(images, labels, agreement.layout.classes)


def _searcher(agreement: Agreement, kit: ClientKit, target: Target, precision: str) -> Searcher:
    search = replace(agreement.settings.search, precision=precision)
    draws = Tape(Stream(0, Purpose.SEARCH))
    return Searcher(agreement.layout, kit.weights, kit.features, target, search, draws)


def _round(agreement: Agreement, kit: ClientKit, target: Target) -> None:
    """A whole round as a server and its clients play it, one client after the other."""

    def exchange(frames: Mapping[int, bytes]) -> Iterator[tuple[int, Reply]]:
        for client, frame in frames.items():
            yield client, client_update(agreement, kit, frame, 0, client, target).frame

    server_update(agreement, init(agreement), exchange)


def _coder(sizes: Sizes) -> Iterator[Row]:
    known, mine, u = settled_masks(sizes.mask)
    mask = u < mine
    raw = encode_mask(mask, u, known)
    megabits = sizes.mask / 1e6
    yield Row("mask coder, encode", "Mbit/s", megabits / best(lambda: encode_mask(mask, u, known), sizes.repeats))
    yield Row("mask coder, decode", "Mbit/s", megabits / best(lambda: decode_mask(raw, u, known), sizes.repeats))


def settled_masks(count: int) -> tuple[Entries, NDArray[np.uint16], NDArray[np.uint16]]:
    """θ_t of a run half-way, a θ_k that moved from it, and u: what a mask is coded from."""
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 2, count)
    q, mine = (
        np.clip(65536 / (1 + np.exp(-moved)), 656, 64880).astype(np.uint16)
        for moved in (scores, scores + rng.normal(0, 0.3, count))
    )
    layers = np.sort(rng.integers(0, _LAYERS, count)).astype(np.uint8)
    return Entries(q, layers, _LAYERS), mine, rng.integers(0, 65536, count).astype(np.uint16)


def _released(sizes: Sizes) -> Row:
    """Noise of a private release, by the exact sampler."""
    sums, name, unit = np.zeros(sizes.released, np.int64), "noise of a private release", "µs an entry"
    try:
        return Row(name, unit, 1e6 * best(lambda: noisy(sums, _SCALE, "exact"), 1) / sizes.released)
    except PrismError as error:
        return Row(name, unit, None, error.got)


def _sampler(agreement: Agreement) -> Sampler:
    mask = frozen_weights(agreement.layout, 1) > 0
    return Sampler(finish(agreement.layout, 0, mask, "", agreement.labels))


def best(call: Callable[[], Any], repeats: int) -> float:
    """Least seconds of a call."""
    return min(seconds_of(call, repeats))


def seconds_of(call: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each of some calls, after one to warm up."""
    call()
    found = []
    for _ in range(repeats):
        begun = time.perf_counter()
        call()
        found.append(time.perf_counter() - begun)
    return found


def hardware() -> str:
    """The processor's name, and how many of it."""
    import os

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} × {names[0] if names else platform.processor() or platform.machine()}"


def report(rows: list[Row]) -> dict[str, Any]:
    """The figures with where and when they were measured, and those of the reference."""
    return {
        "hardware": hardware(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
        "rows": [asdict(row) for row in rows],
        "reference": REFERENCE,
    }


def as_text(found: Mapping[str, Any]) -> str:
    """A report as a table."""
    known = found["reference"]
    lines = [
        f"here       {found['hardware']}, torch {found['torch']}, {found['date']}",
        f"reference  {known['hardware']}, torch {known['torch']}, {known['date']}",
        "",
        f"{'':36} {'here':>9} {'reference':>10}",
    ]
    for row in found["rows"]:
        there = known["rows"].get(row["name"])
        lines.append(f"{row['name']:36} {_number(row['value']):>9} {_number(there):>10} {row['unit']} {row['why']}")
    return "\n".join(line.rstrip() for line in lines)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"
