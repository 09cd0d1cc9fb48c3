"""Settings of the documentation site: `make docs` builds it into build/docs."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

import reference_pages  # noqa: E402

import colm  # noqa: E402

reference_pages.write(HERE / "reference")

project = "colm"
author = "The colm authors"
release = version = colm.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["results/runs"]
html_theme = "furo"
html_title = f"colm {release}"
html_show_copyright = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]
default_role = "literal"  # docstrings write names in single backticks
autodoc_typehints = "none"  # the docstrings give types together with shapes and units
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_use_ivar = True
