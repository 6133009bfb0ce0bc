"""The configuration of the site that `make docs` builds with Sphinx."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_extensions")]

from mdlstm_tk import __version__  # noqa: E402

project = "mdlstm-tk"
author = "the authors of mdlstm-tk"
copyright = f"2026, {author}"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "docstrings",  # before napoleon, whose input it prepares
    "sphinx.ext.napoleon",
    "command_line",
]
exclude_patterns = ["_extensions", "figures"]
myst_heading_anchors = 3
smartquotes_action = "D"  # dashes, which Sphinx writes as "--", but no curly quotes

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
highlight_language = "text"  # of blocks in docstrings, which are equations and shapes
napoleon_numpy_docstring = False
napoleon_use_ivar = True
ALIASES = ("Array", "Examples", "Floats", "Format", "Sizes", "UserInputs")  # their definitions are long
autodoc_type_aliases = {name: name for name in ALIASES}
add_module_names = False
python_maximum_signature_line_length = 88

html_theme = "furo"
pygments_dark_style = "github-dark"  # furo's own underlines every import
html_logo = html_favicon = "_static/logo.svg"
html_title = f"mdlstm-tk {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
