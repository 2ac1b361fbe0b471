"""What server and clients agree on before the first round, and what follows from it for both."""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from prismfl.errors import MessageError, PrismError, SettingError
from prismfl.generator.layout import Layout
from prismfl.seeding.philox import Purpose, Stream
from prismfl.server import MOST_WEIGHT, Average, ServerState, Step, advance, grain_of, initial_state, public_dither
from prismfl.settings.resolve import Matching, matching_of, resolved
from prismfl.settings.schema import Settings
from prismfl.settings.toml import to_toml
from prismfl.wire import frames as message
from prismfl.wire.masks import SharedKnowledge, decode_step
from prismfl.wire.uniforms import Baseline, Draws, Stretches, baseline, stretches

MOST_LABELS = 1000
_MANY = 8  # clients a round, from which half of each mask says as much as the whole
_FEWEST = 10  # parts of the large layers where the fewest bits travel
_LATENT = 64  # normals an image
Reply = bytes | PrismError
Exchange = Callable[[Mapping[int, bytes]], Iterator[tuple[int, Reply]]]
T = TypeVar("T")


@dataclass(frozen=True)
class KnownTheta:
    """What a client keeps of the federation.

    Attributes:
        q: θ · 65536 of a round, uint16 `[N]`.
        round: its number.
    """

    q: NDArray[np.uint16]
    round: int

    @cached_property
    def digest(self) -> bytes:
        """Eight bytes naming θ."""
        return message.digest_of(self.q)


@dataclass(frozen=True)
class Agreement:
    """What server and clients agree on before the first round; all of it is public.

    Attributes:
        settings: resolved ones.
        layout: the generator's shape.
        run: sixteen bytes that name the run.
        labels: names of the labels that the generator makes images by; none where it takes no label.
        matching: what of a feature network is matched.
        network: SHA-256 of the feature network's weights.

    Examples:
        >>> from prismfl.settings.toml import settings_from
        >>> agreement = agree(settings_from({"data": {"clients": 3}}), channels=1, classes=("cat", "dog"))
        >>> agreement.labels, agreement.parts, agreement.masked == agreement.layout.count
        (('cat', 'dog'), 1, True)
        >>> cohort(agreement, round_index=0)
        [0, 1, 2]
    """

    settings: Settings
    layout: Layout
    run: bytes
    labels: tuple[str, ...] = ()
    matching: Matching = field(default_factory=Matching)
    network: str = ""

    @property
    def masked(self) -> int:
        """Number of parameters whose masks travel; the rest are α layers."""
        return self.layout.alpha_start(self.settings.alpha)

    @cached_property
    def first(self) -> KnownTheta:
        """θ_0, which every client knows: computed once."""
        return KnownTheta(init(self).q, 0)

    def known(self, q: NDArray[np.uint16]) -> SharedKnowledge:
        """What both ends know of all weights when θ_t = q / 65536, q uint16 `[N]`."""
        return SharedKnowledge(q, self.layout.layer_numbers, len(self.layout.layers))

    @property
    def pooled(self) -> bool:
        """Whether clients search towards the one target of all their images, which the server hands out."""
        return self.settings.federation.secure_sum and self.settings.privacy.epsilon > 0

    @property
    def parts(self) -> int:
        """Number of parts that the entries of a mask are dealt into: by stages, those of the largest."""
        federation = self.settings.federation
        clients = federation.cohort or self.settings.data.clients
        parts = {"whole": 1, "half": 2, "fewest": _FEWEST, "auto": 2 if clients >= _MANY else 1}
        return min(parts[federation.uplink], clients)

    def draws(self, round_index: int, cohort: int) -> Draws:
        """How the masks of a round are drawn.

        Args:
            round_index: t.
            cohort: clients of the round.
        """
        federation = self.settings.federation
        dealt: Stretches = ((self.masked, self.parts),)
        if federation.uplink == "fewest":
            dealt = stretches(self.layout.dealt(self.parts), self.masked)
        return Draws(federation.draws, dealt, self.settings.seed, round_index, cohort)

    def place(self, round_index: int, client: int) -> message.Place:
        """Where a frame of this run belongs.

        Args:
            round_index: t.
            client: its number.
        """
        return message.Place(self.run, round_index, client)


def agree(settings: Settings, channels: int, classes: Sequence[str] = (), network: str = "") -> Agreement:
    """What server and clients of these settings agree on.

    Args:
        settings: what was asked for; they are resolved here.
        channels: of the images, 1 or 3.
        classes: names of the images' labels, if they have any.
        network: SHA-256 of the feature network's weights.

    Raises:
        SettingError: when there are more labels than a conditional generator takes, or odd names.
    """
    settings = resolved(settings, channels)
    labels = tuple(classes) if settings.generator.conditional and len(classes) > 1 else ()
    if len(labels) > MOST_LABELS:
        raise SettingError(
            f"{len(labels)} labels", f"at most {MOST_LABELS} for a conditional generator", "set conditional to false"
        )
    odd = [name for name in labels if not name.isprintable()]
    if odd:
        raise SettingError(f"a label {odd[0]!r}", "printable text, for it goes into the model", "rename the class")
    layout = Layout(settings.pixels, channels, settings.generator.width, _LATENT, len(labels))
    matching = matching_of(settings, labelled=bool(labels))
    run = message.run_id(to_toml(settings.public()) + repr((layout, labels, matching, network)))
    return Agreement(settings, layout, run, labels, matching, network)


def init(agreement: Agreement) -> ServerState:
    """State before the first round: θ_0, which every client knows."""
    settings = agreement.settings
    return initial_state(settings.federation, agreement.layout, settings.data.clients, settings.seed)


def cohort(agreement: Agreement, round_index: int) -> list[int]:
    """The clients of a round, ascending: all, or a public random choice.

    Args:
        agreement: of the run.
        round_index: from 0.
    """
    clients, size = agreement.settings.data.clients, agreement.settings.federation.cohort
    if size in (0, clients):
        return list(range(clients))
    return list(_chosen(agreement.settings.seed, round_index, clients, size))


# A round asks for its cohort many times, and the choice takes as long as there are clients.
@lru_cache(maxsize=4)
def _chosen(seed: int, round_index: int, clients: int, size: int) -> tuple[int, ...]:
    return tuple(sorted(Stream(seed, Purpose.COHORT, round_index).permutation(clients)[:size].tolist()))


def next_theta(agreement: Agreement, q: NDArray[np.uint16], round_index: int, raw: bytes) -> NDArray[np.uint16]:
    """θ_{t+1} from θ_t and a coded step: what every client computes.

    Args:
        agreement: of the run.
        q: θ_t · 65536, uint16 `[N]`.
        round_index: t.
        raw: the step, see `frames.pack_step`.

    Returns:
        θ_{t+1} · 65536, uint16 `[N]`.

    Raises:
        MessageError: when the step cannot be one of this round.
    """
    cohort_size, replied, body = message.unpack_step(raw)
    members = cohort(agreement, round_index)
    if cohort_size != len(members):
        raise MessageError(f"a step of a cohort of {cohort_size}", f"{len(members)} clients", "ask for a snapshot")
    base = baseline(
        agreement.draws(round_index, cohort_size), q[: agreement.masked], ((members[rank], rank) for rank in replied)
    )
    step = Step(*decode_step(body, base, agreement.known(q)))
    kept = step.net + base.kept.astype(np.int64) * (grain := grain_of(agreement.settings.federation))
    if (kept < 0).any() or (kept > base.clients.astype(np.int64) * grain).any():
        raise MessageError("a step of more masks than were sent", "0 … the clients that replied", "ask for a snapshot")
    return advanced(agreement, q, round_index, step, base).q


def advanced(agreement: Agreement, q: NDArray[np.uint16], round_index: int, step: Step, base: Baseline) -> Average:
    """θ_{t+1} from θ_t and a step, by the round's public dither.

    Args:
        agreement: of the run.
        q: θ_t · 65536, uint16 `[N]`.
        round_index: t.
        step: of the round.
        base: what is known of the masked entries before any news.
    """
    dither = public_dither(agreement.settings.seed, Purpose.ROUNDING, round_index, len(q))
    return advance(q, step, base, agreement.settings.federation, dither)


def usable(
    replies: Iterable[tuple[int, Reply]], asked: Container[int], opened: Callable[[int, bytes], T]
) -> tuple[dict[int, T], dict[int, str]]:
    """What the replies of clients that were asked come to, ascending by client, and why others are left out.

    opened: what it is of one; where it raises a PrismError, as where that is the reply, the client is left out.
    """
    heard: dict[int, T] = {}
    left_out: dict[int, str] = {}
    for client, reply in replies:
        if client in heard:
            continue  # the first one counts, and its sender is not left out for having sent it again
        try:
            if client not in asked:
                raise MessageError(f"a reply from client {client}", "replies from clients asked", "it is left out")
            if isinstance(reply, PrismError):
                raise reply
            heard[client] = opened(client, reply)
        except PrismError as error:
            left_out[client] = str(error)
    return dict(sorted(heard.items())), left_out


def check_weight(agreement: Agreement, client: int, weight: int, size: int) -> None:
    """Check that a client's share of exact arithmetic is the same whoever comes first.

    Args:
        agreement: of the run.
        client: its number, for the error.
        weight: that it asks for.
        size: of the round's cohort.

    Raises:
        MessageError: for a weight beyond its share; with equal weights, for any but 1.

    Examples:
        >>> from prismfl.settings.toml import settings_from
        >>> check_weight(agree(settings_from({}), channels=1), client=3, weight=2, size=10)
        Traceback (most recent call last):
        prismfl.errors.MessageError: weight 2 from client 3; expected 1 … 1; ...
    """
    most = MOST_WEIGHT // size if agreement.settings.federation.client_weights == "size" else 1
    if not 1 <= weight <= most:
        raise MessageError(
            f"weight {weight} from client {client}", f"1 … {most}", "the sender is left out of this round"
        )
