"""The documentation site: ``sphinx-build -W -n -c docs . site`` from the root of the checkout.

The source folder is the checkout itself, so that one relative link leads to the same file here and in a repository browser,
also from the README to the benchmarks. Nothing is loaded from elsewhere: own fonts, formulas as MathML, no scripts but the theme's.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(Path(__file__).parent), *(str(ROOT / name) for name in (".", "integrations", "benchmarks"))]

import varloss  # noqa: E402

project = "varloss"
author = "The varloss authors"
copyright = "The varloss authors, MIT licence"
version = release = varloss.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "mathml",
]
root_doc = "README"
include_patterns = [
    "*.md",
    "docs/**",
    "benchmarks/README.md",
    "benchmarks/recipes/README.md",
    "benchmarks/gpu/README.md",
    "benchmarks/results/*/README.md",
    "integrations/README.md",
]

html_theme = "furo"
html_title = f"varloss {version}"
html_extra_path = ["index.html"]
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_show_sphinx = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
pygments_style = "friendly"
pygments_dark_style = "monokai"

myst_heading_anchors = 3
myst_enable_extensions = ["attrs_inline", "colon_fence"]

autodoc_member_order = "groupwise"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "exclude-members": "extra_repr"}
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # fields of a NamedTuple are members already
napoleon_use_rtype = False  # the first words of "Returns:" are prose
# Single backticks in a docstring are code.
default_role = "code"

# References are checked (-n), but for names of types that are described elsewhere, or nowhere: private aliases.
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(torch|lightly|torchmetrics|lightning|pytorch_lightning|pytorch_metric_learning|collections|numpy|pathlib)\..*",
    ),
    ("py:.*", r"(Tensor|nn\.\w+|Module|Metric|Callback|Any|Literal|NamedTuple|Path|Generator|device|dtype)"),
    ("py:.*", r"(Sequence|Callable|typing\..*|optional)"),
    ("py:class", r"(varloss|varloss_\w+)\.(.*\.)?_\w.*"),
    ("py:class", "varloss_bench.grid.Axes"),  # of a plan, inside the results that the functions return
    ("py:class", "PairSums"),  # sums over one kind of pairs, inside the public sums
    # What varloss_bench's functions return and raise: imported only when they run.
    ("py:.*", r"(Comparison|Tuning|Report|SearchCrashedError)"),
]


def link_folders_of_results(text: str, page: Path) -> str:
    """A link to a folder, which a repository browser lists, leads to its README or to its section of the results' page."""

    def replace(match: re.Match[str]) -> str:
        target = (page.parent / match[1]).resolve()
        if not target.is_dir():
            return match[0]
        if (target / "README.md").exists():
            return f"]({match[1].rstrip('/')}/README.md)"
        if target == ROOT / "docs":
            return "](#documentation)"
        return f"](#results-{target.name})"

    return re.sub(r"\]\((?!\w+:|#)([^)#\s]+)\)", replace, text)


def prepare(app: Any, docname: str, content: list[str]) -> None:
    """The README is the home page: it gets the navigation, which a repository browser would show as code."""
    page = Path(app.env.doc2path(docname))
    if page.suffix == ".md":
        content[0] = link_folders_of_results(content[0], page)
    if docname == root_doc:
        navigation = ROOT / "docs" / "navigation.txt"
        app.env.note_dependency(str(navigation), docname=docname)
        content[0] += "\n" + navigation.read_text(encoding="utf-8")


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", prepare)
