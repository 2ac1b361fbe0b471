"""What neighbourhoods in feature space say: precision, recall, density and coverage."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import pairwise_distances_chunked

from prismfl.metrics.embedding import enough, judge_features
from prismfl.seeding.philox import Purpose, Stream

NEIGHBOURS = 5
LEAST = NEIGHBOURS + 1  # images a side
MOST = 10_000  # images a side
CHUNK_MB = 64  # of distances held at once


@dataclass(frozen=True)
class Neighbourhoods:
    """How two image sets lie in each other's neighbourhoods.

    precision: share of generated images near real ones; recall: share of real images near
    generated ones (Kynkäänniemi et al. 2019); density: how many real neighbourhoods a generated
    image lies in, over their expected number: 1 where the sets are alike, more where samples
    crowd where real images do; coverage: share of real images that have a generated one in their
    neighbourhood (Naeem et al. 2020).
    """

    precision_judge: float
    recall_judge: float
    density_judge: float
    coverage_judge: float


@dataclass(frozen=True)
class Balls:
    """Features float32 `[n, d]`, each with the distance to its k-th nearest other one, float32 `[n]`."""

    rows: NDArray[np.float32]
    radii: NDArray[np.float32]


def neighbourhoods_judge(
    real: NDArray[np.uint8], fake: NDArray[np.uint8], batch: int = 250, device: str = "cpu"
) -> Neighbourhoods:
    """Neighbourhoods of judge features of two image sets, uint8 `[n, C, H, W]` each; see `compare`."""
    enough(real, fake, LEAST)
    return compare(balls(judge_features(real, batch, device)), balls(judge_features(fake, batch, device)))


def balls(rows: NDArray[np.float32], neighbours: int = NEIGHBOURS) -> Balls:
    """Neighbourhoods of features float32 `[n, d]`: of 10,000 of them where there are more.

    Raises DataError for fewer than `neighbours + 1` rows.
    """
    enough(rows, rows, neighbours + 1)
    kept = np.ascontiguousarray(rows[np.sort(Stream(0, Purpose.SUBSETS).permutation(len(rows))[:MOST])])
    # Each row is its own nearest, at distance zero: the k-th other one is number k, from zero.
    parts = [np.partition(part, neighbours, axis=1)[:, neighbours].copy() for part in _distances(kept, kept)]
    return Balls(kept, np.concatenate(parts))


def compare(real: Balls, fake: Balls, neighbours: int = NEIGHBOURS) -> Neighbourhoods:
    """Precision, recall, density and coverage, as the `prdc` package computes them.

    Distances are made 64 MB at a time; the package holds all of them at once.
    """
    holders, covered, recalled, start = np.zeros(len(fake.rows), np.int64), [], [], 0
    for distances in _distances(real.rows, fake.rows):
        inside = distances < real.radii[start : start + len(distances), None]
        holders += inside.sum(0)
        covered.append(inside.any(1))
        recalled.append((distances < fake.radii).any(1))
        start += len(distances)
    return Neighbourhoods(
        float((holders > 0).mean()),
        float(np.concatenate(recalled).mean()),
        float(holders.mean() / neighbours),
        float(np.concatenate(covered).mean()),
    )


def _distances(a: NDArray[np.float32], b: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Euclidean distances of consecutive rows of `a` to all of `b`: float32 `[rows, len(b)]` at a time."""
    return pairwise_distances_chunked(a, b, working_memory=CHUNK_MB)  # type: ignore[no-any-return]
