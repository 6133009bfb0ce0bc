"""Pages of models of each kind and size show what `Session` and `decode` give, or refuse a file."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.browser import GRID, File, Tab, craft, npy
from PIL import ExifTags, Image
from playwright.sync_api import expect

from mdlstm_tk.io.images import decode_image
from mdlstm_tk.runtime import Session, decode
from mdlstm_tk.runtime.inputs import image_for


def numbers(*shape: int) -> np.ndarray[Any, Any]:
    """Random numbers from 0 to 1."""
    return np.random.default_rng(sum(shape)).random(shape, np.float32)


def pixels(*shape: int) -> np.ndarray[Any, Any]:
    """Random levels of an image."""
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


def picture(image: Image.Image | np.ndarray[Any, Any], suffix: str = "png", **options: Any) -> File:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    options |= {"webp": {"lossless": True, "exact": True}, "jpeg": {"quality": 100}}.get(suffix, {})
    image.save(buffer := io.BytesIO(), suffix, **options)
    return f"x.{suffix}", buffer.getvalue()


def prepared(channels: int, *resize: int | None) -> dict[str, Any]:
    return {"preprocessing": {"channels": channels, "resize": resize or None}, "channels": channels}


def images() -> list[File]:
    """Images (5, 8) of each mode in each format, and photographs of a camera that was held sideways."""
    levels = pixels(*GRID, 4)
    levels[..., 3] = levels[..., 3] // 128 * 255  # browsers round half-transparent pixels differently
    grey, opaque = Image.fromarray(levels[..., 0]), Image.fromarray(levels[..., :3])
    (exif := Image.Exif())[ExifTags.Base.Orientation] = 6
    turned = grey.transpose(Image.Transpose.ROTATE_90)
    files = [picture(turned, suffix, exif=exif) for suffix in ("jpeg", "png")]
    for suffix in ("png", "bmp", "gif", "webp"):
        files += [picture(mode, suffix) for mode in (grey, opaque, opaque.quantize(16))]
        files += [picture(levels, suffix)] * (suffix != "bmp")
    return files


VECTOR, PADDED = {"window": None}, {"inputs": ("x", "sizes")}
X, ZEROS, PHOTO = npy(numbers(5, 8, 3)), npy(np.zeros((5, 8, 3))), picture(pixels(20, 31, 3))
LINE = {"window": None, "axes": (0,), "kind": "transcribe", "classes": ("a", "b")}
BIG = (0, 4278190335, 2**63 - 1)  # which neither float32 nor JavaScript's numbers hold
LONG = np.broadcast_to(np.eye(3)[[1, 0, 2, 2] * 200], (4, 800, 3))
FIRST = numbers(3, 5, 8)
WHOLE = np.round(numbers(*GRID) * 40)
TYPES = [WHOLE.astype(dtype) for dtype in ("<f4", ">f8", "<f2", "u1", ">i2", "<i8", "?")]
# The grid of a model, its other fields, and what it is given.
MODELS: dict[str, tuple[tuple[int | None, ...] | None, dict[str, Any], list[File]]] = {
    "any size": (None, {}, [npy(numbers(*size, 3)) for size in ((1, 1), (1, 7), (7, 1), (70, 3))]),
    "fixed height": ((4, None), {}, [npy(numbers(4, 1, 3)), npy(numbers(4, 30, 3))]),
    "types": (GRID, {"channels": 1}, [*map(npy, TYPES), npy(np.asfortranarray(WHOLE))]),
    "windows": ((6, 9), {"window": (2, 4)}, [npy(numbers(6, 9, 3)), npy(numbers(1, 6, 9, 3))]),
    "padded": ((6, 9), {"window": (2, 4), **PADDED}, [npy(numbers(1, 7, 3)), npy(numbers(5, 2, 3))]),
    "in front": (GRID, {"layout": "N C H W"}, [npy(FIRST), npy(np.asfortranarray(-FIRST))]),
    "whole numbers": (GRID, {"whole": 2**32 + 1}, [X]),
    "vector": (GRID, VECTOR, [X]),
    "vectors": (GRID, {**VECTOR, "axes": (0,)}, [X]),
    "columns": (GRID, {**VECTOR, "kind": "regress"}, [X]),
    "classes": (GRID, {**VECTOR, "kind": "classify"}, [X, npy(numbers(5, 8, 3) ** 2)]),
    "labels": (GRID, {**VECTOR, "kind": "tag", "threshold": 0.73}, [X, ZEROS]),
    "mask": (None, {"kind": "segment"}, [npy(numbers(9, 4, 3))]),
    "values": (GRID, {"kind": "segment", "mask_values": BIG}, [X]),
    "line": ((4, None), {**LINE, **prepared(3, 4, None)}, [npy(LONG), PHOTO, npy(0 * LONG)]),
    "padded line": ((4, 30), {**LINE, **PADDED, "offset": (0, 1, 0)}, [npy(numbers(4, 9, 3))]),
    "images": (GRID, {"channels": 1}, images()),
    "photo": (GRID, {**VECTOR, **prepared(3, *GRID)}, [PHOTO, picture(pixels(3, 3))]),
    "grey photo": ((16, 1), prepared(1, 16, 1), [picture(pixels(5, 8, 3)), picture(pixels(64, 9))]),
    "own size": (None, {"kind": "segment", **prepared(3)}, [picture(pixels(40, 100, 3))]),
}  # fmt: skip


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


@pytest.mark.parametrize("name", MODELS)
def test_the_page_shows_what_python_gives(name: str, open_page: Callable[..., Tab], tmp_path: Path) -> None:
    grid, fields, files = MODELS[name]
    session = Session(craft(tmp_path / "m.onnx", grid, **fields), "cpu")
    tab = open_page(tmp_path / "m.onnx")
    select, answer = tab.page.locator("#prediction select"), tab.page.locator(".answer")
    channels = range(select.locator("option").count()) if select.is_visible() else [0]
    for file in files:
        tab.give(file)
        for channel in channels:
            if select.is_visible():
                select.select_option(index=channel)
            rows, text = expected(session, file, channel)
            tab.check_numbers(rows)
            expect(answer).to_have_text(text) if text else expect(answer).to_be_hidden()
    if session.metadata.kind:  # twice 3e38 is infinite, which is no answer
        tab.give(npy(np.full((*(grid or GRID)[:1], 8 if grid is None else grid[1] or 8, 3), 3e38)))
        expect(tab.page.locator("#message.error")).to_contain_text("diverged")
        shown = tab.page.locator("#prediction :is(.frame, .answer, .bars, .legend):visible")
        assert tab.text("pre") == "" and shown.count() == 0


# The fields of a model, and files that it refuses, each with what the message must name.
REFUSED: dict[str, tuple[dict[str, Any], list[tuple[File, str]]]] = {
    "grey": ({"channels": 1}, [
        (npy(np.zeros((8, 5))), "8×5"),
        (npy(np.zeros((5, 8, 3))), "3 channels"),
        (npy(np.full(GRID, np.nan)), "NaN"),
        (npy(np.zeros(GRID, complex)), "real numbers"),
        (("cut.npy", npy(np.zeros(GRID))[1][:-1]), "cut.npy is cut short"),
        (("<b>.npy", npy(np.zeros(GRID))[1][:9]), "<b>.npy"),
        (("x.png", b"\x89PNG"), "x.png"),
        (picture(np.zeros(GRID, np.uint16)), "16 bits"),
    ]),
    "float16": ({"dtype": "float16"}, [(npy(np.full((*GRID, 3), 1e5)), "100000")]),
    "other values": ({"unit_range": False}, [(picture(pixels(5, 8)), "outside of [0, 1]")]),
    "padded": (PADDED, [(npy(np.zeros((6, 8, 3))), "up to 5×8")]),
    "free": ({"grid": None, "multiple_of": (4, 2), "min_grid": (8, 2)}, [
        (npy(np.zeros((10, 8, 3))), "multiples of 4×2"),
        (npy(np.zeros((4, 8, 3))), "at least 8×2"),
        (npy(np.zeros((600, 600, 3))), "262144"),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_file_gets_one_line_and_changes_nothing(
    name: str, open_page: Callable[..., Tab], tmp_path: Path
) -> None:
    fields, files = REFUSED[name]
    tab = open_page(craft(tmp_path / "m.onnx", **fields))
    error = tab.page.locator("#message.error")
    for file, named in files:
        before = tab.text("pre")
        tab.give(file)
        expect(error).to_contain_text(named)
        assert "\n" not in tab.text("#message") and tab.text("pre") == before
        tab.page.locator("#clear").click()
        expect(error).to_have_count(0)
