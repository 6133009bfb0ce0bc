"""`export --web`: what the page reads from files, against `Session` on the same numbers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from unicodedata import bidirectional

import numpy as np
import pytest
from helpers.browser import Tab
from helpers.exported_page import GRID, check_prediction, give, matrix, numbers, show
from PIL import ExifTags, Image
from playwright.sync_api import expect

from mdlstm_tk._util.text_order import reorder
from mdlstm_tk.io.images import Preprocessing, decode_image, resize
from mdlstm_tk.runtime import Session


def test_it_predicts_as_soon_as_it_is_open_and_asks_nobody_else(tab: Tab, address: str) -> None:
    show(tab, address)
    assert numbers(tab).shape == GRID
    assert tab.text("h1") == "md-5x8"
    assert "5×8" in tab.text("footer")
    assert all(url.startswith(address) for url in tab.requests), tab.requests
    names = {url.removeprefix(address) for url in tab.requests}
    assert {"model.onnx", "ort/ort-wasm-simd-threaded.wasm"} <= names


KINDS = ["<f4", ">f8", "<f2", "u1", ">i2", "<i8", "?", "fortran", "(H, W, C)"]


@pytest.mark.parametrize("kind", KINDS)
def test_npy_files(kind: str, tab: Tab, session: Session, tmp_path: Path) -> None:
    x = matrix(100 + KINDS.index(kind))
    if kind[-2:] in ("u1", "i2", "i8"):
        x = (x * 5).round()
    arrays = {"fortran": lambda: np.asfortranarray(x), "(H, W, C)": lambda: x[..., None]}
    array = arrays.get(kind, lambda: x.astype(kind))()
    give(tab, tmp_path / "x.npy", array)
    check_prediction(tab, session(array.reshape(GRID)))


def test_csv_files(tab: Tab, session: Session, tmp_path: Path) -> None:
    x = matrix(2)
    np.savetxt(tmp_path / "x.csv", x, delimiter=", ")
    tab.page.set_input_files("#file", tmp_path / "x.csv")
    check_prediction(tab, session(x))


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "webp"])
@pytest.mark.parametrize("mode", ["L", "RGB", "P", "RGBA"])
def test_images_are_read_as_in_python(
    mode: str, suffix: str, tab: Tab, session: Session, tmp_path: Path
) -> None:
    if suffix == "bmp" and mode == "RGBA":
        pytest.skip("Pillow reads the opacity of a BMP only where its header says that there is one")
    levels = (matrix(3, (*GRID, 4)) * 255).astype(np.uint8)
    levels[..., 3] = np.where(
        levels[..., 3] > 100, 255, 0
    )  # browsers round half-transparent pixels differently
    if mode == "L":
        image = Image.fromarray(levels[..., 0])
    else:
        image = Image.fromarray(levels).convert("RGBA" if mode == "RGBA" else "RGB")
        image = image.quantize(16) if mode == "P" else image
    path = tmp_path / f"x.{suffix}"
    image.save(path, **({"lossless": True, "exact": True} if suffix == "webp" else {}))
    tab.page.set_input_files("#file", path)
    pixels = decode_image(path.read_bytes(), path.name)
    check_prediction(tab, session(Preprocessing(channels=1)(pixels)[..., 0]))


def test_photographs_are_turned_as_their_camera_says(tab: Tab, session: Session, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # a quarter turn
    image = Image.fromarray((matrix(3, GRID[::-1]) * 255).astype(np.uint8))
    image.save(tmp_path / "x.jpg", quality=100, exif=exif)
    tab.page.set_input_files("#file", tmp_path / "x.jpg")
    pixels = decode_image((tmp_path / "x.jpg").read_bytes(), "x.jpg")
    assert pixels.shape == GRID
    check_prediction(tab, session(Preprocessing(channels=1)(pixels)[..., 0]))


@pytest.mark.parametrize("extents", [(5, 8), (31, 20), (3, 3), (1, 1), (64, 9)])
@pytest.mark.parametrize("new", [(5, 8), (16, 1), (40, 41)])
def test_images_are_resized_as_in_python(extents: tuple[int, int], new: tuple[int, int], tab: Tab) -> None:
    pixels = matrix(4, (*extents, 2)).astype(np.float32)
    script = """async ([height, width, channels, data, extents]) => {
        const { resize } = await import("./images.js");
        return [...resize({ height, width, channels, data: Float32Array.from(data) }, ...extents).data];
    }"""
    actual = tab.page.evaluate(script, [*pixels.shape, pixels.ravel().tolist(), list(new)])
    np.testing.assert_allclose(np.reshape(actual, (*new, 2)), resize(pixels, new), rtol=0, atol=1e-6)


def test_one_free_extent_follows_from_the_aspect_as_in_python(tab: Tab) -> None:
    rng = np.random.default_rng(0)
    for height, width, fixed in rng.integers(1, 200, (200, 3)).tolist():
        for extents in ((fixed, None), (None, fixed), (fixed, fixed), None):
            actual = tab.page.evaluate(
                """async (values) => (await import("./images.js")).resizedExtents(...values)""",
                [height, width, extents],
            )
            assert tuple(actual) == Preprocessing(1, extents).resized((height, width))


def test_texts_are_brought_into_the_order_of_reading_as_in_python(tab: Tab) -> None:
    rng = np.random.default_rng(0)
    alphabet = list("\u05d0\u05d1\u05b8\u0633\u0646\u0663ab12 .,:-%()")
    for direction in ("ltr", "rtl"):
        texts = ["".join(rng.choice(alphabet, rng.integers(0, 12))) for _ in range(300)]
        lines = [[list(text), [bidirectional(character) for character in text]] for text in texts]
        actual = tab.page.evaluate(
            """async ([lines, direction]) => {
                const { reorder } = await import("./text_order.js");
                return lines.map(([characters, kinds]) => reorder(characters, kinds, direction));
            }""",
            [lines, direction],
        )
        assert actual == [reorder(text, direction) for text in texts]  # type: ignore[arg-type]


def test_files_are_dropped_anywhere(tab: Tab, session: Session, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", x := matrix(4))
    tab.page.evaluate(
        "() => addEventListener('drop', (event) => { window.prevented = event.defaultPrevented; })"
    )
    protocol = tab.protocol()
    data = {"items": [], "files": [str(tmp_path / "x.npy")], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        protocol.send("Input.dispatchDragEvent", {"type": kind, "x": 20, "y": 20, "data": data})
    check_prediction(tab, session(x))
    assert tab.page.evaluate("() => window.prevented"), "the browser would leave the page and open the file"


def npy(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


# File, content, and what the message must name.
BAD: dict[str, tuple[str, bytes, tuple[str, ...]]] = {
    "size": ("x.npy", npy(np.zeros((8, 5))), ("8×5", "5×8")),
    "channels": ("x.npy", npy(np.zeros((5, 8, 3))), ("x.npy", "3 channels")),
    "axes": ("x.npy", npy(np.zeros(40)), ("x.npy", "(40)", "(H, W)")),
    "empty": ("x.npy", npy(np.zeros((0, 8))), ("x.npy", "(0, 8)")),
    "huge": ("x.npy", npy(np.zeros((600, 600))), ("600×600", "5×8")),
    "nan": ("x.npy", npy(np.full(GRID, np.nan)), ("x.npy", "40", "NaN")),
    "pickle": ("x.npy", npy(np.array([{}])), ("x.npy", "real numbers")),
    "complex": ("x.npy", npy(np.zeros(GRID, complex)), ("x.npy", "real numbers")),
    "cut": ("x.npy", npy(np.zeros(GRID))[:-1], ("x.npy",)),
    "header": ("x.npy", npy(np.zeros(GRID))[:9], ("x.npy", ".npy")),
    "no-npy": ("x.npy", b"", ("x.npy", ".npy")),
    "ragged": ("x.csv", b"1,2\n3\n", ("x.csv", "row 2")),
    "decimal commas": ("x.csv", b"0,5;0,25\n0,1;0,75\n", ("x.csv", "row 1", "5;0")),
    "word": ("x.csv", b"1,2\n3,<b>four\n", ("x.csv", "row 2", "<b>four")),
    "hexadecimal": ("x.csv", b"0x10,1\n", ("x.csv", "row 1", "0x10")),
    "a row of blanks": ("x.csv", b"1,2\n \n", ("x.csv", "row 2")),
    "hole": ("x.csv", b"1,,2\n", ("x.csv", "row 1")),
    "blank": ("x.csv", b"\n", ("x.csv", "empty")),
    "no-png": ("x.png", b"png", ("x.png",)),
    "depth": ("x.png", png(Image.fromarray(np.zeros(GRID, np.uint16))), ("x.png", "16 bits", ".npy")),
    "wide": ("x.png", png(Image.new("L", (70000, 1))), ("x.png", "1×70000", "too large for this browser")),
    "kind": ("x.txt", b"1", ("x.txt", ".npy", ".csv", ".png", ".jpg")),
    "a name of all objects": ("x.constructor", b"1", ("x.constructor", ".npy")),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_get_one_line_and_change_nothing(case: str, tab: Tab, tmp_path: Path) -> None:
    name, content, named = BAD[case]
    before = tab.text("pre")
    (tmp_path / name).write_bytes(content)
    tab.page.set_input_files("#file", tmp_path / name)
    expect(tab.page.locator("#message.error")).to_be_visible()
    message = tab.text("#message")
    assert all(part in message for part in named), message
    assert "\n" not in message
    assert tab.text("pre") == before
    tab.page.locator("#example").click()
    expect(tab.page.locator("#message.error")).to_have_count(0)


def test_numbers_that_are_not_finite_are_drawn_beside_the_others(tab: Tab) -> None:
    script = """async (data) => {
        const { HeatMap } = await import("./heatmap.js");
        const map = new HeatMap(document.querySelector("#input").cloneNode(true), () => {});
        map.draw({ height: 1, width: data.length, channels: 1, data }, 0);
        return [...map.canvas.getContext("2d").getImageData(0, 0, data.length, 1).data];
    }"""
    levels = [0, 1, np.nan, -np.inf, np.inf]
    zero, one, *others = np.reshape(tab.page.evaluate(script, levels), (-1, 4)).tolist()
    assert others == [zero, zero, one]


DIVERGED = "the scores of the classes hold NaN or infinity; the model diverged"


def test_scores_that_are_not_finite_are_no_answer(tab: Tab) -> None:
    """As in Python: where the largest score of a position is not finite."""
    script = """async ([kind, data]) => {
        const { Prediction } = await import("./prediction.js");
        const figure = document.querySelector("#prediction").cloneNode(true);
        const shown = new Prediction(figure, { kind, outputs: 2, classes: ["a", "b"], threshold: 0.5 });
        const height = Number(kind === "segment");
        try {
            shown.show({ height, width: 2, channels: 2, data: Float32Array.from(data) });
        } catch (error) { return error.message; }
    }"""
    for kind in ("classify", "tag", "segment", "transcribe"):
        for last in ([np.nan, 0], [0, np.nan], [np.inf, 0], [-np.inf, -np.inf]):
            assert tab.page.evaluate(script, [kind, [0, 1, *last]]) == DIVERGED, (kind, last)
        assert tab.page.evaluate(script, [kind, [0, 1, -np.inf, 0]]) is None
    for number in (np.nan, -np.inf):
        shown = tab.page.evaluate(script, ["regress", [0, 1, number, 0]])
        assert shown == "the numbers hold NaN or infinity; the model diverged"
