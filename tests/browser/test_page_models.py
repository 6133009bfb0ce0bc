"""`export --web`: pages of models of any size, with smaller grids, channels first, one answer a grid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from helpers.browser import Tab
from helpers.exported_page import check_prediction, craft, give, matrix, numbers
from PIL import Image
from playwright.sync_api import expect

from mdlstm_tk import MDLSTM
from mdlstm_tk.export import export_onnx, export_run
from mdlstm_tk.runtime import Session
from mdlstm_tk.training import Run


def size_of(tab: Tab) -> tuple[int, int]:
    height, width = (int(tab.page.locator(field).input_value()) for field in ("#height", "#width"))
    return height, width


def test_a_model_of_any_size(open_page: Callable[..., Tab], tmp_path: Path) -> None:
    model = craft(tmp_path / "m.onnx", None)
    tab = open_page(model)
    assert "any size" in tab.text("footer")
    assert numbers(tab).shape == (16, 16)
    for size in ((1, 1), (1, 7), (7, 1), (70, 3)):
        give(tab, tmp_path / "x.npy", x := matrix(5, (*size, 3)))
        check_prediction(tab, 2 * x[..., 0])
        assert size_of(tab) == size
    tab.page.locator("#prediction select").select_option(index=2)
    check_prediction(tab, 2 * x[..., 2] + 2)
    tab.page.locator("#width").fill("4")
    tab.page.locator("#width").dispatch_event("change")
    wider = np.pad(x, ((0, 0), (0, 1), (0, 0)))
    check_prediction(tab, 2 * wider[..., 2] + 2)
    Image.fromarray((matrix(6, (40, 100, 3)) * 255).astype(np.uint8)).save(tmp_path / "x.png")
    tab.page.set_input_files("#file", tmp_path / "x.png")
    expect(tab.page.locator("#height")).to_have_value("40")
    assert size_of(tab) == (40, 100)


def test_a_model_that_takes_smaller_grids(open_page: Callable[..., Tab], tmp_path: Path) -> None:
    model = craft(tmp_path / "m.onnx", (6, 9), inputs=("x", "sizes"), window=(2, 4))
    tab = open_page(model)
    assert "6×9" in tab.text("footer")
    for size in ((6, 9), (1, 7), (5, 2)):
        give(tab, tmp_path / "x.npy", x := matrix(7, (*size, 3)))
        check_prediction(tab, 2 * x[::2, ::4, 0] + sum(size))
    give(tab, tmp_path / "x.npy", np.zeros((7, 9, 3)))
    expect(tab.page.locator("#message.error")).to_contain_text("6×9")
    Image.fromarray(np.zeros((30, 30, 3), np.uint8)).save(tmp_path / "x.png")
    tab.page.set_input_files("#file", tmp_path / "x.png")
    expect(tab.page.locator("#message.error")).to_contain_text("30×30")


def test_channels_in_front(open_page: Callable[..., Tab], tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = MDLSTM(3, 2, directions="all", cell="stable", channels_last=False)
    export_onnx(layer, tmp_path / "m.onnx", grid=(4, 6))
    tab = open_page(tmp_path / "m.onnx")
    give(tab, tmp_path / "x.npy", x := matrix(8, (4, 6, 3)).astype(np.float32))
    expected = Session(tmp_path / "m.onnx", "cpu")(x.transpose(2, 0, 1)[None])[0]
    for channel in (0, 5):
        tab.page.locator("#prediction select").select_option(index=channel)
        check_prediction(tab, expected[channel])


def test_one_file_for_every_size(trained: Run, open_page: Callable[..., Tab], tmp_path: Path) -> None:
    model = tmp_path / "model-any.onnx"
    export_run(trained, model, form="scan")
    session = Session(model, "cpu")
    tab = open_page(model)
    for size in ((1, 1), (7, 1), (64, 40)):
        give(tab, tmp_path / "x.npy", x := matrix(9, size))
        check_prediction(tab, session(x))
