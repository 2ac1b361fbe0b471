"""The grid without processes and the deployment that tests of Flower have, for attacks on them."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="Flower is not installed")

_PATH = Path(__file__).parent.parent / "engines" / "flower" / "conftest.py"
_SPEC = importlib.util.spec_from_file_location("flower_fixtures", _PATH)
_ROOM = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_ROOM)

deployment, fake, no_waiting, notes, serve = (
    getattr(_ROOM, name) for name in ("deployment", "fake", "no_waiting", "notes", "serve")
)
site_nodes, site_settings, sites = (getattr(_ROOM, name) for name in ("site_nodes", "site_settings", "sites"))
