"""The documentation site: ``make docs`` builds it into ``docs/_build``."""

import logging
import os
import sys
from pathlib import Path

from docutils import nodes
from jupyter_client.connect import ConnectionFileMixin
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
# The kernels that execute the tour start in their page's folder.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "docs")])
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import maskrcnn_scratch  # noqa: E402

project = "maskrcnn_scratch"
author = "the maskrcnn_scratch authors"
copyright = f"2026, {author}"
release = version = maskrcnn_scratch.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "jupyter_execute"]
html_theme = "furo"
html_title = "maskrcnn_scratch"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False

# Pages with a kernel are executed. A page that raises breaks the build.
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_render_markdown_format = "myst"
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "special-members": "__call__"}
autodoc_inherit_docstrings = False  # torch's docstrings link to pages of torch
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
default_role = "code"
nitpicky = False

# The kernels listen on a local socket instead of a port, and say nothing.
ConnectionFileMixin.transport.default_value = "ipc"
logging.getLogger("traitlets").setLevel(logging.WARNING)

# Equations are written as MathML, which browsers show without a script from the network.
html_math_renderer = "mathml"


def inline_math(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def display_math(translator: HTML5Translator, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (inline_math, None), (display_math, None))
