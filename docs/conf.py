"""The documentation site: ``make docs`` builds it into ``docs/_build``."""

import logging
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from docutils import nodes
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
napoleon_custom_sections = [
    (name, "params_style") for name in ("Return values", "May ask for", "Positional arguments")
]
default_role = "code"
nitpicky = False

# The kernels start with a profile of their own and report only errors.
profile = Path(tempfile.mkdtemp()) / "profile_default"
profile.mkdir()
(profile / "ipython_kernel_config.py").write_text("c.IPKernelApp.log_level = 'ERROR'\n")
os.environ["IPYTHONDIR"] = str(profile.parent)
logging.getLogger("traitlets").setLevel(logging.WARNING)

# Equations are written as MathML, which browsers show without a script from the network.
html_math_renderer = "mathml"


def inline_math(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def display_math(translator: HTML5Translator, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def name_return_values(*arguments: Any) -> None:
    """Several named values under "Returns:" are listed like arguments."""
    lines: list[str] = arguments[-1]
    for number, line in enumerate(lines[:-1]):
        if line.strip() == "Returns:" and re.match(r"\s+[a-z_]+: ", lines[number + 1]):
            lines[number] = line.replace("Returns", "Return values")


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", name_return_values, priority=400)  # before napoleon
    app.add_html_math_renderer("mathml", (inline_math, None), (display_math, None))
