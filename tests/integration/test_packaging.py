"""The layout's promises: what the wheel holds, who imports whom, and which names are public."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import mdlstm_tk
import mdlstm_tk.export
import mdlstm_tk.models
import mdlstm_tk.runtime
from mdlstm_tk import errors

ROOT = Path(__file__).parents[2]
PARTS = ("mdlstm_tk", "models", "cli", "export")


def sources(part: str) -> list[Path]:
    paths = (path.relative_to(ROOT) for path in (ROOT / part).rglob("*.py"))
    return [p for p in paths if not (part == "mdlstm_tk" and p.parts[1] in PARTS)]


def installed(path: Path) -> Path:
    """Where a source file lies once it is installed."""
    return path if path.parts[0] == "mdlstm_tk" else Path("mdlstm_tk") / path


def imports(path: Path) -> set[str]:
    """The modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_the_wheel_holds_one_package_with_every_file(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"mdlstm_tk"}
    expected = {
        str(p) if p.parts[0] == "mdlstm_tk" else f"mdlstm_tk/{p}" for part in PARTS for p in sources(part)
    }
    assert {name for name in names if name.endswith(".py")} == expected
    assert "mdlstm_tk/py.typed" in names
    page = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "export/browser/static").rglob("*")
        if path.is_file()
    }
    assert page and {f"mdlstm_tk/{path}" for path in page} <= names
    template = {str(path.relative_to(ROOT)) for path in (ROOT / "mdlstm_tk/report").glob("report.*")}
    assert len(template) == 2 and template <= names


def test_every_folder_with_code_is_listed_for_packaging() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {p.parent for part in PARTS for p in sources(part)}
    expected = {
        ".".join(f.parts) if f.parts[0] == "mdlstm_tk" else f"mdlstm_tk.{'.'.join(f.parts)}"
        for f in folders
    }
    assert set(listed) == expected


FORBIDDEN = {
    "models": ("mdlstm_tk.cli", "mdlstm_tk.export", "mdlstm_tk.training"),
    "export": ("mdlstm_tk.cli",),
    "cli": (),
    "mdlstm_tk": ("mdlstm_tk.cli", "mdlstm_tk.export"),
}


@pytest.mark.parametrize("part", PARTS)
def test_who_may_import_whom(part: str) -> None:
    for path in sources(part):
        if path.name == "__main__.py":
            continue
        for name in imports(path):
            assert not name.startswith(FORBIDDEN[part] or "?"), f"{path} imports {name}"


def test_the_core_does_not_import_the_networks() -> None:
    """Training is where networks, tasks and the layer meet; nothing below it knows a network."""
    for path in sources("mdlstm_tk"):
        if path.parts[1] != "training":
            assert not any(name.startswith("mdlstm_tk.models") for name in imports(path)), path


def test_the_runtime_imports_neither_torch_nor_onnx() -> None:
    for path in sources("mdlstm_tk"):
        if path.parts[1] == "runtime":
            assert not any(name.split(".")[0] in ("torch", "onnx") for name in imports(path)), path


def test_public_names() -> None:
    assert set(mdlstm_tk.__all__) == {
        "MDLSTM",
        "DeviceError",
        "InputError",
        "MDLSTMError",
        "MissingExtraError",
        "ParityError",
        "__version__",
    }
    assert set(mdlstm_tk.runtime.__all__) == {
        "Inference",
        "Metadata",
        "Outcome",
        "Session",
        "infer_paths",
        "load_array",
        "save_array",
    }
    assert {"export_onnx", "export_run", "verify_model"} <= set(mdlstm_tk.export.__all__)
    assert {"create", "register"} <= set(mdlstm_tk.models.__all__)
    for module in (mdlstm_tk, mdlstm_tk.runtime, mdlstm_tk.export, mdlstm_tk.models):
        assert all(hasattr(module, name) for name in module.__all__)


def test_exit_codes_are_the_documented_ones() -> None:
    codes = {
        kind.__name__: kind.exit_code for kind in (errors.MDLSTMError, *errors.MDLSTMError.__subclasses__())
    }
    assert codes == {
        "MDLSTMError": 1,
        "InputError": 2,
        "ParityError": 3,
        "DeviceError": 4,
        "MissingExtraError": 1,
    }
