"""The library that computes distances, imported when it is first needed."""

import importlib
from typing import Any

from prismfl.errors import DependencyError


def of_torchmetrics(module: str, name: str) -> Any:
    """A name from a module of `torchmetrics.image`.  Raises DependencyError when it does not import."""
    try:
        return getattr(importlib.import_module(f"torchmetrics.image.{module}"), name)
    except (ImportError, RuntimeError) as error:  # a torchvision that does not fit torch raises RuntimeError
        raise DependencyError(
            f"torchmetrics does not import ({error})",
            "torchmetrics beside torch",
            "remove or mend torchvision, or reinstall",
        ) from None
