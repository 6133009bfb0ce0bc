"""`mdlstm doctor`: what it finds, and that it works where next to nothing is installed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers.without_packages import TRAINING, python_without

from mdlstm_tk.cli import doctor, main
from mdlstm_tk.cli.doctor import _checks, _numbers, _writable
from mdlstm_tk.runtime import cuda

Checks = dict[str, doctor.Check]


def checks() -> Checks:
    return {check.name: check for check in _checks()}


def test_all_is_well_here(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--json"])
    out, err = capfd.readouterr()
    found = {check["name"]: check for check in json.loads(out)}
    assert ended.value.code == 0, err
    assert "nothing is broken" in err
    assert not [check for check in found.values() if check["state"] == "broken"]
    for name in (
        "numpy",
        "torch",
        "onnx",
        "numba",
        "onnxruntime on CPU",
        "Numba compiles",
        "Numba's cache",
    ):
        assert found[name]["state"] == "ok", found[name]
    assert found["numpy"]["found"] == np.__version__
    assert found["onnxruntime on CPU"]["found"] == "ran on CPUExecutionProvider"
    assert all((check["fix"] is None) == (check["state"] == "ok") for check in found.values())


def test_where_nothing_optional_is_installed_nothing_is_broken(tmp_path: Path) -> None:
    code = "from mdlstm_tk.cli import main; main(['doctor'])"
    done = python_without((*TRAINING, "onnxruntime", "triton", "llvmlite"), code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "torch (absent): pip install --upgrade 'mdlstm-tk[train]'" in done.stderr
    assert "onnxruntime (absent): pip install --upgrade 'mdlstm-tk[cpu]'" in done.stderr
    assert "not installed, part of [train]" in done.stdout


def with_module(name: str, **contents: Any) -> Callable[[pytest.MonkeyPatch], None]:
    """Put a module in place of another."""

    def put(monkeypatch: pytest.MonkeyPatch) -> None:
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)

    return put


def both_runtimes(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version
    names = ("onnxruntime", "onnxruntime-gpu")
    monkeypatch.setattr(metadata, "version", lambda name: "1.32.0" if name in names else real(name))


def broken_import(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "safetensors":
                raise OSError("libfoo.so: cannot open shared object file")

    monkeypatch.delitem(sys.modules, "safetensors", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])


def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/dev/null/numba")


def wrong_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    import numba

    monkeypatch.setattr(numba, "njit", lambda function: lambda x: 41)


TROUBLES = {
    "both runtimes": (both_runtimes, "one onnxruntime", "broken", "pip uninstall -y onnxruntime onnx"),
    "an old package": (
        with_module("safetensors", __version__="0.4.9rc1"),
        "safetensors",
        "broken",
        "pip install --upgrade 'mdlstm-tk[train]'",
    ),
    "a package that does not load": (broken_import, "safetensors", "broken", "mdlstm-tk[train]"),
    "a cache that cannot be written": (no_cache, "Numba's cache", "absent", "set NUMBA_CACHE_DIR"),
    "a compiler that is wrong": (wrong_numbers, "Numba compiles", "broken", "computes something else"),
}


@pytest.mark.parametrize("case", TROUBLES)
def test_what_is_wrong_is_found(
    case: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    make, name, state, fix = TROUBLES[case]
    make(monkeypatch)
    check = checks()[name]
    assert check.state == state
    assert check.fix is not None and fix in check.fix
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    out, err = capfd.readouterr()
    assert name in out
    assert f"{name} ({state}): {check.fix}" in err.replace("\n", "")
    assert ended.value.code == (1 if state == "broken" else 0)
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("driver", "state"), [(True, "broken"), (False, "absent")], ids=["driver", "no driver"]
)
def test_cuda_that_does_not_start_is_broken_where_there_is_a_driver(
    driver: bool, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(onnxruntime, "cuda_version", "13.0")
    monkeypatch.setattr(cuda, "missing_libraries", lambda names: [] if driver else names)
    start = onnxruntime.InferenceSession
    cpu = {"providers": ["CPUExecutionProvider"]}
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda data, options, **_: start(data, options, **cpu)
    )
    check = checks()["onnxruntime on CUDA"]
    assert check.state == state
    assert check.fix is not None and ("nvidia-smi" if driver else "no NVIDIA driver") in check.fix


def test_versions_compare_by_their_numbers() -> None:
    assert _numbers("2.13.0+cpu") == (2, 13, 0) > _numbers("2.8")
    assert _numbers("1.21") < _numbers("1.100.0rc1")


def test_folders_that_are_not_there_yet_may_be_writable(tmp_path: Path) -> None:
    assert _writable(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    assert not _writable(tmp_path / "file" / "b")
