"""Pages in the Chromium that is installed on this machine, driven by Playwright."""

from __future__ import annotations

import http.server
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# In a container, and without requests of the browser's own.
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking")
PATIENCE = 30.0  # seconds until what a page should do counts as not done
DESKTOP = {"viewport": {"width": 1000, "height": 900}}


def find_chromium() -> str | None:
    """The path of the browser's program, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def launched(program: str) -> Iterator[Browser]:
    """A headless browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


class Tab:
    """A page, and what it complained of and asked for since it was opened.

    Attributes:
        page: Playwright's page.
        errors: errors and warnings from scripts, the network and the content policy.
        requests: the addresses that the page asked for.
        devtools: Chromium's own protocol, for gestures that Playwright lacks.
    """

    def __init__(self, page: Page) -> None:
        self.page, self.errors, self.requests = page, list[str](), list[str]()
        self.devtools = page.context.new_cdp_session(page)
        page.set_default_timeout(PATIENCE * 1000)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("requestfailed", lambda request: self.errors.append(f"failed: {request.url}"))
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: message.type == "log" or self.errors.append(message.text))

    def text(self, selector: str) -> str:
        """The text of an element."""
        return self.page.locator(selector).text_content() or ""


@contextmanager
def opened(browser: Browser, **options: Any) -> Iterator[Tab]:
    """A tab that is closed afterwards, and must not have complained. `options` are those of Playwright's
    `new_context`."""
    with browser.new_context(**options) as context:
        yield (tab := Tab(context.new_page()))
        assert tab.errors == []


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder at an address of this machine, as `python -m http.server` serves it."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()
