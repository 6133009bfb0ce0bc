"""One exported model and its page, for all tests of pages."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from helpers.browser import DESKTOP, Tab, opened, served
from helpers.exported_page import GRID, show
from helpers.requirements import missing
from playwright.sync_api import Browser

from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.export import export_run
from mdlstm_tk.export.browser.build import load_runtime, write_page
from mdlstm_tk.export.browser.examples import PageExample
from mdlstm_tk.runtime import Session
from mdlstm_tk.training import Run


@pytest.fixture(scope="session")
def onnxruntime_web() -> dict[str, bytes]:
    """The files of onnxruntime-web, by name."""
    if shutil.which("npm") is None:
        missing("npm is not installed, which fetches onnxruntime-web")
    try:
        return load_runtime()
    except MDLSTMError as error:
        missing(str(error))


@pytest.fixture(scope="session")
def exported(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model-5x8.onnx"
    export_run(trained, path, grid=GRID)
    return path


@pytest.fixture(scope="session")
def session(exported: Path) -> Session:
    """The exported model in Python, to hold the page's numbers against."""
    return Session(exported, "cpu")


@pytest.fixture(scope="session")
def address(
    exported: Path, onnxruntime_web: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Where the page of the exported model is served."""
    folder = tmp_path_factory.mktemp("web") / "page"
    write_page(exported, folder, "md-5x8", onnxruntime_web)
    with served(folder) as url:
        yield url


@pytest.fixture(scope="module")
def open_tab(browser: Browser, address: str) -> Iterator[Tab]:
    with opened(browser, **DESKTOP) as tab:
        show(tab, address)
        yield tab


@pytest.fixture
def tab(open_tab: Tab) -> Iterator[Tab]:
    """The page with its numbers unfolded; tests share it, and none may make it complain."""
    yield open_tab
    errors = [*open_tab.errors]
    open_tab.errors.clear()
    assert errors == []


@pytest.fixture
def open_page(
    browser: Browser, onnxruntime_web: dict[str, bytes], tmp_path: Path
) -> Iterator[Callable[..., Tab]]:
    """A function that writes the page of a model and opens it in a tab, which must complain of nothing."""
    with ExitStack() as stack:
        tab = stack.enter_context(opened(browser, **DESKTOP))

        def open_it(model: Path, examples: Sequence[PageExample] = ()) -> Tab:
            write_page(model, tmp_path / "page", "a model", onnxruntime_web, examples)
            show(tab, stack.enter_context(served(tmp_path / "page")))
            return tab

        yield open_it
        assert tab.errors == []


@pytest.fixture
def package(onnxruntime_web: dict[str, bytes], tmp_path: Path) -> Path:
    """The folder of onnxruntime-web, as npm installs it."""
    folder = tmp_path / "onnxruntime-web"
    (folder / "dist").mkdir(parents=True)
    for name, content in onnxruntime_web.items():
        (folder / "dist" / name).write_bytes(content)
    return folder
