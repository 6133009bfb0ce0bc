"""`mdlstm_tk.runtime.io.files`: files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.runtime.io.files import TEMPORARY_SUFFIX, atomic_write, ensure_writable, is_empty, staging
from mdlstm_tk.runtime.jobs import find_files
from mdlstm_tk.runtime.model_discovery import models_in


def test_a_file_appears_when_it_is_written(tmp_path: Path) -> None:
    target = tmp_path / "new" / ("x" * 200 + ".npy")
    with atomic_write(target) as temporary:
        temporary.write_bytes(b"1")
        assert temporary.parent == target.parent and not target.exists()
        assert is_empty(target.parent)
    assert target.read_bytes() == b"1" and list(target.parent.iterdir()) == [target]
    with pytest.raises(ZeroDivisionError), atomic_write(target) as temporary:
        temporary.write_bytes(bytes([1 // 0]))
    assert target.read_bytes() == b"1" and list(target.parent.iterdir()) == [target]


def test_a_folder_of_parts_goes_with_what_was_not_moved(tmp_path: Path) -> None:
    with staging(tmp_path / "new") as stage:
        (stage / "kept").write_text("a")
        (stage / "part").write_text("b")
        assert is_empty(tmp_path / "new")
        os.replace(stage / "kept", tmp_path / "new/kept")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["kept"]
    assert not is_empty(tmp_path / "new") and is_empty(tmp_path / "none")


def test_searches_pass_over_what_a_killed_process_leaves(tmp_path: Path) -> None:
    for name in ("x.npy", f".x.npy.0123{TEMPORARY_SUFFIX}", "m.onnx", f".m.onnx.0123{TEMPORARY_SUFFIX}"):
        (tmp_path / name).touch()
    assert models_in(tmp_path) == [tmp_path / "m.onnx"]
    files, _ = find_files([str(tmp_path)], None)
    assert [file.relative for file in files] == ["x.npy"]


def test_a_file_in_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MDLSTMError, match="cannot write"), atomic_write(tmp_path / "file/x"):
        pass
    with pytest.raises(InputError, match="expected a folder"), staging(tmp_path / "file/x"):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="needs named pipes")
def test_what_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr/zarr.json").touch()
    for name, force, message in (
        ("file", False, "force=True"),
        ("a.zarr", False, "force=True"),
        ("pipe", True, "not a regular file"),
        ("", True, "is a folder"),
    ):
        with pytest.raises(InputError, match=message):
            ensure_writable(tmp_path / name, force)
    for name in ("file", "a.zarr", "new"):
        ensure_writable(tmp_path / name, True)
