"""The network that a run matches, by its settings."""

from prismfl.config import Features
from prismfl.errors import ModelFileError, SettingError
from prismfl.nets.efficientnet import JUDGE, LITES, load_lite
from prismfl.nets.features import LoadedNet, load_features
from prismfl.nets.vgg import load_vgg19, random_vgg


def load_matched(settings: Features) -> LoadedNet:
    """The feature network that the settings name; `auto` must have been resolved (`Features.named`).

    Raises SettingError for weights of a network that takes none and for a judge, ModelFileError
    for an unusable file and for one whose SHA-256 is not `features.features_sha256`.
    """
    if settings.features == JUDGE:
        raise SettingError(
            f"features.features = {settings.features!r}, a judge",
            "a network that no metric uses",
            "match another: a distance in a matched network says nothing",
        )
    loaded = _load(settings)
    if settings.features_sha256 not in ("", loaded.sha256):
        raise ModelFileError(
            f"feature network {settings.features} with SHA-256 {loaded.sha256}",
            settings.features_sha256,
            "name the file that the run began with, or change features.features_sha256 in a new run",
        )
    return loaded


def _load(settings: Features) -> LoadedNet:
    if settings.features == "vgg19":
        return load_vgg19(settings.weights)
    if settings.features in LITES:
        return load_lite(settings.features, settings.weights)
    if settings.weights:
        raise SettingError(
            f"features.weights = {settings.weights!r} with features.features = {settings.features!r}",
            "none: only vgg19 and efficientnet-lite0 take published weights",
            "set features.features to one of these, or leave features.weights out",
        )
    return random_vgg() if settings.features == "random" else load_features(settings.features)
