"""One round of the federation, spelt out: the only place where it is.

The paper's four steps: the server broadcasts θ_t (`broadcast`), a client searches its mask
(`client_update`), clients send masks, the server averages them (`server_update`).  Every
function is pure: explicit state in, frames and new state out.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from prismfl.config import Settings, to_toml
from prismfl.errors import ClientError, MessageError, PrismError, SettingError
from prismfl.layout import Layout, frozen_weights
from prismfl.mmd import FeatureMap, Target, distance, label_means
from prismfl.nets.generator import generate, label_turns, latent_batch
from prismfl.nets.masked import mask_of
from prismfl.search import Memory, local_search, rate_at
from prismfl.seeding import Purpose, Stream
from prismfl.server import MOST_WEIGHT, ServerState, Tally, add_reply, average, initial_state
from prismfl.wire import message
from prismfl.wire.draws import uniforms

Reply = bytes | PrismError
Exchange = Callable[[Mapping[int, bytes]], Iterator[tuple[int, Reply]]]

MOST_LABELS = 1000
_CANDIDATE_LATENTS, _CANDIDATE_BATCH = 500, 250


@dataclass(frozen=True)
class Agreement:
    """What server and clients agree on before the first round; all of it is public.

    labels: names of the labels that the generator makes images by; none where it takes no label.
    """

    settings: Settings
    layout: Layout
    run: bytes
    labels: tuple[str, ...] = ()

    @property
    def masked(self) -> int:
        """Number of parameters whose masks travel; the rest are α layers."""
        return self.layout.alpha_start(self.settings.federation.alpha)

    def place(self, round_index: int, client: int) -> message.Place:
        """Where a frame of this run belongs."""
        return message.Place(self.run, round_index, client)


@dataclass(frozen=True)
class RoundRecord:
    """What is logged of a round; bytes are of whole frames, summed over the cohort."""

    round: int
    loss: float
    kept_share: float
    density: float
    theta_variance: float
    replied: tuple[int, ...]
    left_out: Mapping[int, str]
    asked: int
    uplink_bytes: int
    downlink_bytes: int


def agree(settings: Settings, channels: int, classes: Sequence[str] = ()) -> Agreement:
    """Layout and run id of the settings, for images of `channels` channels and named classes.

    Raises SettingError when there are more classes than a conditional generator takes, or odd names.
    """
    size = settings.generator.size or (16 if settings.data.dataset == "digits" else 32)
    labels = tuple(classes) if settings.generator.conditional and len(classes) > 1 else ()
    if len(labels) > MOST_LABELS:
        raise SettingError(
            f"{len(labels)} labels", f"at most {MOST_LABELS} for a conditional generator", "set conditional to false"
        )
    odd = [name for name in labels if not name.isprintable()]
    if odd:
        raise SettingError(f"a label {odd[0]!r}", "printable text, for it goes into the model", "rename the class")
    layout = Layout(size, channels, settings.generator.width, settings.generator.latent, len(labels))
    run = message.run_id(to_toml(settings.public()) + repr((layout, labels)))
    return Agreement(settings, layout, run, labels)


def init(agreement: Agreement) -> ServerState:
    """State before the first round."""
    return initial_state(agreement.settings.federation, agreement.layout.count)


def cohort(agreement: Agreement, round_index: int) -> list[int]:
    """The clients of a round, ascending: all, or a public random choice."""
    clients, size = agreement.settings.data.clients, agreement.settings.federation.cohort
    if size in (0, clients):
        return list(range(clients))
    stream = Stream(agreement.settings.seed, Purpose.COHORT, round_index)
    return sorted(stream.permutation(clients)[:size].tolist())


def broadcast(agreement: Agreement, state: ServerState) -> dict[int, bytes]:
    """Step 1: θ_t, framed for each client of the round's cohort."""
    members = cohort(agreement, state.round)
    return {
        client: message.seal_broadcast(
            message.Broadcast(state.q, rank, len(members)), agreement.place(state.round, client)
        )
        for rank, client in enumerate(members)
    }


# --------------------------------------------------------------------------------------- client


@dataclass
class ClientKit:
    """What a client computes with: frozen weights float32 `[N]` and the feature map.

    A simulator shares one kit among its clients; candidate moments are then computed once.
    """

    weights: torch.Tensor
    features: FeatureMap
    _candidates: dict[bytes, list[torch.Tensor]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def candidate_moments(self, agreement: Agreement, q: NDArray[np.uint16]) -> list[torch.Tensor]:
        """Mean ψ by label, `[G · D]`, of images from each candidate mask of the final θ."""
        with self._lock:
            key = q.tobytes()
            if key not in self._candidates:
                masks = candidates(agreement, q)
                self._candidates = {key: [_moments_of_mask(agreement, self, mask) for mask in masks]}
            return self._candidates[key]


def make_kit(agreement: Agreement, features: FeatureMap) -> ClientKit:
    """A kit on the run's device."""
    device = agreement.settings.output.device
    weights = torch.from_numpy(frozen_weights(agreement.layout, agreement.settings.seed).copy())
    return ClientKit(weights.to(device), features.to(device))


def client_update(
    agreement: Agreement,
    kit: ClientKit,
    frame: bytes,
    round_index: int,
    client: int,
    target: Target,
    memory: Memory | None = None,
    noise: Callable[[NDArray[np.uint16]], NDArray[np.uint16]] | None = None,
) -> tuple[bytes, Memory]:
    """Steps 2 and 3: search from the broadcast θ_t, draw the mask, frame it.

    noise: applied to what was found, uint16 `[N]`, before anything of it is sent; no loss is then.
    Returns the update's frame and Adam's memory, which the client keeps if its settings say so.
    Raises MessageError when the broadcast is not the expected one.
    """
    settings, count = agreement.settings, agreement.layout.count
    place = agreement.place(round_index, client)
    heard = message.open_broadcast(frame, place, count)
    draws = Stream(settings.seed, Purpose.SEARCH, round_index, client).torch_generator()
    rate = rate_at(settings.search, round_index, settings.federation.rounds)
    found = local_search(
        agreement.layout, kit.weights, kit.features, heard.q, target, settings.search, rate, draws, memory
    )
    if not (np.isfinite(found.loss) and np.isfinite(found.memory.first).all()):
        raise ClientError(
            f"client {client}'s search diverged (loss {found.loss})", "finite numbers", "lower search.learning_rate"
        )
    masked = agreement.masked
    uniform = _uniforms(agreement, round_index, client, heard.rank, heard.cohort)
    sent, loss = (noise(found.q), 0.0) if noise else (found.q, found.loss)
    update = message.Update(mask_of(sent[:masked], uniform), sent[masked:], _weight(settings, target), loss)
    return message.seal_update(update, place), found.memory


def client_distances(agreement: Agreement, kit: ClientKit, frame: bytes, client: int, target: Target) -> bytes:
    """Squared distances of each candidate mask's moments from the client's target, framed.

    Each label counts by its share of the client's images, as if the fakes had these shares.
    """
    place = agreement.place(agreement.settings.federation.rounds, client)
    q = message.open_candidates(frame, place, agreement.layout.count)
    real = torch.from_numpy(target.moments).to(kit.weights.device)
    shares = torch.from_numpy(target.shares).float().to(real.device).repeat_interleave(kit.features.dimension)
    fakes = kit.candidate_moments(agreement, q)
    found = [float(distance((fake * shares).double(), real.double())) for fake in fakes]
    return message.seal_distances(np.array(found), _weight(agreement.settings, target), place)


def _weight(settings: Settings, target: Target) -> int:
    return target.images if settings.federation.client_weights == "size" else 1


def _uniforms(agreement: Agreement, round_index: int, client: int, rank: int, size: int) -> NDArray[np.uint16]:
    settings = agreement.settings
    return uniforms(settings.federation.draws, settings.seed, round_index, client, rank, size, agreement.masked)


@torch.no_grad()
def _moments_of_mask(agreement: Agreement, kit: ClientKit, mask: NDArray[np.bool_]) -> torch.Tensor:
    flat = kit.weights * torch.from_numpy(mask).to(kit.weights.device)
    stream = Stream(agreement.settings.seed, Purpose.SHIPPED, 2**32 - 1)
    count = max(_CANDIDATE_LATENTS, 4 * agreement.layout.classes)
    latents = latent_batch(agreement.layout, stream, count).to(kit.weights.device)
    labels = label_turns(agreement.layout, len(latents)).to(latents.device)
    groups = label_means(labels, agreement.layout.classes)
    parts = [part.split(_CANDIDATE_BATCH, -1) for part in (latents.T, labels, groups)]
    sums = (
        kit.features.moments(generate(agreement.layout, flat, rows.T, labels=tags), weights)
        for rows, tags, weights in zip(*parts, strict=True)
    )
    return torch.stack(tuple(sums)).sum(0)


# --------------------------------------------------------------------------------------- server


def server_update(
    agreement: Agreement, state: ServerState, replies: Iterable[tuple[int, Reply]], sent: Mapping[int, bytes]
) -> tuple[ServerState, RoundRecord]:
    """Step 4: average the masks that arrived, in any order, into θ_{t+1}.

    A client whose reply is an error, damaged or foreign is left out and named in the record.
    Raises ClientError when no client is left.
    """
    ranks = {client: rank for rank, client in enumerate(sent)}
    tally = Tally(np.zeros(agreement.layout.count, np.int64))
    losses: dict[int, float] = {}
    left_out: dict[int, str] = {}
    uplink = 0
    for client, reply in replies:
        uplink += len(reply) if isinstance(reply, bytes) else 0
        try:
            if client not in ranks or client in losses:
                raise MessageError(
                    f"a reply from client {client}", "one reply from each client asked", "it is left out"
                )
            tally, losses[client] = _heard(agreement, state, tally, client, ranks[client], len(ranks), reply)
        except PrismError as error:
            left_out[client] = str(error)
    if not losses:
        raise ClientError(
            f"no usable reply in round {state.round} ({'; '.join(left_out.values()) or 'none came'})",
            "at least one",
            "mend the clients and resume the run",
        )
    done = average(state, tally, agreement.settings.federation, agreement.settings.seed, agreement.masked)
    theta = done.state.q.astype(np.float64) / 65536
    return done.state, RoundRecord(
        state.round,
        float(np.mean([losses[client] for client in sorted(losses)])),
        done.kept_share,
        done.density,
        float(np.mean(theta * (1 - theta))),
        tuple(sorted(losses)),
        left_out,
        len(sent),
        uplink,
        sum(len(frame) for frame in sent.values()),
    )


def _heard(
    agreement: Agreement, state: ServerState, tally: Tally, client: int, rank: int, size: int, reply: Reply
) -> tuple[Tally, float]:
    """The tally with one reply more, and the client's loss."""
    if isinstance(reply, PrismError):
        raise reply
    masked = agreement.masked
    place = agreement.place(state.round, client)
    update = message.open_update(reply, place, masked, agreement.layout.count - masked)
    _check_weight(agreement, client, update.weight, size)
    without_news = None
    if agreement.settings.federation.control_variate:
        without_news = mask_of(state.q[:masked], _uniforms(agreement, state.round, client, rank, size))
    return add_reply(tally, update.mask, update.alpha, update.weight, without_news), update.loss


def _check_weight(agreement: Agreement, client: int, weight: int, size: int) -> None:
    """A client's share of exact arithmetic is the same whoever comes first."""
    most = MOST_WEIGHT // size if agreement.settings.federation.client_weights == "size" else 1
    if not 1 <= weight <= most:
        raise MessageError(
            f"weight {weight} from client {client}", f"1 … {most}", "the sender is left out of this round"
        )


# ------------------------------------------------------------------------------- finished model


def candidates(agreement: Agreement, q: NDArray[np.uint16]) -> list[NDArray[np.bool_]]:
    """Masks that may be shipped, bool `[N]` each: draws from θ, and θ ≥ 1/2."""
    federation = agreement.settings.federation
    if federation.shipped != "best":
        return [preview_mask(agreement, q)]
    return [*(_drawn(agreement, q, index) for index in range(federation.shipped_draws)), q >= 32768]


def preview_mask(agreement: Agreement, q: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """What would be shipped of θ without asking the clients, bool `[N]`: a draw if draws are, else θ ≥ 1/2."""
    return _drawn(agreement, q, 0) if agreement.settings.federation.shipped == "draw" else q >= 32768


def _drawn(agreement: Agreement, q: NDArray[np.uint16], index: int) -> NDArray[np.bool_]:
    return mask_of(q, Stream(agreement.settings.seed, Purpose.SHIPPED, index).halves(len(q)))


def shipped_mask(agreement: Agreement, state: ServerState, exchange: Exchange) -> NDArray[np.bool_]:
    """The finished model's mask: bool `[N]`.

    With several candidates, the last cohort's clients send each one's squared distance from
    their targets, and the least mean wins: it differs from the distance to the pooled moments
    by a constant only.
    """
    masks = candidates(agreement, state.q)
    if len(masks) == 1:
        return masks[0]
    last = agreement.settings.federation.rounds
    frames = {
        client: message.seal_candidates(state.q, agreement.place(last, client)) for client in cohort(agreement, last)
    }
    heard: dict[int, NDArray[np.float64]] = {}
    for client, reply in exchange(frames):
        # One vote less decides nothing: what is damaged, uninvited or second is passed over.
        if isinstance(reply, bytes) and client in frames and client not in heard:
            with contextlib.suppress(MessageError):
                votes, weight = message.open_distances(reply, agreement.place(last, client), len(masks))
                _check_weight(agreement, client, weight, len(frames))
                heard[client] = votes * weight
    if not heard:
        return masks[-1]
    return masks[int(np.argmin(sum(heard[client] for client in sorted(heard))))]
