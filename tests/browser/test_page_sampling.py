"""The page of a graph that draws images: the same images as in Python, and completed ones."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.browser import DESKTOP, PATIENCE, Tab, opened, served
from playwright.sync_api import Browser, expect

from mdlstm_tk.export.browser.build import write_page
from mdlstm_tk.export.drawing import drawing_model
from mdlstm_tk.models import PixelNet
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.samples import Given

SIZE = (5, 7)
# Numbers that Python can repeat; float32 holds them exactly.
RANDOM = "let drawn = 0; Math.random = () => ((drawn++ * 7919) % 4093 + 0.5) / 4096;"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = drawing_model(PixelNet(1, 3, hidden=6, layers=2), SIZE)
    path = tmp_path_factory.mktemp("drawing") / "drawing.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def tab(model: Path, browser: Browser, onnxruntime_web: dict[str, bytes], tmp_path: Path) -> Iterator[Tab]:
    write_page(model, tmp_path, "drawing", onnxruntime_web)
    with served(tmp_path) as address, opened(browser, **DESKTOP) as tab:
        tab.page.add_init_script(RANDOM)
        tab.open(address)
        expect(tab.page.locator("#message")).to_contain_text("Drawn in", timeout=PATIENCE * 1000)
        yield tab
        assert tab.complaints == []


def numbers(tab: Tab) -> np.ndarray[Any, Any]:
    return np.loadtxt(io.StringIO(tab.text("pre")), delimiter=",", dtype=np.float32)


def uniform(pictures: int) -> np.ndarray[Any, Any]:
    drawn = np.arange(pictures * SIZE[0] * SIZE[1])
    return ((drawn * 7919 % 4093 + 0.5) / 4096).astype(np.float32).reshape(pictures, *SIZE, 1)


def test_equal_uniform_numbers_give_the_image_that_python_draws(tab: Tab, model: Path) -> None:
    expected = Session(model, "cpu").sample(
        1, SIZE, uniform=uniform(2)[1:]
    )  # the first run is for compilation
    assert (numbers(tab) == expected[0, ..., 0]).all()
    pixels = tab.page.evaluate(
        "() => [...document.querySelector('canvas').getContext('2d').getImageData(0, 0, 7, 5).data]"
    )
    shown = np.array(pixels).reshape(*SIZE, 4)[..., 0] / 255
    assert np.abs(shown - expected[0, ..., 0]).max() < 1 / 255


def test_the_upper_part_that_one_draws_is_completed(tab: Tab, model: Path) -> None:
    tab.page.locator("#clear").click()
    box: Any = tab.page.locator("canvas").bounding_box()
    for column in (1, 4):
        tab.page.mouse.click(
            box["x"] + (column + 0.5) / SIZE[1] * box["width"], box["y"] + 1.5 / SIZE[0] * box["height"]
        )
    expect(tab.page.locator("#given")).to_contain_text("2 of 5 rows")
    upper = np.zeros((*SIZE, 1), np.float32)
    upper[1, [1, 4]] = 1
    assert (numbers(tab) == upper[..., 0]).all()
    tab.page.evaluate("() => { document.querySelector('#message').textContent = ''; }")
    tab.page.locator("#draw").click()
    expect(tab.page.locator("#message")).to_contain_text("Drawn in", timeout=PATIENCE * 1000)
    given = Given(upper, np.arange(SIZE[0])[:, None].repeat(SIZE[1], 1) < 2)
    expected = Session(model, "cpu").sample(1, SIZE, uniform=uniform(3)[2:], given=given)
    assert (numbers(tab) == expected[0, ..., 0]).all()
