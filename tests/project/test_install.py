"""Installing from a checkout, and what the wheel and the sdist hold."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from helpers.checkout import FOLDERS, ROOT, copy_checkout, modules

from mdlstm_tk import __version__

DATA = [  # files beside the modules that the package reads
    Path("mdlstm_tk/py.typed"),
    *(path.relative_to(ROOT) for path in (ROOT / "mdlstm_tk").glob("*/report.[hc]*")),
    *(path.relative_to(ROOT) for path in (ROOT / "export/browser/static").rglob("*") if path.is_file()),
]
# Where the folders lie, without the seconds that importing torch takes.
FIND = """
import mdlstm_tk.cli.console
from importlib.util import find_spec
print(*(find_spec(f"mdlstm_tk.{name}").origin for name in ("cli.console", "models", "export")))
"""


def run(*command: object, cwd: Path, check: bool = True) -> str:
    """Run a command in a folder, and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    result = subprocess.run([*map(str, command)], cwd=cwd, env=environment, check=False, **output)  # type: ignore[call-overload]
    assert result.returncode == 0 or not check, result.stdout
    return str(result.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("editable", [True, False], ids=["editable", "wheel"])
def test_install_from_a_checkout(editable: bool, tmp_path: Path) -> None:
    """Into an environment that sees what is installed around it, so that nothing is downloaded."""
    checkout, elsewhere, environment = (tmp_path / name for name in ("checkout", "elsewhere", "venv"))
    copy_checkout(checkout)
    elsewhere.mkdir()
    venv.create(environment, symlinks=os.name != "nt")
    scripts = environment / ("Scripts" if os.name == "nt" else "bin")
    paths = sysconfig.get_paths(vars={"base": str(environment), "platbase": str(environment)})
    Path(paths["purelib"], "outer.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")
    options = ("--quiet", "--ignore-installed", "--no-deps", "--no-build-isolation", "--no-index")
    pip = (sys.executable, "-m", "pip", "--python", scripts / "python", "install", *options)
    run(*pip, *["-e"] * editable, checkout, cwd=environment)
    assert run(scripts / "mdlstm", "--version", cwd=elsewhere) == f"mdlstm-tk {__version__}\n"
    origins = run(scripts / "python", "-c", FIND, cwd=elsewhere).split()
    assert len(origins) == 3
    assert all((checkout in Path(path).parents) == editable for path in origins)


@pytest.mark.slow
def test_links_that_arrived_as_text_files_are_one_line_of_advice(tmp_path: Path) -> None:
    """As `git clone -c core.symlinks=false` and zip files leave them."""
    checkout = copy_checkout(tmp_path / "checkout")
    for link in (checkout / "mdlstm_tk" / folder for folder in FOLDERS[1:]):
        target = link.readlink()
        link.unlink()
        link.write_text(str(target))
    output = run(sys.executable, "-m", "mdlstm_tk", "--version", cwd=checkout, check=False)
    assert "git clone -c core.symlinks=true" in output.splitlines()[-1]


def installed(path: Path) -> str:
    """The place of a source file once it is installed."""
    return path.as_posix() if path.parts[0] == "mdlstm_tk" else f"mdlstm_tk/{path.as_posix()}"


@pytest.mark.slow
def test_the_sdist_holds_the_checkout_and_the_wheel_one_package(tmp_path: Path) -> None:
    build = (sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path)
    run(*build, "--sdist", copy_checkout(tmp_path / "checkout"), cwd=tmp_path)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as file:
        file.extractall(tmp_path, filter="data")
    (sdist,) = tmp_path.glob("mdlstm_tk-*/")
    held = {path.relative_to(sdist) for path in sdist.rglob("*") if path.is_file()}
    package = {Path(installed(path.relative_to(ROOT))) for path in modules().values()}
    package |= {Path(installed(path)) for path in DATA}
    names = "pyproject.toml LICENSE README.md CHANGELOG.md CONTRIBUTING.md Makefile .ci/run CITATION.cff"
    expected = package | {Path(name) for name in names.split()}
    for name in ("tests", "benchmarks", "docs", "examples"):
        sources = (path.relative_to(ROOT) for path in (ROOT / name).rglob("*"))
        expected |= {path for path in sources if path.suffix in (".md", ".png", ".py", ".svg")}
    assert expected - held == set()
    assert not any((sdist / folder).exists() for folder in FOLDERS[1:])  # each file once
    run(*build, "--wheel", sdist, cwd=tmp_path)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        files = {name for name in wheel.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        links = re.findall(r"\]\(([^)]+)\)", wheel.read(metadata).decode())
    assert files == {path.as_posix() for path in package}
    relative = [link.partition("#")[0] for link in links if not link.startswith(("https://", "#"))]
    assert len(links) > 10 and all((ROOT / link).is_file() for link in relative)
