"""`mdlstm doctor`: what it finds, and that it works where next to nothing is installed."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers.checkout import ROOT, modules
from helpers.without_packages import TRAINING, python_without
from packaging.requirements import Requirement

from mdlstm_tk._util.diagnostics import (
    JOBS,
    UNCHECKED,
    Check,
    _package,
    _writable,
    check_installation,
    missing_jobs,
)
from mdlstm_tk._util.installation import install_command
from mdlstm_tk.cli import main
from mdlstm_tk.errors import MissingExtraError, require
from mdlstm_tk.runtime import cuda

Checks = dict[str, Check]


def checks() -> Checks:
    return {check.name: check for check in check_installation()}


def test_this_installation_is_fine(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--json"])
    out, err = capfd.readouterr()
    by_name = {check["name"]: check for check in json.loads(out)}
    assert ended.value.code == 0, err
    assert not [check for check in by_name.values() if check["state"] == "broken"]
    for name in (
        *("numpy", "torch", "onnx", "numba"),
        *("onnxruntime on CPU", "Numba's cache", "kernels for the CPU"),
    ):
        assert by_name[name]["state"] == "ok", by_name[name]
    assert by_name["numpy"]["found"] == np.__version__
    assert by_name["onnxruntime on CPU"]["found"] == "ran on CPUExecutionProvider"
    assert all((check["fix"] is None) == (check["state"] == "ok") for check in by_name.values())
    assert "next: mdlstm demo" in err


def test_packages_are_imported_by_their_module_names() -> None:
    found = checks()
    for package, module in (("scikit-learn", "sklearn"), ("pillow", "PIL"), ("scikit-image", "skimage")):
        pytest.importorskip(module)
        assert found[package].state == "ok"
        assert found[package].jobs


def test_a_bare_installation_lists_what_is_missing_for_which_job(tmp_path: Path) -> None:
    code = "from mdlstm_tk.cli import main; main(['doctor'])"
    done = python_without((*TRAINING, "onnxruntime", "triton", "llvmlite"), code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert f"to {JOBS['train']}: {install_command(['train'])}" in done.stderr
    assert f"to {JOBS['cpu']}: {install_command(['cpu'])}" in done.stderr
    assert f"next: {install_command(['cpu', 'train'])}" in done.stderr
    assert "mdlstm demo" not in done.stderr


def test_a_clone_that_is_not_installed_reads_its_own_requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    installed = {check.name: check.jobs for check in check_installation()}
    monkeypatch.setattr(metadata, "requires", not_installed)
    found = {check.name: check.jobs for check in check_installation()}
    assert found.keys() >= {"numpy", "torch", "onnxruntime", "scikit-learn"}
    assert found == {name: installed.get(name, jobs) for name, jobs in found.items()}


def test_every_extra_is_known() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras) <= {*JOBS, *UNCHECKED}


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
        assert "'train'" in needs[name] and install_command(["train"]) in needs[name]
    assert "mdlstm_tk.runtime" not in needs


@pytest.mark.parametrize(
    ("module", "package"), [("PIL.Image", "pillow"), ("no_such_module", "no_such_module")]
)
def test_a_missing_package_is_named_as_pip_knows_it(
    module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (module, module.split(".")[0]):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError) as caught:
        require(module, "image")
    assert f"'{package}'" in str(caught.value) and install_command(["image"]) in str(caught.value)


def test_a_runtime_installation_can_run_models_but_not_train(tmp_path: Path) -> None:
    code = "from mdlstm_tk.cli import main; main(['doctor'])"
    done = python_without(TRAINING, code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"to {JOBS['cpu']}" not in done.stderr
    assert f"next: {install_command(['train'])}" in done.stderr


def with_module(name: str, **contents: Any) -> Callable[[pytest.MonkeyPatch], None]:
    """Replace a module."""

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
    monkeypatch.setattr("torch.allclose", lambda *_, **__: False)


TRAIN = install_command(["train"], "--upgrade")
TROUBLES = {
    "both runtimes": (both_runtimes, "one onnxruntime", "broken", "pip uninstall -y onnxruntime onnx"),
    "an old package": (with_module("safetensors", __version__="0.4.9rc1"), "safetensors", "broken", TRAIN),
    "a package that does not load": (broken_import, "safetensors", "broken", TRAIN),
    "a cache that cannot be written": (no_cache, "Numba's cache", "absent", "NUMBA_CACHE_DIR"),
    "a compiler that is wrong": (wrong_numbers, "kernels for the CPU", "broken", "another result"),
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
        main(["doctor", *(["-q"] if state == "broken" else [])])
    out, err = capfd.readouterr()
    assert name in out
    assert check.fix in err
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


@pytest.mark.parametrize(
    ("specifier", "state"),
    [(">=1.26", "ok"), (">=9", "broken"), (f">=1.26,<{np.__version__}", "broken"), ("!=0", "ok")],
)
def test_versions_are_compared_with_the_whole_requirement(specifier: str, state: str) -> None:
    assert _package(Requirement(f"numpy{specifier}"), ()).state == state


def test_a_required_package_that_is_missing_is_broken_and_an_optional_one_absent() -> None:
    requirement = Requirement("no-such-package>=1")
    assert _package(requirement, ()).state == "broken"
    check = _package(requirement, ("ray",))
    assert check.state == "absent"
    assert missing_jobs([check]) == {JOBS["ray"]: install_command(["ray"])}


def test_folders_that_do_not_exist_yet_may_be_writable(tmp_path: Path) -> None:
    assert _writable(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    assert not _writable(tmp_path / "file" / "b")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (None, "pip install 'mdlstm-tk[train]'"),
        ({"url": "https://example.org/mdlstm_tk.whl"}, "pip install 'mdlstm-tk[train]'"),
        ({"url": "file:///gone/clone", "dir_info": {}}, "pip install 'mdlstm-tk[train]'"),
        ({"url": "file://{clone}", "dir_info": {}}, "pip install '{clone}[train]'"),
        (
            {"url": "file://{clone}", "dir_info": {"editable": True}},
            "pip install -e '{clone}[train]'",
        ),
    ],
    ids=["index", "wheel", "clone that is gone", "clone", "editable clone"],
)
def test_hints_name_what_was_installed(
    record: dict[str, Any] | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Installed:
        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return None if record is None else json.dumps(record).replace("{clone}", str(tmp_path))

    monkeypatch.setattr(metadata, "distributions", lambda **_: [Installed()])
    assert install_command(["train"]) == expected.replace("{clone}", str(tmp_path))
