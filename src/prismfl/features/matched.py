"""The network that a run matches, by its settings."""

from prismfl.errors import SettingError
from prismfl.features.efficientnet import JUDGE, LITES, load_lite
from prismfl.features.networks import LoadedNet, load_features
from prismfl.features.vgg19 import load_vgg19, random_vgg
from prismfl.settings.schema import Features


def load_matched(settings: Features) -> LoadedNet:
    """The feature network that the settings name; `auto` must have been resolved (`settings.resolve.named`).

    Raises SettingError for weights of a network that takes none and for a judge, ModelFileError
    for an unusable file.
    """
    if settings.features == JUDGE:
        raise SettingError(
            f"features.features = {settings.features!r}, a judge",
            "a network that no metric uses",
            "match another: a distance in a matched network says nothing",
        )
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
