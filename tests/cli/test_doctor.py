"""`mdlstm doctor`: what it finds, and that it works where next to nothing is installed."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from helpers.checkout import modules
from helpers.command import mdlstm
from helpers.without_packages import TRAINING, python_without

from mdlstm_tk.errors import DeviceError, MissingExtraError, install_command, require
from mdlstm_tk.installation import Check, check_installation


def checks() -> dict[str, Check]:
    return {check.name: check for check in check_installation()}


def test_this_installation_is_fine() -> None:
    done = mdlstm("doctor", "--json")
    assert done.code == 0, done.err
    by_name = {check["name"]: check for check in json.loads(done.out)}
    assert not [check for check in by_name.values() if check["state"] == "broken"]
    for name in ("numpy", "torch", "onnx", "numba", "onnxruntime on CPU", "kernels for the CPU"):
        assert by_name[name]["state"] == "ok", by_name[name]
    assert by_name["numpy"]["found"] == np.__version__
    assert by_name["onnxruntime on CPU"]["found"] == "ran on CPUExecutionProvider"
    assert "kept in" in by_name["kernels for the CPU"]["found"]
    assert not {"pytest", "ruff", "sphinx"} & by_name.keys()
    assert "next: mdlstm demo" in done.err


def test_a_bare_clone_is_checked_without_its_requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "mdlstm-tk":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    assert checks()["onnxruntime on CPU"].state == "ok"


def test_packages_that_are_not_installed_are_named_with_their_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = ["no-such-base>=1", 'no-such-ray>=1; extra == "ray"', 'no-such-linter; extra == "dev"']
    monkeypatch.setattr(metadata, "requires", lambda name: lines)
    by_name = checks()
    assert by_name["no-such-base"].state == "broken"
    assert by_name["no-such-ray"].state == "absent"
    assert by_name["no-such-ray"].found == f"not installed; {install_command('ray')}"
    assert "no-such-linter" not in by_name


def test_two_runtimes_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version
    names = ("onnxruntime", "onnxruntime-gpu")
    monkeypatch.setattr(metadata, "version", lambda name: "1.32.0" if name in names else real(name))
    done = mdlstm("doctor")
    assert done.code == 1 and "one onnxruntime" in done.out
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in done.err.splitlines()[-1]


def test_an_onnxruntime_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, state in (
        (OSError("libfoo.so is gone"), "broken"),
        (ModuleNotFoundError("No module named 'flatbuffers'", name="flatbuffers"), "broken"),
        (DeviceError("no GPU"), "absent"),
    ):
        create_session = Mock(side_effect=error)
        monkeypatch.setattr("mdlstm_tk.runtime.providers.create_session", create_session)
        assert checks()["onnxruntime on CPU"] == Check("onnxruntime on CPU", state, str(error))


def test_kernels_that_cannot_be_kept_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/dev/null/numba")
    check = checks()["kernels for the CPU"]
    assert check.state == "ok" and "set NUMBA_CACHE_DIR" in check.found


def test_a_runtime_installation_can_run_models_but_not_train(tmp_path: Path) -> None:
    code = "from mdlstm_tk.cli import main; main(['doctor'])"
    done = python_without(TRAINING, code, cwd=tmp_path)
    assert "Traceback" not in done.stderr
    assert "ran on CPUExecutionProvider" in done.stdout


def test_packages_name_the_extra_that_they_need(tmp_path: Path) -> None:
    """Importing the public names of a package works, or says which extra is missing."""
    code = """
import importlib, sys
from mdlstm_tk import MissingExtraError
for name in sys.argv[1:]:
    try:
        module = importlib.import_module(name)
        [getattr(module, public) for public in getattr(module, "__all__", ())]
    except MissingExtraError as error:
        print(name, error)
"""
    packages = [name for name, path in modules().items() if path.name == "__init__.py"]
    absent = (*TRAINING, "onnxruntime", "triton", "llvmlite", "jinja2", "rapidfuzz", "PIL", "sklearn")
    done = python_without(absent, code, *packages, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    needs = {line.split()[0]: line for line in done.stdout.splitlines()}
    for name in ("mdlstm_tk", "mdlstm_tk.export", "mdlstm_tk.models", "mdlstm_tk.training"):
        assert "'train'" in needs[name] and install_command("train") in needs[name]
    assert "mdlstm_tk.runtime" not in needs


def test_a_missing_package_is_named_as_pip_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIL", "PIL.Image"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match="'pillow'"):
        require("PIL.Image", "image")
