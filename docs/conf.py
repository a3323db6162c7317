"""How Sphinx builds the book: ``python -m sphinx -W docs docs/_build``.

Chapters are the numbered scripts in examples/, run as they are built: what a page prints and
draws, this build has computed. ``-D chapters='05*'`` makes only some of their pages anew, and
``-D run_chapters=0`` leaves out what they print and draw.
"""

import os
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples"), str(ROOT / "docs")]  # chapters have helpers
import book  # noqa: E402
import landing  # noqa: E402

from minires.kernels.isa import available_isas  # noqa: E402
from minires.lab.export import export_network  # noqa: E402
from minires.lab.serve import site, write_site  # noqa: E402

os.environ["MINIRES_OFFLINE"] = "1"  # a page must not depend on a download
os.environ["PYTHONPATH"] = str(ROOT)
if "amx" in [isa.name for isa in available_isas()]:  # the book is about VNNI's 4x
    os.environ.setdefault("MINIRES_ISA", "avx512bf16")


project = "minires"
author = copyright = "The minires developers"
extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3
nitpicky = False
numpydoc_show_class_members = False
autosummary_generate = True
add_module_names = False
numpydoc_xref_param_type = False

html_theme = "pydata_sphinx_theme"
html_title = "minires"
html_static_path, html_css_files = ["book.css"], ["book.css"]
html_show_sourcelink = False
# Only chapters and the API have a section to navigate in.
html_sidebars = {page.stem: [] for page in Path(__file__).parent.glob("*.md")}
del html_sidebars["chapters"]
html_theme_options = {
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": True,
    "header_links_before_dropdown": 3,
    "navbar_end": ["theme-switcher"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_context = {"default_mode": "auto"}


class Lab(Directive):
    """A view of the lab inside a page: ``.. lab:: pixel``.

    The view tells the page how high it is. Without JavaScript it shows its sentence and a picture.
    """

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Make what stands in the page; html alone has it."""
        up = "../" * self.state.document.settings.env.docname.count("/")
        address = f"{up}lab/index.html?view={self.arguments[0]}&amp;embed=1"
        html = f"""<iframe class="lab" src="{address}" loading="lazy"
            title="The lab: one {self.arguments[0]}, in your browser"></iframe>
            <p class="lab"><a href="{up}lab/index.html#{self.arguments[0]}">The whole lab</a></p>"""
        return [nodes.raw("", html, format="html")]


def keep_lines(app: Any, doctree: nodes.document) -> None:
    """Leave equations of several lines as they are: Sphinx would wrap them where no tag may be."""
    for equation in doctree.findall(nodes.math_block):
        if r"\begin{aligned}" in equation.astext():
            equation["no-wrap"] = equation["nowrap"] = True
            equation[0] = nodes.Text(rf"\[{equation.astext()}\]")


class Gain(SphinxDirective):
    """How fast INT8 is, in one sentence and one picture."""

    def run(self) -> list[nodes.Node]:
        """Draw them from the recorded run."""
        return list(self.parse_text_to_nodes(landing.waterfall()))


def make_pages(app: Any) -> None:
    """Make the chapters' pages."""
    book.write_pages(Path(app.srcdir) / "chapters", app.config.chapters, app.config.run_chapters)


def finish(app: Any, error: Exception | None) -> None:
    """Put beside the pages their notebooks, and the lab with the bundled network."""
    if error is None and app.builder.format == "html":
        book.write_notebooks(Path(app.outdir) / "chapters")
        write_site(Path(app.outdir) / "lab", site(export_network()))


def setup(app: Any) -> None:
    """Be called by Sphinx."""
    app.add_directive("lab", Lab)
    app.add_directive("gain", Gain)
    app.add_config_value("chapters", "*", "env")
    app.add_config_value("run_chapters", True, "env")
    app.connect("builder-inited", make_pages)
    app.connect("doctree-read", keep_lines)
    app.connect("build-finished", finish)
