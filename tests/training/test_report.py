"""`mdlstm report`: its numbers agree with the network, names are escaped, and a browser displays it."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder

import numpy as np
import pytest
import torch
from helpers.browser import opened
from helpers.command import mdlstm
from helpers.training import quick, run_in
from helpers.user_data import write_classes, write_masks
from markupsafe import Markup
from PIL import Image
from playwright.sync_api import Browser
from rapidfuzz.distance import Levenshtein
from safetensors import safe_open
from safetensors.torch import save_file

from mdlstm_tk.data import DiagonalTask
from mdlstm_tk.data.samples import LazySamples
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds import training_of
from mdlstm_tk.report import plots, render_report, write_report
from mdlstm_tk.report.evaluation import evaluate_split
from mdlstm_tk.report.exports import find_exports, measure_exports
from mdlstm_tk.runtime import Session
from mdlstm_tk.text.ctc import best_path
from mdlstm_tk.training import Run, TrainConfig, build, load_checkpoint, make_task, register_task
from mdlstm_tk.training.progress import TrainingTimes

SCRIPT = "<script>document.title='taken over'</script>"
KINDS = ("grid", "classify", "segment", "transcribe", "regress", "tag")


class Page(HTMLParser):
    """A page as a tree."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.builder = TreeBuilder()
        self.handle_endtag, self.handle_data = self.builder.end, self.builder.data
        self.feed(html)
        self.root = self.builder.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.builder.start(tag, {name: value or "" for name, value in attrs})
        if tag in self.VOID:
            self.builder.end(tag)

    def find(self, path: str) -> list[Element]:
        return self.root.findall(f".//{path}")

    def numbers(self) -> dict[str, float]:
        """The exact values at the top."""
        boxes = self.find("dl[@class='numbers']/div")
        values = {text(box.find("dt")): box.find("dd/data") for box in boxes}
        return {name: float(data.get("value", "")) for name, data in values.items() if data is not None}

    def confusion(self, units: str) -> np.ndarray:
        rows = self.find(f"table[@class='confusion of-{units}']/tbody/tr")
        return np.array([[int(data.get("value", "")) for data in row.findall("td/data")] for row in rows])


def text(element: Element | None) -> str:
    assert element is not None
    return " ".join(" ".join(element.itertext()).split())


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def pixels(image: Element) -> np.ndarray:
    data = image.get("src", "").removeprefix("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def samples(kind: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Sixty grids of different extents, at most 5×8."""
    x = rng.random((60, 5, 8))
    sizes = np.stack([rng.integers(1, 6, 60), rng.integers(6, 9, 60)], axis=1)
    bright = (x.mean((1, 2)) > 0.5).astype(int)
    y: Any = {
        "grid": np.roll(x, 1, axis=2),
        "classify": np.array([SCRIPT, "b & c"])[bright],
        "segment": np.where(rng.random(x.shape) < 0.1, -1, (x > 0.3).astype(int) + (x > 0.6)),
        "transcribe": np.array(["<b>", " &a"])[bright],
        "regress": x.mean((1, 2)),
        "tag": np.stack([bright, rng.integers(0, 2, 60)], axis=1),
    }[kind]
    return {"x": x, "y": y, "sizes": sizes}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that trains a run of a kind for a few steps, and writes its result and report."""

    @cache
    def make(kind: str) -> Run:
        folder = tmp_path_factory.mktemp(kind)
        np.savez(folder / "data.npz", **samples(kind, np.random.default_rng(0)))
        settings = {"model": "md", "batch_size": 8, "warmup": 0, "augment": 0.0, "validation": 0.7}
        config = quick(folder / "data.npz", kind, **settings)
        run = run_in(folder / "run", config)
        run.write_times(TrainingTimes(steps=20, training=83.4))
        write_report(run, data=config.data)
        return run

    return make


def validation_samples(run: Run) -> Iterator[tuple[np.ndarray, Any, np.ndarray]]:
    """x, y and prediction of each validation sample, alone and without padding."""
    checkpoint = load_checkpoint(run.best)
    network = checkpoint.network()
    for x, y in make_task(checkpoint.config).sets["validation"]:  # type: ignore[attr-defined]
        with torch.no_grad():
            yield x, y, network(torch.from_numpy(x[None]))[0].numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_starts_with_the_result(kind: str, runs: Any) -> None:
    run = runs(kind)
    page, result = Page(run.report.read_text()), json.loads(run.result.read_text())
    expected = {f"validation {name.replace('_', ' ')}": value for name, value in result["errors"].items()}
    assert page.numbers() == {**expected, "parameters": result["parameters"]}
    shown = [text(box) for box in page.find("dl[@class='numbers']/div")]
    assert "training time 1 min 23 s" in shown
    assert f"best step {result['step']} of 6" in shown
    assert len(page.find("section[@id='curves']//svg")) == 1 + len(training_of(kind).error_names)
    assert "loss over 6 " in page.find("svg")[0].get("aria-label", "")
    assert result["in_sample"] and "There are no test data" in run.report.read_text()


@pytest.mark.parametrize("kind", ["classify", "segment"])
def test_each_sample_is_read_once_and_those_that_are_shown_once_more(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    write_masks(data, 90) if kind == "segment" else write_classes(data, {"a": 45, "b": 45})
    config = quick(data, kind, cache=0, model="md", windows="2,2", augment=0.0, validation=0.8)
    (network, task), reads = build(config), Counter[int]()
    read = LazySamples.__getitem__
    monkeypatch.setattr(LazySamples, "__getitem__", lambda s, k: reads.update([k]) or read(s, k))
    evaluation = evaluate_split(network, task, config)
    shown = len(evaluation.examples) + len(evaluation.worst)
    assert task.count("validation") > task.evaluation_batch > shown > 3
    assert reads.total() == task.count("validation") + shown


@pytest.mark.parametrize("kind", ["classify", "segment"])
def test_the_confusion_matrix_counts_the_predictions(kind: str, runs: Any) -> None:
    run = runs(kind)
    classes = {"classify": 2, "segment": 3}[kind]
    expected = np.zeros((classes, classes), dtype=int)
    for _, y, logits in validation_samples(run):
        for truth, predicted in zip(np.ravel(y), np.ravel(logits.argmax(-1)), strict=True):
            if truth >= 0:
                expected[truth, predicted] += 1
    page = Page(run.report.read_text())
    np.testing.assert_array_equal(page.confusion("positions" if kind == "segment" else "samples"), expected)
    wrong = 1 - expected.trace() / expected.sum()
    assert page.numbers()["validation error"] == pytest.approx(wrong)
    table = page.find("table[@class='figures']")[0]
    for k, row in enumerate(table.findall("tbody/tr")):
        count, recall, precision, last = map(text, row.findall("td"))
        assert count == f"{expected[k].sum():,}"
        hit, union = expected[k, k], expected[k].sum() + expected[:, k].sum() - expected[k, k]
        assert recall == percent(hit / expected[k].sum())
        assert precision == (percent(hit / expected[:, k].sum()) if expected[:, k].any() else "–")
        f1 = 2 * hit / (expected[k].sum() + expected[:, k].sum())
        assert last == percent(hit / union if kind == "segment" else f1)


def test_lines_stand_beside_their_truth_from_the_worst_on(runs: Any) -> None:
    run = runs("transcribe")
    page, result = Page(run.report.read_text()), json.loads(run.result.read_text())
    names = load_checkpoint(run.best).spec.classes
    expected = []
    for _, y, logits in validation_samples(run):
        expected.append(tuple("".join(names[k - 1] for k in each) for each in (best_path(logits), y)))
    edits = [Levenshtein.distance(predicted.strip(), truth.strip()) for predicted, truth in expected]
    assert f"{sum(edits)} edits" in text(page.find("section[@id='edits']")[0])
    assert sum(edits) == result["edits"] > 0
    figures = page.find("div[@class='examples lines']/figure")
    assert len(figures) == min((len(expected) - 6) // 2, 50) + 6  # the worst, and those about the median
    read, truth = (page.find(f"span[@class='text {kind}']") for kind in ("read", "truth"))
    read_texts, true_texts = (
        ["".join(span.itertext()).replace("␣", " ") for span in spans] for spans in (read, truth)
    )
    pairs = list(zip(read_texts, true_texts, strict=True))
    assert set(pairs) <= {(r.strip(), t.strip()) for r, t in expected}
    errors = [Levenshtein.distance(r, t) / len(t) for r, t in pairs]
    assert errors == sorted(errors, reverse=True)
    for (reading, line), r, t in zip(pairs, read, truth, strict=True):
        distance, *marks = Levenshtein.distance(reading, line), len(r.findall("del")), len(t.findall("ins"))
        assert distance == 0 if reading == line else max(marks) <= distance <= sum(marks)


def test_intervals_confusions_and_calibration_are_those_of_the_result(runs: Any) -> None:
    run = runs("transcribe")
    page, result = Page(run.report.read_text()), json.loads(run.result.read_text())
    low, high = result["intervals"]["character_error"]
    assert low < result["errors"]["character_error"] < high
    shown = [text(box.find("dd/small")) for box in page.find("dl[@class='numbers']/div")[:2]]
    assert shown[0] == f"{100 * low:.3g} – {100 * high:.3g}"
    rows = page.find("section[@id='edits']//tbody/tr")
    truth, read, count = result["confusions"][0]
    cells = [text(cell) for cell in rows[0]]
    assert cells == [truth.replace(" ", "␣") or "nothing", read.replace(" ", "␣") or "nothing", str(count)]
    error = page.find("section[@id='confidences']/p/data")[0].get("value", "")
    assert float(error) == result["calibration_error"]
    assert sum(count for *_, count in result["reliability"]) > 0
    assert "Reliability" in page.find("section[@id='confidences']//svg")[0].get("aria-label", "")
    without_data = Page(render_report(run))
    assert len(without_data.find("section[@id='edits']//tbody/tr")) == len(rows)


def test_grids_are_drawn_without_padding_and_with_their_error(runs: Any) -> None:
    run = runs("grid")
    page = Page(run.report.read_text())
    everything = list(validation_samples(run))
    mse = np.concatenate([(y - p).ravel() ** 2 for _, y, p in everything]).mean()
    assert page.numbers()["validation mse"] == pytest.approx(mse, rel=1e-4)
    rows = page.find("figure[@class='row']")
    names = make_task(load_checkpoint(run.best).config).names["validation"]  # type: ignore[attr-defined]
    indices = [names.index(text(row.find("figcaption")).partition(" mse ")[0]) for row in rows]
    total = len(everything)
    assert indices[:3] == [0, total // 3, 2 * total // 3]
    errors = {k: float(np.square(y - p).mean()) for k, (_, y, p) in enumerate(everything)}
    others = sorted(set(errors) - set(indices[:3]), key=lambda k: errors[k], reverse=True)
    assert indices[3:] == others[:3]
    for row, index in zip(rows, indices, strict=True):
        x, y, prediction = everything[index]
        images = row.findall("figure/img")
        assert len(images) == 4
        assert all(pixels(image).shape == (*x.shape[:2], 3) for image in images)
        largest = float(np.abs(prediction - y).max())
        assert f"0 … {largest:.3g}" in text(row.findall("figure/figcaption")[3])
        brightest = pixels(images[3]).sum(-1).argmax()
        assert brightest == np.abs(prediction - y).argmax()


def test_wrong_positions_are_red_and_unlabelled_ones_are_not(runs: Any) -> None:
    run = runs("segment")
    page = Page(run.report.read_text())
    images = page.find("figure[@class='row']")[0].findall("figure/img")
    _, y, logits = next(validation_samples(run))
    red = (pixels(images[3]) == (214, 40, 57)).all(-1)
    np.testing.assert_array_equal(red, (y >= 0) & (logits.argmax(-1) != y))
    plain, truth = pixels(images[0]), pixels(images[2])
    np.testing.assert_array_equal((plain == truth).all(-1), y < 0)


def test_names_are_escaped(runs: Any) -> None:
    html = runs("classify").report.read_text()
    assert SCRIPT not in html
    assert "&lt;script&gt;document.title" in html
    assert not Page(html).find("script")
    assert "&lt;b&gt;" in runs("transcribe").report.read_text()


def test_exports_are_listed_with_parity_and_speed(trained: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    shutil.copytree(trained.folder, run.folder)
    (run.folder / "model-broken.onnx").write_text("no model")
    page = Page(html := render_report(run))
    assert "There are no test data" not in html
    good, broken = page.find("section[@id='exports']")[0].findall(".//tbody/tr")
    metadata = Session(run.folder / "model-8x8.onnx", "cpu").metadata
    name, (form, grid, dtype, _, error, *times) = text(good.find("th")), map(text, good.findall("td"))
    assert (name, form, grid, dtype) == ("model-8x8.onnx", "unrolled", "8x8", "float32")
    assert error == f"{metadata.parity['max_abs']:.1e}"
    assert len(times) == 3 and all(float(time) > 0 for time in times)
    assert (
        measure_exports(find_exports(run), (8, 8))[0].error == metadata.parity["max_abs"]
    )  # outputs lie in (0, 1)
    assert len(broken.findall("td")) == 1  # the reason, in place of all numbers
    with safe_open(run.best, "pt") as file:
        tensors, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    next(iter(tensors.values())).add_(1)
    for path in (run.best, run.last):
        save_file(tensors, path, header)
    again = Page(render_report(run)).find("section[@id='exports']")[0].find(".//tbody/tr/th")
    assert text(again) != text(good.find("th"))  # it is marked as coming from another checkpoint
    (run.folder / "mine.onnx").touch()
    names = ["mine.onnx", "model-8x8.onnx", "model-broken.onnx"]
    assert [path.name for path in find_exports(run)] == names


def test_a_run_without_its_data_has_everything_but_examples(runs: Any, tmp_path: Path) -> None:
    messages: list[str] = []
    with pytest.raises(InputError, match=r"gone\.npz"):
        render_report(runs("classify"), data=str(tmp_path / "gone.npz"))
    page = Page(render_report(runs("classify"), messages.append))
    assert "data.npz" in messages[0]
    assert "data.npz" in text(page.find("section[@id='examples']")[0])
    assert "validation error" in page.numbers()
    assert not page.find("img")


def test_with_data_a_run_is_evaluated_anew(runs: Any, tmp_path: Path) -> None:
    """Errors and examples are those of one split, whatever result.json holds."""
    original = runs("transcribe")
    run, data = Run(tmp_path / "run"), str(original.folder.parent / "data.npz")
    shutil.copytree(original.folder, run.folder)
    expected = Page(original.report.read_text()).numbers()
    errors = {"character_error": 7.0}
    run.write_result({**run.read_result(), "split": "test", "errors": errors, "edits": 7})
    assert Page(render_report(run, data=data)).numbers() == expected
    run.result.unlink()
    run.times.unlink()
    page = Page(render_report(run, data=data))
    assert page.numbers() == expected
    assert "training time unknown" in [text(box) for box in page.find("dl[@class='numbers']/div")]


def test_the_page_says_what_the_errors_leave_out(tmp_path: Path) -> None:
    data = str(tmp_path / "data.npz")
    np.savez(data, x=np.ones((12, 5, 8)), y=np.ones((12, 5, 8)))  # samples to validate with are trained on
    run = run_in(tmp_path / "run", quick(data, "grid", crop="3"))
    for named, notes in (("", ["cropped to 3"]), (data, ["cropped to 3", "are trained on as well"])):
        captions = Page(render_report(run, data=named)).find("header/p[@class='caption']")[1:]
        assert all(note in text(each) for note, each in zip(notes, captions, strict=True))


def test_a_report_says_that_the_samples_are_others_than_in_training(runs: Any, tmp_path: Path) -> None:
    run, messages = runs("classify"), list[str]()
    with np.load(run.folder.parent / "data.npz") as data:
        x, rest = data["x"].copy(), {name: data[name] for name in ("y", "sizes")}
    x[:, 0, 0] += 1
    np.savez(tmp_path / "data.npz", x=x, **rest)
    page = render_report(run, messages.append, str(tmp_path / "data.npz"))
    assert any("samples of the run are missing" in message for message in messages)
    assert any("new samples are tested on" in message for message in messages)
    assert "test error" in page and "train error" not in page


@pytest.mark.parametrize("is_imported", [False, True])
@pytest.mark.usefixtures("fresh_registries")
def test_a_task_of_a_file_needs_no_default_size_and_no_import(is_imported: bool, tmp_path: Path) -> None:
    if is_imported:
        register_task("mine", kind="grid", defaults={"steps": 7})(lambda config: DiagonalTask((4, 4)))
    config = TrainConfig(task="mine", steps=1, hidden=2, batch_size=2)
    run = run_in(tmp_path / "run", config, DiagonalTask((4, 4)))
    messages: list[str] = []
    page = Page(render_report(run, messages.append))
    changes = [text(row) for row in page.find("section[@id='configuration']/table/tbody/tr")]
    assert "steps 1 7" in changes or not is_imported
    assert "hidden 2 16" in changes
    assert any("there is no task 'mine'" in message for message in messages) != is_imported


def test_the_command(runs: Any) -> None:
    run = runs("grid")
    run.report.unlink()
    result = mdlstm("report", run.folder, "--data", run.folder.parent / "data.npz")
    assert result.code == 0, result.err
    assert result.out == ""
    assert result.err.splitlines()[-1] == f"next: mdlstm export {run.folder} --form scan"
    assert f"mdlstm export {run.folder} --form scan" in text(
        Page(run.report.read_text()).find("section[@id='exports']")[0]
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1200, "light")])
def test_in_a_browser(kind: str, width: int, scheme: str, runs: Any, browser: Browser) -> None:
    address = runs(kind).report.resolve().as_uri()
    size = {"width": width, "height": 800}
    with opened(browser, viewport=size, color_scheme=scheme, is_mobile=width < 500) as tab:
        tab.open(address)
        assert tab.errors == []
        assert {url for url in tab.requests if not url.startswith("data:")} == {address}
        assert tab.page.title() == "data · md · mdlstm-tk"

        def evaluate(expression: str) -> Any:
            return tab.page.evaluate(f"() => {expression}")

        assert evaluate("document.scripts.length") == 0
        assert evaluate("[...document.images].every(i => i.alt && i.complete && i.naturalWidth)")
        assert evaluate("document.images.length") > 2
        assert evaluate("document.documentElement.scrollWidth") <= width
        ink, paper = (
            evaluate(f"getComputedStyle(document.querySelector('{selector}')).{colour}")
            for selector, colour in ((".curves text", "fill"), ("body", "backgroundColor"))
        )
        light = [sum(map(int, re.findall(r"\d+", colour)[:3])) > 384 for colour in (ink, paper)]
        assert light == [scheme == "dark", scheme == "light"]


@pytest.mark.parametrize("infinite", [0, 2, 9])
def test_a_histogram_spans_its_finite_values_and_counts_the_others(
    infinite: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = list[Any]()
    monkeypatch.setattr(plots, "_to_svg", lambda figure, title: figures.append(figure) or Markup(title))
    values = np.linspace(-100, -91, 9)
    values[:infinite] = -np.inf
    plots.svg_histogram({"data": values}, "log-probability")
    (axis,) = figures[0].axes
    (label,) = (each.get_text() for each in axis.get_legend().get_texts())
    assert label == ("data" if not infinite else f"data ({infinite} infinite)")
    if infinite < 9:
        low, high = axis.get_xlim()
        assert abs(low - values[infinite]) < 1 and abs(high + 91) < 1
