"""Read files of a run, a configuration or a data set that may come from a stranger.

Only regular files are opened: a named pipe would block, and a device may never end. Every reader has a
limit, and whatever a file holds, the outcome is its content or an `InputError`.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from mdlstm_tk.errors import InputError


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        InputError: there is no such file, it is something else, such as a folder or a named pipe, or it
            cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:  # ValueError: the name holds a zero byte
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"cannot read {path}: it is not a regular file")
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file.

    Raises:
        InputError: as `open_regular`, or the file is larger than `max_bytes`.
    """
    with open_regular(path) as file:
        try:
            is_small = os.fstat(file.fileno()).st_size <= max_bytes
            data = file.read(max_bytes + 1) if is_small else b""
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    if not is_small or len(data) > max_bytes:  # files of /proc say that they are empty
        raise InputError(f"{path} is larger than {max_bytes} bytes, expected less")
    return data


def read_text(path: Path, max_bytes: int, encoding: str = "utf-8") -> str:
    """The text of a regular file.

    Raises:
        InputError: as `read_bytes`, or the file is not text in that encoding.
    """
    try:
        return read_bytes(path, max_bytes).decode(encoding)
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text in UTF-8") from None


def read_json(path: Path, max_bytes: int) -> Any:
    """The value of a JSON file.

    Raises:
        InputError: as `read_text`, or the text is not JSON, or nested too deeply.
    """
    return parse_json(read_text(path, max_bytes), str(path))


def parse_json(text: str | bytes, label: str) -> Any:
    """The value of a JSON text; `label` names it in error messages.

    Raises:
        InputError: it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"{label} is not JSON, or nested too deeply") from None


def is_unicode(text: str) -> bool:
    """Tell whether a text can be written as UTF-8; what stands for bytes of a file name cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
