"""Tables, pictures and pages with names that would forge them; see `test_hostile_names.py`."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.hostile_names import CLASSES, EVIL, TAG, check_readable, write_classifier
from rich.console import Console

from mdlstm_tk._util.text import is_plain_text
from mdlstm_tk.cli import console
from mdlstm_tk.cli.console import progress, table
from mdlstm_tk.export.browser.build import write_page
from mdlstm_tk.export.server import protobuf_text
from mdlstm_tk.report.panels import Panel
from mdlstm_tk.report.plots import draw_curves, draw_panels, svg_curves
from mdlstm_tk.report.terminal_heatmap import show_grids
from mdlstm_tk.runtime import Metadata
from mdlstm_tk.runtime.answers import Answer, AnswerDocument, ResultOptions


def test_tables_progress_and_heat_maps(capfd: pytest.CaptureFixture[str]) -> None:
    table([TAG, EVIL], [[TAG, EVIL]], f"{EVIL} {TAG}")
    with progress(1) as show:
        show(1, f"{EVIL} {TAG}")
    show_grids(Console(width=80), {f"{EVIL} {TAG}": np.full((3, 3), np.nan), "b": np.zeros((2, 5))})
    captured = capfd.readouterr()
    check_readable(captured.out)
    check_readable(captured.err)
    assert captured.out.count(TAG) == 4


def test_a_progress_bar(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "on_terminal", lambda: True)
    console.err.cache_clear()  # its stream is that of an earlier test
    with progress(2) as show:
        show(1, f"{EVIL} {TAG}", 70)
    console.err.cache_clear()
    captured = capfd.readouterr()
    check_readable(captured.err)
    assert f"{TAG}  ETA 1:10" in captured.err


def test_pictures(tmp_path: Path) -> None:
    image = np.zeros((2, 3, 3), np.uint8)
    names = [*CLASSES[:3], EVIL]
    draw_panels(tmp_path / "p.png", EVIL, [Panel(name, image) for name in names], 2)
    records = [{"step": k, "loss": 1.0 / k, EVIL: 1.0 / k} for k in (1, 2)]
    draw_curves(tmp_path / "c.png", "$\\frac$", records)
    svg = str(svg_curves(records)[-1])
    check_readable(svg)
    assert "<script" not in svg and "$\\frac$" in svg


def test_the_page_in_the_browser(tmp_path: Path) -> None:
    write_page(write_classifier(tmp_path / "model.onnx"), tmp_path / "page", EVIL, {})
    info = json.loads((tmp_path / "page" / "model.json").read_bytes())
    assert is_plain_text(info["name"])
    assert info["classes"] == list(CLASSES)
    scripts = (tmp_path / "page").glob("*.js")
    assert not any(
        re.search(r"innerHTML|outerHTML|document\.write|eval\(", path.read_text()) for path in scripts
    )


def documents() -> Iterator[tuple[str, str]]:
    metadata = replace(Metadata("0", None, "scan", "N H W C", 1, 3), kind="transcribe", classes=("\\", "é"))
    for file_format in ("txt", "csv", "json"):
        document = AnswerDocument(file_format, metadata, ResultOptions(), named=True)  # type: ignore[arg-type]
        yield file_format, document.render([("a\\\t", [Answer("\\é", "b[0]"), Answer("", "b", 0)])])


def test_arrays_and_samples_are_told_apart() -> None:
    texts = dict(documents())
    assert texts["txt"] == "a\\\\\\t\tb[0]\t\\\\é\na\\\\\\t\tb\t\n"
    rows = list(csv.reader(io.StringIO(texts["csv"])))
    assert rows[1:] == [["a\\\\\\t", "b[0]", "", "\\é"], ["a\\\\\\t", "b", "0", ""]]
    assert [record["text"] for record in json.loads(texts["json"])] == ["\\é", ""]


def test_names_in_the_settings_of_a_server() -> None:
    assert protobuf_text('a"\n\\é') == '"a\\"\\n\\\\\\303\\251"'
