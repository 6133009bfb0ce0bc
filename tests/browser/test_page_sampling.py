"""The page of a graph that draws images: the same images as in Python, and completed ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.browser import DESKTOP, PATIENCE, Tab, opened, served
from helpers.command import mdlstm, succeed
from helpers.drawing_models import (
    ATOL,
    KINDS,
    SIZES,
    drawing_network,
    exact_logits,
    picture,
    write_drawing_model,
)
from helpers.exported_page import numbers
from playwright.sync_api import Browser, expect

from mdlstm_tk.export.browser.build import write_page
from mdlstm_tk.export.drawing import drawing_model
from mdlstm_tk.models import PixelNet
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.samples import Given, uniform_numbers
from mdlstm_tk.training import Run, load_checkpoint

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
        wait_until_drawn(tab)
        yield tab
        assert tab.errors == []


def wait_until_drawn(tab: Tab) -> None:
    expect(tab.page.locator("#message")).to_contain_text("Drawn in", timeout=PATIENCE * 1000)


def uniform(pictures: int, size: tuple[int, int] = SIZE) -> np.ndarray[Any, Any]:
    """The numbers of the page, as `RANDOM` gives them. The first picture is not shown."""
    drawn = np.arange(pictures * size[0] * size[1])
    return ((drawn * 7919 % 4093 + 0.5) / 4096).astype(np.float32).reshape(pictures, *size, 1)


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
    wait_until_drawn(tab)
    given = Given(upper, np.arange(SIZE[0])[:, None].repeat(SIZE[1], 1) < 2)
    expected = Session(model, "cpu").sample(1, SIZE, uniform=uniform(3)[2:], given=given)
    assert (numbers(tab) == expected[0, ..., 0]).all()
    pixels = tab.page.evaluate(
        "() => [...document.querySelector('canvas').getContext('2d').getImageData(0, 0, 7, 5).data]"
    )
    shown = np.array(pixels).reshape(*SIZE, 4)[..., 0] / 255
    assert np.abs(shown - expected[0, ..., 0]).max() < 1 / 255


def test_a_stroke_that_starts_on_ones_own_pixel_erases(tab: Tab) -> None:
    tab.page.locator("#clear").click()
    tab.page.locator("canvas").focus()
    for key in ("ArrowDown", "ArrowRight", " ", "ArrowLeft", " ", "ArrowRight", " "):
        tab.page.keyboard.press(key)
    drawn = np.zeros(SIZE)
    drawn[1, 0] = 1
    assert (numbers(tab) == drawn).all()


DRAW = """async ({size, uniform, given}) => {
    const model = await (await import("./model.js")).loadModel();
    [model.height, model.width] = size;
    let next = 0;
    Math.random = () => uniform[next++];
    const { values } = await model.draw(Float32Array.from(given).fill(-1));
    next = 0;
    const { logits } = await model.draw(Float32Array.from(given));
    return [[...values], [...logits]];
}"""


@pytest.mark.parametrize("kind", KINDS)
def test_the_browser_gives_the_logits_and_the_pictures_of_torch_and_onnx_runtime(
    kind: str, browser: Browser, onnxruntime_web: dict[str, bytes], tmp_path: Path
) -> None:
    network = drawing_network(kind)
    session = write_drawing_model(network, tmp_path / "drawing.onnx")
    write_page(tmp_path / "drawing.onnx", tmp_path / "page", "drawing", onnxruntime_web)
    with served(tmp_path / "page") as address, opened(browser, **DESKTOP) as tab:
        tab.open(address)
        wait_until_drawn(tab)
        for size in SIZES:
            x, numbers = picture(network, size), uniform_numbers(0, 1, size, network.channels)
            arguments = {"size": size, "uniform": numbers.ravel().tolist(), "given": x.ravel().tolist()}
            values, logits = (np.float32(each) for each in tab.page.evaluate(DRAW, arguments))
            expected = exact_logits(network, x)
            np.testing.assert_allclose(logits.reshape(expected.shape), expected, rtol=0, atol=ATOL)
            drawn = session.sample(1, size, uniform=numbers)
            assert (values.reshape(x.shape) == drawn).all()
            assert (network.sample(1, size, uniform=torch.from_numpy(numbers)).numpy() == drawn).all()
        assert tab.errors == []


def test_the_command_writes_a_page_that_draws(
    density_run: Run, browser: Browser, tmp_path: Path, package: Path
) -> None:
    folder = tmp_path / "page"
    options = ("--drawing", "--web", folder, "--web-runtime", package)
    result = succeed("export", density_run.folder, *options)
    assert str(folder) in result.err.splitlines()[-1]
    again = mdlstm("export", density_run.folder, *options)
    assert (again.code, len(again.err.splitlines())) == (2, 1)
    with served(folder) as address, opened(browser, **DESKTOP) as tab:
        tab.page.add_init_script(RANDOM)
        tab.open(address)
        wait_until_drawn(tab)
        assert tab.text("#title") == density_run.folder.name
        assert "17 levels" in tab.text("#facts")
        drawn = uniform(2, (8, 8))[1:]
        network = load_checkpoint(density_run.checkpoint).network()
        expected = network.sample(1, (8, 8), uniform=torch.from_numpy(drawn))[0, ..., 0]
        np.testing.assert_allclose(numbers(tab), expected, rtol=0, atol=1e-6)  # printed with 6 digits
        assert tab.errors == []
