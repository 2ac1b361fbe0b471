"""What a SuperNode starts for each message."""

from prismfl.engines.flower.client import app

__all__ = ["app"]
