"""One round of the federation, spelt out: the only place where it is.

The paper's four steps, in the order in which they happen:

1. the server broadcasts θ_t: `broadcast`;
2. a client searches its mask from θ_t: `client.client_update`, by `prismfl.search`;
3. it draws the mask and sends it: `client.seal_found`;
4. the server averages what arrives into θ_{t+1}: `server_update`, by `prismfl.server`.

Every function is pure: explicit state in, frames and new state out.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from prismfl.errors import ClientError, MessageError
from prismfl.federation.agreement import Agreement, Exchange, Reply, advanced, check_weight, cohort, usable
from prismfl.federation.record import (
    News,
    RoundRecord,
    Traffic,
    distance_of,
    mask_entropy,
    mean_by_layer,
    mean_distance,
)
from prismfl.federation.screen import Screen, Vote, surprise
from prismfl.seeding.philox import Purpose
from prismfl.server import ALPHA_STEP, Average, ServerState, Tally, empty_tally, public_dither, round_to_step
from prismfl.wire import frames as message
from prismfl.wire.masks import decode_changes, decode_mask, encode_step
from prismfl.wire.uniforms import baseline

_SLACK = 64  # bytes that a coded mask may take beyond packed bits


# ------------------------------------------------------------------------------- step 1: broadcast


def broadcast(
    agreement: Agreement,
    state: ServerState,
    kind: message.Kind = message.Kind.BROADCAST,
    lost: Collection[int] | None = None,
) -> dict[int, bytes]:
    """Step 1: the way to θ_t, framed for each client of the round's cohort.

    A client gets the coded steps since the last θ that it proved to know, or θ_t itself where those
    are not kept: then they would be longer.

    Args:
        agreement: of the run.
        state: of the server before the round.
        kind: BROADCAST, or CANDIDATES to ask for distances from finished masks.
        lost: clients that asked for θ_t itself, which they alone get; None for all, by what each holds.

    Returns:
        A frame a client.

    Examples:
        >>> from prismfl.federation.agreement import agree, init
        >>> from prismfl.settings.toml import settings_from
        >>> agreement = agree(settings_from({"data": {"clients": 3}, "generator": {"width": 2}}), channels=1)
        >>> {client: len(frame) for client, frame in broadcast(agreement, init(agreement)).items()}
        {0: 62, 1: 62, 2: 62}
    """
    members = cohort(agreement, state.round)
    sent = {}
    for rank, client in enumerate(members):
        held = int(state.held[client]) if lost is None else -1
        if lost is None or client in lost:
            told = _way(state, held, rank, len(members))
            sent[client] = message.seal_broadcast(told, agreement.place(state.round, client), kind)
    return sent


def _way(state: ServerState, held: int, rank: int, size: int) -> message.Broadcast:
    """What a client is told that holds θ of a round, or none (-1)."""
    behind = state.round - held
    if held < 0 or behind > len(state.steps):
        return message.Broadcast(state.digest, rank, size, None, (), state.q)
    return message.Broadcast(state.digest, rank, size, held, state.steps[len(state.steps) - behind :])


def exchange_with_retry(
    agreement: Agreement, state: ServerState, exchange: Exchange, traffic: Traffic, kind: message.Kind
) -> Iterator[tuple[int, Reply]]:
    """Ask the round's cohort, and once more, with θ_t itself, those that have lost their way to it.

    Args:
        agreement: of the run.
        state: of the server before the round.
        exchange: carries frames to clients and yields their replies.
        traffic: what is sent and heard is added to it.
        kind: BROADCAST or CANDIDATES.

    Yields:
        Clients and their replies, as they come.
    """
    sent = broadcast(agreement, state, kind)
    traffic.down(sent)
    lost: list[int] = []
    for client, reply in exchange(sent):
        traffic.up(reply)
        asks = isinstance(reply, bytes) and message.is_lost(reply, agreement.place(state.round, client))
        if asks and client in sent and client not in lost:
            lost.append(client)
        else:
            yield client, reply
    if lost:
        again = broadcast(agreement, state, kind, lost)
        traffic.down(again)
        for client, reply in exchange(again):
            traffic.up(reply)
            yield client, reply


# ---------------------------------------------------------------------------------- step 4: average


def server_update(
    agreement: Agreement, state: ServerState, exchange: Exchange, traffic: Traffic | None = None
) -> tuple[ServerState, RoundRecord]:
    """Steps 1 and 4: ask the cohort, and average the masks that arrive, in any order, into θ_{t+1}.

    A client whose reply is an error, damaged or foreign is left out and named in the record.

    Args:
        agreement: of the run.
        state: of the server before the round.
        exchange: carries frames to clients and yields their replies, errors in place of those that failed.
        traffic: of earlier attempts at this round; what is sent and heard is added to it.

    Returns:
        The state after the round, and what is logged of it.

    Raises:
        ClientError: when fewer clients are left than `running.least_cohort`.

    Examples:
        A round of two clients, all in this process:

        >>> from prismfl.features.networks import load_features
        >>> from prismfl.federation.agreement import agree, init, next_theta
        >>> from prismfl.federation.client import client_update, make_kit
        >>> from prismfl.moments import FeatureMap
        >>> from prismfl.settings.toml import settings_from
        >>> asked = {"data": {"clients": 2}, "generator": {"width": 2}}
        >>> asked |= {"search": {"local_steps": 1, "batch_size": 4}}
        >>> agreement = agree(settings_from(asked), channels=1)
        >>> kit = make_kit(agreement, FeatureMap(load_features("vgg"), agreement.matching, channels=1, size=16))
        >>> targets = [kit.features.target(np.full((10, 1, 16, 16), grey, np.uint8)) for grey in (0, 255)]
        >>> def exchange(frames):
        ...     for client, frame in frames.items():
        ...         yield client, client_update(agreement, kit, frame, 0, client, targets[client]).frame
        >>> before = init(agreement)
        >>> after, record = server_update(agreement, before, exchange)
        >>> after.round, record.replied, record.left_out
        (1, (0, 1), {})
        >>> 8 * record.traffic.uplink_bytes / 2 < agreement.layout.count  # below a bit a weight and client
        True

        A client that holds θ_t comes to the same θ_{t+1} by the coded step:

        >>> bool((next_theta(agreement, before.q, 0, after.steps[-1]) == after.q).all())
        True
    """
    members = cohort(agreement, state.round)
    traffic = Traffic() if traffic is None else traffic
    ranks = {client: rank for rank, client in enumerate(members)}
    tally = empty_tally(agreement.layout.count, len(members))
    screen = Screen(agreement.settings.federation.screen)

    def counted(client: int, reply: bytes) -> News:
        nonlocal tally
        vote, news = _heard(agreement, state, client, ranks[client], len(ranks), reply)
        tally = screen.add(tally, client, vote)
        return news

    replies = exchange_with_retry(agreement, state, exchange, traffic, message.Kind.BROADCAST)
    heard, left_out = usable(replies, ranks, counted)
    tally, strangers = screen.close(tally)
    left_out |= strangers
    heard = {client: news for client, news in heard.items() if client not in strangers}
    least = agreement.settings.running.least_cohort
    if len(heard) < least:
        why = "; ".join(dict.fromkeys(left_out.values())) or "none came"
        raise ClientError(
            f"{len(heard) or 'no'} usable reply in round {state.round + 1} ({why})",
            "at least one" if least == 1 else f"at least {least}, running.least_cohort",
            "mend the clients and resume the run",
        )
    loss, moved = float(np.mean([news.loss for news in heard.values()])), [news.moved for news in heard.values()]
    replied = {client: ranks[client] for client in heard}
    return averaged(agreement, state, tally, replied, Heard(loss, *mean_distance(moved), left_out, traffic))


@dataclass(frozen=True)
class Heard:
    """What the log keeps of a round's replies together; see `RoundRecord`."""

    loss: float
    flips: float | None
    local_divergence: float | None
    left_out: Mapping[int, str]
    traffic: Traffic


def _heard(
    agreement: Agreement, state: ServerState, client: int, rank: int, size: int, reply: bytes
) -> tuple[Vote, News]:
    """What a reply says of θ, and what the log keeps of it."""
    masked, known = agreement.masked, agreement.known(state.q)
    alpha = known.of(slice(masked, None))
    update = message.open_update(
        reply, agreement.place(state.round, client), -(-masked // 8) + _SLACK, 8 * len(alpha.q) + _SLACK
    )
    if update.digest != state.digest:
        raise MessageError(
            f"client {client}'s update of another θ than this round's", "the θ that was sent", "it is left out"
        )
    check_weight(agreement, client, update.weight, size)
    draws = agreement.draws(state.round, size)
    sent = draws.chosen(rank)
    u, entries = draws.uniforms(client, rank)[sent], known.of(slice(masked)).of(sent)
    mask = np.zeros(masked, np.bool_)
    mask[sent] = drawn = decode_mask(update.mask, u, entries)
    changes = decode_changes(update.alpha, alpha) * ALPHA_STEP
    theta = np.clip(alpha.q + changes, 0, 65535).astype(np.uint16)
    news = News(update.loss, distance_of(drawn, u, entries.q))
    far = surprise(drawn, u, entries.q, theta, alpha.q)
    return Vote(mask, theta, update.weight, draws.place(rank), *far), news


def averaged(
    agreement: Agreement, state: ServerState, tally: Tally, replied: Mapping[int, int], heard: Heard
) -> tuple[ServerState, RoundRecord]:
    """Step 4, second half: θ_{t+1}, the coded step that leads there, who is known to hold θ_t, and what is logged.

    Args:
        agreement: of the run.
        state: of the server before the round.
        tally: of the masks that count.
        replied: clients that they are of, and their ranks.
        heard: what else was heard.

    Returns:
        The state after the round, and what is logged of it.
    """
    settings, size = agreement.settings, len(cohort(agreement, state.round))
    draws = agreement.draws(state.round, size)
    base = baseline(draws, state.q[: agreement.masked], replied.items())
    words = public_dither(settings.seed, Purpose.TALLY, state.round, len(state.q))
    step = round_to_step(state.q, tally, base, draws.by_entry(tally.weights), settings.federation, words)
    coded = message.pack_step(
        size, list(replied.values()), encode_step(step.net, step.alpha, base, agreement.known(state.q))
    )
    done = advanced(agreement, state.q, state.round, step, base)
    held = state.held.copy()
    held[list(replied)] = state.round
    after = ServerState(done.q, state.round + 1, _worth_keeping((*state.steps, coded), len(state.q)), held)
    return after, _record(agreement, state, done, replied, heard)


def _record(
    agreement: Agreement, state: ServerState, done: Average, replied: Mapping[int, int], heard: Heard
) -> RoundRecord:
    theta = done.q.astype(np.float64) / 65536
    return RoundRecord(
        state.round,
        heard.loss,
        done.kept_share,
        done.density,
        float(np.mean(theta * (1 - theta))),
        mask_entropy(state.q),
        heard.flips,
        heard.local_divergence,
        mean_by_layer(agreement.layout, theta),
        tuple(replied),
        heard.left_out,
        len(cohort(agreement, state.round)),
        heard.traffic,
    )


def _worth_keeping(steps: tuple[bytes, ...], count: int) -> tuple[bytes, ...]:
    """The last steps, as far as they are together shorter than a snapshot."""
    room, kept = 2 * count, 0
    for step in reversed(steps[-message.MOST_STEPS :]):
        room -= len(step) + 4
        if room < 0:
            break
        kept += 1
    return steps[len(steps) - kept :]
