"""The page that `export --web` writes, in the Chromium that is installed here: open it, give it files, read
its numbers."""

from __future__ import annotations

import http.server
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto
from playwright.sync_api import Browser, Page, expect

from helpers.crafted_models import node
from helpers.small_models import write_model

PATIENCE = 30.0  # seconds until what a page should do counts as not done
DESKTOP = {"viewport": {"width": 1000, "height": 900}}
GRID = (5, 8)
NAMES = ("cat", "<i>dog", "owl")
File = tuple[str, bytes]  # name and content


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

    def show(self, address: str) -> None:
        """Open the page, wait until it has predicted, and unfold its numbers."""
        self.page.goto(address)
        expect(self.page.locator("#message")).to_contain_text(" ms ", timeout=PATIENCE * 1000)
        self.page.locator("summary").click()
        expect(self.page.locator("pre")).not_to_be_empty()

    def give(self, file: File) -> None:
        """Choose a file in the page."""
        self.page.set_input_files("#file", {"name": file[0], "mimeType": "", "buffer": file[1]})

    def check_numbers(self, expected: Any) -> None:
        """Wait until the page shows these rows: texts and integers as they are, others within 1e-5."""
        expected = expected.tolist() if isinstance(expected, np.ndarray) else expected
        end = time.monotonic() + PATIENCE
        while True:
            shown = [line.split("\t") for line in self.text("pre").splitlines()] or [[""]]
            if [*map(len, shown)] == [*map(len, expected)] and all(
                abs(float(text) - value) <= 1e-5 if isinstance(value, float) else text == str(value)
                for texts, values in zip(shown, expected, strict=True)
                for text, value in zip(texts, values, strict=True)
            ):
                return
            assert time.monotonic() < end, (shown, expected, self.text("#message"))
            self.page.wait_for_timeout(20)


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
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def npy(array: Any) -> File:
    np.save(buffer := io.BytesIO(), array, allow_pickle=True)
    return "x.npy", buffer.getvalue()


def craft(
    path: Path,
    grid: tuple[int | None, ...] | None = GRID,
    offset: tuple[int, int, int] | None = None,
    axes: tuple[int, ...] = (0, 1),
    whole: int | None = None,
    **fields: Any,
) -> Path:
    """Save a model of three outputs that can be told apart: y = 2x + offset.

    With the input `sizes`, their sum is added. The output is strided by `window`; where that is None, it is
    the mean over `axes` of the grid.

    Args:
        offset: (0, 1, 2), but nothing for a kind with classes, whose answers x then decides.
        whole: y is 2x + this in int64.
        **fields: of the metadata.
    """
    window, is_first = fields.get("window", (1, 1)), fields.get("layout") == "N C H W"
    added = np.float32(offset or ((0, 0, 0) if fields.get("kind") else (0, 1, 2)))
    constants: dict[str, Any] = {"offset": added[:, None, None] if is_first else added}
    nodes = [node("Add", "x x", "twice"), node("Add", "twice offset", "sum")]
    if "sizes" in fields.get("inputs", ()):
        nodes.append(node("ReduceSum", "sizes", "total", keepdims=0))
        nodes.append(node("Cast", "total", "float", to=TensorProto.FLOAT))
        nodes.append(node("Add", "sum float", "more"))
    if whole is not None:
        constants["whole"] = np.int64(whole)
        nodes += [node("Cast", "sum", "less", to=TensorProto.INT64), node("Add", "less whole", "more")]
    last = nodes[-1].output[0]
    constants["axes"] = np.int64(axes) + 1 + is_first
    if window is None:
        nodes.append(node("ReduceMean", f"{last} axes", "y", keepdims=0))
    else:
        constants |= {"start": np.int64([0, 0]), "end": np.int64([1 << 30] * 2), "step": np.int64(window)}
        nodes.append(node("Slice", f"{last} start end axes step", "y"))
    elem_type = TensorProto.FLOAT if whole is None else TensorProto.INT64
    more = {"outputs": 3, "channels": 3, "classes": NAMES, "window": window, "grid": grid, **fields}
    left = 4 - len(axes) * (window is None)
    return write_model(path, nodes, constants, elem_type=elem_type, axes=left, **more)
