"""What `flwr run` starts beside the SuperLink."""

from prismfl.engines.flower.server import app

__all__ = ["app"]
