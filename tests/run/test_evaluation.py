"""Figures of a finished model against a data set."""

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import prismfl
from prismfl.data.datasets import load_dataset
from prismfl.errors import DataError, ModelFileError, PrismError, SettingError
from prismfl.generator.modelfile import load_model, save_model
from prismfl.generator.sampling import labels_like
from prismfl.metrics.distances import JUDGE_FEATURES, balls, compare, frechet, judge_features, kernel_distance
from prismfl.metrics.intervals import t_interval
from prismfl.metrics.readability import Classifier, inception_score, readability, record, steps_of
from prismfl.metrics.synthetic import worth
from prismfl.metrics.text import of_real
from prismfl.metrics.tone import tone
from prismfl.run import evaluate as evaluation
from prismfl.run.evaluate import METRICS, as_text, evaluate_model, over_seeds, save_evaluation
from prismfl.settings.schema import Features, Settings


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    return prismfl.train(tiny(), out=tmp_path_factory.mktemp("evaluation") / "run").folder.model


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(evaluation, "Classifier", functools.partial(Classifier, steps=2))


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
    assert found["samples"] == 40 and found["ledger"] == []
    real, fake = judge_features(test.images), judge_features(images)
    assert found["fid_judge"] == pytest.approx(frechet(real, fake), rel=1e-6)
    kid = kernel_distance(real, fake)
    assert (found["kid_judge"], found["kid_judge_over_subsets"]) == (kid.mean, kid.interval)
    near = vars(compare(balls(real), balls(fake))) | vars(tone(images)) | of_real(vars(tone(test.images)))
    judge = Classifier(load_dataset("digits", None, 16, "train"), steps=2)
    told = vars(readability(judge, images, test, labels_like(test.labels, 40))) | record(judge, test)
    assert near | told == {name: found[name] for name in (*near, *told)}
    assert set(found) == {
        *(
            "samples",
            "repeats",
            "seed",
            "fid_judge",
            "kid_judge",
            "kid_judge_over_subsets",
            "real_samples",
            "warnings",
            *of_real(dict.fromkeys(BY_JUDGE["fid"] | BY_JUDGE["kid"] | BY_JUDGE["prdc"])),
            "ledger",
            "privacy",
            "class_names",
        ),
        *near,
        *told,
    }


BY_JUDGE = {
    "fid": {"fid_judge"},
    "kid": {"kid_judge", "kid_judge_over_subsets"},
    "prdc": {"precision_judge", "recall_judge", "density_judge", "coverage_judge"},
}
TONES = {"black", "white", "midtone", "channel_range"}
ALL = {
    **{name: figures | {*of_real(dict.fromkeys(figures)), "real_samples"} for name, figures in BY_JUDGE.items()},
    "tone": TONES | {*of_real(dict.fromkeys(TONES))},
    "readability": {
        *("readable", "confidence", "label_agreement", "class_shares", "least_class", "label_imbalance"),
        *("is_classifier", "is_classifier_over_splits", "test_accuracy", "test_readable", "class_names"),
    },
}


@pytest.mark.parametrize("metrics", ["fid", "kid", "prdc", "tone", "readability", " prdc , fid", "fid,fid", ",kid,"])
def test_what_is_asked_for_is_measured_and_nothing_else(model, metrics):
    found = evaluate_model(model, samples=20, metrics=metrics)
    asked = {name.strip() for name in metrics.split(",")} - {""}
    head = {"samples", "repeats", "seed", "ledger", "privacy"} | (set() if "tone" in asked else {"warnings"})
    assert set(found) == head.union(*(ALL[name] for name in asked))
    if asked != {"readability"}:
        whole = evaluate_model(model, samples=20)
        found.pop("warnings", None)
        assert {name: whole[name] for name in found} == found, "what else is measured changes nothing"


def test_without_readability_no_classifier_is_trained(model, monkeypatch):
    monkeypatch.setattr(evaluation, "Classifier", None)
    assert evaluate_model(model, samples=20, metrics="fid")["fid_judge"] > 0


@pytest.mark.parametrize("metrics", ["is", "fid,lpips", "FID", "fid kid"])
def test_unknown_metrics_are_refused(model, metrics):
    with pytest.raises(SettingError, match="expected some of fid, kid, prdc, tone, readability"):
        evaluate_model(model, samples=20, metrics=metrics)


@pytest.mark.parametrize("samples", [2, 3, 4, 5, 6])
def test_of_few_samples_what_applies_is_measured_and_the_rest_refused(model, samples):
    found = evaluate_model(model, samples=samples)
    for name, least in METRICS.items():
        if name in ("synthetic", "membership"):
            continue  # measured when asked for alone
        assert (ALL[name] <= set(found)) == (samples >= least)
        if samples < least:
            with pytest.raises(DataError, match=f"{name} of {samples} images of 10 classes; expected at least {least}"):
                evaluate_model(model, samples=samples, metrics=f"fid,{name}")


@pytest.fixture
def quick(monkeypatch):
    """The classifier of samples is trained for two steps."""
    monkeypatch.setattr(evaluation.synthetic, "worth", functools.partial(worth, steps=2))


def test_train_on_synthetic_is_measured_when_asked_for(model, quick):
    found = evaluate_model(model, samples=20, metrics="synthetic", repeats=2)
    assert len(found["synthetic_by_class"]) == len(found["real_by_class"]) == 10
    assert 0 <= found["synthetic_accuracy"] <= 1 and 0 <= found["real_accuracy"] <= 1
    one = [evaluate_model(model, samples=20, metrics="synthetic", seed=seed) for seed in (0, 1)]
    assert found["synthetic_accuracy"] == pytest.approx(np.mean([single["synthetic_accuracy"] for single in one]))
    assert len(found["synthetic_accuracy_interval"]) == 2 and "real_accuracy_interval" not in found
    assert "fid_judge" not in found
    rows = [line.split()[0] for line in as_text(found).splitlines() if line.startswith("  ")]
    assert rows == ["synthetic_accuracy", "synthetic_by_class", "real_accuracy", "real_by_class"]


def test_without_labels_a_model_teaches_nothing(tiny, tmp_path, quick):
    plain = prismfl.train(tiny(generator={"conditional": False}), out=tmp_path / "run").folder.model
    with pytest.raises(DataError, match="that the model makes images by"):
        evaluate_model(plain, samples=20, metrics="synthetic")


def test_what_some_class_lacks_is_none_over_sets_too():
    merged = over_seeds([{"x": (0.5, None)}, {"x": (1.0, None)}])
    assert merged["x"] == [0.75, None] and merged["x_interval"][0][1] is None


# ------------------------------------------------------------------------------------ over seeds


def test_repeats_are_means_over_seeds_with_their_intervals(model):
    one = [evaluate_model(model, samples=30, seed=seed) for seed in (5, 6, 7)]
    found = evaluate_model(model, samples=30, seed=5, repeats=3)
    for name in ("fid_judge", "kid_judge", "recall_judge", "readable", "is_classifier", "class_shares"):
        values = [single[name] for single in one]
        assert np.allclose(found[name], np.mean(values, axis=0))
        assert np.allclose(found[f"{name}_interval"], t_interval(values))
    assert found["test_accuracy"] == one[0]["test_accuracy"] and "test_accuracy_interval" not in found
    assert not any("_over_" in name for name in found), "these give way to intervals over seeds"
    assert found["repeats"] == 3 and not any(name.endswith("_interval") for name in one[0])


def test_what_no_set_has_stays_away_and_a_single_set_stays_as_it_is():
    merged = over_seeds([{"label_agreement": None, "x": 1.0}, {"label_agreement": None, "x": 2.0}])
    assert merged["label_agreement"] is None and "label_agreement_interval" not in merged and merged["x"] == 1.5
    assert over_seeds([{"x": 1.0}]) == {"x": 1.0}


@pytest.mark.parametrize("repeats", [0, -1])
def test_no_repeats_are_refused(model, repeats):
    with pytest.raises(SettingError, match=f"repeats {repeats}"):
        evaluate_model(model, samples=20, repeats=repeats)


# ------------------------------------------------------------------------------------------ text


@pytest.mark.parametrize("repeats", [1, 2])
def test_the_text_has_every_figure_in_one_column_with_intervals_in_brackets(model, repeats):
    found = evaluate_model(model, samples=30, repeats=repeats)
    lines = as_text(found).splitlines()
    rows = {line.split()[0]: line for line in lines if line.startswith("  ") and line[2] != " "}
    figures = {n for n in found if not n.endswith(("_interval", "_of_real")) and "_over_" not in n}
    told = {"samples", "repeats", "seed", "real_samples", "ledger", "privacy", "class_names", "warnings"}
    assert set(rows) == {name for name in figures if found[name] is not None} - told
    assert {line[: len("  ") + 21].strip() for line in rows.values()} == set(rows), "names fit their column"
    shown = found["kid_judge_interval" if repeats > 1 else "kid_judge_over_subsets"]
    beside = f"[{shown[0]:.4f}, {shown[1]:.4f}]  (real images {found['kid_judge_of_real']:.4f})"
    assert rows["kid_judge"].endswith(beside)
    assert ("[" in rows["fid_judge"]) == (repeats > 1)
    words = f"times as far as real images are from each other ({found['fid_judge_of_real']:.2f})"
    assert words not in as_text(found), "of 30 images it would say what is not so"
    assert words in as_text({name: one for name, one in found.items() if name != "warnings"})
    assert "[" not in rows["class_shares"] and "[" not in rows["test_accuracy"]


def test_other_labels_than_the_models_are_no_judge_of_it(model, tmp_path):
    found = evaluate_model(model, "folder", tree(tmp_path / "two", 1, ["a", "b"]), samples=20)
    assert found["label_agreement"] is None and 0 <= found["readable"] <= 1


def test_the_seed_decides(model):
    one, again, other = (evaluate_model(model, samples=20, seed=seed) for seed in (1, 1, 2))
    assert one == again and one["fid_judge"] != other["fid_judge"]


def test_a_single_class_has_no_readability(model, tmp_path):
    found = evaluate_model(model, "folder", tree(tmp_path / "one", 1, ["a"]), samples=20)
    assert "readable" not in found and found["fid_judge"] > 0
    with pytest.raises(DataError, match="readability of 2 images of 1 class; expected at least 4 images, and two"):
        evaluate_model(model, "folder", str(tmp_path / "one"), samples=20, metrics="readability")


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


@pytest.mark.parametrize("text", ["no = toml = at all", "[data]\ndataset = 3\n", "data = 1"])
def test_a_model_with_unusable_settings_is_refused(model, tmp_path, text):
    save_model(replace(load_model(model), settings=text), tmp_path / "m.safetensors")
    with pytest.raises(PrismError):
        evaluate_model(tmp_path / "m.safetensors", samples=4)


def test_a_model_with_unusable_settings_is_named_as_the_culprit(model, tmp_path):
    save_model(replace(load_model(model), settings="no = toml = at all"), tmp_path / "m.safetensors")
    with pytest.raises(ModelFileError, match=r"m\.safetensors"):
        evaluate_model(tmp_path / "m.safetensors", samples=4)


def test_a_model_of_another_version_is_judged_by_the_settings_that_are_known(model, tmp_path):
    whole = load_model(model)
    older = whole.settings.replace("[features]", "[features]\npatch_of_an_older_version = 8")
    save_model(replace(whole, settings=older), tmp_path / "m.safetensors")
    found = evaluate_model(tmp_path / "m.safetensors", samples=4, metrics="fid")
    assert found["fid_judge"] == evaluate_model(model, samples=4, metrics="fid")["fid_judge"]


def test_a_model_of_a_callers_arrays_asks_what_to_be_judged_against(tiny, tmp_path):
    """Its settings name a data set that it never saw; judging against that would mislead."""
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 16, 16), np.uint8)
    path = prismfl.train(tiny(), images, out=tmp_path / "run").folder.model
    with pytest.raises(PrismError):
        evaluate_model(path, samples=4)
    assert evaluate_model(path, "digits", samples=4)["fid_judge"] > 0


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
    assert found["fid_judge"] > 0 and "label_agreement" in found


def test_a_model_of_a_folder_with_epsilon_is_judged_in_its_channels_and_classes(tiny, tmp_path):
    place = tree(tmp_path / "grey", 1, ["a", "b"])
    (tmp_path / "grey" / "empty").mkdir()
    changes = {"data": {"dataset": "folder", "data_dir": place, "clients": 2}, "features": {"features": "vgg"}}
    settings = tiny(**changes, privacy={"epsilon": 9.0, "delta": 1e-3, "noise": "fast"})
    path = prismfl.train(settings, out=tmp_path / "run").folder.model
    assert prismfl.load(path).model.labels == ("a", "b", "empty")
    found = evaluate_model(path, data_dir=place, samples=20)
    assert found["fid_judge"] > 0 and len(found["class_shares"]) == 3


# ----------------------------------------------------------------- Inception, classes, warnings


class Stub:
    """Stands for Inception-v3: mean and deviation of each image, and what it was asked."""

    sha256 = "ab"
    logits = staticmethod(lambda pooled, **_: pooled)

    def to(self, _device):
        """Itself."""
        return self

    def features(self, images, _batch=50):
        """Two features an image."""
        return np.stack([images.mean((1, 2, 3)), images.std((1, 2, 3))], 1).astype(np.float32)


def test_fid_is_reported_where_its_network_is_given(model, monkeypatch, tmp_path):
    monkeypatch.setattr(evaluation, "load_inception", lambda _path: Stub())
    found = evaluate_model(model, samples=20, inception=tmp_path / "w.pth")
    test = load_dataset("digits", None, 16, "test")
    images = prismfl.load(model).sample(20, labels=labels_like(test.labels, 20))
    assert (
        found["fid"] == pytest.approx(frechet(Stub().features(test.images), Stub().features(images)))
        and found["inception_sha256"] == "ab"
    )
    wanted = inception_score(torch.from_numpy(Stub().features(images)).double().softmax(1).numpy())
    assert (found["is"], found["is_over_splits"]) == (wanted.mean, wanted.interval)
    assert not {"fid", "is"} & set(evaluate_model(model, samples=20)) and found["fid_of_real"] < found["fid"]


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
    assert found["fid_judge"] == pytest.approx(frechet(judge_features(part.images), judge_features(images)), rel=1e-6)


def test_a_near_relation_of_the_judge_is_told_of(model, monkeypatch):
    assert "warnings" not in evaluate_model(model, samples=20, metrics="tone")
    sibling = Settings(features=Features(features="efficientnet-lite0"))
    monkeypatch.setattr(evaluation, "settings_of", lambda *_: sibling)
    (note,) = evaluate_model(model, samples=20, metrics="tone")["warnings"]
    assert "efficientnet-lite2, is a sibling of the matched network efficientnet-lite0" in note


def test_a_distance_of_fewer_images_than_features_is_warned_of(model):
    (note,) = evaluate_model(model, samples=JUDGE_FEATURES - 1, metrics="fid")["warnings"]
    assert "fid_judge of 271 images, fewer than the judge's 272 features" in note
    assert "warnings" not in evaluate_model(model, samples=JUDGE_FEATURES, metrics="fid")


@pytest.mark.parametrize(
    ("metrics", "said"), [("kid", "kid and prdc of 99 images say little"), ("readability", "known to ± 0.10 at best")]
)
def test_other_figures_of_few_images_are_warned_of(model, metrics, said):
    assert said in " ".join(evaluate_model(model, samples=99, metrics=metrics)["warnings"])
    assert "warnings" not in evaluate_model(model, samples=100, metrics=metrics)


def test_every_part_is_told_of_and_comes_to_its_end(model, tmp_path):
    told = {}

    def part(name, steps):
        counted = told.setdefault(name, [steps, 0])

        def advance(more):
            counted[1] += more

        return advance

    evaluate_model(model, samples=20, pairs=tmp_path / "pairs.png", part=part)
    reading = told.pop("readability: training a classifier")
    assert reading[0] == steps_of(load_dataset("digits", None, 16, "train")) and reading[1] == 2, "as few_steps has it"
    assert {"reading images", "making samples", "judge looks at samples", "nearest training images"} < set(told)
    assert all(done == steps for steps, done in told.values())


def test_beside_a_distance_stands_that_of_as_many_real_images(model):
    found = evaluate_model(model, samples=60, metrics="fid,kid,tone")
    assert found["real_samples"] == 60 and 0 < found["fid_judge_of_real"] < found["fid_judge"] / 3
    assert found["kid_judge_of_real"] < found["kid_judge"] / 3
    text = as_text(found)
    assert f"(real images {found['fid_judge_of_real']:.4f})" in text
    assert f"(real images {found['black_of_real']:.4f})" in text and "Others" not in text


# -------------------------------------------------------------------------------- pairs and saving


def test_pairs_are_drawn_and_their_distances_told(model, tmp_path):
    path = tmp_path / "pairs.png"
    found = evaluate_model(model, samples=20, metrics="fid", pairs=path, pairs_by="pixels")
    with Image.open(path) as picture:
        assert picture.size == (2 * (5 * 33 + 1), 2 * (8 * 17 + 1))
        left = np.asarray(picture)[2:34:2, 2:34:2]
    assert found["pairs"] == {"file": "pairs.png", "count": 40, "space": "pixels"}
    np.testing.assert_array_equal(left, prismfl.load(model).sample(1)[0, 0], err_msg="a pair begins with its sample")
    assert found["nearest_of_samples"] > found["nearest_of_test"] > 0, "an untrained generator is far from digits"
    assert "no guarantee covers it" in " ".join(found["warnings"])
    assert "Nearest training images" in as_text(found)


@pytest.mark.parametrize(("name", "space"), [("pairs.jpg", "pixels"), ("pairs.png", "colour")])
def test_pairs_that_cannot_be_drawn_are_refused_before_anything_is_measured(model, tmp_path, name, space, monkeypatch):
    monkeypatch.setattr(evaluation, "load_dataset", None)
    with pytest.raises(SettingError):
        evaluate_model(model, samples=20, pairs=tmp_path / name, pairs_by=space)


def test_a_saved_evaluation_lies_beside_the_model(model, tmp_path):
    copy = tmp_path / "run" / "model.safetensors"
    copy.parent.mkdir()
    copy.write_bytes(model.read_bytes())
    found = evaluate_model(copy, samples=20, metrics="fid")
    path = save_evaluation(copy, found)
    assert path == copy.parent / "evaluation.json"
    assert json.loads(path.read_text()) == {"model": "model.safetensors"} | found


def test_the_ledger_is_told_in_text():
    one = {"client": 3, "epsilon": 9.8, "delta": 1e-5, "noise_multiplier": 0.508, "images": 140, "count": 1}
    found = {"samples": 2, "repeats": 1, "seed": 0, "ledger": [one] * 25, "privacy": "so"}
    text = as_text(found)
    assert text.count("client 3: ε = 9.8, δ = 1e-05") == 20 and "and 5 more" in text and text.endswith("Privacy: so")
    assert "Ledger" not in as_text(found | {"ledger": []})


def test_figures_that_no_group_names_are_told_as_well():
    found = {"samples": 2, "repeats": 1, "seed": 0, "ledger": [], "privacy": "so", "accuracy_of_others": 0.5}
    assert "Others" in as_text(found) and "accuracy_of_others" in as_text(found)


def test_shares_of_labels_are_told_by_name():
    found = {"samples": 2, "repeats": 1, "seed": 0, "ledger": [], "privacy": "so", "class_shares": [0.25, 0.75]}
    assert "cat=0.2500 dog=0.7500" in as_text(found | {"class_names": ["cat", "dog"]})
    for names in (["cat"], ["\x1b[31m", "dog"], "ab", None):
        assert "0.2500 0.7500" in as_text(found | {"class_names": names})


def test_membership_is_measured_when_asked_for(model):
    plain = evaluate_model(model, samples=20, metrics="fid")
    found = evaluate_model(model, samples=20, metrics="membership")
    low, high = found["membership_auc_over_images"]
    assert "membership_auc" not in plain and 0 <= low <= found["membership_auc"] <= high <= 1
    again = evaluate_model(model, samples=20, metrics="membership", repeats=2)
    assert "membership_auc_over_images" not in again and len(again["membership_auc_interval"]) == 2
    assert any(line.split()[:1] == ["membership_auc"] for line in as_text(found).splitlines())


def test_the_runs_own_folder_of_images_is_found_beside_its_model(tiny, tmp_path):
    data = {"dataset": "folder", "data_dir": tree(tmp_path / "images", 1, "ab"), "partition": "iid"}
    made = prismfl.train(tiny(data=data), out=tmp_path / "run").folder
    assert evaluate_model(made.root, samples=20, metrics="fid")["fid_judge"] > 0
    alone = tmp_path / "model.safetensors"
    alone.write_bytes(made.model.read_bytes())
    with pytest.raises(DataError, match="no folder for data set 'folder'"):
        evaluate_model(alone, samples=20, metrics="fid")


def test_a_run_is_judged_by_the_images_that_it_held_back_itself(tiny, tmp_path):
    """Where persons are held back, every tenth image is one that was trained on."""
    rng, root = np.random.default_rng(0), tmp_path / "images"
    root.mkdir()
    for index in range(60):
        Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).save(root / f"{index:02}-p{index % 12}.png")
    data = {"dataset": "folder", "data_dir": str(root), "partition": "iid", "people": "p([0-9]+)"}
    made = prismfl.train(tiny(data=data), out=tmp_path / "run").folder
    held = load_dataset("folder", root, 16, "test", settings=replace(Settings().data, people="p([0-9]+)"))
    for data_dir in ("", str(root), str(root / ".." / "images")):
        found = evaluate_model(made.root, data_dir=data_dir, samples=20, metrics="tone")
        assert held.people is not None and found["black_of_real"] == tone(held.images).black
    other = evaluate_model(made.root, data_dir=tree(tmp_path / "others", 1, [""]), samples=20, metrics="tone")
    assert other["black_of_real"] != found["black_of_real"]


def test_a_run_that_held_nothing_back_asks_for_other_images(tiny, tmp_path):
    root = tree(tmp_path / "sites", 1, ["one", "two"])
    data = {"dataset": "folder", "data_dir": root, "partition": "given", "clients": 2}
    made = prismfl.train(tiny(data=data), out=tmp_path / "run").folder
    with pytest.raises(DataError, match="trained on all of them"):
        evaluate_model(made.root, samples=20, metrics="fid")
    others = tree(tmp_path / "others", 1, [""])
    assert evaluate_model(made.root, data_dir=others, samples=20, metrics="fid")["fid_judge"] > 0
