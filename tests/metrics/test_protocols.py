"""Other people's protocols: networks of published sizes, samples alone that choose, and words for what differs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import prismfl
from prismfl.data.datasets import load_dataset
from prismfl.errors import DataError, SettingError
from prismfl.metrics import protocols
from prismfl.metrics.residual import initialised, resnet, resnext, wide_resnet
from prismfl.run import protocol as measured
from prismfl.run.protocol import evaluate_by_protocol, protocol_text

SHORT = replace(
    protocols.GREY, epochs=3, batch=32, nets={"resnet": lambda channels, classes: resnet(channels, classes, 8)}
)


@pytest.fixture(scope="module")
def digits():
    torch.set_num_threads(1)
    return tuple(load_dataset("digits", None, 16, split) for split in ("train", "test"))


@pytest.mark.parametrize(
    ("make", "millions"),
    [
        (lambda: resnet(3, 10, 110), 1.7),  # He et al., table 6
        (lambda: wide_resnet(3, 10, 40, 4), 8.9),  # Zagoruyko, Komodakis, table 4
        (lambda: wide_resnet(3, 10, 28, 10), 36.5),
        (lambda: resnext(3, 10, 29, 8, 4), 34.4),  # Xie et al., table 7
    ],
    ids=["resnet", "wide-40-4", "wide-28-10", "resnext"],
)
def test_networks_have_the_sizes_that_their_papers_tell(make, millions):
    with torch.device("meta"):
        net = make()
        assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert sum(one.numel() for one in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_the_seed_decides_weights_and_leaves_the_callers_draws_alone():
    before = torch.random.get_rng_state()
    one, two, other = (initialised(lambda: resnet(1, 2, 8), seed)[0].weight for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_epoch_is_chosen_by_samples_and_real_images_are_looked_at_once(digits, monkeypatch):
    train, test = digits
    seen, real = [], protocols._named
    monkeypatch.setattr(protocols, "_AVERAGE", 0.9)  # of few steps
    monkeypatch.setattr(protocols, "_named", lambda net, images, place: seen.append(images) or real(net, images, place))
    steps = []
    found = protocols.taught("resnet", train.images, train.labels, test, after=steps.append, recipe=SHORT)
    assert found.accuracy > 0.6 and found.class_accuracies[0] > 0.6
    assert [np.shares_memory(images, test.images) for images in seen] == [False] * 3 + [True]
    apart = {image.tobytes() for image in seen[0]}
    assert len(seen[0]) == len(train) // 12 and apart <= {image.tobytes() for image in train.images}
    assert len(steps) == 3 * -(-(len(train) - len(train) // 12) // 32)
    again = protocols.taught("resnet", train.images, train.labels, test, recipe=SHORT)
    assert again == found
    mixed = np.random.default_rng(0).permutation(train.labels)
    assert protocols.taught("resnet", train.images, mixed, test, recipe=SHORT).accuracy < 0.4
    with pytest.raises(DataError, match="labels"):
        protocols.taught("resnet", train.images, train.labels + 1, test)


def test_colour_takes_the_recipe_of_colour():
    assert protocols.recipe_of(1) is protocols.GREY and protocols.recipe_of(3) is protocols.COLOUR
    assert protocols.steps_of("resnet", 60_000, 1) == 50 * 215 and protocols.steps_of("small", 60_000, 1) == 4687


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    return prismfl.train(tiny(), out=tmp_path_factory.mktemp("run") / "run").folder.model


def test_a_model_is_measured_as_a_protocol_says(model, monkeypatch):
    monkeypatch.setattr(protocols, "SAMPLES", {"dpimagebench": 400, "prism": 300})
    monkeypatch.setattr(protocols, "_SMALL_PASSES", 3)
    found = evaluate_by_protocol(model, "dpimagebench")
    assert found["samples"] == 400 and found["accuracy"] == found["accuracies"]["small"]
    assert len(found["differences"]) == 2 and "accuracy, small" in protocol_text(found)
    plain = evaluate_by_protocol(model, "prism")
    assert {"fid_judge", "recall_judge", "density_judge"} <= set(plain) and plain["samples"] == 300
    assert any("nothing is chosen by them" in one for one in plain["differences"])


@pytest.mark.parametrize(("name", "classifiers"), [("other", "small"), ("dpimagebench", "small,vit"), ("prism", ",")])
def test_unknown_names_are_refused_before_anything_is_read(name, classifiers, monkeypatch, tmp_path):
    monkeypatch.setattr(measured, "load", None)
    with pytest.raises(SettingError, match=r"other|vit|no classifier"):
        evaluate_by_protocol(tmp_path, name, classifiers=classifiers)
