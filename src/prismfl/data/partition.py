"""Spread a data set over clients: every image, or every person, goes to exactly one, and none is empty."""

import heapq

import numpy as np
from numpy.typing import NDArray

from prismfl.data.images import ImageSet, Labels
from prismfl.errors import DataError, SettingError
from prismfl.seeding.philox import Purpose, Stream
from prismfl.settings.schema import Data

Indices = NDArray[np.int64]


def partition(images: ImageSet, settings: Data, seed: int) -> list[Indices]:
    """Indices of each client's images, ascending: `clients` arrays int64 `[n_k]`.

    The split is public and comes from (seed, PARTITION).  Where persons are known, `iid` deals these.
    Raises SettingError when there are more clients or shards than images, more clients than persons, or
    fewer clients than labels where each holds one, DataError when `given` does not fit the data.
    """
    count, clients, (how, amount) = len(images), settings.clients, settings.dealt
    if clients > count:
        raise SettingError(f"data.clients = {clients}", f"1 … {count}, the images", "lower data.clients")
    stream = Stream(seed, Purpose.PARTITION)
    if how == "given":
        parts = _given(images, clients)
    elif how == "attribute":
        parts = _by_label(images.labels, clients, stream)
    elif how == "shards":
        parts = _shards(images.labels, clients, int(amount), stream)
    elif how == "dirichlet":
        parts = _filled(_dirichlet(images.labels, clients, amount, stream))
    elif images.people is not None:
        parts = _by_person(images.people, clients, stream)
    else:
        parts = np.array_split(stream.permutation(count), clients)
    return [np.sort(part) for part in parts]


def _given(images: ImageSet, clients: int) -> list[Indices]:
    if images.owners is None:
        raise DataError(
            "a data set that names no clients", "one top folder a client", "use dataset folder, or another partition"
        )
    named = int(images.owners.max()) + 1
    if named != clients:
        raise SettingError(f"data.clients = {clients}", f"{named}, the folders found", f"set data.clients to {named}")
    return [np.flatnonzero(images.owners == client) for client in range(clients)]


def _by_person(people: Labels, clients: int, stream: Stream) -> list[Indices]:
    """Persons in random order, each to the client with the fewest images so far.

    So no two clients are further apart than the largest number of images of one person.
    """
    counts = np.bincount(people)
    if clients > len(counts):
        raise SettingError(
            f"data.clients = {clients} with {len(counts)} persons", f"1 … {len(counts)}", "lower data.clients"
        )
    heap, owners = [(0, client) for client in range(clients)], np.empty(len(counts), np.int64)
    for person in stream.permutation(len(counts)).tolist():
        images, client = heap[0]
        owners[person] = client
        heapq.heapreplace(heap, (images + int(counts[person]), client))
    return [np.flatnonzero(owners[people] == client) for client in range(clients)]


def _shards(labels: Labels, clients: int, each: int, stream: Stream) -> list[Indices]:
    """Label-sorted shards, `each` of them a client (the paper's non-IID setting)."""
    if (shards := each * clients) > len(labels):
        got = f"data.partition = 'shards:{each}' with data.clients = {clients}"
        raise SettingError(got, f"{len(labels)} shards at most, the images", "lower one of the two")
    pieces = np.array_split(np.argsort(labels, kind="stable"), shards)
    dealt = stream.permutation(shards).reshape(clients, -1)
    return [np.concatenate([pieces[shard] for shard in hand]) for hand in dealt]


def _dirichlet(labels: Labels, clients: int, concentration: float, stream: Stream) -> list[Indices]:
    """Each class is divided by shares from a symmetric Dirichlet distribution over clients."""
    rng = np.random.Generator(np.random.PCG64(stream.words(4).tolist()))
    parts: list[list[Indices]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        edges = np.round(np.cumsum(_dirichlet_shares(rng, clients, concentration)) * len(members)).astype(int)
        for client, piece in enumerate(np.split(members, edges[:-1])):
            parts[client].append(piece)
    return [np.concatenate(pieces) for pieces in parts]


def _dirichlet_shares(rng: np.random.Generator, clients: int, concentration: float) -> NDArray[np.float64]:
    """One Dirichlet draw, in logarithms: small concentrations underflow every plain gamma draw.

    Gamma(a) equals Gamma(a + 1) times U^(1/a) in distribution (Marsaglia, Tsang 2000).
    """
    logs = np.log(rng.gamma(concentration + 1, size=clients)) + np.log(rng.random(clients)) / concentration
    shares = np.exp(logs - logs.max())
    return np.asarray(shares / shares.sum(), np.float64)


def _filled(parts: list[Indices]) -> list[Indices]:
    """Move one image from the largest part to each that has none."""
    parts = list(parts)
    heap = [(-len(part), client) for client, part in enumerate(parts) if len(part)]
    heapq.heapify(heap)
    for client in [client for client, part in enumerate(parts) if not len(part)]:
        donor = heap[0][1]
        parts[client], parts[donor] = parts[donor][-1:], parts[donor][:-1]
        heapq.heapreplace(heap, (-len(parts[donor]), donor))
    return parts


def _by_label(labels: Labels, clients: int, stream: Stream) -> list[Indices]:
    """Every client has images of one label: its label's images are dealt evenly among its clients."""
    kinds, counts = np.unique(labels, return_counts=True)
    if clients < len(kinds):
        raise SettingError(
            f"data.clients = {clients} with {len(kinds)} labels",
            f"at least {len(kinds)}, a client a label",
            "raise data.clients",
        )
    order = stream.permutation(len(labels))
    members = [order[labels[order] == kind] for kind in kinds]
    shares = _clients_of_labels(counts.tolist(), clients)
    return [part for rows, share in zip(members, shares, strict=True) for part in np.array_split(rows, share)]


def _clients_of_labels(counts: list[int], clients: int) -> list[int]:
    """How many clients each label gets: half of them each of two, else in proportion to its images.

    Clients go one by one to the label whose quotient weight / (clients + 1) is largest, so that
    every label has one and none has more clients than images.
    """
    weights = [1, 1] if len(counts) == 2 else counts
    shares = [1] * len(counts)
    heap = [(-weight / 2, -counts[label], label) for label, weight in enumerate(weights) if counts[label] > 1]
    heapq.heapify(heap)
    for _ in range(clients - len(counts)):
        label = heapq.heappop(heap)[2]
        shares[label] += 1
        if shares[label] < counts[label]:
            heapq.heappush(heap, (-weights[label] / (shares[label] + 1), -counts[label], label))
    return shares
