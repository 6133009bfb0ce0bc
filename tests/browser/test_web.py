"""`export --web`: the page in a headless Chromium, against `Session` on the same numbers."""

from __future__ import annotations

import io
import shutil
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers.chromium import PATIENCE, Chromium, find_chromium, served
from helpers.command import mdlstm
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from mdlstm_tk import MDLSTM
from mdlstm_tk.cli.export import export
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.export import export_onnx, export_run
from mdlstm_tk.export.browser import build as web
from mdlstm_tk.export.browser.build import load_runtime, write_page
from mdlstm_tk.runtime import Metadata, Session
from mdlstm_tk.training import Run

GRID = (5, 8)
ATOL = 1e-5
FAKE = dict.fromkeys(web.RUNTIME, b"")


@pytest.fixture(scope="session")
def runtime() -> dict[str, bytes]:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed, which fetches onnxruntime-web")
    try:
        return load_runtime()
    except MDLSTMError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    program = find_chromium()
    if program is None:
        pytest.skip("Chromium is not installed")
    chromium = Chromium(program, tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.close()


@pytest.fixture(scope="session")
def exported(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model-5x8.onnx"
    export_run(trained, path, grid=GRID)
    return path


@pytest.fixture(scope="session")
def address(
    exported: Path, runtime: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("web") / "page"
    write_page(exported, folder, "md-5x8", runtime)
    with served(folder) as url:
        yield url


@pytest.fixture
def page(browser: Chromium, address: str) -> Iterator[Chromium]:
    """The page, predicting, with its numbers open; afterwards it must have nothing to complain of."""
    if browser.evaluate("location.href") != address:
        show(browser, address)
    browser.screen(1000, 900)
    yield browser
    complaints = browser.complaints()
    browser.events.clear()
    assert complaints == []


@pytest.fixture
def session(exported: Path) -> Session:
    return Session(exported, "cpu")


def show(browser: Chromium, address: str) -> None:
    browser.screen(1000, 900)
    browser.open(address)
    browser.until("document.querySelector('#message')?.textContent.includes(' ms ')")
    browser.evaluate("document.querySelector('summary').click()")
    browser.until("document.querySelector('pre').textContent")


def change(browser: Chromium, selector: str, value: int) -> None:
    """As if a user had set a field."""
    action = f"e.value = {value}; e.dispatchEvent(new Event('change'));"
    browser.evaluate(f"((e) => {{ {action} }})(document.querySelector('{selector}'))")


def numbers(browser: Chromium) -> np.ndarray[Any, Any]:
    return np.loadtxt(io.StringIO(browser.text("pre")), delimiter=",", dtype=np.float32, ndmin=2)


def check_prediction(browser: Chromium, expected: np.ndarray[Any, Any]) -> None:
    """Wait until the page has predicted this."""
    end = time.monotonic() + PATIENCE
    while True:
        got = numbers(browser)
        if got.shape == expected.shape and np.abs(got - expected).max() <= ATOL:
            return
        if time.monotonic() > end:
            np.testing.assert_allclose(got, expected, rtol=0, atol=ATOL, err_msg=browser.text("#message"))
        time.sleep(0.02)


def matrix(seed: int = 0, grid: tuple[int, ...] = GRID) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).random(grid)


def test_it_predicts_as_soon_as_it_is_open_and_asks_nobody_else(page: Chromium, address: str) -> None:
    show(page, address)
    assert numbers(page).shape == GRID
    assert page.text("h1") == "md-5x8"
    assert "Grids of 5×8" in page.text("footer")
    asked = page.requests()
    assert all(url.startswith(address) for url in asked), asked
    assert {"model.onnx", "ort/ort-wasm-simd-threaded.wasm"} <= {url.removeprefix(address) for url in asked}


KINDS = ["<f4", ">f8", "<f2", "u1", ">i2", "<i8", "?", "fortran", "(H, W, C)"]


@pytest.mark.parametrize("kind", KINDS)
def test_npy_files(kind: str, page: Chromium, session: Session, tmp_path: Path) -> None:
    x = matrix(100 + KINDS.index(kind))
    if kind[-2:] in ("u1", "i2", "i8"):
        x = (x * 5).round()
    array = {"fortran": lambda: np.asfortranarray(x), "(H, W, C)": lambda: x[..., None]}
    array.setdefault(kind, lambda: x.astype(kind))
    np.save(tmp_path / "x.npy", given := array[kind]())
    page.choose_file("#file", tmp_path / "x.npy")
    check_prediction(page, session(given.reshape(GRID)))


def test_csv_files(page: Chromium, session: Session, tmp_path: Path) -> None:
    x = matrix(2)
    np.savetxt(tmp_path / "x.csv", x, delimiter=", ")
    page.choose_file("#file", tmp_path / "x.csv")
    check_prediction(page, session(x))


def test_pictures_are_grey_from_0_to_1(page: Chromium, session: Session, tmp_path: Path) -> None:
    levels = (matrix(3) * 255).astype(np.uint8)
    Image.fromarray(levels).save(tmp_path / "x.png")
    page.choose_file("#file", tmp_path / "x.png")
    check_prediction(page, session(levels / 255))


def test_files_are_dropped_anywhere(page: Chromium, session: Session, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", x := matrix(4))
    page.evaluate("addEventListener('drop', (event) => { window.kept = event.defaultPrevented; })")
    page.drop_file(20, 20, tmp_path / "x.npy")
    check_prediction(page, session(x))
    assert page.evaluate("window.kept"), "the browser would leave the page and open the file"


def test_what_changes_during_a_run_gets_another(page: Chromium, session: Session) -> None:
    page.evaluate("for (const id of ['example', 'example', 'clear']) document.getElementById(id).click()")
    check_prediction(page, session(np.zeros(GRID)))


def middle(page: Chromium, row: int, column: int, panel: str = "input") -> tuple[float, float]:
    """Where a cell's middle is, on the screen."""
    box = page.evaluate(f"document.querySelector('#{panel} canvas').getBoundingClientRect().toJSON()")
    return (
        box["left"] + (column + 0.5) / GRID[1] * box["width"],
        box["top"] + (row + 0.5) / GRID[0] * box["height"],
    )


def test_drawing_with_the_mouse(page: Chromium, session: Session) -> None:
    page.evaluate("document.querySelector('#clear').click()")
    x = np.zeros(GRID)
    check_prediction(page, session(x))
    page.mouse("Moved", *middle(page, 1, 6))
    page.mouse("Pressed", *middle(page, 1, 6))
    page.mouse("Moved", *middle(page, 2, 6))
    page.mouse("Released", *middle(page, 2, 6))
    page.mouse("Moved", *middle(page, 3, 6))
    x[1:3, 6] = 1
    check_prediction(page, session(x))
    page.mouse("Pressed", *middle(page, 2, 6))  # a stroke that starts on what is drawn rubs out
    page.mouse("Released", *middle(page, 2, 6))
    x[2, 6] = 0
    check_prediction(page, session(x))
    page.mouse("Moved", *middle(page, 4, 7, "prediction"))
    assert page.text("#input .value") == "row 4, column 7: 0.0000"
    value = float(session(x)[4, 7])
    assert page.text("#prediction .value").startswith("row 4, column 7: ")
    assert float(page.text("#prediction .value").split(": ")[1]) == pytest.approx(value, abs=6e-5)


def test_drawing_with_a_finger(page: Chromium, session: Session) -> None:
    page.screen(375, 700, mobile=True)
    page.evaluate("document.querySelector('#clear').click()")
    page.touch("Start", middle(page, 0, 1))
    for row in range(1, 5):  # down, which would scroll the page anywhere else
        page.touch("Move", middle(page, row, 1))
    page.touch("End")
    x = np.zeros(GRID)
    x[:, 1] = 1
    check_prediction(page, session(x))
    assert page.evaluate("scrollY") == 0


def test_drawing_with_the_keyboard(page: Chromium, session: Session) -> None:
    page.evaluate("document.querySelector('#clear').click()")
    page.evaluate("document.querySelector('#input canvas').focus()")
    to_the_corner = ["ArrowUp"] * GRID[0] + ["ArrowLeft"] * GRID[1]
    for key in (*to_the_corner, "ArrowRight", "ArrowDown", "ArrowDown", "ArrowUp", " "):
        page.key(key)
    x = np.zeros(GRID)
    x[1, 1] = 1
    check_prediction(page, session(x))


def npy(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


BAD = {
    "size": ("x.npy", npy(np.zeros((8, 5))), "a 8×5 grid does not fit this model, which takes 5×8"),
    "channels": (
        "x.npy",
        npy(np.zeros((5, 8, 3))),
        "x.npy has 3 channels at each position, the model takes 1",
    ),
    "axes": ("x.npy", npy(np.zeros(40)), "x.npy has shape (40), expected (H, W) or (H, W, C)"),
    "empty": ("x.npy", npy(np.zeros((0, 8))), "x.npy has shape (0, 8), expected (H, W) or (H, W, C)"),
    "huge": ("x.npy", npy(np.zeros((1, 600))), "x.npy is a 1×600 grid; this page takes up to 512×512"),
    "nan": ("x.npy", npy(np.full(GRID, np.nan)), "x.npy holds 40 NaN or infinite values"),
    "pickle": ("x.npy", npy(np.array([{}])), "x.npy does not hold real numbers in an array"),
    "complex": ("x.npy", npy(np.zeros(GRID, complex)), "x.npy does not hold real numbers in an array"),
    "cut": ("x.npy", npy(np.zeros(GRID))[:-1], "x.npy is cut short"),
    "header": ("x.npy", npy(np.zeros(GRID))[:9], "x.npy is not a .npy array"),
    "no-npy": ("x.npy", b"", "x.npy is not a .npy array"),
    "ragged": ("x.csv", b"1,2\n3\n", "x.csv: row 2 has 1 values, the first has 2"),
    "word": ("x.csv", b"1,2\n3,<b>four\n", "x.csv: row 2 holds “<b>four”, expected a number"),
    "hole": ("x.csv", b"1,,2\n", "x.csv: row 1 holds “”, expected a number"),
    "blank": ("x.csv", b"\n", "x.csv is empty"),
    "no-png": ("x.png", b"png", "x.png is not a picture that this browser reads"),
    "kind": ("x.txt", b"1", "x.txt is not a .npy, .csv or .png file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_get_one_line_and_change_nothing(case: str, page: Chromium, tmp_path: Path) -> None:
    name, content, expected = BAD[case]
    before = page.text("pre")
    (tmp_path / name).write_bytes(content)
    page.choose_file("#file", tmp_path / name)
    page.until("document.querySelector('#message.error') && 1")
    assert page.text("#message") == expected
    assert page.text("pre") == before
    page.evaluate("document.querySelector('#example').click()")
    page.until("!document.querySelector('#message.error')")


def test_the_page_fits_any_screen(page: Chromium) -> None:
    for width in (320, 375, 768, 1920):
        page.screen(width, 800, mobile=width < 700)
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        ratio = page.evaluate(
            "(b => b.width / b.height)(document.querySelector('canvas').getBoundingClientRect())"
        )
        assert ratio == pytest.approx(GRID[1] / GRID[0], rel=0.01)


def test_scripts_and_addresses_from_elsewhere_are_refused(browser: Chromium, address: str) -> None:
    show(browser, address)
    refused = """new Promise((resolve) => {{
        addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
        setTimeout(() => resolve("nothing"), 5000);
        {0};
    }})"""
    elsewhere = "fetch('https://example.org').catch(() => 0)"
    assert browser.evaluate(refused.format(elsewhere)) == "connect-src"
    handler = (
        "document.body.insertAdjacentHTML('beforeend', '<img src=nowhere.png onerror=\"window.ran = 1\">')"
    )
    assert browser.evaluate(refused.format(handler)) == "script-src-attr"


def craft(path: Path, grid: tuple[int, ...] | None, **about: Any) -> Path:
    """A model of 3 channels that says which of them is which: y = 2x + (0, 1, 2), plus the sum of the
    sizes if it takes them; of that, what `window` leaves, or the mean over the grid if it is None."""
    metadata = Metadata(
        "0", grid, "scan", "N H W C", 3, 3, task="animals", classes=("cat", "<i>dog", "owl"), **about
    )
    area = [*(grid or ("H", "W"))]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *area, 3])]
    constants = {"offset": np.array([0, 1, 2], np.float32), "axes": np.array([1, 2])}
    nodes = [helper.make_node("Add", ["x", "x"], ["twice"])]
    nodes.append(helper.make_node("Add", ["twice", "offset"], ["sum"]))
    if "sizes" in metadata.inputs:
        inputs.append(helper.make_tensor_value_info("sizes", TensorProto.INT64, ["batch", 2]))
        nodes.append(helper.make_node("ReduceSum", ["sizes"], ["total"], keepdims=0))
        nodes.append(helper.make_node("Cast", ["total"], ["float"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Add", ["sum", "float"], ["more"]))
    whole = nodes[-1].output[0]
    shape: list[object] = ["batch", *area, 3]
    if metadata.window is None:
        nodes.append(helper.make_node("ReduceMean", [whole, "axes"], ["y"], keepdims=0))
        shape = ["batch", 3]
    else:
        constants |= {"start": np.array([0, 0]), "step": np.array(metadata.window)}
        constants["end"] = np.array([1 << 30, 1 << 30])
        nodes.append(helper.make_node("Slice", [whole, "start", "end", "axes", "step"], ["y"]))
        shape = ["batch", "Y", "X", 3]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "crafted", inputs, [output], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, metadata.to_props())
    onnx.save(model, str(path))
    return path


def test_a_model_of_any_size(browser: Chromium, runtime: dict[str, bytes], tmp_path: Path) -> None:
    write_page(craft(tmp_path / "m.onnx", None), tmp_path / "page", "any", runtime)
    with served(tmp_path / "page") as url:
        show(browser, url)
        assert "Grids of any size" in browser.text("footer")
        assert numbers(browser).shape == (16, 16)
        for size in ((1, 1), (1, 7), (7, 1), (70, 3)):
            np.save(tmp_path / "x.npy", x := matrix(5, (*size, 3)))
            browser.choose_file("#file", tmp_path / "x.npy")
            check_prediction(browser, 2 * x[..., 0])
            shown = browser.evaluate(
                "[...document.querySelectorAll('[type=number]')].map((e) => Number(e.value))"
            )
            assert shown == list(size)
        change(browser, "#prediction select", 2)
        check_prediction(browser, 2 * x[..., 2] + 2)
        change(browser, "#width", 4)
        wider = np.pad(x, ((0, 0), (0, 1), (0, 0)))
        check_prediction(browser, 2 * wider[..., 2] + 2)
        Image.fromarray((matrix(6, (40, 100, 3)) * 255).astype(np.uint8)).save(tmp_path / "x.png")
        browser.choose_file("#file", tmp_path / "x.png")
        browser.until("document.querySelector('#height').value === '26' && 1")
        assert browser.evaluate("document.querySelector('#width').value") == "64"
        assert browser.complaints() == []


def test_a_model_that_takes_smaller_grids(
    browser: Chromium, runtime: dict[str, bytes], tmp_path: Path
) -> None:
    model = craft(tmp_path / "m.onnx", (6, 9), inputs=("x", "sizes"), window=(2, 4))
    write_page(model, tmp_path / "page", "sizes", runtime)
    with served(tmp_path / "page") as url:
        show(browser, url)
        assert "Grids up to 6×9" in browser.text("footer")
        for size in ((6, 9), (1, 7), (5, 2)):
            np.save(tmp_path / "x.npy", x := matrix(7, (*size, 3)))
            browser.choose_file("#file", tmp_path / "x.npy")
            check_prediction(browser, 2 * x[::2, ::4, 0] + sum(size))
        np.save(tmp_path / "x.npy", np.zeros((7, 9, 3)))
        browser.choose_file("#file", tmp_path / "x.npy")
        browser.until("document.querySelector('#message.error') && 1")
        assert browser.text("#message") == "a 7×9 grid does not fit this model, which takes up to 6×9"
        Image.fromarray(np.zeros((30, 30, 3), np.uint8)).save(tmp_path / "x.png")
        browser.choose_file("#file", tmp_path / "x.png")
        check_prediction(browser, np.full((3, 2), 12.0))
        assert browser.complaints() == []


def test_channels_in_front(browser: Chromium, runtime: dict[str, bytes], tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = MDLSTM(3, 2, directions="all", cell="stable", channels_last=False)
    export_onnx(layer, tmp_path / "m.onnx", grid=(4, 6))
    write_page(tmp_path / "m.onnx", tmp_path / "page", "front", runtime)
    with served(tmp_path / "page") as url:
        show(browser, url)
        np.save(tmp_path / "x.npy", x := matrix(8, (4, 6, 3)).astype(np.float32))
        browser.choose_file("#file", tmp_path / "x.npy")
        expected = Session(tmp_path / "m.onnx", "cpu")(x.transpose(2, 0, 1)[None])[0]
        for channel in (0, 5):
            change(browser, "#prediction select", channel)
            check_prediction(browser, expected[channel])
        assert browser.complaints() == []


def test_one_file_for_every_size(
    trained: Run, browser: Chromium, runtime: dict[str, bytes], tmp_path: Path
) -> None:
    model = tmp_path / "model-any.onnx"
    export_run(trained, model, form="scan")
    write_page(model, tmp_path / "page", "any", runtime)
    session = Session(model, "cpu")
    with served(tmp_path / "page") as url:
        show(browser, url)
        for size in ((1, 1), (7, 1), (64, 40)):
            np.save(tmp_path / "x.npy", x := matrix(9, size))
            browser.choose_file("#file", tmp_path / "x.npy")
            check_prediction(browser, session(x))
        assert browser.complaints() == []


def test_one_answer_for_the_whole_grid(
    browser: Chromium, runtime: dict[str, bytes], tmp_path: Path
) -> None:
    write_page(craft(tmp_path / "m.onnx", GRID, window=None), tmp_path / "page", "whole", runtime)
    with served(tmp_path / "page") as url:
        show(browser, url)
        browser.evaluate("document.querySelector('#clear').click()")
        check_prediction(browser, np.array([[0, 1, 2]]))
        bars = browser.evaluate("[...document.querySelectorAll('.bars li')].map((e) => e.textContent)")
        assert bars == ["cat: 0.0000", "<i>dog: 1.0000", "owl: 2.0000"]
        assert browser.complaints() == []


def test_the_runtime_comes_from_a_folder_or_a_package(runtime: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "dist").mkdir()
    for name, content in runtime.items():
        (tmp_path / "dist" / name).write_bytes(content)
    assert load_runtime(tmp_path) == runtime
    with tarfile.open(tmp_path / "p.tgz", "w:gz", compresslevel=1) as package:
        package.add(tmp_path / "dist", "package/dist")
    assert load_runtime(tmp_path / "p.tgz") == runtime
    name = next(iter(runtime))
    (tmp_path / "dist" / name).write_bytes(runtime[name] + b" ")
    with pytest.raises(InputError, match=f"onnxruntime-web@.*{name}"):
        load_runtime(tmp_path)


def test_what_is_no_runtime(tmp_path: Path) -> None:
    (tmp_path / "p.tgz").write_bytes(b"no package")
    with tarfile.open(tmp_path / "empty.tgz", "w:gz"):
        pass
    for source in (tmp_path, tmp_path / "p.tgz", tmp_path / "empty.tgz", tmp_path / "none.tgz"):
        with pytest.raises(InputError, match=r"npm pack onnxruntime-web@") as caught:
            load_runtime(source)
        assert "\n" not in str(caught.value)


def test_without_npm_or_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MDLSTMError, match=r"npm pack onnxruntime-web@"):
        load_runtime()
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\nexit 1\n")
    npm.chmod(0o755)
    with pytest.raises(MDLSTMError, match="ENOTFOUND"):
        load_runtime()


def test_the_verb_writes_a_page(trained: Run, runtime: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "ort/dist").mkdir(parents=True)
    for name, content in runtime.items():
        (tmp_path / "ort/dist" / name).write_bytes(content)
    options = ("--size", "5x7", "--web", "page", "--web-runtime", "ort")
    done = mdlstm("export", trained.folder, *options, cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.err.splitlines()[-1].startswith("next: python -m http.server -d page")
    assert "page/model.onnx: x (N, 5, 7, 1)" in done.err
    assert '"name": "md-8x8"' in (tmp_path / "page/model.json").read_text()
    with pytest.raises(InputError, match="page is not empty"):
        export(trained.folder, web=tmp_path / "page")
    with pytest.raises(InputError, match="got 2 sizes"):
        export(trained.folder, size=["4", "5"], web=tmp_path / "other")
    with pytest.raises(InputError, match="--web-runtime"):
        export(trained.folder, web_runtime=tmp_path / "ort")


def test_a_page_is_whole_and_leaves_the_rest_alone(tmp_path: Path) -> None:
    folder = tmp_path / "page"
    folder.mkdir()
    (folder / "mine.txt").write_text("stays")
    (folder / "index.html").write_text("goes")
    model = craft(tmp_path / "m.onnx", GRID)
    assert write_page(model, folder, "m", FAKE) == folder / "model.onnx"
    assert (folder / "mine.txt").read_text() == "stays"
    assert (folder / "model.onnx").read_bytes() == model.read_bytes()
    page = Path(web.__file__).parent / "static"
    assets = {path.relative_to(page) for path in page.rglob("*") if path.is_file()}
    written = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    model_files = {Path("model.onnx"), Path("model.json"), *(Path("ort") / name for name in FAKE)}
    assert written == assets | model_files | {Path("mine.txt")}
    for path in assets:
        assert (folder / path).read_bytes() == (page / path).read_bytes()
    with pytest.raises(InputError, match=r"index\.html is a file"):
        write_page(model, folder / "index.html", "m", FAKE)


def test_models_that_no_page_takes(tmp_path: Path) -> None:
    craft(tmp_path / "m.onnx", GRID, inputs=("x", "mood"))
    with pytest.raises(InputError, match=r"m\.onnx .*x, mood"):
        write_page(tmp_path / "m.onnx", tmp_path / "page", "m", FAKE)
    model = onnx.load(craft(tmp_path / "m.onnx", GRID))
    three = {"grid": "[2, 5, 8]", "window": "[1, 1, 1]", "layout": '"N D H W C"'}
    for prop in model.metadata_props:
        prop.value = three.get(prop.key.removeprefix("mdlstm."), prop.value)
    onnx.save(model, str(tmp_path / "m.onnx"))
    with pytest.raises(InputError, match=r"m\.onnx .*N D H W C"):
        write_page(tmp_path / "m.onnx", tmp_path / "page", "m", FAKE)
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "m.onnx"))
    with pytest.raises(InputError, match=r"m\.onnx"):
        write_page(tmp_path / "m.onnx", tmp_path / "page", "m", FAKE)
    assert not (tmp_path / "page").exists()
