"""What the pages of the documentation name is there: options, other pages, pictures and tables."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if page.parent.name != "reference"]
# Options of Flower's own commands.
FLOWERS = {
    "--node-config",
    "--superlink",
    "--run-config",
    "--trusted-entities",
    "--isolation",
    "--enable-supernode-auth",
}
FLOWERS |= {"--ssl-ca-certfile", "--ssl-certfile", "--ssl-keyfile", "--superexec-auth-secret-file"}

pytestmark = pytest.mark.skipif(not PAGES, reason="no pages beside the tests")


def texts(page):
    """A page without fences, and lines of its fences that call the command, each with what continues it."""
    text = page.read_text()
    fenced = "\n".join(re.findall(r"```\w*\n(.*?)```", text, re.S)).replace("\\\n", " ")
    called = [line for line in fenced.splitlines() if line.lstrip().startswith("prismfl ")]
    return re.sub(r"```.*?```", "", text, flags=re.S), called


def ids(page):
    return page.relative_to(DOCS).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_options_that_a_page_names_exist(page):
    known = set(re.findall(r"--[a-z][a-z0-9-]*", (DOCS / "reference" / "command-line.md").read_text()))
    plain, called = texts(page)
    named = re.findall(r"`(?:prismfl [^`]*)?(--[a-z][a-z0-9-]*)", plain)
    named += [option for line in called for option in re.findall(r"\s(--[a-z][a-z0-9-]*)", line)]
    assert set(named) <= known | FLOWERS


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_of_a_page_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    assert all(link.startswith("http") or (page.parent / link).exists() for link in links)


def test_every_page_and_notebook_stands_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text()
    pages = [path for path in DOCS.rglob("*") if path.suffix in (".md", ".ipynb")]
    assert [page for page in pages if ids(page) not in menu] == []


def test_notebooks_hold_no_outputs():
    for path in sorted((DOCS / "tutorial").glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        assert not any(cell.get("outputs") for cell in cells), path
