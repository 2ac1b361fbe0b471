"""The compiled loops `fast`, or None where none were built: then NumPy and constriction give the same, more slowly."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prismfl.wire import _fast as fast
else:
    try:
        from prismfl.wire import _fast as fast
    except ImportError:
        fast = None

__all__ = ["fast"]
