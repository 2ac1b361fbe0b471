"""The matched network by its settings: who takes weights, whose bytes are checked."""

import pytest

from prismfl.errors import ModelFileError, SettingError
from prismfl.features import matched
from prismfl.features import networks as features
from prismfl.features.efficientnet import load_lite
from prismfl.features.matched import load_matched
from prismfl.features.networks import load_features
from prismfl.features.vgg19 import random_vgg
from prismfl.settings.resolve import named
from prismfl.settings.schema import Features


def test_networks_go_by_their_names(tmp_path, monkeypatch):
    (tmp_path / "mine").write_bytes(features._file_bytes("vgg"))
    assert load_matched(named(Features(), 1)).sha256 == load_features("vgg").sha256
    assert load_matched(named(Features(), 3)).sha256 == load_lite("efficientnet-lite0").sha256
    assert load_matched(Features(features=str(tmp_path / "mine"))).sha256 == load_features("vgg").sha256
    assert load_matched(Features(features="random")).sha256 == random_vgg().sha256
    monkeypatch.setattr(matched, "load_vgg19", lambda weights: features.LoadedNet(None, weights, {"architecture": "x"}))
    assert load_matched(Features(features="vgg19:a.pth")).sha256 == "a.pth"


@pytest.mark.parametrize(
    ("settings", "kind", "says"),
    [
        ({"features": "vgg19"}, SettingError, r"features\.features = 'vgg19'.*fetch-weights vgg19"),
        ({"features": "vgg19:nowhere.pth"}, ModelFileError, r"nowhere\.pth"),
        ({"features": "vgg:a.pth"}, SettingError, r"features\.features = 'vgg:a\.pth'.*only vgg19"),
        ({"features": "random:a.pth"}, SettingError, "only vgg19"),
        ({"features": "efficientnet-lite2"}, SettingError, "a judge"),
        ({"features": "nowhere"}, ModelFileError, "nowhere"),
    ],
)
def test_what_does_not_fit_is_refused(settings, kind, says):
    with pytest.raises(kind, match=says):
        load_matched(Features(**settings))
