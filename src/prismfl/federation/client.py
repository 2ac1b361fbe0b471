"""A client's part of a round: steps 2 and 3, and the comparison of finished masks.

It keeps θ of the last round that it heard of, and Adam's moments where the settings say so.
"""

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from prismfl.errors import ClientError, MessageError
from prismfl.federation.agreement import Agreement, KnownTheta, next_theta
from prismfl.federation.finished_mask import candidates, moments_of_mask
from prismfl.generator.layout import frozen_weights
from prismfl.generator.masks import mask_of
from prismfl.moments import FeatureMap, Target
from prismfl.search import Memory, SearchResult, local_search, rate_at
from prismfl.seeding.device import Tape
from prismfl.seeding.philox import Purpose, Stream
from prismfl.server import ALPHA_STEP, rounded
from prismfl.settings.resolve import plan_of
from prismfl.settings.schema import Settings
from prismfl.wire import frames as message
from prismfl.wire.masks import encode_changes, encode_mask, encode_moments

_MOMENT_STEPS = 64  # of sent moments, to their root mean square
_THETAS_KEPT, _LINKS_KEPT = 4, 4096  # by a simulator's clients together


@dataclass
class ClientKit:
    """What a client computes with; a simulator shares one among its clients.

    Attributes:
        weights: frozen ones, float32 `[N]`.
        features: the map that images are matched by.
        search: what has `local_search` done elsewhere, and takes what that takes; None: it is done here.
        compiled: whether torch compiles its steps.
    """

    weights: torch.Tensor
    features: FeatureMap
    search: Callable[..., SearchResult] | None = None
    compiled: bool = False
    _candidates: dict[bytes, list[torch.Tensor]] = field(default_factory=dict)
    _links: dict[tuple[bytes, int, bytes], bytes] = field(default_factory=dict)
    _thetas: dict[bytes, NDArray[np.uint16]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def candidate_moments(self, agreement: Agreement, q: NDArray[np.uint16]) -> list[torch.Tensor]:
        """Mean ψ by label of images from each candidate mask, computed once for all clients.

        Args:
            agreement: of the run.
            q: final θ · 65536, uint16 `[N]`.

        Returns:
            `[G · D]` a candidate.
        """
        with self._lock:
            key = q.tobytes()
            if key not in self._candidates:
                masks = candidates(agreement, q)
                self._candidates = {
                    key: [moments_of_mask(agreement, self.weights, self.features, mask) for mask in masks]
                }
            return self._candidates[key]

    def follow(self, agreement: Agreement, held: KnownTheta, steps: Sequence[bytes]) -> KnownTheta:
        """Where steps lead from what a client holds, each computed once for all clients that take it.

        Args:
            agreement: of the run.
            held: θ that the client holds.
            steps: of the rounds from there on.

        Raises:
            MessageError: when one of them cannot be a step of its round.
        """
        turns = list(enumerate((hashlib.sha256(step).digest() for step in steps), held.round))
        with self._lock:
            names = [held.digest]
            for turn, step in turns:
                if (name := self._links.get((names[-1], turn, step))) is None:
                    break
                names.append(name)
            known = max((place for place, name in enumerate(names) if name in self._thetas), default=0)
            found = KnownTheta(self._thetas.get(names[known], held.q), held.round + known)
            for step in steps[known:]:
                found = self._stepped(agreement, found, step)
            return found

    def _stepped(self, agreement: Agreement, held: KnownTheta, step: bytes) -> KnownTheta:
        after = KnownTheta(next_theta(agreement, held.q, held.round, step), held.round + 1)
        self._links[held.digest, held.round, hashlib.sha256(step).digest()] = after.digest
        self._thetas[after.digest] = after.q
        for kept, most in ((self._links, _LINKS_KEPT), (self._thetas, _THETAS_KEPT)):
            while len(kept) > most:
                kept.pop(next(iter(kept)))  # type: ignore[call-overload]
        return after


def make_kit(agreement: Agreement, features: FeatureMap, *, compiled: bool = False) -> ClientKit:
    """A kit on the run's device.

    Args:
        agreement: of the run.
        features: the map that images are matched by.
        compiled: whether torch compiles its steps: worth it where many searches share them.
    """
    device = agreement.settings.running.device
    weights = torch.from_numpy(frozen_weights(agreement.layout, agreement.settings.seed).copy())
    return ClientKit(weights.to(device), features.to(device), compiled=compiled)


def receive(
    agreement: Agreement,
    kit: ClientKit,
    frame: bytes,
    place: message.Place,
    held: KnownTheta | None,
    kind: message.Kind = message.Kind.BROADCAST,
) -> tuple[message.Broadcast, KnownTheta | None]:
    """A broadcast, and the θ_t that it leads to from what the client holds.

    Args:
        agreement: of the run.
        kit: what the client computes with.
        frame: bytes as they came.
        place: that is expected.
        held: θ that the client holds; None: θ_0.
        kind: BROADCAST or CANDIDATES.

    Returns:
        What the frame says, and θ_t: None when the way starts elsewhere or leads to another θ than the
        server's, and the client must ask for a snapshot.

    Raises:
        MessageError: when the frame is not the expected one.

    Examples:
        >>> from prismfl.features.networks import load_features
        >>> from prismfl.federation.agreement import agree, init
        >>> from prismfl.federation.round import broadcast
        >>> from prismfl.settings.toml import settings_from
        >>> agreement = agree(settings_from({"data": {"clients": 2}, "generator": {"width": 2}}), channels=1)
        >>> kit = make_kit(agreement, FeatureMap(load_features("vgg"), agreement.matching, channels=1, size=16))
        >>> frame = broadcast(agreement, init(agreement))[1]
        >>> told, now = receive(agreement, kit, frame, agreement.place(0, 1), held=None)
        >>> told.rank, told.cohort, now.round
        (1, 2, 0)
    """
    told = message.open_broadcast(frame, place, agreement.layout.count, kind)
    held = agreement.first if held is None or len(held.q) != agreement.layout.count else held
    try:
        found = _follow(agreement, kit, told, held, place.round)
    except MessageError:
        found = None
    return told, found if found is not None and found.digest == told.digest else None


def _follow(
    agreement: Agreement, kit: ClientKit, told: message.Broadcast, held: KnownTheta, round_index: int
) -> KnownTheta | None:
    if told.snapshot is not None:
        return KnownTheta(told.snapshot, round_index)
    if told.first is None or not told.first <= held.round <= round_index:
        return None
    return kit.follow(agreement, held, told.steps[held.round - told.first :])


# ------------------------------------------------------------------------- steps 2 and 3: search, send


@dataclass(frozen=True)
class Answer:
    """What a client's part of a round comes to.

    Attributes:
        frame: its reply.
        memory: Adam's, for its next round; None where the settings say that each search begins anew.
        held: θ_t, for its next round.
    """

    frame: bytes
    memory: Memory | None
    held: KnownTheta | None


def client_update(
    agreement: Agreement,
    kit: ClientKit,
    frame: bytes,
    round_index: int,
    client: int,
    target: Target,
    memory: Memory | None = None,
    held: KnownTheta | None = None,
) -> "Answer":
    """Steps 2 and 3: search from the broadcast θ_t, draw the mask, code and frame it.

    In a one-shot run the frame asks for moments instead, and these are the answer.  `round.server_update` has an
    example of a whole round.

    Args:
        agreement: of the run.
        kit: what the client computes with.
        frame: the broadcast, as it came.
        round_index: t.
        client: its number.
        target: moments of its images.
        memory: Adam's, of the client's last round.
        held: θ of the client's last round; without it, it knows θ_0 alone.

    Returns:
        The reply, which asks for a snapshot where the broadcast leads nowhere, and what the client keeps.

    Raises:
        MessageError: when the broadcast is not the expected one.
        ClientError: when the search diverges.
    """
    place, settings = agreement.place(round_index, client), agreement.settings
    if settings.federation.mode == "one-shot":
        message.open_request(frame, place)
        return Answer(seal_target(agreement, place, target), None, None)
    told, now = receive(agreement, kit, frame, place, held)
    if now is None:
        return Answer(message.seal_lost(place), memory, held)
    found = searched(agreement, kit, place, now.q, target, memory)
    sealed = seal_found(agreement, place, told, now.q, found.q, _weight(settings, target), found.loss)
    return Answer(sealed, found.memory, now)


def searched(
    agreement: Agreement,
    kit: ClientKit,
    place: message.Place,
    q: NDArray[np.uint16],
    target: Target,
    memory: Memory | None,
) -> SearchResult:
    """Step 2 of a client that knows θ_t = q / 65536, with draws where the kit computes.

    Args:
        agreement: of the run.
        kit: what the client computes with.
        place: round and client.
        q: θ_t · 65536, uint16 `[N]`.
        target: moments of its images.
        memory: Adam's, of the client's last round.

    Raises:
        ClientError: when the search diverges.
    """
    settings = agreement.settings
    stream = Stream(settings.seed, Purpose.SEARCH, place.round, place.client)
    plan, search = plan_of(settings, compiled=kit.compiled), kit.search or local_search
    draws = Tape(stream, kit.weights.device, common=plan.common)
    rate = rate_at(settings, place.round)
    found = search(agreement.layout, kit.weights, kit.features, q, target, plan, rate, draws, memory)
    if not found.finite:
        raise ClientError(
            f"client {place.client}'s search diverged (loss {found.loss})",
            "finite numbers",
            "lower search.learning_rate",
        )
    return found


def seal_found(
    agreement: Agreement,
    place: message.Place,
    told: message.Broadcast,
    q: NDArray[np.uint16],
    mine: NDArray[np.uint16],
    weight: int = 1,
    loss: float = 0.0,
) -> bytes:
    """Step 3: the frame of a client that moved from θ_t to θ_k.

    It holds the client's part of its mask M = [u < θ_k], and its changes of the α layers (PRISM-α), rounded
    without bias.

    Args:
        agreement: of the run.
        place: round and client.
        told: the broadcast that was answered.
        q: θ_t · 65536, uint16 `[N]`.
        mine: θ_k · 65536, uint16 `[N]`.
        weight: of the client in the mean.
        loss: mean squared distance over the search's steps.
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
    """The frame of a one-shot run: the client's moments as they are, or with ε as they were released.

    Args:
        agreement: of the run.
        place: round and client.
        target: moments of the client's images.
    """
    return message.seal_moments(sealed_moments(target, _weight(agreement.settings, target)), place)


def sealed_moments(target: Target, weight: int = 0) -> message.Moments:
    """A target as it travels; weight: 0 for its number of images."""
    step, coded = encode_moments(target.moments, _MOMENT_STEPS)
    return message.Moments(weight or target.images, step, target.shares, coded)


def _weight(settings: Settings, target: Target) -> int:
    return target.images if settings.federation.client_weights == "size" else 1


# ------------------------------------------------------------------------------------ finished masks


def client_distances(
    agreement: Agreement, kit: ClientKit, frame: bytes, client: int, target: Target, held: KnownTheta | None = None
) -> bytes:
    """A client's part in the choice of the finished mask: squared distances from each candidate, framed.

    Args:
        agreement: of the run.
        kit: what the client computes with.
        frame: the request, as it came.
        client: its number.
        target: moments of its images, in which each label counts by its share.
        held: θ of the client's last round; without it, it knows θ_0 alone.

    Raises:
        ClientError: where the agreed choice of the finished mask asks no client.
        MessageError: when the request is not the expected one.
    """
    if (shipped := agreement.settings.federation.finished_mask) != "best":
        raise ClientError(
            f"a request for distances where federation.finished_mask is {shipped!r}",
            "none",
            "ask whoever runs the server",
        )
    place = agreement.place(agreement.settings.federation.rounds, client)
    _, now = receive(agreement, kit, frame, place, held, message.Kind.CANDIDATES)
    if now is None:
        return message.seal_lost(place)
    found = candidate_distances(agreement, kit, now.q, target)
    return message.seal_distances(found, _weight(agreement.settings, target), place)


def candidate_distances(
    agreement: Agreement, kit: ClientKit, q: NDArray[np.uint16], target: Target
) -> NDArray[np.float64]:
    """Squared distance of each candidate mask's moments from a target, label by label.

    Of labels c with shares s_c, means f_c of fakes and t_c of images it is Σ s_c ‖f_c - t_c‖²: the mean over clients is
    then that of their images together, but for a constant.  By squares of shares, as in ‖Σ s_c (f_c - t_c)‖² of their
    blocks, a label of few clients would count for more than one of many.  What labels share is left out.

    Args:
        agreement: of the run.
        kit: what images are made and matched with.
        q: final θ · 65536, uint16 `[N]`.
        target: what they are to be near.

    Returns:
        float64 `[candidates]`.
    """
    rows, device = (len(target.shares), -1), kit.weights.device
    held = torch.from_numpy(np.flatnonzero(target.shares)).to(device)
    shares = torch.from_numpy(target.shares).to(device)[held]
    own = slice(kit.features.dimension - (kit.features.shared if agreement.layout.classes else 0))
    means = torch.from_numpy(target.moments).to(device).view(rows)[held, own] / shares[:, None]
    fakes = (fake.double().view(rows)[held, own] for fake in kit.candidate_moments(agreement, q))
    return np.array([float(shares @ (fake - means).square().sum(1)) for fake in fakes])
