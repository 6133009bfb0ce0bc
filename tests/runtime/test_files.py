"""`mdlstm_tk.runtime.io.files`: files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.runtime.io.files import atomic_write, ensure_writable, is_empty, locked, publish, staging
from mdlstm_tk.runtime.io.npy import load_array, read_model_file
from mdlstm_tk.runtime.model_discovery import find_models
from mdlstm_tk.runtime.tiles.sources import fingerprint


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


@pytest.mark.skipif(sys.platform == "win32", reason="needs links and permissions")
def test_a_link_leads_to_the_file_that_is_written_and_permissions_stay(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for mode in (0o600, 0o444, 0o755):
        real, link = tmp_path / "other/y", tmp_path / "y"
        real.write_bytes(b"old")
        real.chmod(mode)
        link.unlink(missing_ok=True)
        link.symlink_to("other/y")
        with atomic_write(link) as temporary:
            temporary.write_bytes(b"new")
            assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
        assert link.is_symlink() and real.read_bytes() == b"new"
        assert stat.S_IMODE(real.stat().st_mode) == mode
        real.unlink()
    with atomic_write(link) as temporary:  # a link to a file that does not exist yet
        temporary.write_bytes(b"new")
    (tmp_path / "usual").touch()
    assert real.stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert [path.name for path in real.parent.iterdir()] == ["y"]


@pytest.mark.parametrize("has_links", [True, False])
@pytest.mark.parametrize("is_folder", [False, True])
def test_a_file_that_appears_meanwhile_is_kept(
    has_links: bool, is_folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "y"

    def write() -> None:
        with atomic_write(path, replace=False) as new:
            new.write_bytes(b"new")
            if is_folder:
                (path / "kept").mkdir(parents=True)
            else:
                path.write_bytes(b"kept")

    with pytest.raises(InputError, match=r"y exists.*force=True"):
        write()
    assert [entry.name for entry in tmp_path.iterdir()] == ["y"]
    if not is_folder:
        assert path.read_bytes() == b"kept"
        path.unlink()
        with atomic_write(path, replace=False) as new:
            new.write_bytes(b"new")
        assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("is_zarr", [False, True])
def test_a_write_that_fails_leaves_what_was_there(
    is_zarr: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a file system without links."""

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "link", fail)
    monkeypatch.setattr(os, "replace", fail)
    path = tmp_path / "y"
    if not is_zarr:
        with pytest.raises(MDLSTMError, match="Input/output"), atomic_write(path, replace=False) as new:
            new.write_bytes(b"new")
        assert list(tmp_path.iterdir()) == []
        return
    for folder in (path, tmp_path / "new"):
        folder.mkdir()
        (folder / "zarr.json").write_text(folder.name)
    with pytest.raises(OSError, match="Input/output"):
        publish(tmp_path / "new", path, replace=True)
    assert (path / "zarr.json").read_text() == "y"


def test_a_folder_of_zarr_is_replaced_and_no_other(tmp_path: Path) -> None:
    for name, replace in (("a", True), ("b", False)):
        (tmp_path / name / "c").mkdir(parents=True)
        (tmp_path / name / "zarr.json").write_text(name)
        (tmp_path / "new").mkdir()
        (tmp_path / "new/zarr.json").write_text("new")
        with nullcontext() if replace else pytest.raises(InputError, match="exists"):
            publish(tmp_path / "new", tmp_path / name, replace=replace)
        assert (tmp_path / name / "zarr.json").read_text() == ("new" if replace else name)
    with pytest.raises(MDLSTMError, match="cannot write"), atomic_write(tmp_path / "a") as file:
        file.touch()
    assert (tmp_path / "a/zarr.json").read_text() == "new"
    (tmp_path / "data").mkdir()
    (tmp_path / "data/x").touch()
    with pytest.raises(OSError, match=r"ot empty|xists"):
        publish(tmp_path / "new", tmp_path / "data", replace=True)
    assert (tmp_path / "data/x").exists()


def test_every_file_of_a_zarr_array_has_a_part_in_its_fingerprint(tmp_path: Path) -> None:
    array = tmp_path / "x.zarr"
    (array / "c/0").mkdir(parents=True)
    for name in ("zarr.json", "c/0/0", "c/0/1"):
        (array / name).write_bytes(b"1")
    seen = {fingerprint(array)}
    assert fingerprint(array) in seen
    os.utime(array / "c/0/1", ns=(0, 1))
    seen.add(fingerprint(array))
    (array / "c/0/1").rename(array / "c/0/2")
    seen.add(fingerprint(array))
    os.truncate(array / "c/0/0", 0)
    seen.add(fingerprint(array))
    (array / "c/1").touch()
    seen.add(fingerprint(array))
    assert len(seen) == 5


@pytest.mark.skipif(sys.platform == "win32", reason="needs named pipes")
def test_what_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr/zarr.json").touch()
    for name, force, is_zarr, message in (
        ("file", False, False, "force=True"),
        ("a.zarr", False, True, "force=True"),
        ("a.zarr", True, False, "is a folder"),
        ("pipe", True, False, "not a regular file"),
        ("", True, True, "is a folder"),
    ):
        with pytest.raises(InputError, match=message):
            ensure_writable(tmp_path / name, force, is_zarr)
    for name in ("file", "a.zarr", "new"):
        ensure_writable(tmp_path / name, True, is_zarr=True)


def test_a_path_that_no_file_can_have_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 300)
    ensure_writable(path, False)
    with pytest.raises(MDLSTMError, match="File name too long"), atomic_write(path) as temporary:
        temporary.touch()
    assert find_models(path) == [path]
    with pytest.raises(InputError, match="File name too long"):
        read_model_file(path, 1, "")
    for name in ("a\0b", "\ud800"):
        with pytest.raises(InputError, match="cannot read"):
            read_model_file(Path(name), 1, "")
        with pytest.raises(InputError, match="cannot read"):
            load_array(name)
    with pytest.raises(MDLSTMError, match="File name too long"):
        is_empty(path)
    with pytest.raises(MDLSTMError, match="File name too long"), staging(path):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="needs locks and forks")
def test_a_lock_excludes_others_and_is_not_shared_with_forks(tmp_path: Path) -> None:
    """A process that prepares batches may live longer than its training, which was killed."""
    (is_forked, forked), (ends, end) = os.pipe(), os.pipe()
    with locked(tmp_path / "run"):
        message = r"another process works in .*/run; wait for it, or sleep"
        with pytest.raises(MDLSTMError, match=message), locked(tmp_path / "run", "sleep"):
            pass
        if (child := os.fork()) == 0:
            os.write(forked, b"1")
            os.close(end)
            os.read(ends, 1)
            os._exit(0)
        os.read(is_forked, 1)
    try:
        with locked(tmp_path / "run"):
            pass
    finally:
        os.close(end)
        os.waitpid(child, 0)
        for pipe in (is_forked, forked, ends):
            os.close(pipe)
