"""prismfl: organisations that may not share their images train one image generator together.

Importing this needs no torch; `train`, `resume` and `load` bring it in when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prismfl.errors import PrismError
from prismfl.settings.schema import Settings
from prismfl.settings.toml import load_settings, settings_from

if TYPE_CHECKING:
    from prismfl.engines.simulator import resume, train
    from prismfl.generator.sampling import load

__version__ = "0.1.0"
__all__ = ["PrismError", "Settings", "load", "load_settings", "resume", "settings_from", "train"]

_LAZY = {
    "train": "prismfl.engines.simulator",
    "resume": "prismfl.engines.simulator",
    "load": "prismfl.generator.sampling",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'prismfl' has no attribute {name!r}")
