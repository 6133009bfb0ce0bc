"""`export --web`: drawing into the page, the screens it fits, and what it refuses to load."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from helpers.browser import DESKTOP, PHONE, Tab, opened
from helpers.exported_page import GRID, check_prediction, show
from playwright.sync_api import Browser

from mdlstm_tk.runtime import Session


def middle(tab: Tab, row: int, column: int, panel: str = "input") -> tuple[float, float]:
    """The centre of a position of the grid, on the screen."""
    box: Any = tab.page.locator(f"#{panel} canvas").bounding_box()
    return (
        box["x"] + (column + 0.5) / GRID[1] * box["width"],
        box["y"] + (row + 0.5) / GRID[0] * box["height"],
    )


def test_changes_during_a_run_are_predicted_after_it(tab: Tab, session: Session) -> None:
    click = "(id) => document.getElementById(id).click()"
    tab.page.evaluate(f"() => ['example', 'example', 'clear'].forEach({click})")
    check_prediction(tab, session(np.zeros(GRID)))


def test_drawing_with_the_mouse(tab: Tab, session: Session) -> None:
    tab.page.locator("#clear").click()
    x = np.zeros(GRID)
    check_prediction(tab, session(x))
    mouse = tab.page.mouse
    mouse.move(*middle(tab, 1, 6))
    mouse.down()
    mouse.move(*middle(tab, 2, 6))
    mouse.up()
    mouse.move(*middle(tab, 3, 6))
    x[1:3, 6] = 1
    check_prediction(tab, session(x))
    mouse.click(*middle(tab, 2, 6))  # a stroke that starts on what is drawn erases
    x[2, 6] = 0
    check_prediction(tab, session(x))
    mouse.move(*middle(tab, 4, 7, "prediction"))
    values = [re.findall(r"[\d.]+", tab.text(f"#{panel} .value")) for panel in ("input", "prediction")]
    assert values[0] == ["4", "7", "0.0000"]
    assert values[1][:2] == ["4", "7"]
    assert float(values[1][2]) == pytest.approx(float(session(x)[4, 7]), abs=6e-5)


def test_drawing_with_a_finger(browser: Browser, address: str, session: Session) -> None:
    with opened(browser, **PHONE) as tab:
        show(tab, address)
        tab.page.locator("#clear").tap()
        tab.page.evaluate("() => scrollTo(0, 0)")
        protocol = tab.protocol()

        def touch(kind: str, *points: tuple[float, float]) -> None:
            touching = [{"x": x, "y": y} for x, y in points]
            protocol.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": touching})

        touch("Start", middle(tab, 0, 1))
        for row in range(1, GRID[0]):  # down, which would scroll the page anywhere else
            touch("Move", middle(tab, row, 1))
        touch("End")
        x = np.zeros(GRID)
        x[:, 1] = 1
        check_prediction(tab, session(x))
        assert tab.page.evaluate("() => scrollY") == 0
        assert tab.complaints == []


def test_drawing_with_the_keyboard(tab: Tab, session: Session) -> None:
    tab.page.locator("#clear").click()
    tab.page.locator("#input canvas").focus()
    to_the_corner = ["ArrowUp"] * GRID[0] + ["ArrowLeft"] * GRID[1]
    for key in (*to_the_corner, "ArrowRight", "ArrowDown", "ArrowDown", "ArrowUp", " "):
        tab.page.keyboard.press(key)
    x = np.zeros(GRID)
    x[1, 1] = 1
    check_prediction(tab, session(x))


@pytest.mark.parametrize("width", [320, 375, 768, 1920])
def test_the_page_fits_any_screen(width: int, browser: Browser, address: str) -> None:
    phone = width < 700
    with opened(browser, viewport={"width": width, "height": 800}, is_mobile=phone, has_touch=phone) as tab:
        show(tab, address)
        root = "document.documentElement"
        assert tab.page.evaluate(f"() => {root}.scrollWidth <= {root}.clientWidth")
        box: Any = tab.page.locator("canvas").first.bounding_box()
        assert box["width"] / box["height"] == pytest.approx(GRID[1] / GRID[0], rel=0.01)
        assert tab.complaints == []


REFUSED = """(attempt) => new Promise((resolve) => {
    addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
    setTimeout(() => resolve("nothing"), 5000);
    if (attempt === "fetch") fetch("https://example.org").catch(() => 0);
    else document.body.insertAdjacentHTML("beforeend", '<img src=nowhere.png onerror="window.ran = 1">');
})"""


@pytest.mark.parametrize(("attempt", "directive"), [("fetch", "connect-src"), ("html", "script-src-attr")])
def test_scripts_and_addresses_from_elsewhere_are_refused(
    attempt: str, directive: str, browser: Browser, address: str
) -> None:
    with opened(browser, **DESKTOP) as tab:
        show(tab, address)
        assert tab.page.evaluate(REFUSED, attempt) == directive
        assert tab.complaints, "the content policy should have been violated"
