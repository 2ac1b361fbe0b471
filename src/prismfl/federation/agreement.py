"""What server and clients agree on before the first round, and what follows from it for both."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from prismfl.errors import MessageError, PrismError, SettingError
from prismfl.generator.layout import Layout
from prismfl.seeding.philox import Purpose, Stream
from prismfl.server import (
    MOST_WEIGHT,
    Average,
    ServerState,
    Step,
    advance,
    grain_of,
    initial_state,
    public_dither,
)
from prismfl.settings.resolve import Matching, matching_of, resolved
from prismfl.settings.schema import Settings
from prismfl.settings.toml import to_toml
from prismfl.wire import frames as message
from prismfl.wire.masks import (
    SharedKnowledge,
    decode_step,
)
from prismfl.wire.uniforms import Baseline, Draws, Stretches, baseline, stretches

MOST_LABELS = 1000
_MANY = 8  # clients a round, from which half of each mask says as much as the whole
_FEWEST = 10  # parts of the large layers where the fewest bits travel
_LATENT = 64  # normals an image
Reply = bytes | PrismError
Exchange = Callable[[Mapping[int, bytes]], Iterator[tuple[int, Reply]]]


@dataclass(frozen=True)
class KnownTheta:
    """What a client keeps of the federation: θ of a round, uint16 `[N]`."""

    q: NDArray[np.uint16]
    round: int

    @cached_property
    def digest(self) -> bytes:
        """Eight bytes naming θ."""
        return message.digest_of(self.q)


@dataclass(frozen=True)
class Agreement:
    """What server and clients agree on before the first round; all of it is public.

    settings: resolved ones; labels: names of the labels that the generator makes images by, none where it takes no
    label; matching, network: what of a feature network is matched, and the SHA-256 of its weights.
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
        """What both ends know of all weights when θ_t = q / 65536."""
        return SharedKnowledge(q, self.layout.layer_numbers, len(self.layout.layers))

    @property
    def parts(self) -> int:
        """Number of parts that the entries of a mask are dealt into: by stages, those of the largest."""
        federation = self.settings.federation
        clients = federation.cohort or self.settings.data.clients
        parts = {"whole": 1, "half": 2, "fewest": _FEWEST, "auto": 2 if clients >= _MANY else 1}
        return min(parts[federation.uplink], clients)

    def draws(self, round_index: int, cohort: int) -> Draws:
        """How a round's masks are drawn."""
        federation = self.settings.federation
        dealt: Stretches = ((self.masked, self.parts),)
        if federation.uplink == "fewest":
            dealt = stretches(self.layout.dealt(self.parts), self.masked)
        return Draws(federation.draws, dealt, self.settings.seed, round_index, cohort)

    def place(self, round_index: int, client: int) -> message.Place:
        """Where a frame of this run belongs."""
        return message.Place(self.run, round_index, client)


def agree(settings: Settings, channels: int, classes: Sequence[str] = (), network: str = "") -> Agreement:
    """Layout and run id of the settings, for images of `channels` channels and named classes.

    network: SHA-256 of the feature network's weights.  Raises SettingError when there are more classes than a
    conditional generator takes, or odd names.
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
    """State before the first round."""
    settings = agreement.settings
    return initial_state(settings.federation, agreement.layout, settings.data.clients, settings.seed)


def cohort(agreement: Agreement, round_index: int) -> list[int]:
    """The clients of a round, ascending: all, or a public random choice."""
    clients, size = agreement.settings.data.clients, agreement.settings.federation.cohort
    if size in (0, clients):
        return list(range(clients))
    return list(_chosen(agreement.settings.seed, round_index, clients, size))


# A round asks for its cohort many times, and the choice takes as long as there are clients.
@lru_cache(maxsize=4)
def _chosen(seed: int, round_index: int, clients: int, size: int) -> tuple[int, ...]:
    return tuple(sorted(Stream(seed, Purpose.COHORT, round_index).permutation(clients)[:size].tolist()))


def next_theta(agreement: Agreement, q: NDArray[np.uint16], round_index: int, raw: bytes) -> NDArray[np.uint16]:
    """θ_{t+1} from θ_t and a coded step, uint16 `[N]`: what every client computes.

    Raises MessageError when the step cannot be one of this round.
    """
    cohort_size, replied, body = message.unpack_step(raw)
    members = cohort(agreement, round_index)
    if cohort_size != len(members):
        raise MessageError(f"a step of a cohort of {cohort_size}", f"{len(members)} clients", "ask for a snapshot")
    base = baseline(
        agreement.draws(round_index, cohort_size),
        q[: agreement.masked],
        ((members[rank], rank) for rank in replied),
    )
    step = Step(*decode_step(body, base, agreement.known(q)))
    kept = step.net + base.kept.astype(np.int64) * (grain := grain_of(agreement.settings.federation))
    if (kept < 0).any() or (kept > base.clients.astype(np.int64) * grain).any():
        raise MessageError("a step of more masks than were sent", "0 … the clients that replied", "ask for a snapshot")
    return advanced(agreement, q, round_index, step, base).q


def advanced(agreement: Agreement, q: NDArray[np.uint16], round_index: int, step: Step, base: Baseline) -> Average:
    """θ_{t+1} from θ_t and a step, by the round's public dither."""
    dither = public_dither(agreement.settings.seed, Purpose.ROUNDING, round_index, len(q))
    return advance(q, step, base, agreement.settings.federation, dither)


def check_weight(agreement: Agreement, client: int, weight: int, size: int) -> None:
    """A client's share of exact arithmetic is the same whoever comes first."""
    most = MOST_WEIGHT // size if agreement.settings.federation.client_weights == "size" else 1
    if not 1 <= weight <= most:
        raise MessageError(
            f"weight {weight} from client {client}", f"1 … {most}", "the sender is left out of this round"
        )
