"""`export --web` and `write_page`: what pages hold, where it comes from, and which models have none."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.browser import GRID, Tab, craft, opened, served
from helpers.command import mdlstm, succeed
from helpers.training import quick, run_in
from playwright.sync_api import Browser, expect

from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.export import export_run
from mdlstm_tk.export.browser.build import load_runtime, write_page
from mdlstm_tk.export.browser.examples import page_examples, to_example
from mdlstm_tk.io.images import Preprocessing
from mdlstm_tk.runtime import Session
from mdlstm_tk.training import Run


def test_only_the_one_runtime_is_taken_and_npm_may_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.tgz").write_bytes(b"another")
    with pytest.raises(InputError, match=r"p\.tgz.*npm pack"):
        load_runtime(tmp_path / "p.tgz")
    monkeypatch.setenv("PATH", str(tmp_path))
    for script in (None, "#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\nexit 1\n"):
        if script:
            (tmp_path / "npm").write_text(script)
            (tmp_path / "npm").chmod(0o755)
        with pytest.raises(MDLSTMError, match="ENOTFOUND.*--web-runtime" if script else "--web-runtime"):
            load_runtime()


def test_the_verb_writes_a_page(
    trained: Run, browser: Browser, onnxruntime_web: dict[str, bytes], tmp_path: Path
) -> None:
    result = succeed("export", trained.folder, "--web", "page", cwd=tmp_path)
    assert "-d page" in result.err.splitlines()[-1] and "page/model.onnx" in result.err
    for name, content in onnxruntime_web.items():
        assert (tmp_path / "page/ort" / name).read_bytes() == content
    session = Session(tmp_path / "page/model.onnx", "cpu")
    examples = page_examples(trained, session.metadata)
    assert len(examples) == 6 and examples[0]["dtype"] == "float32"
    with served(tmp_path / "page") as address, opened(browser) as tab:
        tab.show(address)
        expect(tab.page.locator("#hint")).to_be_visible()
        assert tab.text("h1") == trained.folder.name
        for example in (*examples, examples[0]):
            x = np.frombuffer(base64.b64decode(example["data"]), "<f4").reshape(8, 8)
            assert (x == 1).sum() == 2, "an example of the diagonal task has two ones"
            tab.check_numbers(session(x))
            tab.page.locator("#example").click()
    for options in ((), ("--size", "4", "--size", "5", "--force"), ("--form", "tiles", "--force")):
        refused = mdlstm("export", trained.folder, "--web", "page", *options, cwd=tmp_path)
        assert refused.code == 2 and refused.err.count("\n") == 1


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
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    x = Preprocessing()(every)
    assert base64.b64decode(to_example(x)["data"]) == every.tobytes()
    np.testing.assert_array_equal((every[..., None] / 255).astype(np.float32), x)  # as JavaScript divides
    assert to_example(x * 2)["dtype"] == "float32"


def test_a_page_that_is_written_again(
    browser: Browser, onnxruntime_web: dict[str, bytes], tmp_path: Path
) -> None:
    page = tmp_path / "page"
    with served(page) as address, opened(browser) as tab:
        for time, title in ((1, "first"), (2, "<b>second")):
            model = craft(tmp_path / "m.onnx", offset=(time, 0, 0))
            assert write_page(model, page, onnxruntime_web, title=title, force=time > 1).parent == page
            for path in page.glob("model.*"):
                os.utime(path, (time, time))  # so old that browsers keep their copy for years
            tab.show(address)
            tab.page.locator("#clear").click()
            tab.check_numbers(np.full(GRID, float(time)))
            assert tab.text("h1") == title
            (page / "mine.txt").write_text("stays")
    assert (page / "mine.txt").read_text() == "stays"
    with pytest.raises(InputError, match="not empty"):
        write_page(model, page, onnxruntime_web, title="third")


def test_models_that_no_page_takes(tmp_path: Path) -> None:
    lines = {"grid": (4, None), "kind": "transcribe", "window": None}
    for fields, named in (
        ({"inputs": ("x", "mood")}, "mood"),
        ({"output_names": ("y", "attention"), "further_windows": (None,)}, "y, attention"),
        ({"integer": True}, "whole numbers"),
        ({"grid": (2, 5, 8), "layout": "N D H W C", "window": (1, 1, 1)}, "N D H W C"),
        ({**lines, "classes": ("a", "\u05d0")}, "right to left"),
        ({**lines, "classes": ("a", "\u0661")}, "right to left"),
    ):
        path = craft(tmp_path / "m.onnx", **fields)
        with pytest.raises(InputError, match=rf"m\.onnx.*{named}"):
            write_page(path, tmp_path / "page", {}, title="m")
    assert not (tmp_path / "page").exists()
