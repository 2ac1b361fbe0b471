"""The compiled loops `fast`, or None where none were built: then NumPy and constriction give the same, more slowly."""

from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prismfl.wire import _fast as fast
else:
    fast: ModuleType | None
    try:
        from prismfl.wire import _fast as fast
    except ImportError:
        fast = None
