"""From settings to a simulation: loading, splitting, and refusals before any training."""

import math
import tomllib
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image

from prismfl.data import images
from prismfl.data.datasets import load_dataset
from prismfl.errors import DataError, ModelFileError, PrismError, SettingError
from prismfl.features import matched as matching
from prismfl.features import networks as features
from prismfl.privacy.release import entry_of, grid_of
from prismfl.run.prepare import prepare
from prismfl.settings.toml import settings_from, to_toml
from prismfl.sums.rules import usual


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(2)
    return rng.integers(0, 256, (40, 1, 16, 16), np.uint8), np.arange(40) % 4


def test_digits_are_dealt_whole(tiny):
    ready = prepare(tiny())
    train, test = (load_dataset("digits", None, 16, split) for split in ("train", "test"))
    dealt = np.concatenate([mine.images for mine in ready.clients])
    assert len(ready.clients) == 3 and len(dealt) == len(train)
    assert sorted(i.tobytes() for i in dealt) == sorted(i.tobytes() for i in train.images)
    known = {image.tobytes(): label for image, label in zip(train.images, train.labels, strict=True)}
    for mine in ready.clients:
        assert [known[image.tobytes()] for image in mine.images] == mine.labels.tolist()
    assert np.array_equal(ready.test.images, test.images)
    assert ready.agreement.layout.size == 16 and ready.agreement.layout.channels == 1
    assert len(ready.kit.weights) == ready.agreement.layout.count


def test_another_size_is_taken_where_it_is_set(tiny):
    ready = prepare(tiny(generator={"size": 32}))
    assert {mine.images.shape[1:] for mine in ready.clients} == {(1, 32, 32)}
    assert ready.test.images.shape[1:] == (1, 32, 32)


def test_of_a_callers_arrays_every_tenth_is_for_testing(tiny, arrays):
    images, labels = arrays
    ready = prepare(tiny(), images, labels)
    assert np.array_equal(ready.test.images, images[9::10]) and ready.test.labels.tolist() == labels[9::10].tolist()
    held = {i.tobytes() for i in ready.test.images}
    dealt = {i.tobytes() for mine in ready.clients for i in mine.images}
    assert not held & dealt and len(held | dealt) == 40


def test_labels_are_only_needed_where_a_split_asks(tiny, arrays):
    assert sum(map(len, prepare(tiny(), arrays[0]).clients)) == 36
    shards = prepare(tiny(data={"clients": 4, "partition": "shards:1"}), *arrays)
    train_labels = np.delete(arrays[1], np.s_[9::10])
    by_image = {
        image.tobytes(): label for image, label in zip(np.delete(arrays[0], np.s_[9::10], 0), train_labels, strict=True)
    }
    assert [len({by_image[i.tobytes()] for i in mine.images}) for mine in shards.clients].count(1) >= 2


def test_the_classes_of_the_data_are_the_generators_labels(tiny, arrays):
    assert prepare(tiny()).agreement.labels == tuple("0123456789")
    named = prepare(tiny(), arrays[0], np.array([3, 40])[arrays[1] % 2]).agreement
    assert named.labels == ("3", "40") and named.layout.classes == 2


@pytest.mark.parametrize("case", ["no labels", "one label", "by wish"])
def test_a_generator_without_labels_takes_none(tiny, arrays, case):
    labels = {"no labels": None, "one label": np.full(40, 6), "by wish": arrays[1]}[case]
    found = prepare(tiny(generator={"conditional": case != "by wish"}), arrays[0], labels).agreement
    assert found.labels == () and found.layout.classes == 0


def test_tensors_are_taken_as_the_arrays_that_they_are(tiny, arrays):
    tensors = [torch.from_numpy(one) for one in arrays]
    one, two = prepare(tiny(), *arrays), prepare(tiny(), *tensors)
    assert one.agreement.run == two.agreement.run
    assert all(np.array_equal(a.images, b.images) for a, b in zip(one.clients, two.clients, strict=True))


def test_colour_arrays_make_a_coloured_generator(tiny, arrays):
    ready = prepare(tiny(), arrays[0].repeat(3, 1))
    assert ready.agreement.layout.channels == 3 and ready.clients[0].images.shape[1] == 3


def test_the_matched_network_follows_the_colour_of_the_images_and_is_written_down(tiny, arrays):
    grey, labels = arrays
    found = [prepare(tiny(), images, labels).agreement for images in (grey, grey.repeat(3, 1))]
    assert [one.settings.features.features for one in found] == ["vgg", "efficientnet-lite0"]
    assert [len(one.network) for one in found] == [64, 64]
    assert found[1].matching.scale == 4 and found[1].matching.shift == 2


def test_clients_as_given_keep_every_image(tiny, tmp_path):
    rng = np.random.default_rng(0)
    for client, count in (("a", 5), ("b", 9)):
        (tmp_path / client).mkdir()
        for index in range(count):
            Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).save(tmp_path / client / f"{index}.png")
    data = {"dataset": "folder", "data_dir": str(tmp_path), "partition": "given", "clients": 2}
    ready = prepare(tiny(data=data))
    assert [len(mine) for mine in ready.clients] == [5, 9] and ready.test is None
    with pytest.raises(SettingError, match="2, the folders found"):
        prepare(tiny(data=data | {"clients": 3}))


GOOD = np.zeros((20, 1, 16, 16), np.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        (GOOD.astype(np.float32), None, r"images float32 \[20, 1, 16, 16\]; expected uint8.*images \* 255"),
        (torch.zeros(20, 3, 8, 8, dtype=torch.bfloat16), None, "a tensor that is no array"),
        (torch.zeros(20, 3, 8, 8), None, r"images float32 .*images \* 255"),
        (GOOD[:, 0], None, r"\[20, 16, 16\].*images\[:, None\]"),
        (GOOD.transpose(0, 2, 3, 1), None, r"\[20, 16, 16, 1\].*transpose\(0, 3, 1, 2\)"),
        (GOOD.repeat(2, 1), None, r"\[20, 2, 16, 16\]"),
        (GOOD[:9], None, "N ≥ 10"),
        (GOOD[:0], None, "N ≥ 10"),
        (GOOD[:, :, :0], None, r"\[20, 1, 0, 16\]"),
        (GOOD, np.zeros(19, np.int64), r"labels int64 \[19\]; expected integers ≥ 0 \[20\]"),
        (GOOD, np.zeros((20, 1), np.int64), r"\[20, 1\]"),
        (GOOD, np.zeros(20), "labels float64"),
        (GOOD, np.full(20, -1), "integers ≥ 0"),
        (GOOD, np.array(["a"] * 20), r"labels <U1 \[20\]"),
    ],
)
def test_bad_arrays_are_refused(tiny, images, labels, says):
    with pytest.raises(DataError, match=says):
        prepare(tiny(), images, labels)


def test_a_list_is_refused_as_no_array(tiny):
    with pytest.raises(DataError, match="images"):
        prepare(tiny(), GOOD.tolist())


def test_labels_without_images_are_refused(tiny):
    with pytest.raises(DataError, match="labels"):
        prepare(tiny(), None, np.zeros(5, np.int64))


def test_arrays_that_are_not_square_are_cropped_or_what_is_asked(tiny):
    oblong = np.zeros((20, 1, 16, 48), np.uint8)
    oblong[..., 16:32] = 255
    crop, pad = (prepare(tiny(data={"fit": fit}), oblong) for fit in ("crop", "pad"))
    assert crop.described.reading.oblong == 20
    assert (crop.clients[0].images == 255).all() and crop.described.line().endswith("centre-cropped, 2 held back")
    assert pad.clients[0].images.mean() < 40 and "48×16 → 16 px, padded to squares" in pad.described.line()


def test_test_images_of_classes_that_training_lacks_are_left_out_and_counted(tiny, tmp_path):
    for name, count in (("train/a", 9), ("train/b", 3), ("test/b", 4), ("test/c", 2)):
        (tmp_path / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(np.full((16, 16, 3), index, np.uint8)).save(tmp_path / name / f"{index}.png")
    ready = prepare(tiny(data={"dataset": "folder", "data_dir": str(tmp_path)}, running={"distance_samples": 9}))
    assert ready.agreement.labels == ("a", "b") and ready.test.labels.tolist() == [1] * 4
    assert ready.described.line().startswith("18 images, 2 classes (a 9, b 7), grey, 16 px, 4 held back, 2 of classes")


def test_held_back_images_have_the_channels_of_those_trained_on(tiny, tmp_path):
    for index in range(20):
        colour = (1, 2, 3) if index % 10 == 9 else (9, 9, 9)
        Image.new("RGB", (16, 16), colour).save(tmp_path / f"{index:02}.png")
    ready = prepare(tiny(data={"dataset": "folder", "data_dir": str(tmp_path)}))
    assert ready.clients[0].images.shape[1] == ready.test.images.shape[1] == 1


def test_more_labels_than_a_generator_takes_are_refused(tiny):
    with pytest.raises(SettingError, match="1001 labels; expected at most 1000"):
        prepare(tiny(), np.zeros((2002, 1, 16, 16), np.uint8), np.arange(2002) % 1001)


@pytest.mark.parametrize("device", ["nonsense", "", "cuda:99", "hpu", "meta"])
def test_devices_that_do_not_work_here_are_refused(tiny, device):
    with pytest.raises(SettingError, match=r"running\.device"):
        prepare(tiny(running={"device": device}))


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"data": {"clients": 1439}}, SettingError, r"data\.clients = 1439; expected 1 … 1438"),
        ({"features": {"features": "nowhere.safetensors"}}, ModelFileError, r"nowhere\.safetensors"),
        ({"data": {"dataset": "mnist"}}, DataError, "--data-dir"),
        ({"data": {"dataset": "folder", "data_dir": "nowhere"}}, DataError, "nowhere does not exist"),
        ({"data": {"partition": "given"}}, DataError, "names no clients"),
    ],
)
def test_what_cannot_work_is_refused_before_training(tiny, changes, kind, says):
    with pytest.raises(kind, match=says):
        prepare(tiny(**changes))


def test_a_distance_that_cannot_be_measured_is_refused_before_training(tiny, arrays):
    """Two images of each kind are needed: better said now than after the last round."""
    with pytest.raises(PrismError, match="distance_samples"):
        prepare(tiny(running={"distance_samples": 1}))
    ready = prepare(tiny(running={"distance_samples": 50}), arrays[0][:12])
    assert ready.test is None and "too few images are held back (1) to measure a distance" in ready.warnings[0]


def without_clients(tiny, **data):
    """Tiny settings whose data are these alone."""
    settings = tiny()
    return settings_from({**{k: v for k, v in asdict(settings).items() if k != "data"}, "data": data})


def test_clients_by_pattern_are_counted(tiny, tmp_path, write_sites):
    write_sites(tmp_path / "sites", {"north": 5, "south": 9, "west": 2, "zero": 4})
    ready = prepare(without_clients(tiny, data_dir=str(tmp_path / "sites" / "*")))
    assert [len(part) for part in ready.clients] == [5, 9, 2, 4] and ready.test is None
    assert ready.agreement.settings.data.clients == 4 and ready.agreement.labels == ("a", "b")
    one = prepare(without_clients(tiny, data_dir=str(tmp_path / "sites" / "*"), clients=4))
    two = prepare(
        without_clients(tiny, dataset="folder", data_dir=str(tmp_path / "sites"), partition="given", clients=4)
    )
    assert one.agreement.run == ready.agreement.run == two.agreement.run, "paths are not part of a run's name"


def test_another_number_of_clients_than_a_pattern_finds_is_refused(tiny, tmp_path, write_sites):
    write_sites(tmp_path / "sites", {"north": 5, "south": 9})
    with pytest.raises(SettingError, match=r"data\.clients = 3; expected 2, the folders found"):
        prepare(without_clients(tiny, data_dir=str(tmp_path / "sites" / "*"), clients=3))
    with pytest.raises(DataError, match=r"no folder or zip matches 'nowhere/\*'"):
        prepare(without_clients(tiny, data_dir="nowhere/*"))
    settings = without_clients(tiny, data_dir=str(tmp_path / "sites" / "*"))
    with pytest.raises(SettingError, match=r"federation\.cohort = 3; expected 0 … 2"):
        prepare(replace(settings, federation=replace(settings.federation, cohort=3)))


def test_clients_have_one_label_each_by_attribute(tiny):
    ready = prepare(tiny(data={"partition": "attribute", "clients": 20}))
    kinds = [set(part.labels.tolist()) for part in ready.clients]
    assert all(len(kind) == 1 for kind in kinds) and set.union(*kinds) == set(range(10))


def test_images_in_a_file_are_dealt_like_images_in_memory(tiny, monkeypatch, tmp_path):
    small = prepare(tiny())
    monkeypatch.setattr(images, "LARGE", 20_000)
    large = prepare(tiny(running={"cache_dir": str(tmp_path)}))
    for one, two in zip(small.clients, large.clients, strict=True):
        assert np.array_equal(one.images, two.images) and np.array_equal(one.labels, two.labels)
    assert all(isinstance(part.images, np.memmap) for part in large.clients)
    assert not isinstance(small.clients[0].images, np.memmap)
    given = np.random.default_rng(0).integers(0, 256, (100, 1, 20, 20), np.uint8)
    small, large = prepare(tiny(), given[:60]), prepare(tiny(running={"cache_dir": str(tmp_path)}), given)
    assert all(isinstance(part.images, np.memmap) for part in large.clients)
    assert not isinstance(small.clients[0].images, np.memmap)


# --------------------------------------------------------------------------- networks and classes


def test_the_agreement_names_the_network_by_its_bytes(tiny, tmp_path):
    """A copy of the network elsewhere makes the same agreement; another network makes another."""
    raw = features._file_bytes("vgg")
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(raw)
    one, two = (prepare(tiny(features={"features": str(tmp_path / name)})).agreement for name in ("one", "two"))
    assert one.run == two.run and str(tmp_path) not in to_toml(one.settings.public())
    embedded, random = (prepare(tiny(features={"features": name})).agreement for name in ("vgg", "random"))
    assert one.network == embedded.network
    assert len({one.run, embedded.run, random.run}) == 3
    recorded = settings_from(tomllib.loads(to_toml(random.settings.public())))
    assert prepare(recorded).agreement.run == random.run


def test_classes_are_kept_for_training_and_testing(tiny):
    ready, whole = prepare(tiny(data={"classes": "5-9"})), load_dataset("digits", None, 16, "train")
    assert ready.agreement.labels == tuple("56789")
    dealt = {image.tobytes() for mine in ready.clients for image in mine.images}
    assert dealt == {image.tobytes() for image in whole.images[whole.labels >= 5]}
    test = load_dataset("digits", None, 16, "test")
    np.testing.assert_array_equal(ready.test.images, test.images[test.labels >= 5])
    np.testing.assert_array_equal(ready.test.labels, test.labels[test.labels >= 5] - 5)
    assert ready.agreement.run != prepare(tiny(data={"classes": "4-9"})).agreement.run


def test_classes_that_no_held_back_image_has_are_trained_on_all_the_same(tiny, tmp_path):
    for split, name in (("train", "cat"), ("train", "dog"), ("test", "cat")):
        path = tmp_path / split / name
        path.mkdir(parents=True)
        for index in range(6):
            Image.fromarray(np.full((16, 16), 40 * index, np.uint8)).save(path / f"{index}.png")
    data = {"dataset": "folder", "data_dir": str(tmp_path), "classes": "dog", "clients": 2, "partition": "iid"}
    ready = prepare(tiny(data=data))
    assert ready.test is None and sum(len(mine.images) for mine in ready.clients) == 6


def test_classes_of_a_callers_arrays_go_by_their_labels(tiny, arrays):
    ready = prepare(tiny(data={"classes": "3,1"}), *arrays)
    assert ready.agreement.labels == ("1", "3")
    with pytest.raises(SettingError, match="class '4'"):
        prepare(tiny(data={"classes": "4"}), *arrays)


def test_networks_that_saw_the_private_images_are_warned_of(tiny, monkeypatch):
    assert prepare(tiny()).warnings == ()
    monkeypatch.setitem(matching.SPELLINGS, "digits", ("cifar10",))  # as if the digits were CIFAR-10
    (matched,) = prepare(tiny()).warnings
    assert "the matched network vgg was trained on CIFAR-10" in matched
    assert prepare(tiny(features={"features": "random"})).warnings == ()


def test_noise_that_drowns_images_is_warned_of_before_anything_is_released(tiny):
    """As the release then does: its σ, in the distance's weights, over the square root of the clients."""
    private = {"epsilon": 9.8, "delta": 1e-5, "noise": "fast"}
    ready = prepare(tiny(privacy=private))
    grid = grid_of(ready.kit.features, len(ready.agreement.labels))
    asked = ready.agreement.settings.privacy
    entries = [entry_of(ready.kit.features, grid.classes, asked, len(one)) for one in ready.clients]
    expected = math.sqrt(sum(entry.sigma**2 for entry in entries) * grid.noise) / len(entries)
    assert ready.noise == pytest.approx(expected, rel=1e-3)
    less = prepare(tiny(privacy={"epsilon": 9.8, "delta": 1e-5}, federation={"secure_sum": True}))
    assert less.noise == pytest.approx(ready.noise / math.sqrt(3 - usual(3)[0] - usual(3)[1]), rel=0.01)
    loud = prepare(tiny(privacy=private | {"epsilon": 0.05}))
    assert any("times an image's features" in line for line in loud.warnings) and not ready.warnings
    assert prepare(tiny()).noise == 0
