"""Partitions: every image goes to exactly one client, none is empty, and the seed decides."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from prismfl.data.datasets import ImageSet
from prismfl.data.partition import _filled, partition
from prismfl.errors import DataError, SettingError
from prismfl.settings.schema import Data


def image_set(labels, owners=None):
    labels = np.asarray(labels, np.int64)
    classes = tuple(str(c) for c in range(int(labels.max(initial=0)) + 1))
    owners = None if owners is None else np.asarray(owners, np.int64)
    return ImageSet(np.zeros((len(labels), 1, 2, 2), np.uint8), labels, classes, owners)


@st.composite
def cases(draw):
    """Labels with gaps, few clients or as many as there are images, any way to split."""
    labels = draw(st.lists(st.sampled_from([0, 1, 2, 5, 9]), min_size=1, max_size=80))
    how = draw(st.sampled_from(["iid", "shards", "dirichlet", "given", "attribute"]))
    clients = draw(st.integers(len(set(labels)) if how == "attribute" else 1, len(labels)))
    owners = None
    if how == "given":
        spare = draw(st.lists(st.integers(0, clients - 1), min_size=len(labels), max_size=len(labels)))
        owners = draw(st.permutations([*range(clients), *spare[clients:]]))
    each = draw(st.integers(1, len(labels) // clients))
    alpha = draw(st.sampled_from([0.005, 0.1, 1.0, 100.0]))
    followed = {"shards": f":{each}", "dirichlet": f":{alpha}"}.get(how, "")
    return image_set(labels, owners), Data(clients=clients, partition=how + followed)


@given(cases(), st.integers(0, 2**64 - 1))
def test_every_image_has_one_owner_and_no_client_is_empty(case, seed):
    images, settings = case
    parts = partition(images, settings, seed)
    assert len(parts) == settings.clients
    assert all(len(part) and part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(images)))
    again = partition(images, settings, seed)
    assert all(np.array_equal(one, two) for one, two in zip(parts, again, strict=True))


@given(cases())
def test_given_owners_are_kept(case):
    images, settings = case
    if images.owners is not None:
        for client, part in enumerate(partition(images, settings, 0)):
            assert (images.owners[part] == client).all()


@pytest.mark.parametrize("how", ["iid", "shards:1", "dirichlet:0.3", "attribute"])
def test_another_seed_splits_otherwise(how):
    images, settings = image_set(np.arange(200) % 10), Data(clients=20, partition=how)
    splits = {b"|".join(part.tobytes() for part in partition(images, settings, seed)) for seed in range(5)}
    assert len(splits) == 5


@given(st.integers(1, 60), st.integers(0, 99))
def test_iid_parts_differ_by_one_image_at_most(clients, seed):
    sizes = [len(part) for part in partition(image_set(np.zeros(60)), Data(clients=clients, partition="iid"), seed)]
    assert max(sizes) - min(sizes) <= 1


def test_iid_mixes_labels():
    labels = np.repeat(np.arange(10), 100)
    for part in partition(image_set(labels), Data(clients=5, partition="iid"), 3):
        assert np.bincount(labels[part], minlength=10).min() >= 5


def test_shards_give_few_labels_a_client():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 40))
    parts = partition(image_set(labels), Data(clients=10, partition="shards:2"), 7)
    assert {len(part) for part in parts} == {40}
    assert all(len(set(labels[part])) <= 2 for part in parts), "shards of 20 divide classes of 40"
    assert set(labels[np.concatenate(parts)]) == set(range(10))


def test_one_shard_a_client_is_one_run_of_labels():
    labels = np.repeat(np.arange(4), 25)
    parts = partition(image_set(labels), Data(clients=4, partition="shards:1"), 1)
    assert sorted(set(labels[part]).pop() for part in parts) == [0, 1, 2, 3]
    assert all(len(set(labels[part])) == 1 for part in parts)


def largest_shares(concentration, seeds=8):
    """Mean over classes and seeds of the largest share that one client has of a class."""
    labels, found = np.repeat(np.arange(5), 400), []
    for seed in range(seeds):
        parts = partition(image_set(labels), Data(clients=8, partition=f"dirichlet:{concentration}"), seed)
        counts = np.stack([np.bincount(labels[part], minlength=5) for part in parts])
        found.append(counts.max(0) / counts.sum(0))
    return float(np.mean(found))


def test_concentration_runs_from_one_owner_to_even_shares():
    shares = [largest_shares(c) for c in (0.005, 0.3, 5.0, 1e4)]
    assert shares[0] > 0.95, "a class nearly always has one owner"
    assert shares[3] < 1 / 8 * 1.1, "every client has its eighth"
    assert shares == sorted(shares, reverse=True)


def test_dirichlet_shares_have_the_right_spread():
    """The variance of a symmetric Dirichlet share is (K - 1) / (K² (K c + 1))."""
    clients, concentration, count = 4, 0.5, 20_000
    labels = np.repeat(np.arange(300), 2000 // 10)
    parts = partition(image_set(labels), Data(clients=clients, partition=f"dirichlet:{concentration}"), seed=5)
    shares = np.stack([np.bincount(labels[part], minlength=300) for part in parts]) / 200
    want = (clients - 1) / (clients**2 * (clients * concentration + 1))
    assert count and shares.var() == pytest.approx(want, rel=0.12)


def test_more_clients_or_shards_than_images_are_refused():
    images = image_set([0, 1, 2])
    with pytest.raises(SettingError, match=r"data\.clients = 4; expected 1 … 3"):
        partition(images, Data(clients=4, partition="iid"), 0)
    with pytest.raises(SettingError, match=r"'shards:3' with data\.clients = 2; expected 3 shards at most"):
        partition(images, Data(clients=2, partition="shards:3"), 0)


def test_given_needs_the_right_number_of_named_clients():
    with pytest.raises(SettingError, match=r"data\.clients = 3; expected 2, the folders found"):
        partition(image_set([0, 1, 2], owners=[0, 1, 1]), Data(clients=3, partition="given"), 0)
    with pytest.raises(SettingError, match=r"data\.clients = 1; expected 2"):
        partition(image_set([0, 1, 2], owners=[0, 1, 1]), Data(clients=1, partition="given"), 0)
    with pytest.raises(DataError, match="names no clients"):
        partition(image_set([0, 1, 2]), Data(clients=2, partition="given"), 0)


def by_label(labels, clients, seed=0):
    """Each client's single label, and its number of images."""
    labels = np.asarray(labels)
    parts = partition(image_set(labels), Data(clients=clients, partition="attribute"), seed)
    assert all(len(set(labels[part])) == 1 for part in parts)
    return [(int(labels[part[0]]), len(part)) for part in parts]


@pytest.mark.parametrize("ones", [50, 30, 90])
@pytest.mark.parametrize("clients", [2, 10, 11])
def test_half_of_the_clients_have_the_attribute(ones, clients):
    labels = np.random.default_rng(2).permutation(np.repeat([0, 1], [100 - ones, ones]))
    found = by_label(labels, clients)
    shares = [sum(label == kind for label, _ in found) for kind in (0, 1)]
    assert abs(shares[0] - shares[1]) <= clients % 2
    if clients % 2 and ones != 50:
        assert np.argmax(shares) == (ones > 50), "the odd one has of what there is more"
    for kind in (0, 1):
        sizes = [size for label, size in found if label == kind]
        assert max(sizes) - min(sizes) <= 1, "IID within"


def test_within_a_label_images_are_mixed():
    """Not the first images to the first client: order in a file is often order in time."""
    labels = np.repeat([0, 1], 200)
    first = partition(image_set(labels), Data(clients=4, partition="attribute"), 0)[0]
    assert 60 < first.mean() < 140


def test_clients_of_many_labels_are_in_proportion():
    found = by_label(np.repeat([0, 1, 2, 7], [400, 300, 200, 100]), 20)
    assert [sum(label == kind for label, _ in found) for kind in (0, 1, 2, 7)] == [8, 6, 4, 2]


def test_a_rare_label_has_a_client_and_none_is_empty():
    assert by_label(np.repeat([0, 1, 2], [997, 2, 1]), 5).count((2, 1)) == 1
    assert sorted(by_label([0, 1, 1, 1, 1], 5)) == [(0, 1), (1, 1), (1, 1), (1, 1), (1, 1)]


def test_one_label_is_iid():
    assert by_label(np.zeros(40, int), 4) == [(0, 10)] * 4


def test_fewer_clients_than_labels_are_refused():
    with pytest.raises(SettingError, match=r"data\.clients = 3 with 10 labels; expected at least 10"):
        by_label(np.arange(30) % 10, 3)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_empty_parts_are_filled_from_the_largest_one_at_a_time(sizes):
    """As the rule says it, searched through anew for each image that is missing."""
    assume(sum(sizes) >= len(sizes))
    parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    wanted = list(parts)
    for client in range(len(parts)):
        if not len(wanted[client]):
            donor = max(range(len(wanted)), key=lambda other: len(wanted[other]))
            wanted[client], wanted[donor] = wanted[donor][-1:], wanted[donor][:-1]
    found = _filled(parts)
    assert [part.tolist() for part in found] == [part.tolist() for part in wanted]
