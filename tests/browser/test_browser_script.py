"""`benchmarks/browser.py`, which times pages."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from helpers.checkout import ROOT
from helpers.exported_page import GRID, craft
from playwright.sync_api import Browser

from mdlstm_tk.export.browser import build
from mdlstm_tk.export.browser.examples import PageExample


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("browser")


def test_pages_take_turns_and_predict_the_same(
    script: ModuleType, browser: Browser, onnxruntime_web: dict[str, bytes], tmp_path: Path
) -> None:
    x = np.random.default_rng(0).random((*GRID, 3), np.float32)
    pages = {}
    for name, kind in (("a", None), ("b", None), ("c", "segment")):  # c predicts something else
        model = craft(tmp_path / f"{name}.onnx", GRID, **({"kind": kind} if kind else {}))
        build.write_page(model, tmp_path / name, name, onnxruntime_web, [PageExample(x)])
        pages[name, "scan", "wasm"] = tmp_path / name
    same = dict(list(pages.items())[:2])
    (tmp_path / "broken").mkdir()
    build.write_page(tmp_path / "a.onnx", tmp_path / "broken", "broken", onnxruntime_web)
    (tmp_path / "broken" / "model.onnx").write_bytes(b"no model")
    times, errors = script.measure(browser, same | {("d", "scan", "wasm"): tmp_path / "broken"}, rounds=2)
    assert errors.keys() == {("d", "scan", "wasm")} and all(errors.values())
    assert times.keys() == same.keys() and all(len(series) == 2 for series in times.values())
    with pytest.raises(AssertionError, match="'c'"):
        script.measure(browser, pages, rounds=1)


def test_checkouts_in_folders_of_one_name_are_apart(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "python", lambda *arguments, checkout: "")
    monkeypatch.setattr(script, "write_page", lambda *arguments: None)
    pages = dict(script.make_pages([tmp_path / "a/x", tmp_path / "b/x"], {}, None, tmp_path))
    assert len(pages) == 2 * len(script.FORMS)
