"""Examples in docstrings run as they stand, and the page on Python names what is there."""

import doctest
import re
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name

import pytest

import prismfl

ROOT = Path(prismfl.__file__).parent
PAGE = Path(__file__).parents[1] / "docs" / "reference" / "api.md"
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = sorted(
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    for path in ROOT.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.usefixtures("full_world")
@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    results = doctest.testmod(import_module(name), optionflags=FLAGS)
    assert results.attempted and not results.failed


@pytest.mark.parametrize("name", re.findall("^::: (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
def test_the_page_on_python_names_what_is_there_and_explained(name):
    assert resolve_name(name).__doc__


def test_the_page_on_python_has_every_name_of_the_facade():
    text = PAGE.read_text(encoding="utf-8")
    assert all(re.search(rf"\b{name}\b", text) for name in prismfl.__all__)
