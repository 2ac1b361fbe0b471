"""Examples in docstrings of public names run as they stand."""

import doctest
from importlib import import_module

import pytest

MODULES = ("engines.simulator", "settings.toml", "settings.resolve", "settings.presets", "privacy.ledger")


@pytest.mark.usefixtures("full_world")
@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    found = doctest.testmod(import_module(f"prismfl.{name}"), optionflags=flags)
    assert found.attempted and not found.failed
