"""What lies in a folder of user data. Nothing outside it is read, whatever links and names in it say.

A data folder may come from a stranger, and what is read from it ends in pictures, reports and models.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

from mdlstm_tk.errors import InputError


class DataFolder:
    """A folder, or a file, that the user has named as data.

    Args:
        path: the folder or file.

    Attributes:
        path: the same.
        left_out: the symbolic links found so far that lead out of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.left_out: set[Path] = set()
        self._root = path.resolve()

    def holds(self, path: Path) -> bool:
        """Whether a path lies inside once all symbolic links are followed; if not, it is noted."""
        try:
            if path.resolve().is_relative_to(self._root):
                return True
        except (OSError, RuntimeError, ValueError):  # a loop of links, or a zero byte in the name
            pass
        self.left_out.add(path)
        return False

    def require(self, path: Path) -> Path:
        """Return a path that the layout of the folder demands.

        Raises:
            InputError: it is a symbolic link that leads out of the folder.
        """
        if os.path.lexists(path) and not self.holds(path):
            raise InputError(
                f"--data {self.path}: {path} is a link that leads out of the folder, and is not followed; "
                "copy what it stands for, or give the place itself with --data"
            )
        return path

    def member(self, folder: Path, name: str) -> Path:
        """The path of a file that a table in `folder` names.

        Raises:
            InputError: the name is absolute, has a drive letter, or goes up with "..", on any system.
        """
        for pure in (PurePosixPath(name), PureWindowsPath(name)):
            if pure.anchor or ".." in pure.parts:
                raise InputError(
                    f"'{name:.200}', which is not below {folder}; expected a path relative to that folder"
                )
        return folder / name

    def files(self, folder: Path) -> list[Path]:
        """All regular files below a folder, sorted.

        Hidden ones are notes of file managers and editors. Links to folders are not followed.
        """
        found, folders = [], [folder]
        while folders:
            try:
                with os.scandir(folders.pop()) as entries:
                    visible = [entry for entry in entries if not entry.name.startswith(".")]
            except OSError:
                continue
            for entry in visible:
                path = Path(entry.path)
                if entry.is_symlink() and not self.holds(path):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                elif entry.is_file():
                    found.append(path)
        return sorted(found)

    def subfolders(self, folder: Path) -> list[Path]:
        """The visible folders in a folder, sorted."""
        folders = [entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.is_dir()]
        return sorted(entry for entry in folders if not entry.is_symlink() or self.holds(entry))

    @property
    def note(self) -> str:
        """A line on the links that lead out; "" if there are none."""
        if not self.left_out:
            return ""
        count = len(self.left_out)
        links = f"{count} symbolic link{'s' * (count > 1)} (first: {min(self.left_out)})"
        return f"left out {links}, which lead out of {self.path}; copy the files to include them"
