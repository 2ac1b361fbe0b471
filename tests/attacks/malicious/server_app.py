"""The real server."""

from prismfl.engines.flower.server import app

__all__ = ["app"]
