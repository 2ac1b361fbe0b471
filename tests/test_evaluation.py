"""Figures of a finished model against a data set."""

import functools
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import prismfl
from prismfl import evaluation
from prismfl.data.datasets import load_dataset
from prismfl.errors import DataError, ModelFileError, PrismError, SettingError
from prismfl.evaluation import evaluate_model
from prismfl.metrics.frechet import fid, fid_embedded
from prismfl.metrics.readability import Classifier, readability
from prismfl.modelfile import load_model, save_model
from prismfl.nets import overlap
from prismfl.sampling import labels_like


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    return prismfl.train(tiny(), out=tmp_path_factory.mktemp("evaluation") / "run").folder.model


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(evaluation, "Classifier", functools.partial(Classifier, steps=2))
    monkeypatch.setattr(evaluation, "READABILITY_SAMPLES", 30)


def tree(root, channels, classes, count=20, size=16):
    rng = np.random.default_rng(1)
    for name in classes:
        (root / name).mkdir(parents=True)
        for index in range(count):
            image = rng.integers(0, 256, (size, size, 3) if channels == 3 else (size, size), np.uint8)
            Image.fromarray(image).save(root / name / f"{index}.png")
    return str(root)


def test_figures_are_those_of_their_makers(model):
    found = evaluate_model(model, samples=40, seed=3)
    test = load_dataset("digits", None, 16, "test")
    images = prismfl.load(model).sample(40, seed=3, labels=labels_like(test.labels, 40))
    assert found["fid_embedded"] == pytest.approx(fid_embedded(test.images, images), rel=1e-6)
    assert found["samples"] == 40 and found["ledger"] == []
    assert {"readable", "least_class", "confidence", "test_accuracy", "test_readable"} <= set(found)
    assert sum(found["class_shares"]) == pytest.approx(1)


def test_samples_are_judged_by_the_labels_they_were_made_for(model):
    train, test = (load_dataset("digits", None, 16, split) for split in ("train", "test"))
    turns = np.arange(30) % 10
    shown = prismfl.load(model).sample(30, seed=3, labels=turns)
    wanted = readability(Classifier(train, steps=2), shown, test, turns)
    found = evaluate_model(model, samples=40, seed=3)
    assert found["label_agreement"] == wanted.label_agreement
    assert found["class_shares"] == wanted.class_shares


def test_other_labels_than_the_models_are_no_judge_of_it(model, tmp_path):
    found = evaluate_model(model, "folder", tree(tmp_path / "two", 1, ["a", "b"]), samples=20)
    assert found["label_agreement"] is None and 0 <= found["readable"] <= 1


def test_the_seed_decides(model):
    one, again, other = (evaluate_model(model, samples=20, seed=seed) for seed in (1, 1, 2))
    assert one == again and one["fid_embedded"] != other["fid_embedded"]


def test_a_single_class_has_no_readability(model, tmp_path):
    found = evaluate_model(model, "folder", tree(tmp_path / "one", 1, ["a"]), samples=20)
    assert "readable" not in found and found["fid_embedded"] > 0


def test_images_of_other_channels_are_refused(model, tmp_path):
    with pytest.raises(DataError, match="images of 3 channels; expected 1"):
        evaluate_model(model, "folder", tree(tmp_path / "rgb", 3, ["a", "b"]), samples=20)


@pytest.mark.parametrize("samples", [1, 0, -5])
def test_fewer_than_two_samples_are_refused(model, samples):
    with pytest.raises(SettingError, match=f"samples {samples}; expected at least 2"):
        evaluate_model(model, samples=samples)


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"seed": -1}, SettingError),
        ({"dataset": "mnist"}, DataError),
        ({"dataset": "folder", "data_dir": "nowhere"}, DataError),
        ({"dataset": "imagenet", "data_dir": "nowhere"}, DataError),
    ],
)
def test_unusable_arguments_are_refused(model, arguments, kind):
    with pytest.raises(kind):
        evaluate_model(model, samples=4, **arguments)


@pytest.mark.parametrize("text", ["no = toml = at all", "[data]\nclients = 0\n", "colour = 1"])
def test_a_model_with_unusable_settings_is_refused(model, tmp_path, text):
    save_model(replace(load_model(model), settings=text), tmp_path / "m.safetensors")
    with pytest.raises(PrismError):
        evaluate_model(tmp_path / "m.safetensors", samples=4)


def test_a_model_with_unusable_settings_is_named_as_the_culprit(model, tmp_path):
    save_model(replace(load_model(model), settings="no = toml = at all"), tmp_path / "m.safetensors")
    with pytest.raises(ModelFileError, match=r"m\.safetensors"):
        evaluate_model(tmp_path / "m.safetensors", samples=4)


def test_a_model_of_a_callers_arrays_asks_what_to_be_judged_against(tiny, tmp_path):
    """Its settings name a data set that it never saw; judging against that would mislead."""
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 16, 16), np.uint8)
    path = prismfl.train(tiny(), images, out=tmp_path / "run").folder.model
    with pytest.raises(PrismError):
        evaluate_model(path, samples=4)
    assert evaluate_model(path, "digits", samples=4)["fid_embedded"] > 0


def test_a_model_is_judged_by_the_attribute_it_was_trained_on(tiny, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "img_align_celeba").mkdir()
    names = [f"{index:06}.png" for index in range(1, 31)]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (170, 165, 3), np.uint8)).save(tmp_path / "img_align_celeba" / name)
    (tmp_path / "list_eval_partition.txt").write_text("".join(f"{n} {2 * (i % 3 == 2)}\n" for i, n in enumerate(names)))
    marks = "".join(f"{n} -1 {(-1) ** i}\n" for i, n in enumerate(names))
    (tmp_path / "list_attr_celeba.txt").write_text(f"30\nMale Young\n{marks}")
    data = {"dataset": "celeba", "data_dir": str(tmp_path), "attribute": "Young", "partition": "attribute"}
    path = prismfl.train(tiny(data=data), out=tmp_path / "run").folder.model
    assert prismfl.load(path).model.labels == ("not_Young", "Young")
    found = evaluate_model(path, data_dir=str(tmp_path), samples=10)
    assert found["fid_embedded"] > 0 and "label_agreement" in found


# ----------------------------------------------------------------- Inception, classes, warnings


class Stub:
    """Stands for Inception-v3: mean and deviation of each image, and what it was asked."""

    sha256 = "ab"

    def to(self, _device):
        """Itself."""
        return self

    def features(self, images, _batch):
        """Two features an image."""
        return np.stack([images.mean((1, 2, 3)), images.std((1, 2, 3))], 1).astype(np.float32)


def test_fid_is_reported_where_its_network_is_given(model, monkeypatch, tmp_path):
    monkeypatch.setattr(evaluation, "load_inception", lambda _path: Stub())
    found = evaluate_model(model, samples=20, inception=tmp_path / "w.pth")
    test = load_dataset("digits", None, 16, "test")
    images = prismfl.load(model).sample(20, labels=labels_like(test.labels, 20))
    assert found["fid"] == pytest.approx(fid(test.images, images, Stub())) and found["inception_sha256"] == "ab"
    assert "fid" not in evaluate_model(model, samples=20)


def test_an_unusable_inception_is_refused_first(model, tmp_path):
    (tmp_path / "w.pth").write_bytes(b"no")
    with pytest.raises(ModelFileError, match=r"w\.pth"):
        evaluate_model(model, "folder", "nowhere", inception=tmp_path / "w.pth")


def test_a_device_that_does_not_work_is_refused(model):
    with pytest.raises(SettingError, match="nonsense"):
        evaluate_model(model, samples=4, device="nonsense")


def test_a_model_of_some_classes_is_judged_by_these(tiny, tmp_path):
    path = prismfl.train(tiny(data={"classes": "5-9"}), out=tmp_path / "run").folder.model
    found = evaluate_model(path, samples=20)
    assert len(found["class_shares"]) == 5 and found["label_agreement"] is not None
    test = load_dataset("digits", None, 16, "test")
    part = test.part(np.flatnonzero(test.labels >= 5))
    images = prismfl.load(path).sample(20, labels=labels_like(part.labels - 5, 20))
    assert found["fid_embedded"] == pytest.approx(fid_embedded(part.images, images), rel=1e-6)


def test_a_judge_that_saw_the_images_is_warned_of(model, monkeypatch):
    assert "warnings" not in evaluate_model(model, samples=20)
    monkeypatch.setitem(overlap.SPELLINGS, "digits", ("cifar10",))
    (note,) = evaluate_model(model, samples=20)["warnings"]
    assert "the judge was trained on CIFAR-10" in note and "fid_embedded flatters" in note
