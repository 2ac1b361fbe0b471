"""The server's screen: which masks no search has led to, by what the server has anyway."""

import math
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
from numpy.typing import NDArray

from prismfl.errors import MessageError
from prismfl.server import ONE, Tally, add_reply

_SURE = 4.0  # standard errors: of honest masks one in 30,000 would be as far by chance
_NO_MASK, _NO_ALPHA = np.zeros(0, np.bool_), np.zeros(0, np.uint16)


@dataclass(frozen=True)
class Vote:
    """A client's reply, decoded: its mask bool `[A]`, its α layers uint16 `[N - A]`, its weight and place.

    surprise: how improbable its mask is (see there); chance: the standard error of that.
    """

    mask: NDArray[np.bool_]
    alpha: NDArray[np.uint16]
    weight: int
    place: int
    surprise: float
    chance: float = 0.0

    def added(self, tally: Tally) -> Tally:
        """The tally with this vote in it; use the returned one only."""
        return add_reply(tally, self.mask, self.alpha, self.weight, self.place)


def surprise(
    mask: NDArray[np.bool_],
    u: NDArray[np.uint16],
    q: NDArray[np.uint16],
    alpha: NDArray[np.uint16] = _NO_ALPHA,
    before: NDArray[np.uint16] = _NO_ALPHA,
) -> tuple[float, float]:
    """How improbable a reply is, and the standard error of that.

    It is the mean over entries of |u - θ_t| where the mask differs from [u < θ_t].  A client that moved θ by Δ flips
    an entry where u lies between: its expectation is mean(Δ²) / 2, which stands in the mean for entries of which θ_k
    itself is known.  Masks that no search has led to flip entries far from u, and have many times as much.  Flips
    come one by one by chance: of few of them the mean is uncertain.

    Args:
        mask: bool `[n]`.
        u: the uniforms that it was drawn with, uint16 `[n]`.
        q: θ_t · 65536, uint16 `[n]`.
        alpha: θ_k · 65536 where it is sent itself, uint16 `[m]`.
        before: θ_t · 65536 of these.

    Examples:
        >>> u, q = np.array([16384, 49152], np.uint16), np.array([32768, 32768], np.uint16)
        >>> surprise(u < q, u, q)[0], surprise(u >= q, u, q)[0], surprise(u < q, u, q, u, q)[0]
        (0.0, 0.25, 0.015625)
    """
    flips, count = np.flatnonzero(mask != (u < q)), max(1, len(mask) + len(alpha))
    far = np.abs(u[flips].astype(np.int64) - q[flips])
    moved = int(np.square(alpha.astype(np.int64) - before).sum())
    mean = (int(far.sum()) + moved / (2 * ONE)) / ONE / count
    return mean, math.sqrt(int(np.square(far).sum())) / ONE / count


class Screen:
    """Leaves votes out that are `times` as surprising as the median of their round; 0 leaves in all.

    With a limit, votes wait for the last one, packed: memory grows with the cohort.  The median of an
    honest majority bounds what passes, but for what chance may do to a mask of few flips.

    Examples:
        >>> from prismfl.server import empty_tally
        >>> none, screen, tally = np.zeros(0, np.uint16), Screen(times=2.0), empty_tally(1, 3)
        >>> for client, far in enumerate((0.1, 0.1, 0.3)):
        ...     tally = screen.add(tally, client, Vote(np.ones(1, np.bool_), none, 1, client, far))
        >>> tally, out = screen.close(tally)
        >>> tally.votes.tolist(), out
        ([2], {2: "a mask of surprise 0.3; at most 0.2, from the cohort's median"})
    """

    def __init__(self, times: float) -> None:
        self.times = times
        self.waiting: dict[int, tuple[Vote, NDArray[np.uint8]]] = {}

    def add(self, tally: Tally, client: int, vote: Vote) -> Tally:
        """Take one vote in, now or later."""
        if not self.times:
            return vote.added(tally)
        self.waiting[client] = replace(vote, mask=_NO_MASK), np.packbits(vote.mask)
        return tally

    def close(self, tally: Tally) -> tuple[Tally, dict[int, str]]:
        """The tally with all votes that pass, and by client why others do not."""
        most = self.times * median([vote.surprise for vote, _ in self.waiting.values()] or [0.0])
        out: dict[int, str] = {}
        for client, (vote, packed) in sorted(self.waiting.items()):
            if vote.surprise - _SURE * vote.chance > most:
                out[client] = f"a mask of surprise {vote.surprise:.3g}; at most {most:.3g}, from the cohort's median"
                continue
            mask = np.unpackbits(packed, count=len(tally.votes) - len(vote.alpha)).view(np.bool_)
            try:
                tally = replace(vote, mask=mask).added(tally)
            except MessageError as error:
                out[client] = str(error)
        return tally, out
