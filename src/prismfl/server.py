"""Counts → θ, MADA, α layers: pure functions of explicit integer state.

The server settles a round into a `Step`, which is all that it sends; `advance` makes θ_{t+1} of θ_t
and a step, for the server and every client alike.  All arithmetic is in 64-bit integers, so that the
result is exact, the same on every machine, and independent of the order in which clients arrive.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from prismfl.errors import MessageError
from prismfl.generator.layout import Layout, frozen_signs
from prismfl.seeding.philox import Purpose, Stream
from prismfl.settings.schema import Federation
from prismfl.wire.frames import digest_of
from prismfl.wire.uniforms import Baseline

ONE = 65536
MOST_WEIGHT = 2**30  # of a round's clients together: keeps every product below 2^63
_CHUNK = 65536  # votes that are counted at a time: what fits a cache
ALPHA_STEP = 256  # of the α layers' changes, in 1 / 65536: eight bits
_GRAIN = 8  # of a mean over clients of unequal weight: steps a client


@dataclass(frozen=True)
class ServerState:
    """What a server keeps between two rounds.

    Attributes:
        q: θ_t · 65536, uint16 `[N]`.
        round: t, the number of rounds done.
        steps: the coded steps that led here, the last one last, as many as are worth keeping.
        held: the last round whose θ each client has proved to know, int64 `[clients]`.
        memory: of a server that searches alone, Adam's moments, float32 `[N]` each, and the number of steps
            behind them, int64 `[1]`.
    """

    q: NDArray[np.uint16]
    round: int
    steps: tuple[bytes, ...] = ()
    held: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    memory: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]] | None = None

    @cached_property
    def digest(self) -> bytes:
        """Eight bytes naming θ_t."""
        return digest_of(self.q)


@dataclass(frozen=True)
class Tally:
    """Sums over the clients that replied: of each but its weight, eight bytes, is kept.

    Attributes:
        votes: Σ w_k M_k, of α layers Σ w_k q_k, int64 `[N]`.
        weights: w_k by a client's place among the draws, int64 `[cohort]`.
        weight: Σ w_k.
        clients: that replied.
    """

    votes: NDArray[np.int64]
    weights: NDArray[np.int64]
    weight: int = 0
    clients: int = 0


@dataclass(frozen=True)
class Step:
    """What a round changed.

    Attributes:
        net: kept masks less those kept without news, in `1 / grain` of a mask, int64 `[A]`.
        alpha: changes of the α layers in steps of `ALPHA_STEP`, int64 `[N - A]`.
    """

    net: NDArray[np.int64]
    alpha: NDArray[np.int64]


@dataclass(frozen=True)
class Average:
    """Outcome of a round: θ_{t+1} as uint16 `[N]`, λ, and the share of ones among the masks."""

    q: NDArray[np.uint16]
    kept_share: float
    density: float


def initial_state(settings: Federation, layout: Layout, clients: int = 0, seed: int = 0) -> ServerState:
    """θ_0, which every client knows: near the mask of a public draw, or the same everywhere.

    An entry is kept by half of the draws, and begins `initial_certainty` of the way from 1/2 to 1 or 0, inside the clip
    range.  Of each of the output's filters the draw keeps as many weights above
    0 as below: nothing after it takes a mean away, and images would begin bright or dark by chance.

    Args:
        settings: `initial_certainty` and `clip` of them.
        layout: the generator's shape.
        clients: of the whole federation.
        seed: of all public randomness.

    Examples:
        >>> layout = Layout(size=16, channels=1, width=2, latent=8)
        >>> state = initial_state(Federation(initial_certainty=0.0), layout, clients=3)
        >>> state.round, np.unique(state.q).tolist(), state.held.tolist()
        (0, [32768], [0, 0, 0])
    """
    ranks = Stream(seed, Purpose.START).halves(layout.count)
    kept = ranks < ONE // 2
    output = layout.layers[-1]
    signs = frozen_signs(layout, seed)[output.span].reshape(layout.channels, -1)
    rows = kept[output.span].reshape(signs.shape)
    kept[output.span] = np.concatenate(
        [balanced(*row) for row in zip(rows, signs, ranks[output.span].reshape(signs.shape), strict=True)]
    )
    low = (1 - settings.certainty) / 2
    ends = np.clip((low, low + settings.certainty), settings.clip, 1 - settings.clip)
    q = np.rint(ends * ONE).astype(np.uint16)[kept.astype(np.intp)]
    return ServerState(q, 0, (), np.zeros(clients, np.int64))


def balanced(kept: NDArray[np.bool_], signs: NDArray[np.int8], ranks: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """As many entries kept, the sum of whose signs is at most 1 from 0: bool `[n]`, int8 `[n]` of -1 and 1.

    Of the sign that is too frequent those of the highest ranks go, of the other those of the lowest come, as far as
    there are any.
    """
    found, excess = kept.copy(), int(signs[kept].sum())
    sign = 1 if excess > 0 else -1
    order = np.argsort(ranks, kind="stable")
    going = [entry for entry in order[::-1] if kept[entry] and signs[entry] == sign]
    coming = [entry for entry in order if not kept[entry] and signs[entry] != sign]
    for gone, come in zip(going[: abs(excess) // 2], coming, strict=False):
        found[gone], found[come] = False, True
    return found


def empty_tally(count: int, cohort: int) -> Tally:
    """A tally of `count` entries and a cohort of so many clients, before any reply."""
    return Tally(np.zeros(count, np.int64), np.zeros(cohort, np.int64))


def add_reply(
    tally: Tally,
    mask: NDArray[np.bool_],
    alpha: NDArray[np.uint16],
    weight: int,
    place: int = 0,
) -> Tally:
    """A tally with one more client.

    The votes are added in place: use the returned tally only.

    Args:
        tally: of the clients before it.
        mask: bool `[A]`, unset where the client sent nothing.
        alpha: θ_k · 65536 of the α layers, uint16 `[N - A]`.
        weight: of the client in the mean.
        place: of the client among the draws, which says what it sent.

    Raises:
        MessageError: when the weights of a round together exceed `MOST_WEIGHT`.

    Examples:
        >>> tally = empty_tally(count=2, cohort=1)
        >>> add_reply(tally, np.array([1, 0], np.bool_), np.zeros(0, np.uint16), weight=3).votes.tolist()
        [3, 0]
    """
    if tally.weight + weight > MOST_WEIGHT:
        raise MessageError(f"client weights of {tally.weight + weight}", f"at most {MOST_WEIGHT}", "use equal weights")
    for start in range(0, len(mask), _CHUNK):
        chunk = slice(start, min(start + _CHUNK, len(mask)))
        tally.votes[chunk] += mask[chunk] * np.int64(weight)
    if len(alpha):
        tally.votes[len(mask) :] += alpha.astype(np.int64) * weight
    tally.weights[place] += weight
    return replace(tally, weight=tally.weight + weight, clients=tally.clients + 1)


def round_to_step(
    q: NDArray[np.uint16],
    tally: Tally,
    base: Baseline,
    total: NDArray[np.int64],
    settings: Federation,
    dither: NDArray[np.uint32],
) -> Step:
    """Step 4, first half: a round's means on the grid that travels, rounded without bias; `advance` has an example.

    With equal weights the mean of masks is on the grid already.

    Args:
        q: θ_t · 65536, uint16 `[N]`.
        tally: of the round.
        base: what is known of the masked entries before any news.
        total: Σ w_k of the clients that sent each entry, int64 `[A]`.
        settings: `client_weights` of them.
        dither: public 32-bit words, uint32 `[N]`.
    """
    masked = len(base.clients)
    grain = grain_of(settings)
    units = tally.votes[:masked] * (base.clients.astype(np.int64) * grain)
    kept = (units + _share(dither[:masked], total)) // np.maximum(total, 1)
    net = kept - base.kept.astype(np.int64) * grain
    changes = tally.votes[masked:] - q[masked:].astype(np.int64) * tally.weight
    return Step(net, rounded(changes, tally.weight * ALPHA_STEP, dither[masked:]))


def rounded(values: NDArray[np.int64], step: int, dither: NDArray[np.uint32]) -> NDArray[np.int64]:
    """`values / step` rounded up or down without bias by 32-bit words: int64 `[n]`.

    Examples:
        >>> rounded(np.array([5, 5]), 10, np.array([0, 2**32 - 1], np.uint32)).tolist()
        [0, 1]
    """
    return (values + _share(dither, np.int64(step))) // step


def _share(words: NDArray[np.uint32], of: "NDArray[np.int64] | np.int64") -> NDArray[np.int64]:
    """A uniform integer below `of` (< 2^46) from each 32-bit word: its upper half suffices beyond 2^31."""
    if np.max(of, initial=0) < 2**31:
        return (words.astype(np.int64) * of) >> 32
    return ((words.astype(np.int64) >> 16) * of) >> 16


def grain_of(settings: Federation) -> int:
    """Steps that the mean of masks takes a client."""
    return _GRAIN if settings.client_weights == "size" else 1


def advance(
    q: NDArray[np.uint16], step: Step, base: Baseline, settings: Federation, dither: NDArray[np.uint32]
) -> Average:
    """Step 4, second half: θ_{t+1} = λ θ_t + (1 - λ) θ̄, rounded by the public dither, then clipped.

    The mean before clipping is exact (PRISM's aggregation; 1 - λ from `mada_share`).  An entry that nobody
    sent stays.  By differences θ̄ is θ_t + mean(M - M0).

    Args:
        q: θ_t · 65536, uint16 `[N]`.
        step: of the round.
        base: what is known of the masked entries before any news.
        settings: `mada`, `clip`, `client_weights` and `uplink` of them.
        dither: public 32-bit words, uint32 `[N]`.

    Examples:
        Two clients send whole masks of two entries, and without MADA θ becomes their mean:

        >>> q, words, none = np.full(2, 32768, np.uint16), np.zeros(2, np.uint32), np.zeros(0, np.uint16)
        >>> zeros, settings, tally = np.zeros(2, np.uint16), Federation(), empty_tally(count=2, cohort=2)
        >>> for mask in ([True, False], [True, True]):
        ...     tally = add_reply(tally, np.array(mask), none, weight=1)
        >>> base = Baseline(zeros + np.uint16(2), zeros, zeros, zeros)  # both sent, none keeps without news
        >>> step = round_to_step(q, tally, base, np.full(2, 2), settings, words)
        >>> (advance(q, step, base, settings, words).q / 65536).round(2).tolist(), settings.clip
        ([0.99, 0.5], 0.01)
    """
    votes, clients = _votes(q, step, base, settings)
    share = mada_share(q, votes // clients, settings)
    # Both terms are in units of 1 / (65536 · 65536 · clients), and below 2^32 · 2^15 · 8.
    mixed = (ONE - share) * (q.astype(np.int64) * clients) + share * votes
    low = int(np.ceil(settings.clip * ONE))
    found = np.clip((mixed + _share(dither, ONE * clients)) // (ONE * clients), low, ONE - low).astype(np.uint16)
    density = float(np.mean(np.clip(votes / (ONE * clients), 0, 1)))
    return Average(found, 1 - share / ONE, density)


def _votes(
    q: NDArray[np.uint16], step: Step, base: Baseline, settings: Federation
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """θ̄ · 65536 · clients and clients, int64 `[N]` each, clients in grains and at least 1."""
    grain, masked = grain_of(settings), len(base.clients)
    clients, votes = np.ones((2, len(q)), np.int64)
    clients[:masked] = np.maximum(base.clients.astype(np.int64) * grain, 1)
    without = q[:masked] * clients[:masked] if settings.by_differences else base.kept.astype(np.int64) * (grain * ONE)
    votes[:masked] = without + step.net * ONE
    votes[:masked][base.clients == 0] = q[:masked][base.clients == 0]
    votes[masked:] = np.clip(q[masked:] + step.alpha * ALPHA_STEP, 0, ONE - 1)
    return votes, clients


def mada_share(q: NDArray[np.uint16], mean: NDArray[np.int64], settings: Federation) -> int:
    """How far the global model moves towards the mean θ̄ (MADA): 1 - λ in units of 1 / 65536.

    To add a rule, add its name to `settings.schema.Federation.mada` and its share here.

    Args:
        q: θ_t · 65536, uint16 `[N]`.
        mean: θ̄ · 65536, int64 `[N]`.
        settings: by `published`, the expected Hamming distance of masks drawn independently from θ_t and
            θ̄, mean(θ + θ̄ - 2θθ̄) (PRISM, equation 5); by `off`, 1 (PRISM†).

    Examples:
        >>> q, mean = np.array([16384], np.uint16), np.array([49152])
        >>> mada_share(q, mean, Federation(mada="published")) / 65536  # 1/4 + 3/4 - 2 · 3/16
        0.625
    """
    if settings.mada == "off":
        return ONE
    old, new = q.astype(np.int64), np.clip(mean, 0, ONE)
    return round(int((ONE * (old + new) - 2 * old * new).sum()) / (ONE * len(q)))


def public_dither(seed: int, purpose: Purpose, round_index: int, count: int) -> NDArray[np.uint32]:
    """The public words that a round is rounded by: uint32 `[count]`."""
    return Stream(seed, purpose, round_index).words(count)
