"""Pretraining: a tiny epoch learns, and its file says what it is."""

import hashlib
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from prismfl.data.datasets import ImageSet
from prismfl.errors import RunFolderError, SettingError
from prismfl.features.matched import overlaps
from prismfl.features.networks import load_features
from prismfl.features.pretrain import Recipe, augment, evaluate, pretrain


def silent(_line):
    """Says nothing."""


CLASSES = ("flat", "rows", "columns", "checks")
RECIPE = Recipe(epochs=2, batch=16, rate=0.1, seed=3)


def made_up(count, seed):
    """Four kinds of texture that no augmentation changes into another, in any colour: 32×32."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % 4
    step = np.arange(32) // 4 % 2
    kinds = np.stack([np.full((32, 32), 0.5), *np.broadcast_arrays(step[:, None], step[None, :])])
    kinds = np.concatenate([kinds, (step[:, None] ^ step[None, :])[None]])
    strength = rng.uniform(80, 160, (count, 3, 1, 1))
    images = kinds[labels][:, None] * strength + rng.uniform(0, 60, (count, 3, 1, 1)) + rng.normal(0, 8, (1, 1, 32, 32))
    return ImageSet(np.clip(images, 0, 255).astype(np.uint8), labels, CLASSES)


@pytest.fixture(scope="module")
def sets():
    torch.set_num_threads(1)
    return made_up(256, 0), made_up(80, 1)


@pytest.fixture(scope="module")
def trained(sets, tmp_path_factory):
    path = tmp_path_factory.mktemp("pretrain") / "net.safetensors"
    recipe, said = RECIPE, []
    accuracy = pretrain(*sets, recipe, "made-up textures", path, said.append)
    return recipe, path, accuracy, said


def test_a_tiny_run_learns_and_reports(trained):
    _, _, accuracy, said = trained
    assert accuracy > 0.6, "chance is 0.25"
    assert len(said) == 2 and "epoch 2/2" in said[1]


def test_the_file_loads_and_says_where_it_comes_from(trained, sets):
    recipe, path, accuracy, _ = trained
    loaded = load_features(path)
    about = loaded.about
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert evaluate(loaded.net, sets[1]) == accuracy == about["test_accuracy"]
    assert evaluate(loaded.net, sets[1], batch=7) == accuracy, "nothing depends on the batch"
    assert about["recipe"] == json.loads(json.dumps(asdict(recipe)))
    assert about["architecture"] == "vgg" and about["size"] == 32
    assert (about["trained_on"], about["images"], tuple(about["classes"])) == ("made-up textures", 256, CLASSES)
    assert about["images_sha256"] == hashlib.sha256(sets[0].images.tobytes()).hexdigest()


def test_embedded_features_have_variance_one(trained, sets):
    """`unit` is what makes pooled features of the public images vary by one, in the mean."""
    net = load_features(trained[1]).net
    with torch.no_grad():
        features = net.embed(torch.from_numpy(sets[0].images).float() / 127.5 - 1)
    assert net.unit > 0 and float(features.var(0).mean()) == pytest.approx(1, rel=0.02)


def test_the_same_seed_gives_the_same_bytes(sets, tmp_path):
    torch.manual_seed(99)
    few = ImageSet(sets[0].images[:32], sets[0].labels[:32], CLASSES)
    for name, seed in [("a", 3), ("b", 3), ("c", 4)]:
        torch.rand(5)
        pretrain(few, sets[1], Recipe(epochs=1, batch=16, seed=seed), "t", tmp_path / name, silent)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


def test_fewer_images_than_a_batch_are_one_step(sets, tmp_path):
    few = ImageSet(sets[0].images[:8], sets[0].labels[:8], CLASSES)
    accuracy = pretrain(few, few, Recipe(epochs=1, batch=128), "t", tmp_path / "a", silent)
    assert 0 <= accuracy <= 1


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"epochs": 0}, "epochs 0"),
        ({"epochs": -1}, "epochs ≥ 1"),
        ({"batch": 1}, "batch 1.*batch ≥ 2"),
        ({"rate": 0.0}, "rate"),
        ({"rate": -1.0}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"seed": 2**70}, "seed"),
        ({"seed": -1}, "seed"),
        ({"colour": 1.5}, "colour 1.5.*from 0 to 1"),
        ({"grey": -0.1}, "grey -0.1"),
        ({"grey": float("nan")}, "grey nan"),
    ],
)
def test_impossible_recipes_are_refused(values, says):
    with pytest.raises(SettingError, match=says):
        Recipe(**values)


def test_an_unwritable_file_is_refused_before_training(sets, tmp_path):
    (tmp_path / "file").write_text("")
    said = []
    with pytest.raises(RunFolderError, match="file/below"):
        pretrain(*sets, Recipe(epochs=1), "t", tmp_path / "file" / "below", said.append)
    assert not said, "no epoch was trained in vain"


# ---------------------------------------------------------------------------------- augmentation


@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_keeps_shape_and_range_and_follows_its_generator(channels):
    images = torch.randint(0, 256, (40, channels, 32, 32), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    before = images.clone()
    once, again, other = (augment(images, Recipe(), torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert once.shape == (40, 3, 32, 32) and once.dtype == torch.float32
    assert once.min() >= -1 and once.max() <= 1
    assert torch.equal(once, again) and not torch.equal(once, other)
    assert torch.equal(images, before)


def test_without_colour_only_place_and_side_change():
    """Crops of up to four pixels and flips: the middle of an image stays inside it."""
    image = torch.arange(32 * 32).reshape(1, 1, 32, 32) % 251
    found = augment(image.to(torch.uint8).expand(64, 3, 32, 32), Recipe(grey=0, colour=0), torch.Generator())
    pixels = ((found + 1) * 127.5).round().int()
    source = torch.nn.functional.pad(image.float(), (4,) * 4, mode="reflect")[0, 0].int()
    both = torch.stack([source, source.flip(1)])
    windows = {w.numpy().tobytes() for side in both for w in side.unfold(0, 32, 1).unfold(1, 32, 1).reshape(-1, 32, 32)}
    seen = {one[0].numpy().tobytes() for one in pixels}
    assert seen <= windows and len(seen) > 40
    assert torch.equal(pixels[:, 0], pixels[:, 1])


def test_all_grey_is_grey_and_none_is_coloured():
    images = torch.randint(0, 256, (30, 3, 32, 32), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    grey = augment(images, Recipe(grey=1.0), torch.Generator().manual_seed(0))
    coloured = augment(images, Recipe(grey=0.0), torch.Generator().manual_seed(0))
    assert torch.equal(grey[:, 0], grey[:, 1]) and torch.equal(grey[:, 1], grey[:, 2])
    assert ((coloured[:, 0] - coloured[:, 1]).abs().amax((1, 2)) > 0.1).all()


# ---------------------------------------------------------------------------------------- classes


def test_a_network_of_some_classes_says_which(sets, tmp_path):
    path = tmp_path / "net"
    pretrain(*sets, Recipe(epochs=1, batch=16), "CIFAR-10", path, silent, classes="rows,0")
    about = load_features(path).about
    assert about["classes"] == ["flat", "rows"] and about["all_classes"] == list(CLASSES) and about["images"] == 128
    assert about["trained_on"] == "CIFAR-10, 2 of its 4 classes: flat, rows"
    kept = sets[0].images[sets[0].labels < 2]
    assert about["images_sha256"] == hashlib.sha256(kept.tobytes()).hexdigest()
    assert overlaps(about, "cifar10") and overlaps(about, "cifar10", ["rows", "checks"])
    assert not overlaps(about, "cifar10", ["columns", "checks"]) and not overlaps(about, "mnist")


def test_classes_that_do_not_exist_are_refused(sets, tmp_path):
    with pytest.raises(SettingError, match="class '4'"):
        pretrain(*sets, Recipe(epochs=1), "t", tmp_path / "net", silent, classes="0-1,4")
    assert not (tmp_path / "net").exists()
