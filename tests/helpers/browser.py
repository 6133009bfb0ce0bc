"""Pages in the Chromium that is installed on this machine, driven by Playwright."""

from __future__ import annotations

import http.server
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, CDPSession, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
)
PATIENCE = 30.0  # seconds until what a page should do counts as not done
DESKTOP = {"viewport": {"width": 1000, "height": 900}}
PHONE = {"viewport": {"width": 375, "height": 700}, "is_mobile": True, "has_touch": True}


def find_chromium() -> str | None:
    """The path of the browser's program, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def launched(program: str, arguments: Sequence[str] = ARGUMENTS) -> Iterator[Browser]:
    """A headless browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(arguments))
        yield browser
        browser.close()


class Tab:
    """A page in a window of its own, and what it complained of and asked for since it was opened.

    Attributes:
        page: Playwright's page.
        errors: errors and warnings from scripts, the network and the content policy.
        requests: the addresses that the page asked for.
    """

    def __init__(self, browser: Browser, **options: Any) -> None:
        self.page: Page = browser.new_context(**options).new_page()
        self.page.set_default_timeout(PATIENCE * 1000)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("requestfailed", lambda request: self.errors.append(f"failed: {request.url}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", self._console)

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning", "assert"):
            self.errors.append(message.text)

    def open(self, address: str) -> None:
        """Load a page."""
        self.errors.clear()
        self.requests.clear()
        self.page.goto(address)

    def text(self, selector: str) -> str:
        """The text of an element."""
        return self.page.locator(selector).text_content() or ""

    def protocol(self) -> CDPSession:
        """Chromium's own protocol, for gestures that Playwright lacks."""
        return self.page.context.new_cdp_session(self.page)

    def close(self) -> None:
        self.page.context.close()


@contextmanager
def opened(browser: Browser, **options: Any) -> Iterator[Tab]:
    """A tab that is closed afterwards. `options` are those of Playwright's `new_context`."""
    tab = Tab(browser, **options)
    try:
        yield tab
    finally:
        tab.close()


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
