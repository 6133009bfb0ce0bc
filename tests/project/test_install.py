"""Installing from a checkout; where its symbolic links arrived as text files, one line says what to do."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from helpers.checkout import copy_checkout

import mdlstm_tk

pytestmark = pytest.mark.slow

ENV = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
# Where the folders lie, without the seconds that importing torch takes.
FIND = """
import mdlstm_tk.cli.console
from importlib.util import find_spec
print(*(find_spec(f"mdlstm_tk.{name}").origin for name in ("cli.console", "models", "export")))
"""
TYPED = """
from mdlstm_tk import MDLSTM
from mdlstm_tk.export import export_onnx
from mdlstm_tk.models import create
from mdlstm_tk.cli.console import note
import mdlstm_tk.nonsense
"""


def run(*command: object, cwd: Path, check: bool = True) -> str:
    """Run a command in a folder, and return what it prints."""
    result = subprocess.run(
        [*map(str, command)], cwd=cwd, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert result.returncode == 0 or not check, result.stdout
    return result.stdout


class Environment:
    """A virtual environment that sees what is installed around it, so that nothing is downloaded."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, symlinks=os.name != "nt")
        self.folder = folder
        scripts = folder / ("Scripts" if os.name == "nt" else "bin")
        self.python = scripts / "python"
        self.mdlstm = scripts / "mdlstm"
        paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
        outer = Path(sysconfig.get_paths()["purelib"])
        Path(paths["purelib"], "outer.pth").write_text(f"{outer}\n")

    def install(self, *arguments: object) -> None:
        options = ("--quiet", "--ignore-installed", "--no-deps", "--no-build-isolation", "--no-index")
        pip = (sys.executable, "-m", "pip", "--python", self.python, "install", *options)
        run(*pip, *arguments, cwd=self.folder)


@pytest.mark.parametrize("editable", [True, False], ids=["editable", "wheel"])
def test_install_from_a_checkout(editable: bool, tmp_path: Path) -> None:
    checkout = copy_checkout(tmp_path / "checkout")
    environment = Environment(tmp_path / "venv")
    environment.install(*(("-e",) if editable else ()), checkout)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert run(environment.mdlstm, "--version", cwd=elsewhere).split() == [
        "mdlstm-tk",
        mdlstm_tk.__version__,
    ]
    origins = run(environment.python, "-c", FIND, cwd=elsewhere).split()
    assert len(origins) == 3
    assert all((checkout in Path(path).parents) == editable for path in origins)
    assert "No module named" in run(
        environment.python, "-c", "import mdlstm_tk.tests", cwd=elsewhere, check=False
    )
    if editable:
        (elsewhere / "typed.py").write_text(TYPED)
        options = ("--python-executable", environment.python, "--follow-imports=skip")
        complaints = run(sys.executable, "-m", "mypy", *options, "typed.py", cwd=elsewhere, check=False)
        assert "mdlstm_tk.nonsense" in complaints and "Found 1 error in 1 file" in complaints, complaints


def test_run_from_a_checkout_without_installing(tmp_path: Path) -> None:
    checkout = copy_checkout(tmp_path / "checkout")
    assert mdlstm_tk.__version__ in run(sys.executable, "-m", "mdlstm_tk", "--version", cwd=checkout)
    origins = run(sys.executable, "-c", FIND, cwd=checkout).split()
    assert len(origins) == 3 and all(checkout in Path(path).parents for path in origins)


def test_links_that_arrived_as_text_files_are_one_line_of_advice(tmp_path: Path) -> None:
    checkout = copy_checkout(tmp_path / "checkout", symlinks=False)
    output = run(sys.executable, "-m", "mdlstm_tk", "--version", cwd=checkout, check=False)
    assert "git clone -c core.symlinks=true" in output.splitlines()[-1]
