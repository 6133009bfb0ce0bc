"""`export --web` and `write_page`: what pages hold, where it comes from, and which models have none."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.browser import GRID, Tab, craft, opened, served
from helpers.command import succeed
from helpers.training import quick, run_in
from playwright.sync_api import Browser, expect

from mdlstm_tk.errors import InputError
from mdlstm_tk.export import export_run
from mdlstm_tk.export.browser.build import load_runtime, write_page
from mdlstm_tk.export.browser.examples import page_examples
from mdlstm_tk.runtime import Session
from mdlstm_tk.training import Run


def test_only_the_one_runtime_is_taken(tmp_path: Path) -> None:
    (tmp_path / "p.tgz").write_bytes(b"another")
    with pytest.raises(InputError, match=r"p\.tgz"):
        load_runtime(tmp_path / "p.tgz")


def test_the_verb_writes_a_page(
    trained: Run, browser: Browser, onnxruntime_web: dict[str, bytes], tmp_path: Path
) -> None:
    succeed("export", trained.folder, "--web", "page", cwd=tmp_path)
    for name, content in onnxruntime_web.items():
        assert (tmp_path / "page/ort" / name).read_bytes() == content
    session = Session(tmp_path / "page/model.onnx", "cpu")
    examples = page_examples(trained, session.metadata)
    with served(tmp_path / "page") as address, opened(browser) as tab:
        tab.show(address)
        expect(tab.page.locator("#hint")).to_be_visible()
        assert tab.text("h1") == trained.folder.name
        for example in (*examples, examples[0]):
            x = np.frombuffer(base64.b64decode(example["data"]), "<f4").reshape(8, 8)
            assert (x == 1).sum() == 2, "an example of the diagonal task has two ones"
            tab.check_numbers(session(x))
            tab.page.locator("#example").click()


def test_examples_are_of_different_classes_and_strangers_data_stay_closed(
    open_page: Callable[..., Tab], tmp_path: Path
) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (64, *GRID), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", x=levels / np.float32(255), y=np.arange(64) % 8)
    run = run_in(tmp_path / "run", quick(tmp_path / "data.npz", "classify"))
    metadata = Session(export_run(run, tmp_path / "m.onnx").path, "cpu").metadata
    with pytest.raises(InputError, match="--data"):
        page_examples(run, metadata)
    with pytest.raises(InputError):  # whatever the data say
        page_examples(run, replace(metadata, grid=(3, 3)), str(tmp_path / "data.npz"))
    examples = page_examples(run, metadata, str(tmp_path / "data.npz"))
    assert len({example["target"] for example in examples}) == 6
    tab = open_page(craft(tmp_path / "d.onnx", channels=1), examples)
    for example in (*examples[1:], examples[0]):  # the page opens with the first one
        tab.page.locator("#example").click()
        expect(tab.page.locator("#target")).to_have_text(f"Expected: {example['target']}")
        x = np.frombuffer(base64.b64decode(example["data"]), np.uint8).reshape(GRID)
        tab.check_numbers(x / 127.5)
    tab.page.locator("#clear").click()
    expect(tab.page.locator("#target")).to_be_hidden()  # it was that of another input


def test_other_files_of_a_folder_stay(tmp_path: Path) -> None:
    model, page = craft(tmp_path / "m.onnx"), tmp_path / "page"
    page.mkdir()
    (page / "mine.txt").write_text("stays")
    with pytest.raises(InputError, match="not empty"):
        write_page(model, page, {}, title="m")
    assert write_page(model, page, {}, title="m", force=True).read_bytes() == model.read_bytes()
    assert (page / "mine.txt").read_text() == "stays"


def test_models_that_no_page_takes(tmp_path: Path) -> None:
    hebrew = {"grid": (4, None), "kind": "transcribe", "window": None, "classes": ("a", "\u05d0")}
    for fields in (
        {"inputs": ("x", "mood")},
        {"output_names": ("y", "attention"), "further_windows": (None,)},
        {"integer": True},
        {"grid": (2, 5, 8), "layout": "N D H W C", "window": (1, 1, 1)},
        hebrew,
    ):
        with pytest.raises(InputError, match=r"m\.onnx"):
            write_page(craft(tmp_path / "m.onnx", **fields), tmp_path / "page", {}, title="m")
    assert not (tmp_path / "page").exists()
