"""Where compiled kernels are kept, as they are unpickled from there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mdlstm_tk.backends.cpu import compile as cpu_compile
from mdlstm_tk.backends.cpu.compile import VARIABLE, cache_folder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="permissions are those of POSIX")

COMPILE = """
from numba.core import event
from mdlstm_tk.backends.cpu.compile import compiled
from kernels import stop

with event.install_recorder("numba:run_pass") as passes:
    compiled(stop, "stop")
print(len(passes.buffer))
"""


def compilations(folder: Path) -> int:
    """Number of compilations in a process of its own that makes a kernel, in `folder`."""
    own = {"HOME": str(folder / "home"), "XDG_CACHE_HOME": ""}
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    done = subprocess.run(
        [sys.executable, "-P", "-c", COMPILE],
        cwd=folder / "here",
        env={**environment, "PYTHONPATH": os.pathsep.join([str(folder / "code"), *sys.path]), **own},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stderr
    return int(done.stdout)


def test_a_second_process_loads_what_the_first_compiled(tmp_path: Path) -> None:
    """Also where the current folder has a configuration of Numba."""
    for name in ("code", "home", "here"):
        (tmp_path / name).mkdir(mode=0o755)
    (tmp_path / "code/kernels.py").write_text("def stop(address):\n    pass\n")
    evil = "cache_dir: .\ncache_locator_classes: evil.Locator\n"
    (tmp_path / "here/.numba_config.yaml").write_text(evil)
    (tmp_path / "code/evil.py").write_text("from pathlib import Path\nPath('marker').touch()\n")
    assert compilations(tmp_path) > 0
    assert compilations(tmp_path) == 0
    written = [path.relative_to(tmp_path) for path in tmp_path.rglob("*.nb?")]
    assert len(written) == 2  # an index and a file of code
    assert all(path.parts[0] == "home" and "kernels" in path.parts for path in written)
    assert [path.name for path in (tmp_path / "here").iterdir()] == [".numba_config.yaml"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for the kernels of this process."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "ours"))
    return tmp_path / "ours"


def compiled() -> Callable[[int], None]:
    def stop(address: int) -> None:
        pass

    return cpu_compile.compiled(stop, "stop").ctypes  # type: ignore[no-any-return]


def test_nothing_is_kept_in_relative_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "~/.cache")
    assert cache_folder() is None
    compiled()(0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mistake", ["writable", "a link", "a file", "of somebody else"])
def test_nothing_is_kept_where_others_may_write(mistake: str, cache: Path) -> None:
    cache.mkdir()
    folder = cache / "kernels"
    if mistake == "a link":
        (cache / "private").mkdir(mode=0o700)
        folder.symlink_to(cache / "private")
    elif mistake == "a file":
        folder.touch()
    else:
        folder.mkdir(mode=0o700)
        if mistake == "writable":
            folder.chmod(0o770)
        elif os.geteuid() == 0:  # only root can give folders away
            os.chown(folder, 12345, -1)
        else:
            pytest.skip("needs root")
    assert cache_folder() is None
    compiled()(0)
    assert not list(cache.rglob("*.nb?"))


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


def test_broken_code_on_disk_is_compiled_anew(cache: Path) -> None:
    compiled()
    for suffix in ("nbc", "nbi"):
        (file,) = cache.rglob(f"*.{suffix}")
        file.write_bytes(file.read_bytes()[:10])
        compiled()(0)
