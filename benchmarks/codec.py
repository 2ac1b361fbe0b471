"""How small and how fast the mask code is: bits a parameter and Mbit of mask a second, zstd beside it.

    python benchmarks/codec.py [--count 3500000] [--repeats 5]

Masks are made as training makes them: θ settles towards 0 and 1, and a client moves it by a normal
step on the scores.  Each line is one size of that step.  Seconds are the least of the repeats, one
thread; zstd packs the same mask as plain bits, level 3.  `entropy` is that of flips given their
contexts, counted from the very mask (which flatters it), `mask` the mask's own given θ.
"""

import argparse
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from prismfl.wire import codec
from prismfl.wire.codec import Entries

LAYERS = 12
T = TypeVar("T")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3_500_000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print("| step | flips | mask | entropy | coded | ratio | encode Mbit/s | decode Mbit/s | zstd bits | zstd Mbit/s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
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
    ideal = entropy(u, known, flips)
    packed, zipping = zstd(codec.pack_mask(mask), repeats)
    theta = known.q / 65536
    own = float(-(theta * np.log2(theta) + (1 - theta) * np.log2(1 - theta)).mean())
    bits = 8 * len(raw) / count
    speeds = [count / seconds / 1e6 for seconds in (encoding, decoding)]
    return (
        f"| {step} | {flips.mean():.4f} | {own:.3f} | {ideal:.4f} | {bits:.4f} | {bits / ideal:.3f} "
        f"| {speeds[0]:.0f} | {speeds[1]:.0f} | {8 * packed / count:.3f} | {count / zipping / 1e6:.0f} |"
    )


def made(step: float, count: int) -> tuple[Entries, NDArray[np.uint16], NDArray[np.uint16]]:
    """θ_t of a run half-way, θ_k, and u."""
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 2, count)
    q, mine = (
        np.clip(65536 / (1 + np.exp(-s)), 656, 64880).astype(np.uint16)
        for s in (scores, scores + rng.normal(0, step, count))
    )
    layers = np.sort(rng.integers(0, LAYERS, count)).astype(np.uint8)
    return Entries(q, layers, LAYERS), mine, rng.integers(0, 65536, count).astype(np.uint16)


def entropy(u: NDArray[np.uint16], known: Entries, flips: NDArray[np.bool_]) -> float:
    """Empirical entropy of flips given their contexts, bits a parameter."""
    _, contexts, shape = codec.flip_contexts(u, known)
    seen = np.bincount(contexts, minlength=int(np.prod(shape)))
    share = np.bincount(contexts, weights=flips, minlength=len(seen)) / np.maximum(seen, 1)
    share = np.clip(share, 1e-12, 1 - 1e-12)
    return float((seen * -(share * np.log2(share) + (1 - share) * np.log2(1 - share))).sum() / len(u))


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
