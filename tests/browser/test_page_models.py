"""`export --web`: pages of models of any size, with smaller grids, channels first, one answer a grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from helpers.browser import Tab
from helpers.exported_page import GRID, check_prediction, craft, give, matrix, numbers, page_of
from PIL import Image
from playwright.sync_api import Browser, expect

from mdlstm_tk import MDLSTM
from mdlstm_tk.export import export_onnx, export_run
from mdlstm_tk.runtime import Session
from mdlstm_tk.training import Run


def set_number(tab: Tab, selector: str, value: int) -> None:
    """Set a field as a user does."""
    tab.page.locator(selector).fill(str(value))
    tab.page.locator(selector).dispatch_event("change")


def size_of(tab: Tab) -> tuple[int, int]:
    height, width = (int(tab.page.locator(field).input_value()) for field in ("#height", "#width"))
    return height, width


def test_a_model_of_any_size(browser: Browser, onnxruntime_web: dict[str, bytes], tmp_path: Path) -> None:
    model = craft(tmp_path / "m.onnx", None)
    with page_of(model, browser, onnxruntime_web, tmp_path / "page") as tab:
        assert "any size" in tab.text("footer")
        assert numbers(tab).shape == (16, 16)
        for size in ((1, 1), (1, 7), (7, 1), (70, 3)):
            give(tab, tmp_path / "x.npy", x := matrix(5, (*size, 3)))
            check_prediction(tab, 2 * x[..., 0])
            assert size_of(tab) == size
        tab.page.locator("#prediction select").select_option(index=2)
        check_prediction(tab, 2 * x[..., 2] + 2)
        set_number(tab, "#width", 4)
        wider = np.pad(x, ((0, 0), (0, 1), (0, 0)))
        check_prediction(tab, 2 * wider[..., 2] + 2)
        Image.fromarray((matrix(6, (40, 100, 3)) * 255).astype(np.uint8)).save(tmp_path / "x.png")
        tab.page.set_input_files("#file", tmp_path / "x.png")
        expect(tab.page.locator("#height")).to_have_value("40")
        assert size_of(tab) == (40, 100)


def test_a_model_that_takes_smaller_grids(
    browser: Browser, onnxruntime_web: dict[str, bytes], tmp_path: Path
) -> None:
    model = craft(tmp_path / "m.onnx", (6, 9), inputs=("x", "sizes"), window=(2, 4))
    with page_of(model, browser, onnxruntime_web, tmp_path / "page") as tab:
        assert "6×9" in tab.text("footer")
        for size in ((6, 9), (1, 7), (5, 2)):
            give(tab, tmp_path / "x.npy", x := matrix(7, (*size, 3)))
            check_prediction(tab, 2 * x[::2, ::4, 0] + sum(size))
        give(tab, tmp_path / "x.npy", np.zeros((7, 9, 3)))
        expect(tab.page.locator("#message.error")).to_contain_text("6×9")
        Image.fromarray(np.zeros((30, 30, 3), np.uint8)).save(tmp_path / "x.png")
        tab.page.set_input_files("#file", tmp_path / "x.png")
        expect(tab.page.locator("#message.error")).to_contain_text("30×30")


def test_an_output_of_integers(browser: Browser, onnxruntime_web: dict[str, bytes], tmp_path: Path) -> None:
    model = onnx.load(craft(tmp_path / "m.onnx", GRID))
    model.graph.node[-1].output[0] = "floats"
    model.graph.node.append(onnx.helper.make_node("Cast", ["floats"], ["y"], to=onnx.TensorProto.INT64))
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    onnx.save(model, str(tmp_path / "m.onnx"))
    with page_of(tmp_path / "m.onnx", browser, onnxruntime_web, tmp_path / "page") as tab:
        give(tab, tmp_path / "x.npy", x := np.arange(120.0).reshape(*GRID, 3) % 4)
        check_prediction(tab, 2 * x[..., 0])


def test_channels_in_front(browser: Browser, onnxruntime_web: dict[str, bytes], tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = MDLSTM(3, 2, directions="all", cell="stable", channels_last=False)
    export_onnx(layer, tmp_path / "m.onnx", grid=(4, 6))
    with page_of(tmp_path / "m.onnx", browser, onnxruntime_web, tmp_path / "page") as tab:
        give(tab, tmp_path / "x.npy", x := matrix(8, (4, 6, 3)).astype(np.float32))
        expected = Session(tmp_path / "m.onnx", "cpu")(x.transpose(2, 0, 1)[None])[0]
        for channel in (0, 5):
            tab.page.locator("#prediction select").select_option(index=channel)
            check_prediction(tab, expected[channel])


def test_one_file_for_every_size(
    trained: Run, browser: Browser, onnxruntime_web: dict[str, bytes], tmp_path: Path
) -> None:
    model = tmp_path / "model-any.onnx"
    export_run(trained, model, form="scan")
    session = Session(model, "cpu")
    with page_of(model, browser, onnxruntime_web, tmp_path / "page") as tab:
        for size in ((1, 1), (7, 1), (64, 40)):
            give(tab, tmp_path / "x.npy", x := matrix(9, size))
            check_prediction(tab, session(x))


def test_one_answer_for_the_whole_grid(
    browser: Browser, onnxruntime_web: dict[str, bytes], tmp_path: Path
) -> None:
    model = craft(tmp_path / "m.onnx", GRID, window=None)
    with page_of(model, browser, onnxruntime_web, tmp_path / "page") as tab:
        tab.page.locator("#clear").click()
        check_prediction(tab, np.array([[0, 1, 2]]))
        bars = tab.page.locator(".bars li").all_text_contents()
        assert bars == ["cat: 0.0000", "<i>dog: 1.0000", "owl: 2.0000"]
