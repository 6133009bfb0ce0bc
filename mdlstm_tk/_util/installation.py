"""The command that installs mdlstm-tk with more extras: from the clone it came from, or from the index."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

PACKAGE = "mdlstm-tk"
CLONE = Path(__file__).resolve().parents[2]  # if this runs from one


def install_command(extras: Iterable[str] = (), options: str = "") -> str:
    """The `pip install` command that adds extras to this installation.

    >>> install_command(["cpu", "train"])
    "pip install 'mdlstm-tk[cpu,train]'"

    Args:
        extras: names of optional dependencies, such as "train".
        options: further options of pip.

    Returns:
        A shell command. It names the clone if mdlstm-tk was installed from one that still exists, or runs
        from one without being installed; otherwise it names the package.
    """
    clone, editable = _clone()
    names = f"[{','.join(extras)}]" if extras else ""
    flags = " ".join(filter(None, ["pip install", options, "-e" if editable else ""]))
    target = f"{PACKAGE if clone is None else clone}{names}"
    return f"{flags} {shlex.quote(target)}"


def _clone() -> tuple[Path | None, bool]:
    """The folder of source code that this installation came from, if any, and whether it is editable."""
    # In a clone, its own .egg-info may be found before the metadata of the installation.
    found = list(metadata.distributions(name=PACKAGE))
    if not found:
        return (CLONE, True) if (CLONE / "pyproject.toml").is_file() else (None, False)
    records = (distribution.read_text("direct_url.json") for distribution in found)  # PEP 610
    origin = json.loads(next(filter(None, records), "{}"))
    url = urlsplit(origin.get("url", ""))
    if url.scheme != "file" or not (folder := Path(url2pathname(url.path))).is_dir():
        return None, False
    return folder, bool(origin.get("dir_info", {}).get("editable"))
