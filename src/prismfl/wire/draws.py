"""The public uniforms that masks are drawn with, known to client and server alike."""

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
    shared = Stream(seed, Purpose.MASK, round_index).halves(count)
    place = int(Stream(seed, Purpose.RANKS, round_index).permutation(cohort)[rank])
    return shared + np.uint16(place * 65536 // cohort)
