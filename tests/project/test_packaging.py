"""Contents of the wheel and the sdist."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
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


def installed(path: Path) -> str:
    """The place of a source file once it is installed."""
    return path.as_posix() if path.parts[0] == "mdlstm_tk" else f"mdlstm_tk/{path.as_posix()}"


def build(source: Path, *options: str) -> Path:
    """Build a distribution beside the source tree and return the folder that holds it."""
    folder = source.parent / "dist"
    command = [sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", folder, source]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    copy_checkout(folder / "checkout")
    (archive,) = build(folder / "checkout", "--sdist").glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    (unpacked,) = folder.glob("mdlstm_tk-*")
    return unpacked


@pytest.mark.slow
def test_the_sdist_holds_the_checkout(sdist: Path) -> None:
    """Tests with their helpers, documentation, changelog and benchmarks included, and each file once."""
    held = {path.relative_to(sdist) for path in sdist.rglob("*") if path.is_file()}
    expected = {Path(installed(path.relative_to(ROOT))) for path in modules().values()}
    expected |= {Path(installed(path)) for path in DATA}
    expected |= {Path(name) for name in ("pyproject.toml", "LICENSE", "README.md")}
    expected |= {Path(name) for name in ("CHANGELOG.md", "CONTRIBUTING.md", "Makefile", ".ci/run")}
    expected |= {Path(name) for name in ("CITATION.cff", "CODE_OF_CONDUCT.md", ".pre-commit-config.yaml")}
    suffixes = (".css", ".ipynb", ".md", ".png", ".py", ".svg", ".yml")
    for name in ("tests", "benchmarks", "docs", "examples", ".github"):
        sources = (path for path in (ROOT / name).rglob("*") if path.suffix in suffixes)
        expected |= {path.relative_to(ROOT) for path in sources}
    assert Path("tests/helpers/checkout.py") in expected
    assert expected - held == set()
    assert not any((sdist / folder).exists() for folder in FOLDERS[1:])


@pytest.mark.slow
def test_the_wheel_holds_one_package_with_every_file(sdist: Path) -> None:
    (wheel,) = build(sdist, "--wheel").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    held = {name for name in names if ".dist-info/" not in name}
    assert held == {installed(path.relative_to(ROOT)) for path in modules().values()} | {
        installed(path) for path in DATA
    }
    (described,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    description = zipfile.ZipFile(wheel).read(described).decode()
    links = re.findall(r"\]\(([^)]+)\)", description)
    assert len(links) > 10
    paths = [link.partition("#")[0] for link in links if not link.startswith(("https://", "#"))]
    assert [path for path in paths if not (ROOT / path).is_file()] == []


def test_every_dependency_has_a_lower_bound() -> None:
    """`make lowest` installs exactly these."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        lines += extra
    versions: dict[str, set[str]] = {}
    for line in lines:
        match = re.match(r"([\w.-]+)>=([\w.]+)", line)
        assert match, line
        versions.setdefault(match[1], set()).add(match[2])
    assert {"numpy", "onnxruntime", "torch", "onnx", "ray", "scikit-learn"} <= versions.keys()
    assert [name for name, each in versions.items() if len(each) > 1] == []


def test_the_citation_is_of_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: \"?([^\"\n]+)", citation, re.MULTILINE) == [__version__]
