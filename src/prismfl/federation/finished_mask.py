"""The finished model's mask: draws of θ, θ ≥ 1/2, and the choice among them."""

import contextlib

import numpy as np
import torch
from numpy.typing import NDArray

from prismfl.errors import MessageError
from prismfl.federation.agreement import Agreement, Exchange, check_weight, cohort
from prismfl.federation.record import Traffic
from prismfl.federation.round import exchange_with_retry
from prismfl.generator.layout import Mask, soft_mask
from prismfl.generator.masks import mask_of
from prismfl.generator.network import generate, label_turns, latent_batch
from prismfl.moments import FeatureMap, label_means
from prismfl.seeding.philox import Purpose, Stream
from prismfl.server import ServerState
from prismfl.wire import frames as message

_INFLUENCE = 2.0  # of a client on the choice, beside what is usual
_DRAWS = 8  # masks that are compared for the finished one
_CANDIDATE_LATENTS, _CANDIDATE_BATCH = 500, 250


def candidates(agreement: Agreement, q: NDArray[np.uint16]) -> list[Mask]:
    """Masks that may be the finished one: draws from θ, and θ ≥ 1/2; of soft masks θ alone.

    Args:
        agreement: of the run.
        q: θ · 65536, uint16 `[N]`.

    Returns:
        bool `[N]` each, or one soft uint8 `[N]`.

    Examples:
        >>> from prismfl.federation.agreement import agree, init
        >>> from prismfl.settings.toml import settings_from
        >>> agreement = agree(settings_from({"federation": {"finished_mask": "best"}}), channels=1)
        >>> masks = candidates(agreement, init(agreement).q)
        >>> len(masks), masks[0].dtype
        (9, dtype('bool'))
    """
    federation = agreement.settings.federation
    if federation.finished_mask != "best" or agreement.settings.search.mask == "soft":
        return [preview_mask(agreement, q)]
    return [*(_drawn(agreement, q, index) for index in range(_DRAWS)), q >= 32768]


def preview_mask(agreement: Agreement, q: NDArray[np.uint16]) -> Mask:
    """What the finished mask would be without asking the clients: a draw if draws are, else θ ≥ 1/2, or soft θ.

    Args:
        agreement: of the run.
        q: θ · 65536, uint16 `[N]`.

    Returns:
        bool `[N]`, or soft uint8 `[N]`.
    """
    if agreement.settings.search.mask == "soft":
        return soft_mask(q)
    return _drawn(agreement, q, 0) if agreement.settings.federation.finished_mask == "draw" else q >= 32768


def _drawn(agreement: Agreement, q: NDArray[np.uint16], index: int) -> NDArray[np.bool_]:
    return mask_of(q, Stream(agreement.settings.seed, Purpose.SHIPPED, index).halves(len(q)))


@torch.no_grad()
def moments_of_mask(agreement: Agreement, weights: torch.Tensor, features: FeatureMap, mask: Mask) -> torch.Tensor:
    """Mean ψ by label of images from a mask, made from public latents.

    Args:
        agreement: of the run.
        weights: frozen ones, float32 `[N]`.
        features: the map that images are matched by.
        mask: bool `[N]`.

    Returns:
        float32 `[G · D]`.
    """
    flat = weights * torch.from_numpy(mask).to(weights.device)
    stream = Stream(agreement.settings.seed, Purpose.SHIPPED, 2**32 - 1)
    count = max(_CANDIDATE_LATENTS, 4 * agreement.layout.classes)
    latents = latent_batch(agreement.layout, stream, count).to(weights.device)
    labels = label_turns(agreement.layout, len(latents)).to(latents.device)
    groups = label_means(labels, agreement.layout.classes)
    turns = features.turns_of(torch.arange(len(latents), device=latents.device) // max(1, agreement.layout.classes))
    parts = [part.split(_CANDIDATE_BATCH, -1) for part in (latents.T, labels, groups, turns)]
    sums = (
        features.moments(generate(agreement.layout, flat, rows.T, labels=tags), shares, shifts)
        for rows, tags, shares, shifts in zip(*parts, strict=True)
    )
    return torch.stack(tuple(sums)).sum(0)


def choose_mask(agreement: Agreement, state: ServerState, exchange: Exchange, traffic: Traffic | None = None) -> Mask:
    """The finished model's mask; what is asked for it is added to the traffic.

    With several candidates, the last cohort's clients send each one's squared distance from
    their targets, and the least mean wins (but see `_votes`): it differs from the distance to the pooled images'
    moments, label by label, by a constant only.

    Args:
        agreement: of the run.
        state: after the last round.
        exchange: carries frames to clients and yields their replies.
        traffic: what is sent and heard is added to it.

    Returns:
        bool `[N]`, or soft uint8 `[N]`.
    """
    masks = candidates(agreement, state.q)
    if len(masks) == 1:
        return masks[0]
    heard: dict[int, tuple[NDArray[np.float64], int]] = {}
    members, traffic = cohort(agreement, state.round), traffic or Traffic()
    for client, reply in exchange_with_retry(agreement, state, exchange, traffic, message.Kind.CANDIDATES):
        # One vote less decides nothing: what is damaged, uninvited or second is passed over.
        if isinstance(reply, bytes) and client in members and client not in heard:
            with contextlib.suppress(MessageError):
                place = agreement.place(state.round, client)
                votes, weight = message.open_distances(reply, place, len(masks))
                check_weight(agreement, client, weight, len(members))
                heard[client] = votes, weight
    if not heard:
        return masks[-1]
    distances, weights = (np.array(column) for column in zip(*(heard[client] for client in sorted(heard)), strict=True))
    return masks[int(np.argmin(_votes(distances, weights)))]


def _votes(distances: NDArray[np.float64], weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """The sum over clients of weighted distances `[clients, candidates]`, less what is the same for all candidates.

    A client whose distances differ by more than twice as much as is usual among them counts for as much as that: what
    one of them makes up does not choose the mask alone.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        told = np.nan_to_num(distances - distances.mean(1, keepdims=True))
    spread = np.abs(told).max(1)
    most = _INFLUENCE * float(np.median(spread))
    return np.asarray((weights * np.minimum(1, most / np.maximum(spread, 1e-300))) @ told)
