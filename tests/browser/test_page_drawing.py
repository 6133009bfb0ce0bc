"""The page of `export --web`: drawing by mouse, touch and keyboard, layout, content policy.

`tab` is shared by the tests of this file, so each test that draws clears the grid first.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from helpers.browser import DESKTOP, PHONE, Tab, opened
from helpers.exported_page import GRID, check_prediction, show
from playwright.sync_api import Browser

from mdlstm_tk.runtime import Session


def cell_centre(tab: Tab, row: int, column: int, panel: str = "input") -> tuple[float, float]:
    """The centre of a position on a panel's canvas, (x, y) in CSS pixels of the viewport."""
    box: Any = tab.page.locator(f"#{panel} canvas").bounding_box()
    return (
        box["x"] + (column + 0.5) / GRID[1] * box["width"],
        box["y"] + (row + 0.5) / GRID[0] * box["height"],
    )


def test_the_last_click_during_a_prediction_wins(tab: Tab, session: Session) -> None:
    # One script clicks all three, so the last two arrive while the first one is being predicted.
    click = "(id) => document.getElementById(id).click()"
    tab.page.evaluate(f"() => ['example', 'example', 'clear'].forEach({click})")
    check_prediction(tab, session(np.zeros(GRID)))


def test_drawing_with_the_mouse(tab: Tab, session: Session) -> None:
    tab.page.locator("#clear").click()
    x = np.zeros(GRID)
    check_prediction(tab, session(x))
    mouse = tab.page.mouse
    mouse.move(*cell_centre(tab, 1, 6))
    mouse.down()
    mouse.move(*cell_centre(tab, 2, 6))
    mouse.up()
    mouse.move(*cell_centre(tab, 3, 6))  # the button is up: this draws nothing
    x[1:3, 6] = 1
    check_prediction(tab, session(x))
    mouse.click(*cell_centre(tab, 2, 6))  # a stroke that starts on a drawn position erases
    x[2, 6] = 0
    check_prediction(tab, session(x))
    mouse.move(*cell_centre(tab, 4, 7, "prediction"))  # hovering shows the values of both panels
    values = [re.findall(r"-?[\d.]+", tab.text(f"#{panel} .value")) for panel in ("input", "prediction")]
    assert values[0] == ["4", "7", "0.0000"]
    assert values[1][:2] == ["4", "7"]
    # Four decimals are printed.
    assert float(values[1][2]) == pytest.approx(float(session(x)[4, 7]), abs=6e-5)


def test_drawing_with_a_finger(browser: Browser, address: str, session: Session) -> None:
    with opened(browser, **PHONE) as tab:
        show(tab, address)
        tab.page.locator("#clear").tap()
        tab.page.evaluate("() => scrollTo(0, 0)")
        devtools = tab.protocol()  # Playwright itself can tap, but not drag with a finger
        # Otherwise the check of scrollY below proves nothing.
        assert tab.page.evaluate("() => document.documentElement.scrollHeight > innerHeight")

        def touch(kind: str, *points: tuple[float, float]) -> None:
            touching = [{"x": x, "y": y} for x, y in points]
            devtools.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": touching})

        touch("Start", cell_centre(tab, GRID[0] - 1, 1))
        for row in reversed(range(GRID[0] - 1)):  # upwards, which would scroll the page anywhere else
            touch("Move", cell_centre(tab, row, 1))
        touch("End")
        x = np.zeros(GRID)
        x[:, 1] = 1
        check_prediction(tab, session(x))
        assert tab.page.evaluate("() => scrollY") == 0
        assert tab.errors == []


def test_drawing_with_the_keyboard(tab: Tab, session: Session) -> None:
    tab.page.locator("#clear").click()
    tab.page.locator("#input canvas").focus()
    to_the_corner = ["ArrowUp"] * GRID[0] + ["ArrowLeft"] * GRID[1]
    for key in (*to_the_corner, "ArrowRight", "ArrowDown", "ArrowDown", "ArrowUp", " "):
        tab.page.keyboard.press(key)
    x = np.zeros(GRID)
    x[1, 1] = 1
    check_prediction(tab, session(x))


@pytest.mark.parametrize("width", [320, 768, 1920])
def test_the_page_fits_any_screen(width: int, browser: Browser, address: str) -> None:
    phone = width < 700
    with opened(browser, viewport={"width": width, "height": 800}, is_mobile=phone, has_touch=phone) as tab:
        show(tab, address)
        root = "document.documentElement"
        assert tab.page.evaluate(f"() => {root}.scrollWidth <= {root}.clientWidth")
        box: Any = tab.page.locator("canvas").first.bounding_box()
        assert box["width"] / box["height"] == pytest.approx(GRID[1] / GRID[0], rel=0.01)
        assert tab.errors == []


ATTEMPT_FORBIDDEN = """(attempt) => new Promise((resolve) => {
    addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective), {once: true});
    setTimeout(() => resolve("nothing"), 5000);
    if (attempt === "fetch") fetch("https://example.invalid").catch(() => 0);
    else document.body.insertAdjacentHTML("beforeend", '<img src=nowhere.png onerror="window.ran = 1">');
})"""


def test_the_content_policy_blocks_cross_origin_requests_and_inline_event_handlers(
    browser: Browser, address: str
) -> None:
    with opened(browser, **DESKTOP) as tab:
        show(tab, address)
        for attempt, directive in (("fetch", "connect-src"), ("html", "script-src-attr")):
            tab.errors.clear()
            assert tab.page.evaluate(ATTEMPT_FORBIDDEN, attempt) == directive
            assert not tab.page.evaluate("() => window.ran")
            assert tab.errors, "the browser did not report the violation"
