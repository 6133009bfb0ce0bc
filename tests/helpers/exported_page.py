"""The page that `export --web` writes, as its tests use it: open it, give it grids, read its numbers."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto
from PIL import Image
from playwright.sync_api import expect

from helpers.browser import PATIENCE, Tab
from helpers.small_models import node, write_model
from mdlstm_tk.io.images import decode_image
from mdlstm_tk.runtime import Session, decode
from mdlstm_tk.runtime.inputs import image_for

GRID = (5, 8)
NAMES = ("cat", "<i>dog", "owl")


def show(tab: Tab, address: str) -> None:
    """Open the page, wait until it has predicted, and unfold its numbers."""
    tab.page.goto(address)
    expect(tab.page.locator("#message")).to_contain_text(" ms ", timeout=PATIENCE * 1000)
    tab.page.locator("summary").click()
    expect(tab.page.locator("pre")).not_to_be_empty()


File = tuple[str, bytes]  # name and content


def npy(array: Any) -> File:
    np.save(buffer := io.BytesIO(), array, allow_pickle=True)
    return "x.npy", buffer.getvalue()


def picture(image: Image.Image | np.ndarray[Any, Any], suffix: str = "png", **options: Any) -> File:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    options |= {"webp": {"lossless": True, "exact": True}, "jpeg": {"quality": 100}}.get(suffix, {})
    image.save(buffer := io.BytesIO(), suffix, **options)
    return f"x.{suffix}", buffer.getvalue()


def give(tab: Tab, file: File) -> None:
    """Choose a file in the page."""
    tab.page.set_input_files("#file", {"name": file[0], "mimeType": "", "buffer": file[1]})


def check_numbers(tab: Tab, expected: Any) -> None:
    """Wait until the page shows these rows: texts and integers as they are, others within 1e-5."""
    expected = expected.tolist() if isinstance(expected, np.ndarray) else expected
    end = time.monotonic() + PATIENCE
    while True:
        shown = [line.split("\t") for line in tab.text("pre").splitlines()] or [[""]]
        if [*map(len, shown)] == [*map(len, expected)] and all(
            abs(float(text) - value) <= 1e-5 if isinstance(value, float) else text == str(value)
            for texts, values in zip(shown, expected, strict=True)
            for text, value in zip(texts, values, strict=True)
        ):
            return
        assert time.monotonic() < end, (shown, expected, tab.text("#message"))
        tab.page.wait_for_timeout(20)


def expected(session: Session, file: File, channel: int) -> tuple[Any, str]:
    """What the page should show of a file: the rows of numbers, and the answer."""
    m, (name, content) = session.metadata, file
    is_array = name.endswith(".npy")
    x = np.load(io.BytesIO(content)) if is_array else image_for(decode_image(content, name), m, name)
    y = session(x)[0] if x.ndim == 4 else session(x)
    if m.kind == "segment":
        return (decode(y, m) if channel == 0 else decode(y, m, probabilities=True)[..., channel - 1]), ""
    if m.kind == "transcribe":
        text = decode(y, m)[0]["text"]
        return [[text]], text or "(no text)"
    if m.kind in ("classify", "tag"):
        row = decode(y, m, probabilities=True)[0]
        best = f"{row['label']} {100 * row['probability']:.1f} %" if m.kind == "classify" else ""
        labels = best or row["labels"].replace(";", ", ") or "(no label)"
        return [[name, row[f"probability_{name}"]] for name in m.classes or ()], labels
    if y.ndim == 1:
        return list(zip(m.classes or (), y.tolist(), strict=True)), ""
    return (y if y.ndim == 3 else y[None])[..., channel] if m.channels_last else y[channel], ""


def numbers(*shape: int) -> np.ndarray[Any, Any]:
    """Random numbers from 0 to 1."""
    return np.random.default_rng(sum(shape)).random(shape, np.float32)


def pixels(*shape: int) -> np.ndarray[Any, Any]:
    """Random levels of an image."""
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


def craft(
    path: Path,
    grid: tuple[int | None, ...] | None,
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
    return write_model(
        path,
        nodes,
        constants,
        elem_type=TensorProto.FLOAT if whole is None else TensorProto.INT64,
        axes=4 - len(axes) * (window is None),
        grid=grid,
        **{"outputs": 3, "channels": 3, "classes": NAMES, "window": window, **fields},
    )
