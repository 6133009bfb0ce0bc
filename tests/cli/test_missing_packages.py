"""The runtime needs neither torch nor onnx, and a package that is missing is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.without_packages import TRAINING, python_without

from mdlstm_tk.errors import install_command


def test_infer_runs_where_neither_torch_nor_onnx_can_be_imported(model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "matrix.npy", np.eye(8))
    code = "from mdlstm_tk.cli import main; main(sys.argv[1:])"
    done = python_without(TRAINING, code, "infer", "matrix.npy", "-m", model, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "cpu" in done.stderr
    assert np.load(tmp_path / "matrix.out.npy").shape == (8, 8)
    for arguments in (("info", model), ("--help",), ("infer", "--help")):
        assert python_without(TRAINING, code, *arguments, cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("verb", ["train", "export", "verify", "compare", "demo"])
def test_verbs_that_need_torch_name_the_command_that_installs_it(verb: str, tmp_path: Path) -> None:
    code = "from mdlstm_tk.cli import main; main(sys.argv[1:])"
    arguments = [verb, "m.onnx"] if verb == "verify" else [verb]
    done = python_without(TRAINING, code, *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().endswith(install_command("train"))
    assert "Traceback" not in done.stderr


def test_without_onnxruntime_infer_names_the_command_that_installs_it(model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "matrix.npy", np.eye(8))
    code = "from mdlstm_tk.cli import main; main(sys.argv[1:])"
    done = python_without(("onnxruntime",), code, "infer", "matrix.npy", "-m", model, cwd=tmp_path)
    assert done.returncode == 1
    assert install_command("cpu") in done.stderr


def test_importing_the_package_imports_nothing_heavy(tmp_path: Path) -> None:
    code = "import mdlstm_tk, mdlstm_tk.runtime, mdlstm_tk.cli; print(sorted(set({!r}) & set(sys.modules)))"
    heavy = (*TRAINING, "onnxruntime")
    done = python_without((), code.format(heavy), cwd=tmp_path)
    assert done.stdout.strip() == "[]"
