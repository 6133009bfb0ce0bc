"""Where compiled kernels are kept, as they are unpickled from there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numba
import pytest
from numba.core import config

from mdlstm_tk.backends.cpu.cache_folder import cache_folder
from mdlstm_tk.backends.cpu.jit import cfunc_cached, njit_cached

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="permissions are those of POSIX")

COMPILE = """
from numba.core import event
from mdlstm_tk.backends.cpu.jit import cfunc_cached, njit_cached
from kernels import double, stop

with event.install_recorder("numba:compile") as compiled:
    assert njit_cached(double, "float64(float64)")(1.5) == 3.0
    cfunc_cached(stop, "key")
print(len(compiled.buffer))
"""
KERNELS = "def double(x):\n    return 2 * x\ndef stop(address):\n    pass\n"


def compilations(folder: Path, **variables: str) -> int:
    """How much is compiled in a process of its own that makes two kernels, in `folder`."""
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", COMPILE],
        cwd=folder / "here",
        env={**environment, "PYTHONPATH": os.pathsep.join([str(folder / "code"), *sys.path]), **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the code of two kernels, a home folder, and a current folder."""
    for name in ("code", "home", "here"):
        (tmp_path / name).mkdir(mode=0o755)
    (tmp_path / "code/kernels.py").write_text(KERNELS)
    return tmp_path


def test_a_second_process_loads_what_the_first_compiled(place: Path) -> None:
    home = {"HOME": str(place / "home"), "XDG_CACHE_HOME": ""}
    assert compilations(place, **home) > 0
    assert compilations(place, **home) == 0
    written = {path.relative_to(place) for path in place.rglob("*.nb?")}
    assert len(written) == 4  # an index and a file of code for each of the two
    kept = next(iter(written)).parents[1]
    assert kept.name == "kernels" and all(path.is_relative_to(kept) for path in written)
    assert (place / kept).is_relative_to(place / "home")


@pytest.mark.parametrize(
    "variables",
    [{"NUMBA_CACHE_DIR": "here"}, {"NUMBA_CACHE_DIR": "{shared}"}, {"XDG_CACHE_HOME": "{shared}"}],
    ids=["relative", "writable by all", "home writable by all"],
)
def test_nothing_is_kept_where_others_may_write(place: Path, variables: dict[str, str]) -> None:
    shared = place / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    home = {"HOME": str(place / "home"), "XDG_CACHE_HOME": ""}
    named = {name: value.format(shared=shared) for name, value in variables.items()}
    for _ in range(2):
        assert compilations(place, **home | named) > 0
    assert not list(place.rglob("*.nb?"))


def test_a_configuration_of_the_current_folder_names_no_place(place: Path) -> None:
    evil = "cache_dir: .\ncache_locator_classes: evil.Locator\n"
    (place / "here/.numba_config.yaml").write_text(evil)
    (place / "code/evil.py").write_text("from pathlib import Path\nPath('marker').touch()\n")
    home = {"HOME": str(place / "home"), "XDG_CACHE_HOME": ""}
    assert [compilations(place, **home) > 0 for _ in range(2)] == [True, False]
    assert [path.name for path in (place / "here").iterdir()] == [".numba_config.yaml"]


def test_the_settings_of_the_user_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "theirs"))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "ours"))

    def triple(x: float) -> float:
        return 3 * x

    def stop(address: int) -> None:
        pass

    assert njit_cached(triple, "float64(float64)")(1.5) == 4.5
    cfunc_cached(stop, "key")
    assert str(tmp_path / "theirs") == config.CACHE_DIR and not (tmp_path / "theirs").exists()
    assert len(list((tmp_path / "ours/kernels").rglob("*.nbi"))) == 2
    numba.njit("float64(float64)", cache=True)(lambda x: x)
    assert len(list((tmp_path / "theirs").rglob("*.nbi"))) == 1


def test_the_folder_is_open_to_the_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    folder = cache_folder()
    assert folder is not None and folder.is_relative_to(tmp_path / "cache")
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    assert cache_folder() is None
