"""The public uniforms that masks are drawn with, known to client and server alike."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from prismfl.seeding import Purpose, Stream


def uniforms(
    draws: str, seed: int, round_index: int, client: int, rank: int, cohort: int, count: int
) -> NDArray[np.uint16]:
    """Uniform 16-bit integers of one client and round: uint16 `[count]`.

    draws: `independent`, or `stratified`: all `cohort` clients share one u, each shifted by
    π(rank)/cohort modulo 1 with π a fresh public permutation (architecture, idea 4a).  Either
    way one client's u is exactly uniform on 0 … 65535.
    """
    if draws == "independent":
        return Stream(seed, Purpose.MASK, round_index, client).halves(count)
    place = int(_places(seed, round_index, cohort)[rank])
    return _shared(seed, round_index, count) + np.uint16(place * 65536 // cohort)


# A simulator and a server ask for the same round once a client.
@lru_cache(maxsize=2)
def _places(seed: int, round_index: int, cohort: int) -> NDArray[np.int64]:
    """π: the place of each rank, a permutation of `0 … cohort - 1`."""
    return Stream(seed, Purpose.RANKS, round_index).permutation(cohort)


@lru_cache(maxsize=2)
def _shared(seed: int, round_index: int, count: int) -> NDArray[np.uint16]:
    """u of a round, before any shift: uint16 `[count]`, not to be written to."""
    shared = Stream(seed, Purpose.MASK, round_index).halves(count)
    shared.setflags(write=False)
    return shared
