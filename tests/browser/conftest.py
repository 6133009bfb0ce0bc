"""A browser, and pages of models in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from helpers.browser import DESKTOP, Tab, opened, served
from helpers.requirements import missing
from playwright.sync_api import Browser, sync_playwright

from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.export.browser.build import load_runtime, write_page

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# In a container, and without requests of the browser's own.
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking")


@pytest.fixture(scope="module")  # Playwright's event loop must end with the tests that use it
def browser() -> Iterator[Browser]:
    """The installed Chromium, without a window."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None) or missing("Chromium is not installed")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def onnxruntime_web() -> dict[str, bytes]:
    """The files of onnxruntime-web, by name."""
    try:
        return load_runtime()
    except MDLSTMError as error:
        missing(str(error))


@pytest.fixture
def open_page(
    browser: Browser, onnxruntime_web: dict[str, bytes], tmp_path: Path
) -> Iterator[Callable[..., Tab]]:
    """A function that writes the page of a model and opens it in a tab, which must not complain."""
    with ExitStack() as stack:

        def open_it(model: Path, examples: Any = (), screen: dict[str, Any] = DESKTOP) -> Tab:
            folder = tmp_path / f"page of {model.stem}"
            write_page(model, folder, onnxruntime_web, title=model.stem, examples=examples, force=True)
            tab = stack.enter_context(opened(browser, **screen))
            tab.show(stack.enter_context(served(folder)))
            return tab

        yield open_it
