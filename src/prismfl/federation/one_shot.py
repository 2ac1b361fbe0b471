"""A run in one exchange: clients send the moments of their images once, and the server searches alone.

With ε set what travels is each client's release, which is all that a run with masks uses as well: the guarantee
is the same.  Without ε, plain moments travel.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prismfl.errors import ClientError, RunFolderError
from prismfl.federation.agreement import Agreement, Exchange, Reply, check_weight, cohort, usable
from prismfl.federation.client import ClientKit, candidate_distances
from prismfl.federation.finished_mask import candidates
from prismfl.federation.record import RoundRecord, Traffic, mask_entropy, mean_by_layer
from prismfl.generator.layout import Mask
from prismfl.moments import Target
from prismfl.search import Memory, local_search, processor_threads, rate_at
from prismfl.seeding.device import Tape
from prismfl.seeding.philox import Purpose, Stream
from prismfl.server import ONE, ServerState
from prismfl.settings.resolve import plan_of
from prismfl.wire import frames as message
from prismfl.wire.masks import decode_moments

_SLACK = 1024  # bytes that coded moments may take beyond 8 an entry


@dataclass(frozen=True)
class Gathered:
    """What the exchange brought.

    Attributes:
        target: the pooled moments.
        heard: clients that were heard.
        left_out: clients that were not, and why.
        traffic: bytes of the exchange.
    """

    target: Target
    heard: tuple[int, ...]
    left_out: Mapping[int, str]
    traffic: Traffic


def gather(agreement: Agreement, dimension: int, exchange: Exchange) -> Gathered:
    """Ask every client for its moments, and pool them.

    Weights are 1, or with `client_weights = "size"` numbers of images.  A reply that is an error, damaged or
    foreign is left out.

    Args:
        agreement: of the run.
        dimension: D, entries a label.
        exchange: carries frames to clients and yields their replies.

    Raises:
        ClientError: when fewer clients are left than `running.least_cohort`.

    Examples:
        >>> from prismfl.federation.agreement import agree
        >>> from prismfl.federation.client import seal_target
        >>> from prismfl.settings.toml import settings_from
        >>> asked = {"data": {"clients": 2}, "federation": {"mode": "one-shot"}}
        >>> agreement = agree(settings_from(asked), channels=1)
        >>> def exchange(frames):
        ...     for client in frames:
        ...         mine = Target(np.full(3, client, np.float32), images=10)
        ...         yield client, seal_target(agreement, agreement.place(0, client), mine)
        >>> gather(agreement, 3, exchange).target.moments.tolist()
        [0.5, 0.5, 0.5]
    """
    members, traffic = cohort(agreement, 0), Traffic()
    sent = {client: message.seal_request(agreement.place(0, client)) for client in members}
    traffic.down(sent)

    def replies() -> Iterator[tuple[int, Reply]]:
        for client, reply in exchange(sent):
            traffic.up(reply)
            yield client, reply

    heard, left_out = usable(replies(), sent, lambda client, reply: _opened(agreement, dimension, client, reply))
    least = agreement.settings.running.least_cohort
    if len(heard) < least:
        raise ClientError(
            f"usable moments of {len(heard)} clients ({'; '.join(dict.fromkeys(left_out.values())) or 'none came'})",
            f"those of at least {least}, running.least_cohort",
            "mend the clients and resume the run",
        )
    return Gathered(pool(list(heard.values())), tuple(heard), left_out, traffic)


def _opened(agreement: Agreement, dimension: int, client: int, reply: bytes) -> Target:
    groups = max(1, agreement.layout.classes)
    told = message.open_moments(reply, agreement.place(0, client), groups, 8 * groups * dimension + _SLACK)
    check_weight(agreement, client, told.weight, len(cohort(agreement, 0)))
    return Target(decode_moments(told.coded, told.step, groups * dimension), told.weight, told.shares)


def pool(targets: list[Target]) -> Target:
    """The mean of targets by their `images`: what one client would have that held all images.

    Moments of a label are sums over its images divided by all of a client's, so means of them, and of shares,
    are those of the pooled images.

    Args:
        targets: of as many entries and labels each.

    Examples:
        >>> targets = [Target(np.full(1, mean, np.float32), images) for mean, images in ((1.0, 30), (0.0, 10))]
        >>> pool(targets).moments.tolist(), pool(targets).images
        ([0.75], 40)
    """
    total = sum(target.images for target in targets)
    moments = sum(target.moments.astype(np.float64) * target.images for target in targets) / total
    shares = sum(target.shares * target.images for target in targets) / total
    return Target(np.asarray(moments, np.float32), total, np.asarray(shares, np.float64))


def search_round(
    agreement: Agreement, kit: ClientKit, state: ServerState, gathered: Gathered
) -> tuple[ServerState, RoundRecord]:
    """A round of the server's own search, from θ_t to θ_{t+1}; nothing is drawn or sent.

    Bytes of the exchange stand in the first round.

    Args:
        agreement: of the run.
        kit: what the server searches with.
        state: before the round.
        gathered: what clients sent.

    Returns:
        The state after `local_steps` steps, and what is logged of the round.

    Raises:
        ClientError: when the search diverges.

    Examples:
        >>> from prismfl.features.networks import load_features
        >>> from prismfl.federation.agreement import agree, init
        >>> from prismfl.federation.client import make_kit
        >>> from prismfl.moments import FeatureMap
        >>> from prismfl.settings.toml import settings_from
        >>> asked = {"federation": {"mode": "one-shot"}, "generator": {"width": 2}}
        >>> asked |= {"search": {"local_steps": 2, "batch_size": 4}}
        >>> agreement = agree(settings_from(asked), channels=1)
        >>> kit = make_kit(agreement, FeatureMap(load_features("vgg"), agreement.matching, channels=1, size=16))
        >>> target = kit.features.target(np.zeros((10, 1, 16, 16), np.uint8))
        >>> after, record = search_round(agreement, kit, init(agreement), Gathered(target, (0,), {}, Traffic()))
        >>> after.round, record.replied
        (1, (0,))
    """
    settings, first = agreement.settings, state.round == 0
    draws = Tape(Stream(settings.seed, Purpose.SEARCH, state.round), kit.weights.device)
    rate = rate_at(settings, state.round)
    with processor_threads(settings.running.threads):
        found = local_search(
            agreement.layout,
            kit.weights,
            kit.features,
            state.q,
            gathered.target,
            plan_of(settings, compiled=kit.compiled),
            rate,
            draws,
            _remembered(state),
        )
    if not found.finite:
        raise ClientError(f"the search diverged (loss {found.loss})", "finite numbers", "lower search.learning_rate")
    low = math.ceil(settings.federation.clip * ONE)
    q = np.clip(found.q, low, ONE - low)
    theta = q.astype(np.float64) / ONE
    record = RoundRecord(
        round=state.round,
        loss=found.loss,
        kept_share=0.0,
        density=float(theta.mean()),
        theta_variance=float(np.mean(theta * (1 - theta))),
        mask_entropy=mask_entropy(state.q),
        flips=None,
        local_divergence=None,
        theta_by_layer=mean_by_layer(agreement.layout, theta),
        replied=gathered.heard if first else (),
        left_out=gathered.left_out if first else {},
        asked=len(cohort(agreement, 0)),
        traffic=gathered.traffic if first else Traffic(),
    )
    mine = found.memory
    kept = None if mine is None else (mine.first, mine.second, np.array([mine.steps], np.int64))
    return ServerState(q, state.round + 1, (), state.held, kept), record


def _remembered(state: ServerState) -> Memory | None:
    """Adam's memory where the last round left it."""
    if state.memory is None:
        return None
    first, second, steps = state.memory
    return Memory(first, second, int(steps[0]))


def choose_mask(agreement: Agreement, kit: ClientKit, state: ServerState, target: Target) -> Mask:
    """The finished model's mask: of several candidates the nearest to the pooled target.

    Args:
        agreement: of the run.
        kit: what the server searches with.
        state: after the last round.
        target: the pooled moments.

    Returns:
        bool `[N]`, or soft uint8 `[N]`.
    """
    masks = candidates(agreement, state.q)
    return masks[int(np.argmin(candidate_distances(agreement, kit, state.q, target)))] if len(masks) > 1 else masks[0]


# -------------------------------------------------------------------------------- what is stored


def to_arrays(gathered: Gathered) -> dict[str, NDArray[Any]]:
    """What was gathered, as arrays: the server keeps it, so that a resumed run asks nobody again.

    Args:
        gathered: what the exchange brought.

    Returns:
        Arrays by name, as `from_arrays` takes them.

    Examples:
        >>> gathered = Gathered(Target(np.ones(2, np.float32), images=10), (0,), {1: "none came"}, Traffic())
        >>> from_arrays(to_arrays(gathered), count=2).left_out
        {1: 'none came'}
    """
    left_out = {str(client): why for client, why in gathered.left_out.items()}
    about = {"heard": gathered.heard, "left_out": left_out, "traffic": asdict(gathered.traffic)}
    target = gathered.target
    return {
        "moments": target.moments,
        "shares": target.shares,
        "images": np.array([target.images], np.int64),
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
    }


def from_arrays(arrays: Mapping[str, NDArray[Any]], count: int) -> Gathered:
    """What was stored by `to_arrays`.

    Args:
        arrays: by name.
        count: number of moments, G · D.

    Raises:
        RunFolderError: for arrays that are none of it.
    """
    try:
        about = json.loads(arrays["about"].tobytes())
        target = Target(arrays["moments"], int(arrays["images"][0]), arrays["shares"])
        if target.moments.shape != (count,) or target.moments.dtype != np.float32:
            raise ValueError(f"moments {target.moments.dtype} {list(target.moments.shape)}")
        left_out = {int(client): why for client, why in about["left_out"].items()}
        return Gathered(target, tuple(about["heard"]), left_out, Traffic(**about["traffic"]))
    except (KeyError, ValueError, IndexError, TypeError, AttributeError) as error:
        raise RunFolderError(
            f"gathered moments that do not read ({error})", "those that clients sent", "start the run anew"
        ) from None
