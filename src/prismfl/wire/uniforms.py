"""The public draws behind masks, known to client and server alike: uniforms, parts, and what follows from θ_t."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from prismfl.seeding.philox import Purpose, Stream

Stretches = tuple[tuple[int, int], ...]


def stretches(layers: Iterable[tuple[int, int]], count: int) -> Stretches:
    """Of layers' (weights, parts) those of the first `count` weights, neighbours of as many parts as one.

    Examples:
        >>> stretches([(8, 1), (4, 1), (9, 3)], count=15)
        ((12, 1), (3, 3))
    """
    found: list[tuple[int, int]] = []
    for weights, parts in layers:
        taken = min(weights, count - sum(one for one, _ in found))
        if found and found[-1][1] == parts:
            found[-1] = found[-1][0] + taken, parts
        elif taken:
            found.append((taken, parts))
    return tuple(found)


@dataclass(frozen=True)
class Draws:
    """How the masks of a round are drawn: what settings and round say.

    Either way one client's u is exactly uniform on 0 … 65535.

    Attributes:
        draws: `independent`, or `stratified`: all clients share one u, each shifted by π(rank)/cohort modulo 1
            with π a fresh public permutation.
        stretches: (n, parts) of consecutive entries, which are dealt at random into so many parts; a client sends
            the part π(rank) mod parts alone.
        seed: of all public randomness.
        round: t.
        cohort: clients of the round.

    Examples:
        >>> draws = Draws("stratified", ((4, 2),), seed=0, round=0, cohort=2)
        >>> u = [draws.uniforms(client, rank=client) for client in range(2)]
        >>> (u[1] - u[0]).tolist()  # half of 65536 apart, modulo 65536
        [32768, 32768, 32768, 32768]
        >>> (draws.sent(0) ^ draws.sent(1)).tolist()  # each entry is sent by one of the two
        [True, True, True, True]
    """

    draws: str
    stretches: Stretches
    seed: int
    round: int
    cohort: int

    @cached_property
    def count(self) -> int:
        """Entries of a mask."""
        return sum(entries for entries, _ in self.stretches)

    def place(self, rank: int) -> int:
        """A client's place among the draws, π(rank).

        Args:
            rank: of the client in the cohort, from 0.

        Returns:
            0 … cohort - 1, each once in a round.
        """
        return int(_places(self.seed, self.round, self.cohort)[rank])

    def uniforms(self, client: int, rank: int) -> NDArray[np.uint16]:
        """The uniforms that a client's mask is drawn with.

        Args:
            client: its number.
            rank: of the client in the cohort, from 0.

        Returns:
            uint16 `[count]`.
        """
        if self.draws == "independent":
            return Stream(self.seed, Purpose.MASK, self.round, client).halves(self.count)
        return _shared(self.seed, self.round, self.count) + np.uint16(self.place(rank) * 65536 // self.cohort)

    def spans(self) -> Iterator[tuple[slice, int]]:
        """Where each stretch lies, and into how many parts it is dealt."""
        begin = 0
        for entries, parts in self.stretches:
            yield slice(begin, begin + entries), parts
            begin += entries

    def sent(self, rank: int) -> NDArray[np.bool_]:
        """The entries that a client sends.

        Args:
            rank: of the client in the cohort, from 0.

        Returns:
            bool `[count]`.
        """
        found, dealt, place = np.empty(self.count, np.bool_), self.dealt(), self.place(rank)
        for span, parts in self.spans():
            np.equal(dealt[span], place % parts, out=found[span])
        return found

    def chosen(self, rank: int) -> "NDArray[np.intp] | slice":
        """The same for indexing: a slice where all entries are sent, which copies nothing, else their places.

        NumPy indexes by places four times as fast as by a mask.
        """
        whole = all(parts == 1 for _, parts in self.stretches)
        return slice(None) if whole else np.flatnonzero(self.sent(rank))

    def dealt(self) -> NDArray[np.uint16]:
        """The part of each entry: uint16 `[count]`, not to be written to."""
        return _dealt(self.seed, self.round, self.stretches)

    def by_entry(self, weights: NDArray[np.int64]) -> NDArray[np.int64]:
        """The sum of weights over the clients that send each entry.

        Args:
            weights: by a client's place, int64 `[cohort]`.

        Returns:
            int64 `[count]`.
        """
        found, dealt = np.empty(self.count, np.int64), self.dealt()
        for span, parts in self.spans():
            sums = np.zeros(parts, np.int64)
            np.add.at(sums, np.arange(len(weights)) % parts, weights)
            found[span] = sums[dealt[span]]
        return found


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
def _dealt(seed: int, round_index: int, stretches: Stretches) -> NDArray[np.uint16]:
    entries, parts = np.array(stretches, np.intp).reshape(-1, 2).T
    if (parts == 1).all():
        return _kept(np.zeros(entries.sum(), np.uint16))
    halves = Stream(seed, Purpose.PARTS, round_index).halves(int(entries.sum())).astype(np.uint32)
    return _kept((halves * np.repeat(parts.astype(np.uint32), entries) >> np.uint32(16)).astype(np.uint16))


def _kept(array: NDArray[np.uint16]) -> NDArray[np.uint16]:
    array.setflags(write=False)
    return array


@dataclass(frozen=True)
class Baseline:
    """Of each entry, what is known before any news.

    Attributes:
        clients: masks sent, uint16 `[n]`.
        kept: those of them with u < θ_t, uint16 `[n]`.
        below: distance from θ_t to the nearest u under it, around the circle, uint16 `[n]`.
        above: distance from θ_t to the nearest u over it, around the circle, uint16 `[n]`.
    """

    clients: NDArray[np.uint16]
    kept: NDArray[np.uint16]
    below: NDArray[np.uint16]
    above: NDArray[np.uint16]


def baseline(draws: Draws, q: NDArray[np.uint16], replied: Iterable[tuple[int, int]]) -> Baseline:
    """What is known of θ_t's entries before any news.

    Args:
        draws: of the round.
        q: θ_t · 65536, uint16 `[n]`.
        replied: (client, rank) of those whose masks count.

    Examples:
        >>> draws = Draws("stratified", ((4, 1),), seed=0, round=0, cohort=2)
        >>> base = baseline(draws, np.full(4, 32768, np.uint16), [(0, 0), (1, 1)])
        >>> base.clients.tolist(), base.kept.tolist()  # of two uniforms half of the circle apart one is below 1/2
        ([2, 2, 2, 2], [1, 1, 1, 1])
    """
    q, (clients, kept) = np.ascontiguousarray(q), np.zeros((2, len(q)), np.uint16)
    below, above = np.full((2, len(q)), 65535, np.uint16)
    for client, rank in replied:
        u = draws.uniforms(client, rank)
        sent = draws.sent(rank)
        clients += sent
        kept += (u < q) & sent
        farthest = sent - np.uint16(1)  # 0 of what was sent; the rest is as far as can be, which changes nothing
        np.minimum(below, (q - u - np.uint16(1)) | farthest, out=below)
        np.minimum(above, (u - q) | farthest, out=above)
    return Baseline(clients, kept, below, above)
