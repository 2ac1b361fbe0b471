"""What MkDocs does not do by itself: notebooks as pages, and results that pages link to.

Notebooks are shown as they are, without being run: tests run them.
"""

import json
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

RESULTS = "experiments/results"


class Notebook(File):
    """A notebook as a page of Markdown: its texts, and its code in fences."""

    def is_documentation_page(self) -> bool:
        """Whether MkDocs renders it."""
        return True

    @property
    def content_string(self) -> str:
        """The page's Markdown."""
        cells = json.loads(Path(self.abs_src_path).read_text(encoding="utf-8"))["cells"]
        return "\n\n".join(_markdown(cell["cell_type"], "".join(cell["source"])) for cell in cells)


def _markdown(kind: str, source: str) -> str:
    return source if kind == "markdown" else f"```python\n{source}\n```"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take notebooks as pages, and what `experiments/results` holds into the site."""
    places = config.docs_dir, config.site_dir, config.use_directory_urls
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(file)
        files.append(Notebook(file.src_uri, *places))
    root = Path(config.docs_dir).parent
    for path in sorted((root / RESULTS).rglob("*")):
        if path.suffix in (".csv", ".md", ".png", ".json", ".jsonl"):
            uri = path.relative_to(root).as_posix()
            shown = uri.removesuffix(".md") + "/index.html" if path.suffix == ".md" else uri
            files.append(File(f"../{uri}", *places, dest_uri=shown, inclusion=InclusionLevel.INCLUDED))
    return files
