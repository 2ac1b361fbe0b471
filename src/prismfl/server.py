"""Counts → θ, MADA, α layers: pure functions of explicit integer state.

All arithmetic is in 64-bit integers, so that the result is exact, the same on every machine, and
independent of the order in which clients arrive.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from prismfl.config import Federation
from prismfl.errors import MessageError
from prismfl.seeding import Purpose, Stream

ONE = 65536
MOST_WEIGHT = 2**30  # of a round's clients together: keeps every product below 2^63


@dataclass(frozen=True)
class ServerState:
    """θ_t = q / 65536, uint16 `[N]`, and t, the number of rounds done."""

    q: NDArray[np.uint16]
    round: int


@dataclass(frozen=True)
class Tally:
    """Sums over the clients that replied: memory does not grow with their number.

    votes: int64 `[N]`, Σ w_k M_k · 65536 (α layers: Σ w_k q_k); with the control variate the
    differences M_k - M0_k instead of M_k, and θ_t is added at the end.
    """

    votes: NDArray[np.int64]
    weight: int = 0
    clients: int = 0


@dataclass(frozen=True)
class Average:
    """Outcome of a round: the new state, λ, and the share of ones among the masks."""

    state: ServerState
    kept_share: float
    density: float


def initial_state(settings: Federation, count: int) -> ServerState:
    """θ_0: the same keep-probability everywhere."""
    return ServerState(np.full(count, round(settings.initial_theta * ONE), np.uint16), 0)


def add_reply(
    tally: Tally,
    mask: NDArray[np.bool_],
    alpha: NDArray[np.uint16],
    weight: int,
    without_news: NDArray[np.bool_] | None = None,
) -> Tally:
    """A tally with one more client: mask bool `[A]`, α layers uint16 `[N - A]`, its weight.

    without_news: M0 = [u < θ_t], bool `[A]`, when the control variate is on (idea 4b).  The
    votes are added in place; use the returned tally only.  Raises MessageError
    when the weights of a round together exceed `MOST_WEIGHT`.
    """
    if tally.weight + weight > MOST_WEIGHT:
        raise MessageError(f"client weights of {tally.weight + weight}", f"at most {MOST_WEIGHT}", "use equal weights")
    change = mask.astype(np.int64)
    if without_news is not None:
        change -= without_news
    tally.votes[: len(mask)] += change * (weight * ONE)
    tally.votes[len(mask) :] += alpha.astype(np.int64) * weight
    return replace(tally, weight=tally.weight + weight, clients=tally.clients + 1)


def average(state: ServerState, tally: Tally, settings: Federation, seed: int, masked: int) -> Average:
    """θ_{t+1} = λ θ_t + (1 - λ) θ̄, rounded stochastically from the public stream, then clipped.

    masked: number of parameters A whose masks were sent.  The mean before clipping is exact
    (paper, server step; 1 - λ from `moved_share`).
    """
    total = tally.weight
    votes = tally.votes
    if settings.control_variate:
        votes = votes.copy()
        votes[:masked] += state.q[:masked].astype(np.int64) * total
    share = moved_share(state.q, votes // total, settings)
    # Both terms are in units of 1 / (65536 · 65536 · total); total ≤ 2^30 keeps them below 2^63.
    mixed = (ONE - share) * (state.q.astype(np.int64) * total) + share * votes
    words = Stream(seed, Purpose.ROUNDING, state.round).words(len(votes)).astype(np.uint64)
    dither = ((words * np.uint64(total)) >> np.uint64(16)).astype(np.int64)
    low = int(np.ceil(settings.clip * ONE))
    q = np.clip((mixed + dither) // (ONE * total), low, ONE - low).astype(np.uint16)
    density = float(np.mean(np.clip(votes / (ONE * total), 0, 1)))
    return Average(ServerState(q, state.round + 1), 1 - share / ONE, density)


def moved_share(q: NDArray[np.uint16], mean: NDArray[np.int64], settings: Federation) -> int:
    """1 - λ in units of 1 / 65536: how far the global model moves towards the mean θ̄.

    mean: θ̄ · 65536, int64 `[N]`.  `published`: the expected Hamming distance of masks drawn
    independently from θ_t and θ̄, mean(θ + θ̄ - 2θθ̄); `coupled`: that of masks drawn with one
    uniform, mean |θ̄ - θ_t|; `fixed`: the setting; `off`: 1 (PRISM†).
    """
    if settings.mada == "off":
        return ONE
    if settings.mada == "fixed":
        return round(settings.fixed_share * ONE)
    old, new = q.astype(np.int64), np.clip(mean, 0, ONE)
    if settings.mada == "coupled":
        return round(int(np.abs(new - old).sum()) / len(q))
    return round(int((ONE * (old + new) - 2 * old * new).sum()) / (ONE * len(q)))
