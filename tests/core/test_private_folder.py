"""Folders that only the user may write to."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from mdlstm_tk.backends.cpu.cache_folder import VARIABLE, cache_folder, is_private

grp, pwd = pytest.importorskip("grp"), pytest.importorskip("pwd")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="modes and XDG folders are those of POSIX")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    monkeypatch.setenv("HOME", str(home))
    for variable in (VARIABLE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    return home


def test_the_folder_is_created_for_the_user_alone(home: Path) -> None:
    folder = cache_folder()
    assert folder is not None and folder.is_relative_to(home) and folder.parent.name == "mdlstm-tk"
    assert folder.stat().st_mode & 0o777 == folder.parent.stat().st_mode & 0o777 == 0o700
    assert cache_folder() == folder


def test_the_environment_names_another_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache/mdlstm-tk/kernels"


@pytest.mark.parametrize("path", ["relative", "~/.cache"])
def test_relative_places_are_not_used(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path, or a ~ that nobody expanded, would be looked up in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", path)
    assert cache_folder() is None
    assert not (tmp_path / path).exists()


def test_a_folder_that_others_may_write_to_is_not_private(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    for mode, expected in ((0o700, True), (0o755, True), (0o707, False)):
        folder.chmod(mode)
        assert is_private(folder) is expected, oct(mode)


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


def test_a_folder_inside_one_that_others_may_write_to_is_not_private(tmp_path: Path) -> None:
    outer, inner = tmp_path / "outer", tmp_path / "outer/inner"
    inner.mkdir(parents=True)
    for mode, expected in ((0o755, True), (0o777, False), (0o1777, True)):
        outer.chmod(mode)
        assert is_private(inner) is expected, oct(mode)


def test_links_are_followed_before_they_are_judged(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.mkdir(mode=0o700)
    link.symlink_to(target)
    assert is_private(link)
    target.chmod(0o777)
    assert not is_private(link)


def test_what_is_no_folder_is_not_private(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not is_private(tmp_path / "file")
    assert not is_private(tmp_path / "missing")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_a_folder_of_another_user_is_not_private(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o700)
    assert is_private(folder)
    os.chown(folder, 12345, -1)
    assert not is_private(folder)
