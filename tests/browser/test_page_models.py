"""`export --web`: pages of models of each kind and size, what they show and what they take."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers.browser import DESKTOP, Tab, opened, served
from helpers.exported_page import GRID, check_prediction, craft, give, matrix, numbers, show
from helpers.training import run_in
from PIL import Image
from playwright.sync_api import Browser, expect

from mdlstm_tk import MDLSTM
from mdlstm_tk.export import export_onnx, export_run
from mdlstm_tk.export.browser.build import write_page
from mdlstm_tk.export.browser.examples import PageExample, page_examples
from mdlstm_tk.io.images import Preprocessing
from mdlstm_tk.runtime import Metadata, Session, decode
from mdlstm_tk.training import Run, configure, load_checkpoint, make_task


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = configure(task="digits", hidden=2, steps=2, batch_size=4, evaluate_every=2, augment=0.0)
    return run_in(tmp_path_factory.mktemp("digits"), config)


def test_a_label_with_its_probability(open_page: Callable[..., Tab], tmp_path: Path) -> None:
    model = craft(tmp_path / "m.onnx", GRID, window=None, kind="classify")
    x = np.broadcast_to(np.array([1, 0.5, 1.5], np.float32), (*GRID, 3))
    tab = open_page(model)
    give(tab, tmp_path / "x.npy", x)
    session = Session(model, "cpu")
    row = decode(session(x[None]), session.metadata, top=3)[0]
    expected = [(row[f"label{rank}"], row[f"probability{rank}"]) for rank in ("", "_2", "_3")]
    label, probability = expected[0]
    expect(tab.page.locator(".answer")).to_have_text(f"{label} {100 * probability:.1f} %")
    bars = tab.page.locator(".bars li").all_text_contents()
    assert bars == [f"{name}: {100 * p:.1f} %" for name, p in expected]
    saved = dict(line.split(",") for line in tab.text("pre").splitlines())
    assert {k: float(v) for k, v in saved.items()} == pytest.approx(dict(expected), abs=1e-5)


def test_labels_with_their_probabilities(open_page: Callable[..., Tab], tmp_path: Path) -> None:
    model = craft(tmp_path / "m.onnx", GRID, window=None, kind="tag", threshold=0.75)
    x = np.broadcast_to(np.array([1, 0.5, 1.5], np.float32), (*GRID, 3))
    tab = open_page(model)
    give(tab, tmp_path / "x.npy", x)
    session = Session(model, "cpu")
    (row,) = decode(session(x[None]), session.metadata, probabilities=True)
    labels = row["labels"].split(";")
    assert 0 < len(labels) < 3
    expect(tab.page.locator(".answer")).to_have_text(", ".join(labels))
    saved = dict(line.split(",") for line in tab.text("pre").splitlines())
    expected = {name: row[f"probability_{name}"] for name in session.metadata.classes or ()}
    assert {k: float(v) for k, v in saved.items()} == pytest.approx(expected, abs=1e-5)


def test_a_mask_in_the_colours_of_the_training_masks(open_page: Callable[..., Tab], tmp_path: Path) -> None:
    palette = (0, 0, 0, 200, 10, 30, 5, 250, 90)
    model = craft(tmp_path / "m.onnx", GRID, kind="segment", mask_values=(0, 7, 300), mask_palette=palette)
    classes = np.arange(40).reshape(GRID) % 3
    classes[0] = 2
    x = np.eye(3)[classes]
    tab = open_page(model)
    give(tab, tmp_path / "x.npy", x)
    names = ("cat", "<i>dog", "owl")
    share = {name: (classes == k).mean() for k, name in enumerate(names)}
    legend = [f"{name} {100 * share[name]:.1f} %" for name in sorted(names, key=lambda n: -share[n])]
    expect(tab.page.locator(".legend li")).to_have_text(legend)
    np.testing.assert_array_equal(numbers(tab), np.array([0, 7, 300])[classes])
    pixels = tab.page.locator("#prediction canvas").evaluate(
        "(c) => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    )
    shown = np.reshape(pixels, (*GRID, 4))[..., :3]
    np.testing.assert_array_equal(shown, np.reshape(palette, (3, 3))[classes])
    tab.page.locator("#prediction select").select_option(index=2)  # the probability of the second class
    expected = np.exp(2 * x[..., 1]) / np.exp(2 * x).sum(-1)
    np.testing.assert_allclose(numbers(tab), expected, rtol=0, atol=1e-6)
    expect(tab.page.locator(".legend")).to_be_hidden()


@pytest.mark.parametrize("inputs", [("x",), ("x", "sizes")], ids=["plain", "sizes"])
def test_a_line_of_any_width_is_resized_to_the_height_of_the_model(
    open_page: Callable[..., Tab], tmp_path: Path, inputs: tuple[str, ...]
) -> None:
    fields = {"window": None, "kind": "transcribe", "classes": ("a", "b"), "inputs": inputs}
    preprocessing = asdict(Preprocessing(3, resize=(4, None)))
    tab = open_page(craft(tmp_path / "m.onnx", (4, None), preprocessing=preprocessing, **fields))
    expect(tab.page.locator("#facts")).to_contain_text("4×any")
    if "sizes" not in inputs:
        expect(tab.page.locator("#height")).to_be_disabled()
    for path, text in (([1, 0, 1, 2, 2, 0], "aab"), ([0, 0], "(no text)"), ([1, 0] * 400, "a" * 400)):
        colours = np.repeat(np.eye(3)[path], 5, axis=0)  # 5 columns a step, 20 rows
        line = (255 * np.broadcast_to(colours, (20, *colours.shape))).astype(np.uint8)
        Image.fromarray(line).save(tmp_path / "line.png")
        tab.page.set_input_files("#file", tmp_path / "line.png")
        expect(tab.page.locator(".answer")).to_have_text(text)
        assert tab.page.locator("#width").input_value() == str(len(path))


def test_images_in_colours_are_prepared_as_in_training(
    open_page: Callable[..., Tab], tmp_path: Path
) -> None:
    preprocessing = Preprocessing(3, resize=GRID)
    levels = (matrix(5, (20, 31, 3)) * 255).astype(np.uint8)
    Image.fromarray(levels).save(tmp_path / "x.png")
    tab = open_page(craft(tmp_path / "m.onnx", GRID, window=None, preprocessing=asdict(preprocessing)))
    tab.page.set_input_files("#file", tmp_path / "x.png")
    expected = 2 * preprocessing(levels).mean((0, 1)) + np.array([0, 1, 2])
    expect(tab.page.locator(".bars li").first).to_have_text(f"cat: {expected[0]:.4f}")
    np.testing.assert_allclose(numbers(tab), [expected], rtol=0, atol=1e-5)
    assert tab.page.locator("#input option").all_text_contents() == ["colours", "red", "green", "blue"]


def test_examples_come_from_the_validation_data(
    trained: Run, open_page: Callable[..., Tab], tmp_path: Path
) -> None:
    model = tmp_path / "m.onnx"
    export_run(trained, model, grid=GRID)
    session = Session(model, "cpu")
    examples = page_examples(trained, session.metadata)
    assert len(examples) == 6
    named = [PageExample(example.x, f"number {k}") for k, example in enumerate(examples)]
    tab = open_page(model, named)
    for example in (*named[1:], named[0]):  # the page opens with the first one
        tab.page.locator("#example").click()
        expect(tab.page.locator("#target")).to_have_text(f"Expected: {example.target}")
        expect(tab.page.locator("#message")).to_contain_text(" ms ")
    tab.page.locator("#clear").click()
    expect(tab.page.locator("#target")).to_be_hidden()  # it was that of another input
    for _ in named:
        tab.page.locator("#example").click()
    tab.page.wait_for_function("() => document.querySelector('pre').textContent.length > 0")
    np.testing.assert_allclose(numbers(tab), session(named[0].x[..., 0]), rtol=0, atol=1e-5)


def test_examples_that_are_images_are_stored_as_bytes() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    scaled = Preprocessing(1)(levels)
    stored = PageExample(scaled).to_json()
    assert stored["dtype"] == "uint8" and base64.b64decode(stored["data"]) == levels.tobytes()
    in_javascript = (levels[..., None] / 255).astype(np.float32)  # float64, then float32
    np.testing.assert_array_equal(in_javascript, scaled)
    assert PageExample(scaled * np.float32(0.99)).to_json()["dtype"] == "float32"
    assert PageExample(scaled * 2).to_json()["dtype"] == "float32"


def test_examples_show_different_classes(digits_run: Run, tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    export_run(digits_run, model, form="scan")
    metadata = Session(model, "cpu").metadata
    examples = page_examples(digits_run, metadata)
    targets = [example.target for example in examples]
    assert len(set(targets)) == len(targets) == 6
    task = make_task(load_checkpoint(digits_run.checkpoint).config)
    batch = task.batch(0, 0, task.count("test"), "test")
    for example in examples:
        matches = [k for k in range(len(batch.x)) if np.array_equal(batch.x[k], example.x)]
        assert example.target in {(metadata.classes or ())[int(batch.y[k])] for k in matches}


def described(grid: tuple[int | None, ...] | None, outputs: int = 1) -> Metadata:
    return Metadata(version="0", grid=grid, form="scan", layout="N H W C", channels=1, outputs=outputs)


def test_examples_are_samples_that_the_model_takes(trained: Run, digits_run: Run, tmp_path: Path) -> None:
    small, wide = (3, 3), (5, None)
    for run, grid, shape, message in (
        (trained, wide, (5, 8, 1), None),
        (digits_run, small, None, "no examples: "),
        (Run(tmp_path), small, None, "no examples: "),
    ):
        metadata, messages = described(grid, outputs=10), list[str]()
        examples = page_examples(run, metadata, on_message=messages.append)
        assert [example.x.shape for example in examples] == 6 * [shape] * (shape is not None)
        assert [line.startswith(message or "") for line in messages] == [True] * (shape is None)


def test_samples_that_are_too_large_are_no_examples(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata, messages = described(None), list[str]()
    module = "mdlstm_tk.export.browser.examples"
    monkeypatch.setattr(f"{module}.MAX_BYTES", 50)
    for heights, expected in (((51, 40, 20, 10), [40, 10]), ((51, 60), []), ((), [])):
        samples = [
            PageExample(np.zeros((height, 1, 1), np.float32)) for height in heights
        ]  # of 1 byte a row
        monkeypatch.setattr(f"{module}._samples", lambda *_, samples=samples: iter(samples))
        chosen = page_examples(trained, metadata, on_message=messages.append)
        assert [len(example.x) for example in chosen] == expected
    assert messages == [
        "no examples: each sample takes more than the 50 bytes of all examples",
        "no examples: no sample of the data has a size that the model takes",
    ]


def test_pages_for_strides_refuse_other_sizes(open_page: Callable[..., Tab], tmp_path: Path) -> None:
    tab = open_page(craft(tmp_path / "m.onnx", None, multiple_of=(4, 2), min_grid=(8, 2)))
    for grid, message in (((6, 8), "multiples of 4×2"), ((4, 8), "at least 8×2")):
        give(tab, tmp_path / "x.npy", np.zeros((*grid, 3)))
        expect(tab.page.locator("#message.error")).to_contain_text(message)
    field = tab.page.locator("#height")
    for text, value in (("13", "12"), ("1", "8")):
        field.fill(text)
        field.dispatch_event("change")
        expect(field).to_have_value(value)


def size_of(tab: Tab) -> tuple[int, int]:
    height, width = (int(tab.page.locator(field).input_value()) for field in ("#height", "#width"))
    return height, width


def test_a_model_of_any_size(open_page: Callable[..., Tab], tmp_path: Path) -> None:
    tab = open_page(craft(tmp_path / "m.onnx", None))
    assert "any size" in tab.text("footer")
    assert numbers(tab).shape == (16, 16)
    for size in ((1, 1), (1, 7), (7, 1), (70, 3)):
        give(tab, tmp_path / "x.npy", x := matrix(5, (*size, 3)))
        check_prediction(tab, 2 * x[..., 0])
        assert size_of(tab) == size
    tab.page.locator("#prediction select").select_option(index=2)
    check_prediction(tab, 2 * x[..., 2] + 2)
    tab.page.locator("#width").fill("4")
    tab.page.locator("#width").dispatch_event("change")
    wider = np.pad(x, ((0, 0), (0, 1), (0, 0)))
    check_prediction(tab, 2 * wider[..., 2] + 2)
    Image.fromarray((matrix(6, (40, 100, 3)) * 255).astype(np.uint8)).save(tmp_path / "x.png")
    tab.page.set_input_files("#file", tmp_path / "x.png")
    expect(tab.page.locator("#height")).to_have_value("40")
    assert size_of(tab) == (40, 100)


def test_a_field_that_changes_leaves_the_other_one(open_page: Callable[..., Tab], tmp_path: Path) -> None:
    tab = open_page(craft(tmp_path / "m.onnx", None))
    give(tab, tmp_path / "x.npy", np.ones((100, 1000, 3), np.float32))
    expect(tab.page.locator("#width")).to_have_value("1000")
    assert size_of(tab) == (100, 1000)
    tab.page.locator("#height").fill("101")
    tab.page.locator("#height").dispatch_event("change")
    assert size_of(tab) == (101, 1000)


def test_values_are_held_to_what_the_model_takes(open_page: Callable[..., Tab], tmp_path: Path) -> None:
    """As `mdlstm infer` does."""
    tab = open_page(craft(tmp_path / "m.onnx", GRID, dtype="float16"))
    give(tab, tmp_path / "x.npy", np.full((*GRID, 3), 1e5))
    expect(tab.page.locator("#message.error")).to_contain_text("holds 100000, which this model, in float16")
    preprocessing = {"channels": 3, "resize": None}
    tab = open_page(
        craft(tmp_path / "m.onnx", GRID, window=None, kind="classify", preprocessing=preprocessing)
    )
    give(tab, tmp_path / "x.npy", np.full((*GRID, 3), 7, np.uint8))
    expect(tab.page.locator("#message")).to_contain_text("far outside of [0, 1]")
    give(tab, tmp_path / "x.npy", np.full((*GRID, 3), 0.5))
    expect(tab.page.locator("#message")).not_to_contain_text("far outside")


def test_an_output_that_is_no_answer_leaves_none(open_page: Callable[..., Tab], tmp_path: Path) -> None:
    tab = open_page(craft(tmp_path / "m.onnx", GRID, window=None, kind="classify"))
    expect(tab.page.locator(".answer")).to_contain_text("%")
    give(tab, tmp_path / "x.npy", np.full((*GRID, 3), 3e38, np.float32))
    expect(tab.page.locator("#message.error")).to_contain_text("the model diverged")
    for part in (".answer", ".bars"):
        expect(tab.page.locator(part)).to_be_hidden()
    assert tab.text("pre") == ""


def test_a_model_that_takes_smaller_grids(open_page: Callable[..., Tab], tmp_path: Path) -> None:
    tab = open_page(craft(tmp_path / "m.onnx", (6, 9), inputs=("x", "sizes"), window=(2, 4)))
    assert "6×9" in tab.text("footer")
    for size in ((6, 9), (1, 7), (5, 2)):
        give(tab, tmp_path / "x.npy", x := matrix(7, (*size, 3)))
        check_prediction(tab, 2 * x[::2, ::4, 0] + sum(size))
    give(tab, tmp_path / "x.npy", np.zeros((7, 9, 3)))
    expect(tab.page.locator("#message.error")).to_contain_text("6×9")
    Image.fromarray(np.zeros((30, 30, 3), np.uint8)).save(tmp_path / "x.png")
    tab.page.set_input_files("#file", tmp_path / "x.png")
    expect(tab.page.locator("#message.error")).to_contain_text("30×30")


def test_an_output_of_integers(open_page: Callable[..., Tab], tmp_path: Path) -> None:
    model = onnx.load(craft(tmp_path / "m.onnx", GRID))
    model.graph.node[-1].output[0] = "floats"
    more = onnx.numpy_helper.from_array(np.int64([0, 4278190334, 0]), "more")
    model.graph.initializer.append(more)
    model.graph.node.append(onnx.helper.make_node("Cast", ["floats"], ["less"], to=onnx.TensorProto.INT64))
    model.graph.node.append(onnx.helper.make_node("Add", ["less", "more"], ["y"]))
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    onnx.save(model, str(tmp_path / "m.onnx"))
    tab = open_page(tmp_path / "m.onnx")
    give(tab, tmp_path / "x.npy", x := np.arange(120.0).reshape(*GRID, 3) % 4)
    check_prediction(tab, 2 * x[..., 0])
    tab.page.locator("#prediction select").select_option(
        index=1
    )  # 2x + a number that float32 does not hold
    give(tab, tmp_path / "x.npy", np.zeros((*GRID, 3)))
    expect(tab.page.locator("pre")).to_have_text("\n".join([",".join(["4278190335"] * 8)] * 5))


def test_channels_in_front(open_page: Callable[..., Tab], tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = MDLSTM(3, 2, directions="all", cell="stable", channels_last=False)
    export_onnx(layer, tmp_path / "m.onnx", grid=(4, 6))
    tab = open_page(tmp_path / "m.onnx")
    x = matrix(8, (3, 4, 6)).astype(np.float32)
    expected = Session(tmp_path / "m.onnx", "cpu")(x)
    give(tab, tmp_path / "x.npy", np.asfortranarray(x))
    give(tab, tmp_path / "x.npy", x)
    for channel in (0, 5):
        tab.page.locator("#prediction select").select_option(index=channel)
        check_prediction(tab, expected[channel])


def test_grey_images_are_grey(digits_run: Run, open_page: Callable[..., Tab], tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    export_run(digits_run, model)
    tab = open_page(model)
    give(tab, tmp_path / "x.npy", matrix(9, (8, 8)))
    data = "document.querySelector('#input canvas').getContext('2d').getImageData(0, 0, 8, 8).data"
    red, green, blue, _ = np.array(tab.page.evaluate(f"[...{data}]")).reshape(-1, 4).T
    assert (red == green).all() and (green == blue).all() and red.min() < red.max()


def test_one_file_for_every_size(trained: Run, open_page: Callable[..., Tab], tmp_path: Path) -> None:
    model = tmp_path / "model-any.onnx"
    export_run(trained, model, form="scan")
    session = Session(model, "cpu")
    tab = open_page(model)
    for size in ((1, 1), (7, 1), (64, 40)):
        give(tab, tmp_path / "x.npy", x := matrix(9, size))
        check_prediction(tab, session(x))


def test_several_vectors_are_shown_as_a_row(open_page: Callable[..., Tab], tmp_path: Path) -> None:
    fields = {"window": None, "kind": "transcribe", "classes": ("a", "b")}
    model = onnx.load(craft(tmp_path / "m.onnx", GRID, **fields))  # a vector for each column
    for entry in model.metadata_props:
        if entry.key in ("mdlstm.kind", "mdlstm.classes"):
            entry.value = "null"
    onnx.save(model, str(tmp_path / "m.onnx"))
    tab = open_page(tmp_path / "m.onnx")
    give(tab, tmp_path / "x.npy", x := matrix(10, (*GRID, 3)))
    tab.page.locator("#prediction select").select_option(index=1)
    check_prediction(tab, 2 * x.mean(0)[None, :, 1])


def test_a_mask_of_values_that_float32_does_not_hold(open_page: Callable[..., Tab], tmp_path: Path) -> None:
    tab = open_page(
        craft(tmp_path / "m.onnx", GRID, kind="segment", mask_values=(0, 4278190335, 2**63 - 1))
    )
    for channel, value in ((1, "4278190335"), (2, "9223372036854775807")):
        give(tab, tmp_path / "x.npy", np.broadcast_to(np.eye(3)[channel], (*GRID, 3)))
        expect(tab.page.locator("pre")).to_have_text("\n".join([",".join([value] * 8)] * 5))


def test_a_page_that_is_written_again_shows_the_new_model(
    browser: Browser, onnxruntime_web: dict[str, bytes], tmp_path: Path
) -> None:
    model, page = craft(tmp_path / "m.onnx", GRID), tmp_path / "page"
    with served(page) as address, opened(browser, **DESKTOP) as tab:
        for time, name in ((1, "first"), (2, "second")):
            write_page(model, page, name, onnxruntime_web)
            for path in page.glob("model.*"):
                os.utime(path, (time, time))  # so old that browsers keep their copy for years
            show(tab, address)
            assert tab.text("h1") == name
        (page / "model.onnx").write_bytes(b"another")
        tab.open(address)
        expect(tab.page.locator("#message.error")).to_contain_text("model.onnx has 7 bytes, expected ")
