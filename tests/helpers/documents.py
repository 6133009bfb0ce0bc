"""Run the code in a page of the documentation."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run_python_blocks(page: Path) -> int:
    """Run all ```python blocks of a page in one namespace, in the current folder.

    A ```text block that follows a ```python block is what that prints.

    Returns:
        The number of ```python blocks.
    """
    text = page.read_text(encoding="utf-8")
    blocks = [(m[1], m[2], text.count("\n", 0, m.start()) + 1) for m in BLOCK.finditer(text)]
    namespace: dict[str, object] = {"__name__": "page"}
    count = 0
    for (language, code, line), following in zip(blocks, [*blocks[1:], ("", "", 0)], strict=True):
        if language != "python":
            continue
        count += 1
        printed = io.StringIO()
        source = "\n" * line + code  # tracebacks name the lines of the page
        with contextlib.redirect_stdout(printed):
            exec(compile(source, str(page), "exec"), namespace)
        if following[0] == "text":
            assert printed.getvalue().split() == following[1].split(), f"{page}:{line}"
    return count
