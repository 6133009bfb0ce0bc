"""`mdlstm_tk.runtime.io.files`: files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.runtime.io.files import atomic_write, ensure_writable, is_empty, staging
from mdlstm_tk.runtime.io.npy import load_array, read_model
from mdlstm_tk.runtime.model_discovery import find_models


def test_a_file_appears_when_it_is_written(tmp_path: Path) -> None:
    target = tmp_path / "new" / ("x" * 200 + ".npy")
    with atomic_write(target) as temporary:
        temporary.write_bytes(b"1")
        assert temporary.parent == target.parent and not target.exists()
        assert is_empty(target.parent)  # also after a kill
    assert not is_empty(target.parent) and is_empty(tmp_path / "none")
    assert target.read_bytes() == b"1" and list(target.parent.iterdir()) == [target]
    with pytest.raises(ZeroDivisionError), atomic_write(target) as temporary:
        temporary.write_bytes(bytes([1 // 0]))
    assert target.read_bytes() == b"1" and list(target.parent.iterdir()) == [target]


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


def test_a_path_that_no_file_can_have_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 300)
    ensure_writable(path, False)
    with pytest.raises(MDLSTMError, match="File name too long"), atomic_write(path) as temporary:
        temporary.touch()
    assert find_models(path) == [path]
    with pytest.raises(InputError, match="File name too long"):
        read_model(path, 1, "")
    for name in ("a\0b", "\ud800"):
        with pytest.raises(InputError, match="cannot read"):
            read_model(Path(name), 1, "")
        with pytest.raises(InputError, match="cannot read"):
            load_array(name)


def test_a_folder_that_cannot_exist_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / ("n" * 300)
    with pytest.raises(MDLSTMError, match="File name too long"):
        is_empty(folder)
    with pytest.raises(MDLSTMError, match="File name too long"), staging(folder):
        pass
