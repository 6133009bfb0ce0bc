"""Where the sources lie, and the description on package indexes. Everything else is in pyproject.toml.

`models/`, `cli/` and `export/` are installed as `mdlstm_tk.models` and so on. In a checkout
`mdlstm_tk/models` is also a symbolic link to `../models`. An editable install relies on these links,
because without a mapping setuptools writes a plain .pth file, which type checkers follow; they cannot
follow the import hook that it writes for mapped folders. Where the links arrived as text files (Windows,
zip) the hook is used, and everything but type checkers finds the package.

The description is README.md with absolute links, since an index does not serve the files beside it.
"""

import re
import sys
import tomllib
from pathlib import Path

from setuptools import setup

FOLDERS = ("models", "cli", "export")

package = Path(__file__).with_name("mdlstm_tk")
use_links = "editable_wheel" in sys.argv and all((package / name).is_dir() for name in FOLDERS)
project = tomllib.loads(Path(__file__).with_name("pyproject.toml").read_text(encoding="utf-8"))["project"]
repository = project["urls"]["Repository"]
readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
readme = re.sub(r"(!\[[^]]*\]\()(?!https?:|#)", rf"\1{repository}/raw/main/", readme)
readme = re.sub(r"((?<!!)\[[^]]*\]\()(?!https?:|#)", rf"\1{repository}/blob/main/", readme)
setup(
    package_dir={"": "."} if use_links else {f"mdlstm_tk.{name}": name for name in FOLDERS},
    long_description=readme,
    long_description_content_type="text/markdown",
)
