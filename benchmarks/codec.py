"""How small and how fast the mask code is: bits a parameter and Mbit of mask a second, zstd beside it.

    python benchmarks/codec.py [--count 3500000] [--repeats 5]

Masks are made as training makes them: θ settles towards 0 and 1, and a client moves it by a normal
step on the scores.  Each line is one size of that step.  Seconds are the least of the repeats, one
thread; zstd packs the same mask as plain bits, level 3.  `entropy` is that of flips given their
contexts, counted over eight masks; `own` the same counted from the very mask, which is too low by what a code
would spend on telling 3,072 frequencies; `mask` the mask's own given θ.  Ratios are of `entropy`.
"""

import argparse
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from prismfl.wire import masks as codec
from prismfl.wire.masks import SharedKnowledge

LAYERS = 12
MASKS = 8  # that the entropy is counted over
T = TypeVar("T")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3_500_000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    names = "step, flips, mask, own, entropy, coded, ratio, encode Mbit/s, decode Mbit/s, zstd bits, zstd Mbit/s"
    print("| " + names.replace(", ", " | ") + " |\n" + "|---" * 11 + "|")
    for step in (0.1, 0.3, 1.0, 3.0):
        print(line(step, args.count, args.repeats), flush=True)


def line(step: float, count: int, repeats: int) -> str:
    """One row: scores move by `step` times a normal."""
    known, mine, u = made(step, count)
    mask = u < mine
    raw, encoding = timed(lambda: codec.encode_mask(mask, u, known), repeats)
    back, decoding = timed(lambda: codec.decode_mask(raw, u, known), repeats)
    if not np.array_equal(back, mask):
        raise SystemExit("the mask did not come back")
    flips = mask ^ (u < known.q)
    own, ideal = entropies(known, step, count, raw[1])
    packed, zipping = zstd(codec.pack_mask(mask), repeats)
    theta = known.q / 65536
    plain = float(-(theta * np.log2(theta) + (1 - theta) * np.log2(1 - theta)).mean())
    bits = 8 * len(raw) / count
    speeds = [count / seconds / 1e6 for seconds in (encoding, decoding)]
    return (
        f"| {step} | {flips.mean():.4f} | {plain:.3f} | {own:.4f} | {ideal:.4f} | {bits:.4f} | {bits / ideal:.3f} "
        f"| {speeds[0]:.0f} | {speeds[1]:.0f} | {8 * packed / count:.3f} | {count / zipping / 1e6:.0f} |"
    )


def made(step: float, count: int, number: int = 0) -> tuple[SharedKnowledge, NDArray[np.uint16], NDArray[np.uint16]]:
    """θ_t of a run half-way, θ_k, and u; number: which of many masks."""
    rng, more = np.random.default_rng(0), np.random.default_rng((1, number))
    scores, layers = rng.normal(0, 2, count), np.sort(rng.integers(0, LAYERS, count)).astype(np.uint8)
    q, mine = (
        np.clip(65536 / (1 + np.exp(-s)), 656, 64880).astype(np.uint16)
        for s in (scores, scores + more.normal(0, step, count))
    )
    return SharedKnowledge(q, layers, LAYERS), mine, more.integers(0, 65536, count).astype(np.uint16)


def entropies(known: SharedKnowledge, step: float, count: int, width: int) -> tuple[float, float]:
    """Entropy of flips given their contexts, bits a parameter: counted from the first mask, and from all of them."""
    counts = [counted(known, width, *made(step, count, number)[1:]) for number in range(MASKS)]
    return entropy(counts[0]), entropy(np.sum(counts, axis=0))


def counted(known: SharedKnowledge, width: int, mine: NDArray[np.uint16], u: NDArray[np.uint16]) -> NDArray[np.float64]:
    """Unset and set flags of each cell, and of all entries beyond the bins: float64 `[2, cells + 1]`."""
    near, contexts, shape = codec.flip_contexts(u, known, width)
    flips = (u < mine) ^ (u < known.q)
    cells = np.full(len(u), int(np.prod(shape)))
    cells[near] = contexts
    return np.stack([np.bincount(cells[flips == kind], minlength=int(np.prod(shape)) + 1) for kind in (False, True)])


def entropy(seen: NDArray[np.float64]) -> float:
    """Mean entropy of cells, bits: float64 `[2, cells]`, unset and set flags of each."""
    share = seen / np.maximum(seen.sum(0), 1)
    return float(-(seen * np.log2(np.maximum(share, 1e-12))).sum() / seen.sum())


def zstd(packed: bytes, repeats: int) -> tuple[int, float]:
    """Bytes and seconds of zstd on packed bits."""
    try:
        import zstandard
    except ImportError:
        return 0, float("inf")
    raw, seconds = timed(lambda: zstandard.ZstdCompressor(level=3).compress(packed), repeats)
    return len(raw), seconds


def timed(work: Callable[[], T], repeats: int) -> tuple[T, float]:
    """What the work gives, and its least time in seconds."""
    found, times = work(), []
    for _ in range(repeats):
        begun = time.perf_counter()
        found = work()
        times.append(time.perf_counter() - begun)
    return found, min(times)


if __name__ == "__main__":
    main()
