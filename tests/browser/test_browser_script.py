"""`benchmarks/browser.py`, which times pages."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
from helpers.checkout import ROOT
from helpers.exported_page import GRID, craft
from playwright.sync_api import Browser

from mdlstm_tk.export.browser.build import write_page
from mdlstm_tk.export.browser.examples import PageExample


def test_pages_take_turns(
    browser: Browser,
    onnxruntime_web: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    model, example = craft(tmp_path / "m.onnx", GRID), PageExample(np.zeros((*GRID, 3), np.float32))
    pages = {(name, "scan", "wasm"): tmp_path / name for name in "ab"}
    for folder in pages.values():
        write_page(model, folder, folder.name, onnxruntime_web, [example])
    times, errors = importlib.import_module("browser").measure(browser, pages, rounds=2)
    assert not errors and times.keys() == pages.keys()
    assert all(len(series) == 2 for series in times.values())
