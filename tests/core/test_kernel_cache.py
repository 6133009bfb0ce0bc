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
from mdlstm_tk.backends.cpu.cache_folder import cache_folder

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
    "variables",
    [{"NUMBA_CACHE_DIR": "here"}, {"NUMBA_CACHE_DIR": "{shared}"}, {"XDG_CACHE_HOME": "{shared}"}],
    ids=["relative", "writable by all", "home writable by all"],
)
def test_nothing_is_kept_where_others_may_write(
    variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(shared=shared))
    assert cache_folder() is None
    compiled()(0)
    assert not list(tmp_path.rglob("*.nb?"))


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


def test_the_folder_is_open_to_the_user_alone(cache: Path) -> None:
    folder = cache_folder()
    assert folder is not None and folder.is_relative_to(cache)
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    assert cache_folder() is None
