"""Where compiled kernels are kept, as they are unpickled from there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numba.core.caching
import pytest
from numba.core import config

from mdlstm_tk.backends.cpu import compile as cpu_compile
from mdlstm_tk.backends.cpu.cache_folder import VARIABLE, cache_folder, is_private

grp, pwd = pytest.importorskip("grp"), pytest.importorskip("pwd")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="permissions are those of POSIX")

COMPILE = """
from numba.core import event
from mdlstm_tk.backends.cpu.compile import _compile
from kernels import stop

with event.install_recorder("numba:run_pass") as compiled:
    _compile(stop, "key", "a test")
print(len(compiled.buffer))
"""


def compilations(folder: Path, **variables: str) -> int:
    """Number of compilations in a process of its own that makes a kernel, in `folder`."""
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", COMPILE],
        cwd=folder / "here",
        env={**environment, "PYTHONPATH": os.pathsep.join([str(folder / "code"), *sys.path]), **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ("compiles a test" in done.stderr) == (done.stdout != "0\n")
    return int(done.stdout)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the code of a kernel, a home folder, and a current folder."""
    for name in ("code", "home", "here"):
        (tmp_path / name).mkdir(mode=0o755)
    (tmp_path / "code/kernels.py").write_text("def stop(address):\n    pass\n")
    return tmp_path


def test_a_second_process_loads_what_the_first_compiled(place: Path) -> None:
    """Also where the current folder has a configuration of Numba."""
    evil = "cache_dir: .\ncache_locator_classes: evil.Locator\n"
    (place / "here/.numba_config.yaml").write_text(evil)
    (place / "code/evil.py").write_text("from pathlib import Path\nPath('marker').touch()\n")
    home = {"HOME": str(place / "home"), "XDG_CACHE_HOME": ""}
    assert compilations(place, **home) > 0
    assert compilations(place, **home) == 0
    written = [path.relative_to(place) for path in place.rglob("*.nb?")]
    assert len(written) == 2  # an index and a file of code
    assert all(path.parts[0] == "home" and "kernels" in path.parts for path in written)
    assert [path.name for path in (place / "here").iterdir()] == [".numba_config.yaml"]


@pytest.mark.parametrize(
    ("variable", "value"),
    [("NUMBA_CACHE_DIR", "here"), ("XDG_CACHE_HOME", "~/.cache"), ("NUMBA_CACHE_DIR", "{shared}")],
)
def test_nothing_is_kept_in_relative_places_and_where_others_may_write(
    variable: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv(variable, value.format(shared=shared))
    assert cache_folder() is None
    compiled()(0)
    assert not list(tmp_path.rglob("*.nb?")) and list(tmp_path.iterdir()) == [shared]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for the kernels of this process."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "ours"))
    return tmp_path / "ours"


def compiled() -> Callable[[int], None]:
    def stop(address: int) -> None:
        pass

    return cpu_compile._compile(stop, "key", "a test").ctypes  # type: ignore[no-any-return]


def test_broken_code_on_disk_and_a_full_disk(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled()
    for suffix in ("nbc", "nbi"):
        (file,) = cache.rglob(f"*.{suffix}")
        file.write_bytes(file.read_bytes()[:10])
        compiled()(0)
    for file in cache.rglob("*.nb*"):
        file.unlink()

    def no_space(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(numba.core.caching.IndexDataCacheFile, "save", no_space)
    compiled()(0)
    assert not list(cache.rglob("*.nbi"))


def test_code_for_other_vectors_is_compiled_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba's key holds the processor and its features, not the size that `simd` takes for them."""
    compiled()(0)
    monkeypatch.setattr(cpu_compile.simd, "VECTOR_BYTES", 2 * cpu_compile.simd.VECTOR_BYTES)
    compiled()(0)
    assert len(list(cache.rglob("*.nbc"))) == 2


def test_folders_that_vanish_while_they_are_searched(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled()
    scandir = os.scandir

    def vanished(path: Any) -> Any:
        if Path(path).parent.name == "kernels":
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", vanished)
    compiled()(0)


def test_the_settings_of_the_user_stay(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = cache.parent / "theirs"
    monkeypatch.setattr(config, "CACHE_DIR", str(theirs))
    compiled()
    assert str(theirs) == config.CACHE_DIR and not theirs.exists()
    assert len(list((cache / "kernels").rglob("*.nbi"))) == 1
    numba.njit("float64(float64)", cache=True)(lambda x: x)
    assert len(list(theirs.rglob("*.nbi"))) == 1


def test_the_folder_is_created_for_the_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir(mode=0o755)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for variable in (VARIABLE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    folder = cache_folder()
    assert folder is not None and folder.is_relative_to(tmp_path / "home")
    assert folder.parent.name == "mdlstm-tk"
    assert folder.stat().st_mode & 0o777 == folder.parent.stat().st_mode & 0o777 == 0o700
    assert cache_folder() == folder
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache/mdlstm-tk/kernels"


def test_a_folder_is_private_if_nobody_else_may_write_to_it_or_to_one_above(tmp_path: Path) -> None:
    outer, inner, link = tmp_path / "outer", tmp_path / "outer/inner", tmp_path / "link"
    inner.mkdir(parents=True)
    link.symlink_to(inner)  # links are followed before they are judged
    for folder, mode, expected in (
        *((inner, mode, private) for mode, private in ((0o755, True), (0o707, False), (0o700, True))),
        *((outer, mode, private) for mode, private in ((0o755, True), (0o777, False), (0o1777, True))),
    ):
        folder.chmod(mode)
        assert is_private(inner) is is_private(link) is expected, (folder, oct(mode))
    (inner / "file").touch()
    assert not is_private(inner / "file") and not is_private(inner / "missing")
    if os.geteuid() == 0:  # only root can give files away
        os.chown(inner, 12345, -1)
        assert not is_private(inner)


@pytest.mark.parametrize("is_own", [True, False])
def test_a_group_may_write_only_if_it_is_the_users_own(
    is_own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o770)
    name = pwd.getpwuid(os.geteuid()).pw_name
    members = [] if is_own else ["somebody"]
    group = grp.struct_group((name, "x", folder.stat().st_gid, members))
    monkeypatch.setattr(grp, "getgrgid", lambda number: group)
    user = pwd.struct_passwd((name, "x", os.geteuid(), folder.stat().st_gid, "", "", ""))
    monkeypatch.setattr(pwd, "getpwuid", lambda number: user)
    assert is_private(folder) is is_own
