"""How Sphinx builds the book: ``python -m sphinx -W docs docs/_build``.

Chapters are the numbered scripts in examples/, run as they are built: what a page prints and
draws, this build has computed.
"""

import os
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx_gallery import gen_rst

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]  # chapters have helpers beside them
from minires.kernels.isa import available_isas  # noqa: E402
from minires.lab.export import export_network  # noqa: E402
from minires.lab.serve import site, write_site  # noqa: E402

os.environ["MINIRES_OFFLINE"] = "1"  # a page must not depend on a download
os.environ["PYTHONPATH"] = str(ROOT)
if "amx" in [isa.name for isa in available_isas()]:  # the book is about VNNI's 4x
    os.environ.setdefault("MINIRES_ISA", "avx512bf16")


class AtRoot:
    """What sphinx-gallery takes for os: it would run a chapter where its paths are wrong."""

    def __getattr__(self, name: str) -> Any:
        """Pass on all else."""
        return getattr(os, name)

    def chdir(self, _: Any) -> None:
        """Go where a reader runs a chapter."""
        os.chdir(ROOT)


gen_rst.os = AtRoot()

project = "minires"
author = copyright = "The minires developers"
extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "chapters/*.ipynb", "chapters/*.py", "sg_execution_times.rst"]
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

sphinx_gallery_conf = {
    "examples_dirs": str(ROOT / "examples"),
    "gallery_dirs": "chapters",
    "filename_pattern": r"/\d\d_\w+\.py",
    "ignore_pattern": r"(classify|machines|bounds|gemmlowp)\.py",
    "within_subsection_order": "FileNameSortKey",
    "run_stale_examples": True,
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_signature": False,
    "remove_config_comments": True,
    "reset_modules": ("matplotlib",),
    "capture_repr": (),
    "min_reported_time": 0,
    "write_computation_times": False,
    "image_scrapers": ("matplotlib",),
    "matplotlib_animations": False,
}


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


# Chapters that end with a view of the lab, and what a reader does there.
LAB = {
    "02_im2col": ("pixel", "Choose a pixel of a real layer: its taps are a row of the matrix."),
    "05_eight_bits": ("range", "Take bits away from a real layer, and see what is left of it."),
    "06_calibration": ("range", "Choose the range yourself, and see what becomes of the label."),
    "07_requantization": ("pixel", "Follow a real sum back to eight bits."),
    "09_one_pixel": ("pixel", "Do the same with any layer, any channel and any pixel."),
    "12_one_instruction": ("instruction", "Step through the instruction with bytes of your own."),
    "14_waterfall": ("machine", "Measure it on your own machine, as far as a browser lets you."),
    "16_saturation": ("instruction", "Make 255 x 127 twice, and watch it saturate before VNNI."),
}


def add_view(app: Any, name: str, source: list[str]) -> None:
    """Put a view of the lab at the end of a chapter, before what sphinx-gallery puts there."""
    view, says = LAB.get(name.removeprefix("chapters/"), ("", ""))
    if view:
        text, mark, rest = source[0].partition("\n.. rst-class:: sphx-glr-timing")
        heading = "In your browser\n---------------"
        source[0] = f"{text}\n\n{heading}\n\n{says}\n\n.. lab:: {view}\n\n{mark}{rest}"


def put_lab(app: Any, error: Exception | None) -> None:
    """Put the lab beside the pages, with the network that comes with minires."""
    if error is None and app.builder.format == "html":
        write_site(Path(app.outdir) / "lab", site(export_network()))


def setup(app: Any) -> None:
    """Be called by Sphinx."""
    app.add_directive("lab", Lab)
    app.connect("source-read", add_view)
    app.connect("build-finished", put_lab)
