"""Drawing by mouse, keyboard and finger, the size of the grid, the layout and the content policy."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.browser import GRID, Tab, craft, npy
from playwright.sync_api import expect


def centre(tab: Tab, row: int, column: int, panel: str = "input") -> tuple[float, float]:
    """The centre of a position on a panel's canvas, (x, y) in CSS pixels of the viewport."""
    box: Any = tab.page.locator(f"#{panel} canvas").bounding_box()
    x, y = (column + 0.5) / GRID[1], (row + 0.5) / GRID[0]
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


@pytest.mark.parametrize("fields", [{"channels": 1}, {"preprocessing": {"channels": 3, "resize": None}}])
def test_drawing_with_mouse_and_keyboard(
    fields: dict[str, Any], open_page: Callable[..., Tab], tmp_path: Path
) -> None:
    tab, x = open_page(craft(tmp_path / "m.onnx", **fields)), np.zeros(GRID)
    # One script clicks all three, so the last two arrive while the first one is being predicted.
    tab.page.evaluate(
        "['example', 'example', 'clear'].forEach((id) => document.getElementById(id).click())"
    )
    tab.check_numbers(x)
    mouse = tab.page.mouse
    tab.page.locator("#ink").fill("0.5")
    mouse.move(*centre(tab, 1, 6))
    mouse.down()
    mouse.move(*centre(tab, 2, 6))
    mouse.up()
    mouse.move(*centre(tab, 3, 6))  # the button is up: this draws nothing
    mouse.click(*centre(tab, 2, 6))  # a stroke that starts on a drawn position erases
    mouse.move(*centre(tab, 1, 6, "prediction"))  # shows the values of both panels
    for panel, values in (("input", ["0.5000"] * x[..., None].size), ("prediction", ["1.0000"])):
        shown = re.findall(r"[\d.]+", tab.text(f"#{panel} .value"))
        assert shown[:2] == ["1", "6"] and {*shown[2:]} == {*values}
    tab.page.locator("#input canvas").focus()
    for key in "UUUUULLLLLLLLRDDU ":
        names = {"U": "ArrowUp", "D": "ArrowDown", "L": "ArrowLeft", "R": "ArrowRight"}
        tab.page.keyboard.press(names.get(key, key))
    x[1, 6] = x[1, 1] = 0.5
    for channel in range(3):  # an image in colours is drawn on in grey
        tab.page.locator("#prediction select").select_option(index=channel)
        tab.check_numbers(2 * x + channel)


def test_the_size_of_the_grid_is_changed(open_page: Callable[..., Tab], tmp_path: Path) -> None:
    tab = open_page(craft(tmp_path / "m.onnx", None, channels=1, multiple_of=(1, 2)))
    x = np.random.default_rng(0).random((3, 1000), np.float32)
    tab.give(npy(x))
    tab.check_numbers(2 * x)
    fields = [tab.page.locator(name) for name in ("#height", "#width")]
    for axis, text, size in ((0, "4", (4, 1000)), (1, "6", (4, 6)), (1, "5", (4, 6)), (0, "", (4, 6))):
        fields[axis].fill(text)
        fields[axis].dispatch_event("change")
        expect(tab.page.locator("#message.error")).to_have_count(int(text in ("5", "")))
        tab.check_numbers(2 * np.pad(x, ((0, 1), (0, 0)))[: size[0], : size[1]])
        assert tuple(int(field.input_value()) for field in fields) == size


def test_a_finger_draws_on_a_phone_and_scrolls_nothing(
    open_page: Callable[..., Tab], tmp_path: Path
) -> None:
    screen = {"viewport": {"width": 375, "height": 700}, "is_mobile": True, "has_touch": True}
    tab = open_page(craft(tmp_path / f"{'long' * 40}.onnx"), screen=screen)
    assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    tab.page.locator("#clear").tap()
    tab.page.evaluate("scrollTo(0, 0)")
    for row in reversed(range(GRID[0])):  # upwards, which would scroll the page anywhere else
        kind, (x, y) = "touchStart" if row == GRID[0] - 1 else "touchMove", centre(tab, row, 1)
        tab.devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
    tab.devtools.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    tab.check_numbers(2 * np.eye(8)[[1] * 5])
    assert tab.page.evaluate("scrollY") == 0


FETCH = """() => new Promise((resolve) => {
    addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
    fetch("https://example.invalid").catch(() => 0);
})"""


def test_nobody_else_is_asked(open_page: Callable[..., Tab], tmp_path: Path) -> None:
    tab = open_page(craft(tmp_path / "m.onnx"))
    assert len(tab.requests) > 10 and all(url.startswith(tab.page.url) for url in tab.requests)
    assert tab.page.evaluate(FETCH) == "connect-src"
    tab.errors.clear()
