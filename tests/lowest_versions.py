"""Test the lowest version of every dependency that pyproject.toml allows: train, export and
verify, and run export tests.

    python tests/lowest_versions.py FOLDER

FOLDER becomes a virtual environment that holds these versions and nothing newer; it is replaced if it
exists. On Linux the index serves torch with CUDA, some 3 GB to download; for the CPU build (0.2 GB) set
PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu. `make lowest` runs this file, and pytest does not.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
UNTESTED = ("test", "dev", "docs", "gpu")  # tools for development, and the extra that replaces cpu
TOOLS = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis")
TESTS = ("core/test_dispatch.py", "core/test_layer.py", "export", "training/test_train.py")


def lowest_versions(project: dict[str, Any]) -> dict[str, str]:
    """The lower bound of every package that is required by [project] of pyproject.toml, by its name.

    Raises:
        ValueError: a package has no lower bound, or two different ones.
    """
    lines = [*project["dependencies"]]
    for extra, requirements in project["optional-dependencies"].items():
        lines += requirements if extra not in UNTESTED else []
    versions: dict[str, str] = {}
    for line in lines:
        match = re.match(r"([\w.-]+)(?:\[[\w,-]+\])?>=([\w.]+)", line)
        if match is None:
            raise ValueError(f"'{line}' has no lower bound; write it as name>=version")
        name, version = match.groups()
        if versions.setdefault(name, version) != version:
            raise ValueError(f"{name} has the lower bounds {versions[name]} and {version}")
    return versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    folder = parser.parse_args().folder.resolve()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = lowest_versions(project)
    venv.create(folder, with_pip=True, clear=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    constraints = folder / "lowest.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in versions.items()))
    extras = ",".join(extra for extra in project["optional-dependencies"] if extra not in UNTESTED)
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "--constraint", constraints, "-e", f"{ROOT}[{extras}]", *TOOLS)
    run(python, "-m", "mdlstm_tk", "train", "--steps", "100", "-o", folder / "demo")
    run(python, "-m", "mdlstm_tk", "export", folder / "demo", "--size", "8")
    run(python, "-m", "mdlstm_tk", "verify", folder / "demo")
    run(python, "-m", "pytest", "-q", *(ROOT / "tests" / name for name in TESTS))


def run(*command: object) -> None:
    print("+", *command, flush=True)
    if code := subprocess.run([*map(str, command)], cwd=ROOT, check=False).returncode:
        sys.exit(code)


if __name__ == "__main__":
    main()
