"""Configuration of the documentation site.

``sphinx-build -W -n -c docs . BUILD`` makes the site in the folder BUILD, without the network. The
source is the root of the repository, so that README.md and the pages link to each other in the
site as they do in the repository. A warning fails the build, and so does a link to a page, heading
or file that does not exist.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from docutils import nodes
from pygments.lexers.special import TextLexer
from sphinx import addnodes

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "DBOS actors"
author = "The DBOS actors developers"
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = [
    "docs/*.md",
    "README.md",
    "CHANGELOG.md",
    "bench/README.md",
    "tests/README.md",
    "tests/results/*.md",
]
exclude_patterns = [".*"]  # a virtual environment takes long to search
myst_heading_anchors = 4  # links to headings are checked down to this level
html_theme = "furo"
html_title = project
html_copy_source = False


def setup(app: Sphinx) -> None:
    """Register what makes the site differ from the repository."""
    # Diagrams are shown as their text: drawing them would load a script from the network.
    app.add_lexer("mermaid", TextLexer)
    app.connect("doctree-read", _unlink_folders)
    app.connect("build-finished", _write_entrance)


def _unlink_folders(app: Sphinx, document: nodes.document) -> None:
    """Replace each link to a folder of the repository by its text: the site has no folders."""
    for link in list(document.findall(addnodes.pending_xref)):
        page = Path(app.srcdir, link.get("refdoc", ""))
        if link.get("reftype") == "myst" and (page.parent / link["reftarget"]).is_dir():
            link.replace_self(link.children)


def _write_entrance(app: Sphinx, failure: Exception | None) -> None:
    """Write an index.html that leads to the first page."""
    if failure is None and app.builder.name == "html":
        entrance = '<!doctype html><meta http-equiv="refresh" content="0; url=docs/index.html">\n'
        Path(app.outdir, "index.html").write_text(entrance, encoding="utf-8")
