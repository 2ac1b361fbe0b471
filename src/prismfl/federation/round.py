"""One round of the federation, spelt out: the only place where it is.

The paper's four steps: the server broadcasts θ_t (`broadcast`), a client searches its mask
(`client_update`), clients send masks, the server averages them (`server_update`).  Every
function is pure: explicit state in, frames and new state out.
"""

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from prismfl.errors import ClientError, MessageError, PrismError, SettingError
from prismfl.generator.layout import Layout, Mask, frozen_weights, soft_mask
from prismfl.generator.masks import mask_of
from prismfl.generator.network import generate, label_turns, latent_batch
from prismfl.moments import FeatureMap, Target, label_means
from prismfl.search import Found, Memory, local_search, rate_at
from prismfl.seeding.device import Tape
from prismfl.seeding.philox import Purpose, Stream
from prismfl.server import (
    ALPHA_STEP,
    MOST_WEIGHT,
    Average,
    Screen,
    ServerState,
    Step,
    Tally,
    Vote,
    advance,
    empty_tally,
    grain_of,
    initial_state,
    public_dither,
    rounded,
    settle,
    surprise,
)
from prismfl.settings.resolve import Matching, matching_of, plan_of, resolved
from prismfl.settings.schema import Settings
from prismfl.settings.toml import to_toml
from prismfl.wire import frames as message
from prismfl.wire.masks import (
    Entries,
    decode_changes,
    decode_mask,
    decode_step,
    encode_changes,
    encode_mask,
    encode_moments,
    encode_step,
)
from prismfl.wire.uniforms import Baseline, Draws, Stretches, baseline, stretches

Reply = bytes | PrismError
Exchange = Callable[[Mapping[int, bytes]], Iterator[tuple[int, Reply]]]

MOST_LABELS = 1000
_MANY = 8  # clients a round, from which half of each mask says as much as the whole
_FEWEST = 10  # parts of the large layers where the fewest bits travel
_DRAWS = 8  # masks that are compared for the finished one
_LATENT = 64  # normals an image
_MOMENT_STEPS = 64  # of sent moments, to their root mean square
_CANDIDATE_LATENTS, _CANDIDATE_BATCH = 500, 250
_THETAS_KEPT, _LINKS_KEPT = 4, 4096  # by a simulator's clients together
_SLACK = 64  # bytes that a coded mask may take beyond packed bits


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

    def known(self, q: NDArray[np.uint16]) -> Entries:
        """What both ends know of all weights when θ_t = q / 65536."""
        return Entries(q, self.layout.layer_numbers, len(self.layout.layers))

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


@dataclass(frozen=True)
class RoundRecord:
    """What is logged of a round: of θ_{t+1}, but mask_entropy of θ_t, bits a parameter of a mask given θ_t alone.

    flips, local_divergence: means over clients of `Distance`, None where all layers are α layers;
    theta_by_layer: mean θ_{t+1} of each layer, by its name.
    """

    round: int
    loss: float
    kept_share: float
    density: float
    theta_variance: float
    mask_entropy: float
    flips: float | None
    local_divergence: float | None
    theta_by_layer: Mapping[str, float]
    replied: tuple[int, ...]
    left_out: Mapping[int, str]
    asked: int
    traffic: "Traffic"


@dataclass(frozen=True)
class Distance:
    """How far a client's mask M is from the global model θ_t that it began from, among the entries sent.

    flips: share with M ≠ [u < θ_t], u the uniforms that M was drawn with: in expectation the mean of |θ_k - θ_t|, and 0
    for a client with no news.  divergence: mean of |M - θ_t|, which is the expected normalised Hamming distance
    of M from a mask drawn from θ_t independently: the paper's local divergence Δ_t, without the noise of drawing
    that mask; 2θ(1 - θ) on average for a client with no news.
    """

    flips: float
    divergence: float


@dataclass(frozen=True)
class News:
    """What the log keeps of a reply: the client's loss, and how far its mask is from θ_t (None of no mask)."""

    loss: float
    moved: Distance | None


@dataclass
class Traffic:
    """Bytes and frames that went up and down."""

    uplink_bytes: int = 0
    downlink_bytes: int = 0
    uplink_frames: int = 0
    downlink_frames: int = 0

    def up(self, reply: Reply) -> None:
        """Count a reply, if it is one."""
        if isinstance(reply, bytes):
            self.uplink_bytes += len(reply)
            self.uplink_frames += 1

    def down(self, frames: Mapping[int, bytes]) -> None:
        """Count frames sent."""
        self.downlink_bytes += sum(map(len, frames.values()))
        self.downlink_frames += len(frames)


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


def broadcast(
    agreement: Agreement, state: ServerState, kind: message.Kind = message.Kind.BROADCAST
) -> dict[int, bytes]:
    """Step 1: the way to θ_t, framed for each client of the round's cohort.

    A client gets the coded steps since the last θ that it proved to know, or θ_t itself where those
    are not kept: then they would be longer.
    """
    members = cohort(agreement, state.round)
    return {
        client: _sent(agreement, state, client, (rank, len(members)), int(state.held[client]), kind)
        for rank, client in enumerate(members)
    }


def snapshots(agreement: Agreement, state: ServerState, clients: Iterable[int], kind: message.Kind) -> dict[int, bytes]:
    """θ_t itself, for clients of the round's cohort that asked for it."""
    members = cohort(agreement, state.round)
    ranks = {client: (rank, len(members)) for rank, client in enumerate(members)}
    return {client: _sent(agreement, state, client, ranks[client], -1, kind) for client in clients}


def _sent(
    agreement: Agreement, state: ServerState, client: int, rank: tuple[int, int], held: int, kind: message.Kind
) -> bytes:
    """A client's frame; rank: its own, and of how many."""
    behind = state.round - held
    if held < 0 or behind > len(state.steps):
        told = message.Broadcast(state.digest, *rank, None, (), state.q)
    else:
        told = message.Broadcast(state.digest, *rank, held, state.steps[len(state.steps) - behind :])
    return message.seal_broadcast(told, agreement.place(state.round, client), kind)


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
    return _advanced(agreement, q, round_index, step, base).q


def _advanced(agreement: Agreement, q: NDArray[np.uint16], round_index: int, step: Step, base: Baseline) -> Average:
    dither = public_dither(agreement.settings.seed, Purpose.ROUNDING, round_index, len(q))
    return advance(q, step, base, agreement.settings.federation, dither)


# --------------------------------------------------------------------------------------- client


@dataclass(frozen=True)
class Held:
    """What a client keeps of the federation: θ of a round, uint16 `[N]`."""

    q: NDArray[np.uint16]
    round: int

    @cached_property
    def digest(self) -> bytes:
        """Eight bytes naming θ."""
        return message.digest_of(self.q)


@dataclass
class ClientKit:
    """What a client computes with: frozen weights float32 `[N]` and the feature map.

    A simulator shares one kit among its clients; candidate moments are then computed once.
    search: what has `local_search` done elsewhere, and takes what that takes; None: it is done here.
    """

    weights: torch.Tensor
    features: FeatureMap
    search: Callable[..., Found] | None = None
    _candidates: dict[bytes, list[torch.Tensor]] = field(default_factory=dict)
    _links: dict[tuple[bytes, int, bytes], bytes] = field(default_factory=dict)
    _thetas: dict[bytes, NDArray[np.uint16]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def candidate_moments(self, agreement: Agreement, q: NDArray[np.uint16]) -> list[torch.Tensor]:
        """Mean ψ by label, `[G · D]`, of images from each candidate mask of the final θ."""
        with self._lock:
            key = q.tobytes()
            if key not in self._candidates:
                masks = candidates(agreement, q)
                self._candidates = {key: [_moments_of_mask(agreement, self, mask) for mask in masks]}
            return self._candidates[key]

    def follow(self, agreement: Agreement, held: Held, steps: Sequence[bytes]) -> Held:
        """Where the steps lead from what a client holds, each computed once for all clients that take it.

        Raises MessageError when one of them cannot be a step of its round.
        """
        turns = list(enumerate((hashlib.sha256(step).digest() for step in steps), held.round))
        with self._lock:
            names = [held.digest]
            for turn, step in turns:
                if (name := self._links.get((names[-1], turn, step))) is None:
                    break
                names.append(name)
            known = max((place for place, name in enumerate(names) if name in self._thetas), default=0)
            found = Held(self._thetas.get(names[known], held.q), held.round + known)
            for step in steps[known:]:
                found = self._stepped(agreement, found, step)
            return found

    def _stepped(self, agreement: Agreement, held: Held, step: bytes) -> Held:
        after = Held(next_theta(agreement, held.q, held.round, step), held.round + 1)
        self._links[held.digest, held.round, hashlib.sha256(step).digest()] = after.digest
        self._thetas[after.digest] = after.q
        for kept, most in ((self._links, _LINKS_KEPT), (self._thetas, _THETAS_KEPT)):
            while len(kept) > most:
                kept.pop(next(iter(kept)))  # type: ignore[call-overload]
        return after


def make_kit(agreement: Agreement, features: FeatureMap) -> ClientKit:
    """A kit on the run's device."""
    device = agreement.settings.running.device
    weights = torch.from_numpy(frozen_weights(agreement.layout, agreement.settings.seed).copy())
    return ClientKit(weights.to(device), features.to(device))


def hear(
    agreement: Agreement,
    kit: ClientKit,
    frame: bytes,
    place: message.Place,
    held: Held | None,
    kind: message.Kind = message.Kind.BROADCAST,
) -> tuple[message.Broadcast, Held | None]:
    """A broadcast, and the θ_t that it leads to from what the client holds.

    None in place of θ_t when the way starts elsewhere or leads to another θ than the server's: the
    client must ask for a snapshot.  Raises MessageError when the frame is not the expected one.
    """
    told = message.open_broadcast(frame, place, agreement.layout.count, kind)
    held = Held(init(agreement).q, 0) if held is None or len(held.q) != agreement.layout.count else held
    try:
        found = _follow(agreement, kit, told, held, place.round)
    except MessageError:
        found = None
    return told, found if found is not None and found.digest == told.digest else None


def _follow(agreement: Agreement, kit: ClientKit, told: message.Broadcast, held: Held, round_index: int) -> Held | None:
    if told.snapshot is not None:
        return Held(told.snapshot, round_index)
    if told.first is None or not told.first <= held.round <= round_index:
        return None
    return kit.follow(agreement, held, told.steps[held.round - told.first :])


def client_update(
    agreement: Agreement,
    kit: ClientKit,
    frame: bytes,
    round_index: int,
    client: int,
    target: Target,
    memory: Memory | None = None,
    held: Held | None = None,
) -> "Answer":
    """Steps 2 and 3: search from the broadcast θ_t, draw the mask, code and frame it.

    In a one-shot run the frame asks for moments instead, and these are the answer.
    memory, held: what the client keeps of rounds before; without `held` it knows θ_0 alone.
    Raises MessageError when the broadcast is not the expected one, ClientError when the search diverges.
    """
    place, settings = agreement.place(round_index, client), agreement.settings
    if settings.federation.mode == "one-shot":
        message.open_request(frame, place)
        return Answer(seal_target(agreement, place, target), None, None)
    told, now = hear(agreement, kit, frame, place, held)
    if now is None:
        return Answer(message.seal_lost(place), memory, held)
    found = _found(agreement, kit, place, now.q, target, memory)
    return _answer(agreement, place, told, now, found, target)


def _found(
    agreement: Agreement,
    kit: ClientKit,
    place: message.Place,
    q: NDArray[np.uint16],
    target: Target,
    memory: Memory | None,
) -> Found:
    """Step 2 of a client that knows θ_t = q / 65536, with draws where the kit computes."""
    settings = agreement.settings
    stream = Stream(settings.seed, Purpose.SEARCH, place.round, place.client)
    plan, search = plan_of(settings), kit.search or local_search
    draws = Tape(stream, kit.weights.device, common=plan.common)
    rate = rate_at(settings, place.round)
    return search(agreement.layout, kit.weights, kit.features, q, target, plan, rate, draws, memory)


def _answer(
    agreement: Agreement,
    place: message.Place,
    told: message.Broadcast,
    now: Held,
    found: Found,
    target: Target,
) -> "Answer":
    """Step 3 of a client whose search is done.  Raises ClientError when it diverged."""
    if not found.finite:
        raise ClientError(
            f"client {place.client}'s search diverged (loss {found.loss})",
            "finite numbers",
            "lower search.learning_rate",
        )
    sealed = seal_found(agreement, place, told, now.q, found.q, _weight(agreement.settings, target), found.loss)
    return Answer(sealed, found.memory, now)


@dataclass(frozen=True)
class Answer:
    """A client's reply, and what it keeps for its next round: Adam's memory (if the settings say so) and θ_t."""

    frame: bytes
    memory: Memory | None
    held: Held | None


def seal_found(
    agreement: Agreement,
    place: message.Place,
    told: message.Broadcast,
    q: NDArray[np.uint16],
    mine: NDArray[np.uint16],
    weight: int = 1,
    loss: float = 0.0,
) -> bytes:
    """Step 3: the frame of a client that moved from θ_t = q / 65536 to θ_k = mine / 65536, uint16 `[N]` each.

    It holds the client's part of its mask M = [u < θ_k], and its changes of the α layers, rounded without bias.
    """
    masked, known = agreement.masked, agreement.known(q)
    draws = agreement.draws(place.round, told.cohort)
    u, sent = draws.uniforms(place.client, told.rank), draws.chosen(told.rank)
    mask = encode_mask(mask_of(mine[:masked], u)[sent], u[sent], known.of(slice(masked)).of(sent))
    words = Stream(agreement.settings.seed, Purpose.ALPHA, place.round, place.client).words(len(q) - masked)
    changes = mine[masked:].astype(np.int64) - q[masked:]
    alpha = encode_changes(rounded(changes, ALPHA_STEP, words), known.of(slice(masked, None)))
    return message.seal_update(message.Update(told.digest, weight, loss, mask, alpha), place)


def seal_target(agreement: Agreement, place: message.Place, target: Target) -> bytes:
    """The frame of a one-shot run: the client's moments as they are, or with ε as they were released."""
    step, coded = encode_moments(target.moments, _MOMENT_STEPS)
    weight = _weight(agreement.settings, target)
    return message.seal_moments(message.Moments(weight, step, target.shares, coded), place)


def client_distances(
    agreement: Agreement, kit: ClientKit, frame: bytes, client: int, target: Target, held: Held | None = None
) -> bytes:
    """Squared distances of each candidate mask's moments from the client's target, framed.

    Each label counts by its share of the client's images.  Raises ClientError where the agreed choice of the finished
    mask asks no client.
    """
    if (shipped := agreement.settings.federation.shipped) != "best":
        raise ClientError(
            f"a request for distances where federation.shipped is {shipped!r}", "none", "ask whoever runs the server"
        )
    place = agreement.place(agreement.settings.federation.rounds, client)
    _, now = hear(agreement, kit, frame, place, held, message.Kind.CANDIDATES)
    if now is None:
        return message.seal_lost(place)
    found = candidate_distances(agreement, kit, now.q, target)
    return message.seal_distances(found, _weight(agreement.settings, target), place)


def candidate_distances(
    agreement: Agreement, kit: ClientKit, q: NDArray[np.uint16], target: Target
) -> NDArray[np.float64]:
    """Squared distance of each candidate mask's moments from a target, label by label: float64 `[candidates]`.

    Of labels c with shares s_c, means f_c of fakes and t_c of images it is Σ s_c ‖f_c - t_c‖²: the mean over clients is
    then that of their images together, but for a constant.  By squares of shares, as in ‖Σ s_c (f_c - t_c)‖² of their
    blocks, a label of few clients would count for more than one of many.
    """
    rows, device = (len(target.shares), -1), kit.weights.device
    held = torch.from_numpy(np.flatnonzero(target.shares)).to(device)
    shares = torch.from_numpy(target.shares).to(device)[held]
    means = torch.from_numpy(target.moments).to(device).view(rows)[held] / shares[:, None]
    fakes = (fake.double().view(rows)[held] for fake in kit.candidate_moments(agreement, q))
    return np.array([float(shares @ (fake - means).square().sum(1)) for fake in fakes])


def _weight(settings: Settings, target: Target) -> int:
    return target.images if settings.federation.client_weights == "size" else 1


@torch.no_grad()
def _moments_of_mask(agreement: Agreement, kit: ClientKit, mask: Mask) -> torch.Tensor:
    flat = kit.weights * torch.from_numpy(mask).to(kit.weights.device)
    stream = Stream(agreement.settings.seed, Purpose.SHIPPED, 2**32 - 1)
    count = max(_CANDIDATE_LATENTS, 4 * agreement.layout.classes)
    latents = latent_batch(agreement.layout, stream, count).to(kit.weights.device)
    labels = label_turns(agreement.layout, len(latents)).to(latents.device)
    groups = label_means(labels, agreement.layout.classes)
    turns = kit.features.turns_of(torch.arange(len(latents), device=latents.device) // max(1, agreement.layout.classes))
    parts = [part.split(_CANDIDATE_BATCH, -1) for part in (latents.T, labels, groups, turns)]
    sums = (
        kit.features.moments(generate(agreement.layout, flat, rows.T, labels=tags), weights, shifts)
        for rows, tags, weights, shifts in zip(*parts, strict=True)
    )
    return torch.stack(tuple(sums)).sum(0)


# --------------------------------------------------------------------------------------- server


def converse(
    agreement: Agreement, state: ServerState, exchange: Exchange, traffic: Traffic, kind: message.Kind
) -> Iterator[tuple[int, Reply]]:
    """Ask the round's cohort, and once more, with θ_t itself, those that have lost their way to it."""
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
        again = snapshots(agreement, state, lost, kind)
        traffic.down(again)
        for client, reply in exchange(again):
            traffic.up(reply)
            yield client, reply


def server_update(
    agreement: Agreement, state: ServerState, exchange: Exchange, traffic: Traffic | None = None
) -> tuple[ServerState, RoundRecord]:
    """Steps 1 and 4: ask the cohort, and average the masks that arrive, in any order, into θ_{t+1}.

    A client whose reply is an error, damaged or foreign is left out and named in the record.
    traffic: of earlier attempts at this round; what is sent and heard is added to it.
    Raises ClientError when fewer clients are left than `deployment.least_cohort`.
    """
    members = cohort(agreement, state.round)
    traffic = Traffic() if traffic is None else traffic
    ranks = {client: rank for rank, client in enumerate(members)}
    tally = empty_tally(agreement.layout.count, len(members))
    screen = Screen(agreement.settings.federation.screen)
    heard: dict[int, News] = {}
    left_out: dict[int, str] = {}
    for client, reply in converse(agreement, state, exchange, traffic, message.Kind.BROADCAST):
        try:
            if client not in ranks or client in heard:
                raise MessageError(
                    f"a reply from client {client}", "one reply from each client asked", "it is left out"
                )
            vote, heard[client] = _heard(agreement, state, client, ranks[client], len(ranks), reply)
            tally = screen.add(tally, client, vote)
        except PrismError as error:
            left_out[client] = str(error)
    tally, strangers = screen.close(tally)
    left_out |= strangers
    heard = {client: news for client, news in heard.items() if client not in strangers}
    least = agreement.settings.running.least_cohort
    if len(heard) < least:
        raise ClientError(
            f"{len(heard) or 'no'} usable reply in round {state.round} ({_reasons(left_out)})",
            "at least one" if least == 1 else f"at least {least}, running.least_cohort",
            "mend the clients and resume the run",
        )
    done, after = _settled(agreement, state, tally, {client: ranks[client] for client in sorted(heard)})
    theta = after.q.astype(np.float64) / 65536
    return after, RoundRecord(
        state.round,
        float(np.mean([heard[client].loss for client in sorted(heard)])),
        done.kept_share,
        done.density,
        float(np.mean(theta * (1 - theta))),
        mask_entropy(state.q),
        *_mean_distance([heard[client].moved for client in sorted(heard)]),
        mean_by_layer(agreement.layout, theta),
        tuple(sorted(heard)),
        left_out,
        len(members),
        traffic,
    )


def _reasons(left_out: Mapping[int, str]) -> str:
    return "; ".join(left_out.values()) or "none came"


def distance_of(mask: NDArray[np.bool_], u: NDArray[np.uint16], q: NDArray[np.uint16]) -> Distance | None:
    """How far a mask bool `[n]`, drawn with uniforms uint16 `[n]`, is from θ_t = q / 65536; None of no entries."""
    if not len(mask):
        return None
    # 65536 - q, which q ≥ 1 keeps within 16 bits.
    apart = np.where(mask, np.negative(q), q).mean(dtype=np.float64) / 65536
    return Distance(np.count_nonzero(mask != (u < q)) / len(mask), float(apart))


def _mean_distance(found: Sequence[Distance | None]) -> tuple[float | None, float | None]:
    there = [one for one in found if one is not None]
    if not there:
        return None, None
    return float(np.mean([one.flips for one in there])), float(np.mean([one.divergence for one in there]))


def mean_by_layer(layout: Layout, theta: NDArray[np.float64]) -> dict[str, float]:
    """Mean θ of each layer, by its name, from all of them, float64 `[N]`."""
    return {layer.name: float(theta[layer.span].mean()) for layer in layout.layers}


def mask_entropy(q: NDArray[np.uint16]) -> float:
    """Bits a parameter that a mask takes which is coded given θ = q / 65536 alone."""
    theta = np.maximum(q, 1) / 65536
    return float(np.mean(-theta * np.log2(theta) - (1 - theta) * np.log2(1 - theta)))


def _settled(
    agreement: Agreement, state: ServerState, tally: Tally, replied: Mapping[int, int]
) -> tuple[Average, ServerState]:
    """θ_{t+1}, the coded step that leads there, and who is known to hold θ_t."""
    settings, size = agreement.settings, len(cohort(agreement, state.round))
    draws = agreement.draws(state.round, size)
    base = baseline(draws, state.q[: agreement.masked], replied.items())
    words = public_dither(settings.seed, Purpose.TALLY, state.round, len(state.q))
    step = settle(state.q, tally, base, draws.by_entry(tally.weights), settings.federation, words)
    coded = message.pack_step(
        size, list(replied.values()), encode_step(step.net, step.alpha, base, agreement.known(state.q))
    )
    done = _advanced(agreement, state.q, state.round, step, base)
    held = state.held.copy()
    held[list(replied)] = state.round
    return done, ServerState(done.q, state.round + 1, _worth_keeping((*state.steps, coded), len(state.q)), held)


def _worth_keeping(steps: tuple[bytes, ...], count: int) -> tuple[bytes, ...]:
    """The last steps, as far as they are together shorter than a snapshot."""
    room, kept = 2 * count, 0
    for step in reversed(steps[-message.MOST_STEPS :]):
        room -= len(step) + 4
        if room < 0:
            break
        kept += 1
    return steps[len(steps) - kept :]


def _heard(
    agreement: Agreement, state: ServerState, client: int, rank: int, size: int, reply: Reply
) -> tuple[Vote, News]:
    """What a reply says of θ, and what the log keeps of it."""
    if isinstance(reply, PrismError):
        raise reply
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
    return Vote(mask, theta, update.weight, draws.place(rank), surprise(drawn, u, entries.q)), news


def check_weight(agreement: Agreement, client: int, weight: int, size: int) -> None:
    """A client's share of exact arithmetic is the same whoever comes first."""
    most = MOST_WEIGHT // size if agreement.settings.federation.client_weights == "size" else 1
    if not 1 <= weight <= most:
        raise MessageError(
            f"weight {weight} from client {client}", f"1 … {most}", "the sender is left out of this round"
        )


# ------------------------------------------------------------------------------- finished model


def candidates(agreement: Agreement, q: NDArray[np.uint16]) -> list[Mask]:
    """Masks `[N]` that may be shipped: draws from θ, and θ ≥ 1/2; of soft masks θ alone."""
    federation = agreement.settings.federation
    if federation.shipped != "best" or agreement.settings.search.mask == "soft":
        return [preview_mask(agreement, q)]
    return [*(_drawn(agreement, q, index) for index in range(_DRAWS)), q >= 32768]


def preview_mask(agreement: Agreement, q: NDArray[np.uint16]) -> Mask:
    """What would be shipped of θ without asking the clients, `[N]`: a draw if draws are, else θ ≥ 1/2, or soft θ."""
    if agreement.settings.search.mask == "soft":
        return soft_mask(q)
    return _drawn(agreement, q, 0) if agreement.settings.federation.shipped == "draw" else q >= 32768


def _drawn(agreement: Agreement, q: NDArray[np.uint16], index: int) -> NDArray[np.bool_]:
    return mask_of(q, Stream(agreement.settings.seed, Purpose.SHIPPED, index).halves(len(q)))


def shipped_mask(agreement: Agreement, state: ServerState, exchange: Exchange, traffic: Traffic | None = None) -> Mask:
    """The finished model's mask `[N]`; what is asked for it is added to the traffic.

    With several candidates, the last cohort's clients send each one's squared distance from
    their targets, and the least mean wins: it differs from the distance to the pooled images'
    moments, label by label, by a constant only.
    """
    masks = candidates(agreement, state.q)
    if len(masks) == 1:
        return masks[0]
    heard: dict[int, NDArray[np.float64]] = {}
    members, traffic = cohort(agreement, state.round), traffic or Traffic()
    for client, reply in converse(agreement, state, exchange, traffic, message.Kind.CANDIDATES):
        # One vote less decides nothing: what is damaged, uninvited or second is passed over.
        if isinstance(reply, bytes) and client in members and client not in heard:
            with contextlib.suppress(MessageError):
                place = agreement.place(state.round, client)
                votes, weight = message.open_distances(reply, place, len(masks))
                check_weight(agreement, client, weight, len(members))
                heard[client] = votes * weight
    if not heard:
        return masks[-1]
    return masks[int(np.argmin(sum(heard[client] for client in sorted(heard))))]
