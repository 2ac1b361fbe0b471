"""The public draws behind masks, known to client and server alike: uniforms, parts, and what follows from θ_t."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from prismfl.seeding import Purpose, Stream
from prismfl.wire import native


@dataclass(frozen=True)
class Draws:
    """How the masks of a round are drawn: what settings and round say.

    draws: `independent`, or `stratified`: all `cohort` clients share one u, each shifted by
    π(rank)/cohort modulo 1 with π a fresh public permutation (architecture, idea 4a).  Either
    way one client's u is exactly uniform on 0 … 65535.  parts: entries are dealt at random into so many
    parts, and a client sends the part π(rank) mod parts alone.  count: entries of a mask.
    """

    draws: str
    parts: int
    seed: int
    round: int
    cohort: int
    count: int

    def place(self, rank: int) -> int:
        """π(rank), in 0 … cohort - 1."""
        return int(_places(self.seed, self.round, self.cohort)[rank])

    def uniforms(self, client: int, rank: int) -> NDArray[np.uint16]:
        """Uniform 16-bit integers of a client: uint16 `[count]`."""
        if self.draws == "independent":
            return Stream(self.seed, Purpose.MASK, self.round, client).halves(self.count)
        return _shared(self.seed, self.round, self.count) + np.uint16(self.place(rank) * 65536 // self.cohort)

    def part(self, rank: int) -> int:
        """The part that a client sends, in 0 … parts - 1."""
        return self.place(rank) % self.parts

    def sent(self, rank: int) -> NDArray[np.bool_]:
        """The entries of a client's part: bool `[count]`."""
        return np.equal(self.dealt(), self.part(rank))

    def chosen(self, rank: int) -> "NDArray[np.intp] | slice":
        """The same for indexing: a slice where all entries are sent, which copies nothing, else their places.

        NumPy indexes by places four times as fast as by a mask.
        """
        return np.flatnonzero(self.sent(rank)) if self.parts > 1 else slice(None)

    def dealt(self) -> NDArray[np.uint16]:
        """The part of each entry: uint16 `[count]`, not to be written to."""
        return _dealt(self.seed, self.round, self.parts, self.count)


# A simulator and a server ask for the same round once a client.
@lru_cache(maxsize=2)
def _places(seed: int, round_index: int, cohort: int) -> NDArray[np.int64]:
    """π: the place of each rank, a permutation of `0 … cohort - 1`."""
    return Stream(seed, Purpose.RANKS, round_index).permutation(cohort)


@lru_cache(maxsize=2)
def _shared(seed: int, round_index: int, count: int) -> NDArray[np.uint16]:
    """u of a round, before any shift: uint16 `[count]`, not to be written to."""
    return _kept(Stream(seed, Purpose.MASK, round_index).halves(count))


@lru_cache(maxsize=2)
def _dealt(seed: int, round_index: int, parts: int, count: int) -> NDArray[np.uint16]:
    if parts == 1:
        return _kept(np.zeros(count, np.uint16))
    halves = Stream(seed, Purpose.PARTS, round_index).halves(count).astype(np.uint32)
    return _kept((halves * np.uint32(parts) >> np.uint32(16)).astype(np.uint16))


def _kept(array: NDArray[np.uint16]) -> NDArray[np.uint16]:
    array.setflags(write=False)
    return array


@dataclass(frozen=True)
class Baseline:
    """Of each entry, what is known before any news: the masks that count, and those that keep it.

    clients, kept: uint16 `[n]`, masks sent and those of them with u < θ_t; below, above: uint16 `[n]`,
    distance from θ_t to the nearest u under and over it, around the circle.
    """

    clients: NDArray[np.uint16]
    kept: NDArray[np.uint16]
    below: NDArray[np.uint16]
    above: NDArray[np.uint16]


def baseline(draws: Draws, q: NDArray[np.uint16], replied: Iterable[tuple[int, int]]) -> Baseline:
    """The baseline of θ_t = q / 65536, uint16 `[n]`, for the (client, rank) whose masks count."""
    q, (clients, kept) = np.ascontiguousarray(q), np.zeros((2, len(q)), np.uint16)
    below, above = np.full((2, len(q)), 65535, np.uint16)
    for client, rank in replied:
        u = draws.uniforms(client, rank)
        if native.fast:
            native.fast.meet(u, q, draws.dealt(), draws.part(rank), clients, kept, below, above)
            continue
        sent = draws.sent(rank)
        clients += sent
        kept += (u < q) & sent
        farthest = sent - np.uint16(1)  # 0 of what was sent; the rest is as far as can be, which changes nothing
        np.minimum(below, (q - u - np.uint16(1)) | farthest, out=below)
        np.minimum(above, (u - q) | farthest, out=above)
    return Baseline(clients, kept, below, above)
