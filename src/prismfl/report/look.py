"""How pages look: their colours, and their frame, which fetches nothing and escapes whatever names it shows."""

import base64
import hashlib
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from prismfl import __version__

# What PNGs are drawn in; a page's style has one variable for each, with a dark value too.
SERIES = (
    *("#2a6fbb", "#d1662c", "#2e8b61", "#a5499c", "#b8860b"),
    *("#3a9aa8", "#c0415f", "#6a62c4", "#6f8f2d", "#7d6a58"),
)
INK, LINE = "#3f4752", "#d9dee5"
OUTSIDE = "Measured on private images: outside the guarantee."


def style_variables() -> dict[str, str]:
    """The page's colour variables: what stands for each in an SVG, by its name."""
    return {"ink": INK, "line": LINE} | {f"series-{index}": colour for index, colour in enumerate(SERIES)}


def rendered(template: str, kind: str, title: str, script: str = "", **values: Any) -> str:
    """A page of this package's templates.

    kind: what the page is, in its title; script: name of the one script that it may run, none for no script.
    """
    text = _pages().get_template(script).render() if script else ""
    return _pages().get_template(template).render(
        values,
        kind=kind,
        title=title,
        outside=OUTSIDE,
        colours=style_variables(),
        script=text,
        script_sha256=base64.b64encode(hashlib.sha256(text.encode()).digest()).decode(),
        version=__version__,
    )  # fmt: skip


@cache
def _pages() -> Environment:
    return Environment(
        loader=PackageLoader("prismfl.report", "."),
        autoescape=lambda name: name is None or not name.endswith(".md"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
