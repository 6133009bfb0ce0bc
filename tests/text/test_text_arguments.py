"""Arguments of the functions of `mdlstm_tk.text` that are of another type."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.pages import draw_page

from mdlstm_tk.errors import InputError
from mdlstm_tk.text import cut_line, find_lines, read_page, write_page

PIXELS = np.zeros((60, 90), np.uint8)
WRONG: Mapping[str, tuple[Callable[..., Any], tuple[Any, ...], str]] = {  # PAGE stands for a page
    "a path for a session": (find_lines, ("f.onnx", PIXELS), "session must be a Session or a TiledSession"),
    "a page for a line": (cut_line, (PIXELS, "PAGE"), "line must be a PageLine, got Page("),
    "a text for a transcription": (
        *(write_page, ("PAGE", {"l0": "text"}, "b.xml")),
        "transcriptions must be a mapping (each entry a Transcription), got {'l0': 'text'}",
    ),
    "a path for a page": (write_page, ("a.xml", {}, "b.xml"), "page must be a Page, got 'a.xml'"),
    "a number for a path": (read_page, (3,), "path must be a path, got 3"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_argument_of_another_type_is_named(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draw_page(tmp_path / "a", ["ab"])
    function, arguments, message = WRONG[case]
    page = read_page(tmp_path / "a.xml")
    with pytest.raises(InputError, match=re.escape(message)):
        function(*(page if isinstance(each, str) and each == "PAGE" else each for each in arguments))
    assert not (tmp_path / "b.xml").exists()
