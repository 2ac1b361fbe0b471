"""Settings by name, which others go over."""

from collections.abc import Mapping
from typing import Any

from prismfl.errors import SettingError

# As published: MADA from θ = 1/2, masks that each client draws by itself and sends whole, an Adam moving
# average of the residual, no labels.  The paper's 500 rounds are left to --rounds.
_PAPER: Mapping[str, Mapping[str, Any]] = {
    "generator": {"conditional": False},
    "search": {"loss": "moving", "local_steps": 100, "batch_size": 64},
    "federation": {"mada": "published", "initial_certainty": 0.0, "uplink": "whole", "draws": "independent"},
}
# The server searches alone, long, for four soft masks: the best figures of the study are of these.
_LONG: Mapping[str, Mapping[str, Any]] = {
    "generator": {"width": 32},
    "search": {"mask": "soft", "loss": "unbiased", "ensemble": 4, "local_steps": 200},
    "federation": {"mode": "one-shot", "rounds": 40},
}
PRESETS = {"long": _LONG, "paper": _PAPER}


def preset(name: str) -> dict[str, Any]:
    """A preset's settings, over which others go.

    Args:
        name: `long`, for the nearest images, in half an hour to an hour: clients send moments once, and the server
            searches four soft masks; `paper`, the published form of PRISM but for its 500 rounds and VGG-19, whose
            weights are a file's (`features = "vgg19:FILE"`); empty for none.

    Returns:
        Nested settings as `settings_from` takes them, empty for no name.

    Raises:
        SettingError: for an unknown name.

    Examples:
        >>> preset("paper")["federation"]["mada"]
        'published'
    """
    if not name:
        return {}
    if name not in PRESETS:
        raise SettingError(f"preset {name!r}", f"one of {', '.join(PRESETS)}", "name one of these")
    return {section: dict(part) for section, part in PRESETS[name].items()}
