"""Secure sums of a run: of all clients' images once, of the masks of a round, and of distances from finished masks.

What is the client's part and what the server's stands side by side, for both must derive the same groups and rings.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from prismfl.errors import ClientError, MessageError
from prismfl.federation.agreement import Agreement, Exchange, KnownTheta, Reply, cohort
from prismfl.federation.client import Answer, ClientKit, candidate_distances, receive, searched
from prismfl.federation.finished_mask import candidates
from prismfl.federation.one_shot import Gathered
from prismfl.federation.record import RoundRecord, Traffic, distance_of
from prismfl.federation.round import Heard, averaged, broadcast
from prismfl.generator.layout import Mask
from prismfl.generator.masks import mask_of
from prismfl.moments import FeatureMap, Target
from prismfl.privacy.pooled import plan, pooled_target, width_of
from prismfl.privacy.release import grid_of
from prismfl.search import Memory as AdamMemory
from prismfl.server import ServerState, empty_tally
from prismfl.sums.frames import Advert, Purpose, Step, Sum, step_of
from prismfl.sums.ring import Digits, Ring, signed
from prismfl.sums.server import Enough, Memory, Opened, Replies, SumServer
from prismfl.sums.site import SumSite, Vector
from prismfl.wire import frames as message

_POINT = 2.0**32  # of sums of losses and distances: 1 in fixed point
_WIDE = 8  # bytes of such a sum

# ------------------------------------------------------------------------------ what both sides derive


@dataclass(frozen=True)
class MaskSums:
    """How the masks of a round are summed: those of clients that send the same entries, together.

    Attributes:
        agreement: of the run.
        round: t.

    Examples:
        >>> from prismfl.federation.agreement import agree
        >>> from prismfl.settings.toml import settings_from
        >>> asked = {"data": {"clients": 10}, "federation": {"secure_sum": True}}
        >>> sums = MaskSums(agree(settings_from(asked), channels=1), round=0)
        >>> sorted(sums.groups.values()), sums.digits(0).most  # half of the entries each
        ([0, 0, 0, 0, 0, 1, 1, 1, 1, 1], 5)
    """

    agreement: Agreement
    round: int

    @cached_property
    def members(self) -> tuple[int, ...]:
        """The round's cohort, ascending."""
        return tuple(cohort(self.agreement, self.round))

    @cached_property
    def groups(self) -> dict[int, int]:
        """The part of the entries that each client of the cohort sends."""
        draws = self.agreement.draws(self.round, len(self.members))
        return {client: draws.place(rank) % self.agreement.parts for rank, client in enumerate(self.members)}

    def digits(self, group: int) -> Digits:
        """How the counts of a part are packed."""
        return Digits(sum(one == group for one in self.groups.values()))

    def entries(self, group: int) -> NDArray[np.bool_]:
        """The entries of a part: bool `[A]`."""
        rank = list(self.groups.values()).index(group)
        return self.agreement.draws(self.round, len(self.members)).sent(rank)

    def ring(self, group: int) -> Ring:
        """Where the vectors of a part live: counts, then loss, flips and divergence."""
        digits = self.digits(group)
        return Ring(((digits.words(int(self.entries(group).sum())), digits.width), (3, _WIDE)))


def summed_clients(agreement: Agreement, purpose: Purpose, round_index: int) -> tuple[int, ...]:
    """Whose vectors a sum is of, ascending: of images all clients', for all share its noise; else the cohort's."""
    if purpose == Purpose.RELEASE:
        return tuple(range(agreement.settings.data.clients))
    return tuple(cohort(agreement, round_index))


def _release_ring(entries: int, adverts: Mapping[int, Advert], own: int) -> Ring:
    images = sum(advert.images for advert in adverts.values())
    return Ring(((entries, width_of(images, len(adverts), own)),))


def _shared_noise(agreement: Agreement, features: FeatureMap, adverts: Mapping[int, Advert]) -> int:
    """σ of each site's share of the noise; 0 without ε.  Raises PrivacyError."""
    if not agreement.settings.privacy.epsilon:
        return 0
    first = next(iter(adverts.values()))
    images = sum(advert.images for advert in adverts.values())
    rules = (first.sites, first.colluders, first.dropouts)
    return plan(grid_of(features, agreement.layout.classes), agreement.settings.privacy, images, *rules)[1]


def _fixed(values: Collection[float] | NDArray[np.float64]) -> NDArray[np.uint64]:
    return np.rint(np.array(values, np.float64) * _POINT).astype(np.int64).view(np.uint64)


def _mean(words: NDArray[np.uint64], count: int) -> NDArray[np.float64]:
    return signed(words, _WIDE) / (_POINT * count)


# ---------------------------------------------------------------------------------- a client's part


@dataclass(frozen=True)
class Work:
    """What a client adds to a sum, made when it is asked for.

    Attributes:
        sums: of the images, with the client's share of noise of σ = its second argument, drawn and kept for the
            attempt at a sum of that name: int64 `[G · E]`.
        target: moments of the client's own images, where masks are summed.
        memory: Adam's, of the client's last round.
        held: θ of the client's last round.
    """

    sums: Callable[[bytes, int, Mapping[int, Advert]], NDArray[np.int64]]
    target: Callable[[], Target]
    memory: Callable[[], AdamMemory | None] = lambda: None
    held: KnownTheta | None = None


def client_sum(
    agreement: Agreement, kit: ClientKit, site: SumSite, frame: bytes, place: message.Place, of: Sum, work: Work
) -> Answer:
    """A client's answer to any message of a sum.

    Args:
        agreement: of the run.
        kit: what the client computes with.
        site: its part in the sum, with what it keeps of it.
        frame: the message, as it came.
        place: round and client.
        of: the sum that the message says that it belongs to.
        work: what the client adds.

    Returns:
        The reply, and what the client keeps for its next round where it has searched.

    Raises:
        MessageError, ClientError, PolicyError: as `SumSite.answer`.
    """
    made = Answer(b"", None, None)

    def vector(rest: bytes, _: tuple[int, ...]) -> Vector | bytes:
        nonlocal made
        if of.purpose == Purpose.RELEASE:
            return _release_vector(agreement, kit, site, of, work)
        found, made = (_masks_vector if of.purpose == Purpose.MASKS else _distances_vector)(
            agreement, kit, rest, place, work
        )
        return found

    _check_asked(agreement, of)
    if step_of(frame) == Step.OPEN:
        _check_groups(agreement, site, of)
    reply = site.answer(frame, place, summed_clients(agreement, of.purpose, place.round), vector)
    return replace(made, frame=reply)


def _check_asked(agreement: Agreement, of: Sum) -> None:
    """Raises ClientError for a sum that the run's settings know nothing of."""
    federation, private = agreement.settings.federation, agreement.settings.privacy.epsilon > 0
    allowed = {Purpose.RELEASE} if private or federation.mode == "one-shot" else {Purpose.MASKS}
    if Purpose.MASKS in allowed and federation.finished_mask == "best":
        allowed |= {Purpose.DISTANCES}
    rounds = {Purpose.RELEASE: range(1), Purpose.DISTANCES: range(federation.rounds, federation.rounds + 1)}
    fine = of.place.round in rounds.get(of.purpose, range(federation.rounds))
    if not federation.secure_sum or of.purpose not in allowed or not fine:
        raise ClientError(
            f"a secure sum of {of.purpose.name.lower()} in round {of.place.round + 1}",
            "one that the run's settings ask for",
            "ask whoever runs the server",
        )


def _check_groups(agreement: Agreement, site: SumSite, of: Sum) -> None:
    """Raises PolicyError, before anything is searched, for a sum without noise that would hide too little."""
    members = summed_clients(agreement, of.purpose, of.place.round)
    if of.purpose == Purpose.MASKS:
        groups = list(MaskSums(agreement, of.place.round).groups.values())
        site.rules.check(len(members), group=min(map(groups.count, groups)))
    else:
        hidden = of.purpose == Purpose.RELEASE and agreement.settings.privacy.epsilon > 0
        site.rules.check(len(members), group=None if hidden else len(members))


def _release_vector(agreement: Agreement, kit: ClientKit, site: SumSite, of: Sum, work: Work) -> Vector:
    adverts = site.adverts()
    own = _shared_noise(agreement, kit.features, adverts)
    numbers = work.sums(site.attempt(of), own, adverts)
    ring = _release_ring(len(numbers), adverts, own)
    peers = frozenset(summed_clients(agreement, Purpose.RELEASE, 0))
    return Vector(ring, [numbers.view(np.uint64)], peers, hidden=own > 0)


def _masks_vector(
    agreement: Agreement, kit: ClientKit, rest: bytes, place: message.Place, work: Work
) -> tuple[Vector | bytes, Answer]:
    """Steps 2 and 3 of a round whose masks are summed: search, and the bits of the client's part."""
    told, now = receive(agreement, kit, rest, place, work.held)
    if now is None:
        return message.seal_lost(place), Answer(b"", work.memory(), work.held)
    found = searched(agreement, kit, place, now.q, work.target(), work.memory())
    sums = MaskSums(agreement, place.round)
    group, draws = sums.groups[place.client], agreement.draws(place.round, told.cohort)
    u, sent = draws.uniforms(place.client, told.rank), sums.entries(group)
    bits = mask_of(found.q, u)[sent]
    moved = distance_of(bits, u[sent], now.q[sent])
    figures = (found.loss, moved.flips, moved.divergence) if moved else (found.loss, 0.0, 0.0)
    peers = frozenset(client for client, one in sums.groups.items() if one == group)
    vector = Vector(sums.ring(group), [sums.digits(group).pack(bits), _fixed(figures)], peers)
    return vector, Answer(b"", found.memory, now)


def _distances_vector(
    agreement: Agreement, kit: ClientKit, rest: bytes, place: message.Place, work: Work
) -> tuple[Vector | bytes, Answer]:
    _, now = receive(agreement, kit, rest, place, work.held, message.Kind.CANDIDATES)
    if now is None:
        return message.seal_lost(place), Answer(b"", None, work.held)
    found = candidate_distances(agreement, kit, now.q, work.target())
    vector = Vector(Ring(((len(found), _WIDE),)), [_fixed(found)], frozenset(cohort(agreement, place.round)))
    return vector, Answer(b"", None, now)


# ---------------------------------------------------------------------------------- the server's part


@dataclass
class Sums:
    """What a server sums by.

    Attributes:
        exchange: for a round, and what says how many replies are enough, what carries frames to clients.
        memory: of the sum of a purpose and round, as far as it got.
        note: is told what is worth a line.
    """

    exchange: Callable[[int, Enough], Exchange]
    memory: Callable[[Purpose, int], Memory]
    note: Callable[[str], None] = lambda _: None

    def run(
        self,
        agreement: Agreement,
        purpose: Purpose,
        round_index: int,
        groups: Mapping[int, int],
        rings: Callable[[Mapping[int, Advert]], Mapping[int, Ring]],
        traffic: Traffic,
        rests: Callable[[Collection[int] | None], Mapping[int, bytes]] = lambda _: {},
    ) -> Opened:
        """One sum.  Raises ClientError where too few sites are left."""

        def lost(client: int, reply: bytes) -> bool:
            return message.is_lost(reply, agreement.place(round_index, client))

        memory = self.memory(purpose, round_index)
        of = Sum(agreement.place(round_index, 0), purpose, memory.name)
        carried = _counted(lambda enough: self.exchange(round_index, enough), traffic)
        least = agreement.settings.running.least_cohort
        opened = SumServer(of, groups, rings, carried, memory, rests, lost, least).run()
        for text in opened.wrong.values():
            self.note(text)
        return opened


def _counted(exchange: Callable[[Enough], Exchange], traffic: Traffic) -> Callable[[Enough], Replies]:
    """The same exchanges, with their bytes added up."""

    def counted(enough: Enough) -> Replies:
        def carried(frames: Mapping[int, bytes]) -> Iterator[tuple[int, Reply]]:
            traffic.down(frames)
            for client, reply in exchange(enough)(frames):
                traffic.up(reply)
                yield client, reply

        return carried

    return counted


def gather_sum(agreement: Agreement, features: FeatureMap, sums: Sums) -> Gathered:
    """The sum of all clients' images as a target, with noise where ε is set.

    Unit: the images of one person at one client; adjacency: replace-one; see `privacy.pooled`.

    Args:
        agreement: of the run.
        features: the map that images are matched by.
        sums: what the server sums by.

    Raises:
        ClientError: where too few sites are left.
    """
    members, traffic = summed_clients(agreement, Purpose.RELEASE, 0), Traffic()
    grid = grid_of(features, agreement.layout.classes)

    def rings(adverts: Mapping[int, Advert]) -> dict[int, Ring]:
        return {0: _release_ring(grid.entries, adverts, _shared_noise(agreement, features, adverts))}

    opened = sums.run(agreement, Purpose.RELEASE, 0, dict.fromkeys(members, 0), rings, traffic)
    memory = sums.memory(Purpose.RELEASE, 0)
    adverts = memory.adverts()
    own, (words,) = _shared_noise(agreement, features, adverts), opened.totals[0]
    ((_, width),) = rings(adverts)[0].stretches
    images = sum(opened.adverts[client].images for client in opened.survivors)
    target = pooled_target(signed(words, width), grid, images, len(opened.survivors), own)
    return Gathered(target, opened.survivors, opened.left_out, traffic)


def sum_round(
    agreement: Agreement, state: ServerState, sums: Sums, traffic: Traffic | None = None
) -> tuple[ServerState, RoundRecord]:
    """Steps 1 and 4 of a round of which the server sees how many clients keep each weight, and no client's mask.

    θ_{t+1} is what `round.server_update` makes of the same clients' masks.

    Args:
        agreement: of the run.
        state: of the server before the round.
        sums: what the server sums by.
        traffic: what is sent and heard is added to it.

    Returns:
        The state after the round, and what is logged of it.

    Raises:
        ClientError: where too few sites are left; the sum goes on when the run is resumed.
        MessageError: for sums that no masks have.
    """
    traffic, how = Traffic() if traffic is None else traffic, MaskSums(agreement, state.round)
    rings = {group: how.ring(group) for group in sorted(set(how.groups.values()))}
    opened = sums.run(
        agreement,
        Purpose.MASKS,
        state.round,
        how.groups,
        lambda _: rings,
        traffic,
        lambda lost: broadcast(agreement, state, lost=lost),
    )
    draws, ranks = agreement.draws(state.round, len(how.members)), {client: at for at, client in enumerate(how.members)}
    tally, figures = empty_tally(agreement.layout.count, len(how.members)), np.zeros(3)
    for group, (counts, sizes) in opened.totals.items():
        there = [client for client in opened.survivors if how.groups[client] == group]
        entries = how.entries(group)
        kept = how.digits(group).unpack(counts, int(entries.sum()))
        if len(kept) and int(kept.max()) > len(there):
            raise MessageError(f"a weight that {kept.max()} clients keep", f"at most {len(there)}", "resume the run")
        tally.votes[np.flatnonzero(entries)] += kept
        figures += _mean(sizes, len(opened.survivors))
    for client in opened.survivors:
        tally.weights[draws.place(ranks[client])] = 1
    tally = replace(tally, weight=len(opened.survivors), clients=len(opened.survivors))
    loss, flips, divergence = map(float, figures)
    heard = Heard(loss, flips, divergence, opened.left_out, traffic)
    return averaged(agreement, state, tally, {client: ranks[client] for client in opened.survivors}, heard)


def choose_mask(agreement: Agreement, state: ServerState, sums: Sums, traffic: Traffic) -> Mask:
    """The finished model's mask: of several candidates the one of the least sum of all clients' distances.

    Args:
        agreement: of the run.
        state: after the last round.
        sums: what the server sums by.
        traffic: what is sent and heard is added to it.

    Returns:
        bool `[N]`.
    """
    masks = candidates(agreement, state.q)
    if len(masks) == 1:
        return masks[0]
    groups, ring = dict.fromkeys(cohort(agreement, state.round), 0), Ring(((len(masks), _WIDE),))
    opened = sums.run(
        agreement,
        Purpose.DISTANCES,
        state.round,
        groups,
        lambda _: {0: ring},
        traffic,
        lambda lost: broadcast(agreement, state, message.Kind.CANDIDATES, lost),
    )
    return masks[int(np.argmin(signed(opened.totals[0][0], _WIDE)))]
