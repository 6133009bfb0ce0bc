"""Pictures of runs: which samples are shown, their titles and colours."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.pages import draw_page
from helpers.training import quick, run_in
from helpers.user_data import read, write_image, write_texts
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from PIL import Image

from mdlstm_tk.data import Batch, DatasetTask, DiagonalTask, TaskSpec
from mdlstm_tk.data.task import MAX_EVALUATION_BATCH
from mdlstm_tk.density.drawings import images_unlike, nearest_images, picture
from mdlstm_tk.kinds import training_of
from mdlstm_tk.kinds.examples import covering, spread
from mdlstm_tk.report import draw_run
from mdlstm_tk.report.evaluation import example_batch, example_indices
from mdlstm_tk.report.panels import Panel, class_colors, visible
from mdlstm_tk.report.plots import (
    LABEL_CHARACTERS,
    TITLE_CHARACTERS,
    _draw_curve,
    _title,
    draw_curves,
    draw_loss_comparison,
    draw_panels,
)
from mdlstm_tk.text import Decoding
from mdlstm_tk.text.cuts import cut_panels
from mdlstm_tk.text.report import evaluate_split
from mdlstm_tk.training import TrainConfig, build_network, make_task

FONTS = [font for font in fontManager.ttflist if font.name == "DejaVu Sans"]  # which has no Chinese
GREY = np.zeros((4, 6, 3), np.uint8)
TITLES = {  # panel and its title
    "short": (Panel("stop", GREY, sample="a/1.png"), "a/1.png\nstop"),
    "range": (Panel("input", GREY, "0 … 1", "1.png"), "1.png\ninput  0 … 1"),
    "long name": (Panel("stop", GREY, sample="f" * 60 + ".png"), f"{'f' * 18}…{'f' * 15}.png\nstop"),
    "long text": (Panel("word " * 40, GREY), None),
    "no font": (Panel("\u4e00\u4e8c", GREY, sample="line.png"), "line.png"),
    "a formula": (Panel("$x$", GREY), r"\$x\$"),
}


@pytest.mark.parametrize("case", TITLES)
def test_titles_fit_and_hold_no_boxes(case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("mdlstm_tk.report.plots.fontManager.ttflist", FONTS)
    panel, expected = TITLES[case]
    title = _title(panel)
    assert expected in (None, title)
    assert all(len(line.replace("\\", "")) <= TITLE_CHARACTERS for line in title.split("\n"))
    assert title.count("\n") <= 3
    draw_panels(tmp_path / "p.png", "t" * 500, [panel] * 3, 2, {"sky": (1, 2, 3), "\u4e00": (4, 5, 6)})
    assert Image.open(tmp_path / "p.png").width == 2 * 330


def test_all_metrics_and_networks_are_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr("mdlstm_tk.report.plots._save", lambda figure, path: figures.append(figure))
    names = [f"error {k}" for k in range(5)]
    draw_curves(tmp_path / "c.png", "title", [{"step": 1, "loss": 1.0, **dict.fromkeys(names, 2.0)}])
    assert all(axis.lines for axis in figures[0].axes) and len(figures[0].axes) == 6
    draw_curves(tmp_path / "c.png", "title", [])  # metrics.jsonl was deleted
    draw_curves(
        tmp_path / "c.png", "title", [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 1.0, "mse": 2.0}]
    )
    losses = {f"network {k}": [[1.0] * 30, [2.0] * 25] for k in range(5)}  # the second seed stopped early
    draw_loss_comparison(tmp_path / "l.png", "title", "loss", losses)
    lines = figures[-1].axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 5
    assert all(len(line.get_xdata()) == 25 for line in lines)  # type: ignore[arg-type]
    assert figures[-1].axes[0].get_yscale() == "log"
    draw_loss_comparison(tmp_path / "l.png", "title", "loss", {**losses, "other": [[-1.0, 2.0]]})
    assert figures[-1].axes[0].get_yscale() == "linear"


def test_a_sequence_is_shown_as_a_row() -> None:
    x = np.random.default_rng(0).random((1, 9, 1), np.float32)
    assert visible(x, Batch(x, x)).shape == (1, 9, 1)
    assert visible(x, Batch(x, x, sizes=np.array([[5]]))).shape == (1, 5, 1)
    spec = TaskSpec("own", "grid", 1, 1, (9,))
    for kind in ("grid", "classify"):
        batch = Batch(x, x if kind == "grid" else np.zeros(1, np.int64))
        prediction = x if kind == "grid" else np.zeros((1, 2), np.float32)
        spec = TaskSpec("own", kind, 1, prediction.shape[-1], (9,), classes=("a", "b") * (kind != "grid"))
        panels = training_of(kind).panels(batch, prediction, spec, "s")
        assert all(panel.image.shape[::2] == (1, 3) for panel in panels)


def test_a_density_without_samples_has_no_pictures() -> None:
    network = torch.nn.Identity()
    network.sample = lambda *_, **__: None
    assert picture([], network, TrainConfig(), "train") == []


def test_older_versions_of_matplotlib_get_texts_in_visual_order(monkeypatch: pytest.MonkeyPatch) -> None:
    panel = Panel("\u05d0\u05d1\ntruth: \u05d0", GREY, sample="1.png")
    monkeypatch.setattr("mdlstm_tk.report.plots.ORDERS_TEXT", True)
    assert _title(panel) == "1.png\n\u05d0\u05d1\ntruth: \u05d0"
    monkeypatch.setattr("mdlstm_tk.report.plots.ORDERS_TEXT", False)
    assert _title(panel) == "1.png\n\u05d1\u05d0\ntruth: \u05d0"


def test_masks_have_the_colours_of_their_palette_and_a_legend(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    palette = [0, 0, 0, 255, 0, 0, 0, 0, 255]
    (tmp_path / "data/masks").mkdir(parents=True)
    for k in range(6):
        mask = Image.fromarray(rng.integers(0, 3, (5, 7)).astype(np.uint8))
        mask.putpalette(palette)
        mask.save(tmp_path / f"data/masks/{k}.png")
        write_image(tmp_path / f"data/images/{k}.png", np.full((5, 7), 40 * k))
    task = read(tmp_path / "data", "segment")
    assert class_colors(task.spec) == {"0": (0, 0, 0), "1": (255, 0, 0), "2": (0, 0, 255)}
    batch = task.batch(0, 0, 1, "validation")
    input_, prediction, truth, errors = training_of("segment").panels(
        batch, np.eye(3, dtype=np.float32)[batch.y], task.spec, "a.png"
    )
    assert (input_.sample, truth.sample) == ("a.png", "")
    assert (prediction.image == truth.image).all() and (errors.image >= input_.image).all()
    red, blue = (truth.image[batch.y[0] == k].astype(int) for k in (1, 2))
    assert (red[:, 0] > red[:, 2]).all() and (blue[:, 2] > blue[:, 0]).all()
    run = run_in(tmp_path / "run", quick(tmp_path / "data", "segment", steps=1, hidden=2))
    draw_run(run, task)
    pixels = np.asarray(Image.open(run.prediction).convert("RGB"))
    assert all((pixels[-60:] == color).all(-1).any() for color in class_colors(task.spec).values())
    assert class_colors(TaskSpec("s", "segment", 1, 2, (2, 2), ("a", "b")))["a"] == (31, 119, 180)


def test_the_middle_of_a_volume_is_shown(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((8, 5, 4, 6)).astype(np.float32)
    np.savez(tmp_path / "v.npz", x=x, y=x, ndim=3)
    batch = read(tmp_path / "v.npz", "grid").batch(0, 0, 1)
    panels = training_of("grid").panels(batch, batch.y, TaskSpec("v", "grid", 1, 1, (5, 4, 6)), "v")
    middle = batch.x[0, 2, ..., 0]
    assert panels[0].image.shape == (4, 6, 3)
    assert panels[0].image[..., 0].argmax() == middle.argmax()


def test_images_of_a_density_task_are_shown_without_padding(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    extents = [(3, 4), (5, 4), (5, 6)] * 2
    for k, each in enumerate(extents):
        write_image(tmp_path / f"data/{k}.png", np.full(each, 255))
    config = quick(tmp_path / "data", "density", steps=1, hidden=2, validation=0.0)
    run = run_in(tmp_path / "run", config)
    panels: list[Panel] = []
    monkeypatch.setattr("mdlstm_tk.report.run_pictures.draw_panels", lambda *a: panels.extend(a[2]))
    draw_run(run, make_task(config))
    shapes = [panel.image.shape[:2] for panel in panels if panel.name == "train data"]
    assert sorted(shapes) == sorted(extents)
    assert sum(panel.name == "drawn" for panel in panels) == 12


def sorted_task(*sizes: int) -> DatasetTask:
    """A classification task whose test samples are sorted by class; x of sample k is k everywhere."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    names = tuple(map(str, range(len(sizes))))
    spec = TaskSpec("sorted", "classify", 1, len(sizes), (2, 2), names)
    samples = [(np.full((2, 2, 1), k, dtype=np.float32), label) for k, label in enumerate(labels)]
    return DatasetTask(spec, {"test": samples})


@pytest.mark.parametrize(
    ("sizes", "count", "shown"),
    [
        ((90, 90, 90), 12, {0: 4, 1: 4, 2: 4}),
        ((200, 5, 1), 12, {0: 6, 1: 5, 2: 1}),
        ((1, 1), 12, {0: 1, 1: 1}),
        ((50,) * 20, 5, {0: 1, 4: 1, 8: 1, 12: 1, 16: 1}),
    ],
)
def test_samples_of_all_classes_are_chosen(
    sizes: tuple[int, ...], count: int, shown: dict[int, int]
) -> None:
    task = sorted_task(*sizes)
    indices = example_indices(task, "test", 0, count)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    assert Counter(labels[indices].tolist()) == shown
    assert indices == sorted(set(indices)) == example_indices(task, "test", 0, count)
    assert example_indices(DiagonalTask((4, 4)), "test", 0, 4) == [0, 16, 32, 48]


def test_an_example_is_the_sample_that_evaluation_reads_at_its_index() -> None:
    task = sorted_task(MAX_EVALUATION_BATCH, 3)
    for index in (0, MAX_EVALUATION_BATCH - 1, MAX_EVALUATION_BATCH, MAX_EVALUATION_BATCH + 2):
        assert example_batch(task, "test", 0, index).x.ravel().tolist() == [index] * 4


def test_training_samples_that_a_page_shows_have_their_names(tmp_path: Path) -> None:
    task = read(write_texts(tmp_path, 8), "transcribe", validation=0.0)
    config = quick(tmp_path, "transcribe", model="md")
    evaluation = evaluate_split(build_network(config, task.spec).eval(), task, config, Decoding())
    assert (evaluation.split, evaluation.count) == ("train", 8)
    texts = dict(zip(task.names["train"], task.of_kind.train, strict=True))
    assert {line.name: line.truth for line in evaluation.lines} == texts


def test_masks_of_all_classes_are_shown() -> None:
    classes = [{0, 1}] * 20 + [{0, 2}] * 20 + [{3, 4}, {0}, {4}]
    masks = [np.array([*each, -1]) for each in classes]
    assert {0, 1, 2, 3, 4} == set().union(*(classes[k] for k in covering(masks, 4)))
    assert len(covering(masks, 4)) == 4 and len(covering(masks, 99)) == len(classes)
    assert covering([np.array([-1])] * 2, 1) == [0]


def test_a_report_measures_images_unlike_the_data() -> None:
    data = np.random.default_rng(0).random((5, 3, 4, 3), np.float32)
    kinds = images_unlike(DatasetTask(TaskSpec("own", "density", 3, 4, (3, 4)), {}), data)
    turned, noise, digits = kinds.values()
    assert list(kinds) == ["turned by 180°", "noise (pixels shuffled)", "handwritten digits"]
    assert (turned == data[:, ::-1, ::-1]).all()
    pixels, shuffled = (images.reshape(5, 12, 3).tolist() for images in (data, noise))
    assert shuffled != pixels
    assert [sorted(image) for image in shuffled] == [sorted(image) for image in pixels]
    assert digits.shape == data.shape and (digits == digits[..., :1]).all()
    for name, outputs in (("digits-binary", 1), ("digits-grey", 17)):
        task = DatasetTask(TaskSpec(name, "density", 1, outputs, (8, 8)), {})
        pieces = images_unlike(task, np.zeros((5, 8, 8, 1), np.float32))["pieces of photographs"]
        assert pieces.shape == (5, 8, 8, 1)
        assert list(np.unique(pieces)) == [0, 1] if outputs == 1 else len(np.unique(pieces)) > 50


def test_the_nearest_images_are_found_batch_by_batch() -> None:
    images = np.random.default_rng(0).random((150, 3, 4, 2), np.float32)
    near = images[[149, 0, 70]] + 0.01
    nearest, count = nearest_images(near, (images[k : k + 64] for k in (0, 64, 128)))
    assert count == 150
    np.testing.assert_array_equal(nearest, images[[149, 0, 70]])


def test_cuts_stand_beside_their_boxes(tmp_path: Path) -> None:
    for k in range(12):
        draw_page(tmp_path / f"deep/{k:02}.xml", ("ab", None, "ba", "aaaa"))
    (tmp_path / "deep/03.png").unlink()
    (tmp_path / "deep/other.xml").write_text("<a/>")
    pairs = cut_panels(tmp_path)
    assert len(pairs) == 18  # two lines of ten pages, one of which has no image
    box, cut = pairs[0]
    assert (box.name, cut.name) == ("00.xml l0", "ab")
    (height, wide), (_, narrow) = box.image.shape[:2], cut.image.shape[:2]
    assert cut.image.shape[0] == height and 0 < wide - narrow < 0.12 * wide  # the cut has a margin
    resized = Image.fromarray(box.image).resize((narrow, height))
    assert np.abs(np.asarray(resized).astype(int) - cut.image).mean() < 8  # the drawn lines are straight
    assert cut_panels(tmp_path / "nothing") == []
    (tmp_path / "links").mkdir()
    (tmp_path / "links/deep").symlink_to(tmp_path / "deep")  # training follows links, too
    assert len(cut_panels(tmp_path / "links")) == 18


def test_labels_fit_their_axis_and_values_that_have_no_decades_are_drawn_linearly() -> None:
    for values in ([1.0, 1.0], [0.5, 0.0]):  # equal ones, and one of 0
        axis = Figure(figsize=(4.2, 3), layout="constrained").subplots()
        records = [
            {"step": k, "relevant": v, "validation": {"relevant": v}} for k, v in enumerate(values, 1)
        ]
        _draw_curve(axis, "relevant", "red", records)
        assert max(map(len, axis.get_ylabel().split("\n"))) <= LABEL_CHARACTERS  # a page has wider fonts
        assert axis.get_yscale() == "linear" and axis.get_ylim()[0] <= 0
        assert values[1] == 0 or axis.get_ylim() == (0, 1.1)


def test_captions_say_what_is_a_prediction_and_what_is_true() -> None:
    spec = TaskSpec("t", "classify", channels=1, outputs=2, size=(2, 2), classes=("0", "7"))
    batch = Batch(np.zeros((1, 2, 2, 1), np.float32), np.array([1]))
    for logits, caption in (([0.0, 1.0], "predicted: 7"), ([1.0, 0.0], "predicted: 0\ntruth: 7")):
        (panel,) = training_of("classify").panels(batch, np.array([logits], np.float32), spec, "a")
        assert panel.name == caption


def test_items_are_chosen_at_equal_distances() -> None:
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread("abc", 20) == ["a", "b", "c"]
    assert spread([], 4) == []
