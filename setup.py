"""Where the sources lie. Everything else about the package is in pyproject.toml.

`models/`, `cli/` and `export/` are installed as `mdlstm_tk.models` and so on. In a checkout
`mdlstm_tk/models` is also a symbolic link to `../models`. An editable install relies on these links,
because without a mapping setuptools writes a plain .pth file, which type checkers follow; they cannot
follow the import hook that it writes for mapped folders. Where the links arrived as text files (Windows,
zip) the hook is used, and everything but type checkers finds the package.
"""

import sys
from pathlib import Path

from setuptools import setup

FOLDERS = ("models", "cli", "export")

package = Path(__file__).with_name("mdlstm_tk")
use_links = "editable_wheel" in sys.argv and all((package / name).is_dir() for name in FOLDERS)
setup(package_dir={"": "."} if use_links else {f"mdlstm_tk.{name}": name for name in FOLDERS})
