"""The page that `export --web` writes, as its tests use it: open it, give it grids, read its numbers."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto
from playwright.sync_api import expect

from helpers.browser import PATIENCE, Tab
from helpers.small_models import node, write_model

GRID = (5, 8)
ATOL = 1e-5


def show(tab: Tab, address: str) -> None:
    """Open the page, wait until it has predicted, and unfold its numbers."""
    tab.open(address)
    expect(tab.page.locator("#message")).to_contain_text(" ms ", timeout=PATIENCE * 1000)
    tab.page.locator("summary").click()
    expect(tab.page.locator("pre")).not_to_be_empty()


def numbers(tab: Tab) -> np.ndarray[Any, Any]:
    """The prediction, as the page prints it."""
    return np.loadtxt(io.StringIO(tab.text("pre")), delimiter=",", dtype=np.float32, ndmin=2)


def check_prediction(tab: Tab, expected: np.ndarray[Any, Any]) -> None:
    """Wait until the page has predicted this."""
    end = time.monotonic() + PATIENCE
    while True:
        actual = numbers(tab)
        if actual.shape == expected.shape and np.abs(actual - expected).max() <= ATOL:
            return
        if time.monotonic() > end:
            np.testing.assert_allclose(actual, expected, rtol=0, atol=ATOL, err_msg=tab.text("#message"))
        tab.page.wait_for_timeout(20)


def give(tab: Tab, path: Path, array: np.ndarray[Any, Any]) -> None:
    """Save an array as .npy and choose that file in the page."""
    np.save(path, array)
    tab.page.set_input_files("#file", path)


def matrix(seed: int = 0, grid: tuple[int, ...] = GRID) -> np.ndarray[Any, Any]:
    """Random numbers from 0 to 1."""
    return np.random.default_rng(seed).random(grid)


def craft(path: Path, grid: tuple[int, ...] | None, **fields: Any) -> Path:
    """Save a model whose three channels can be told apart: y = 2x + (0, 1, 2).

    With the input `sizes`, their sum is added. The output is strided by `window`; where that is None, it is
    the mean over the grid, or over the rows if the kind is "transcribe". A kind with classes leaves out the
    (0, 1, 2), so that x decides.
    """
    kind, window = fields.get("kind"), fields.get("window", (1, 1))
    nodes = [node("Add", "x x", "twice"), node("Add", "twice offset", "sum")]
    if "sizes" in fields.get("inputs", ()):
        nodes.append(node("ReduceSum", "sizes", "total", keepdims=0))
        nodes.append(node("Cast", "total", "float", to=TensorProto.FLOAT))
        nodes.append(node("Add", "sum float", "more"))
    whole, axes = nodes[-1].output[0], [1] if kind == "transcribe" else [1, 2]
    constants = {"offset": np.float32([0, 0, 0] if kind else [0, 1, 2]), "axes": np.int64(axes)}
    if window is None:
        nodes.append(node("ReduceMean", f"{whole} axes", "y", keepdims=0))
    else:
        constants |= {"start": np.int64([0, 0]), "end": np.int64([1 << 30] * 2), "step": np.int64(window)}
        nodes.append(node("Slice", f"{whole} start end axes step", "y"))
    described = {"classes": ("cat", "<i>dog", "owl"), "task": "animals", "window": window, **fields}
    sizes: dict[str, Any] = {"outputs": 3, "axes": 4 - len(axes) * (window is None), "channels": 3}
    return write_model(path, nodes, constants, grid=grid, **sizes, **described)
