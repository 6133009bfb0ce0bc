"""The kind `baselines`: distortion, loss, measures, report and export; and distorted lines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command import mdlstm
from helpers.pages import draw_page, read, write_texts
from scipy import ndimage

from mdlstm_tk.data import Batch
from mdlstm_tk.data.task import collate
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.text import LineFinder, distortion
from mdlstm_tk.text.baselines_training import draw_maps
from mdlstm_tk.text.distortion import distort_line, distort_page
from mdlstm_tk.training import Run, configure, load_checkpoint, make_task, train

KIND = kind_named("baselines")
SETTINGS = {"task": "baselines", "data": "pages", "resize": "64x*", "hidden": 4, "layers": 1}


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of four pages of two lines, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for k, name in enumerate("abcd"):
        draw_page(tmp_path / f"pages/{name}.xml", ("abab" * 4, "a" * k + "b" * (12 - k)))
    return tmp_path / "pages"


def perfect(batch: Batch) -> np.ndarray:
    """The logits of maps as they should be."""
    grid = [-(-extent // 2) for extent in batch.x.shape[1:3]]
    lines = [[line[~np.isnan(line[:, 0])] for line in page] for page in batch.y]
    maps = [draw_maps([line for line in each if len(line)], (grid[0], grid[1])) for each in lines]
    return 40 * np.stack(maps) - 20


def test_a_perfect_prediction_has_no_error_and_padding_does_not_count(pages: Path) -> None:
    task = read(pages, "baselines", resize="64x*")
    x, lines = task.sets["train"][0]
    both = collate(KIND, [(x, lines), (x[:, :60], (lines[1],))])
    prediction = perfect(both)
    prediction[1, :, 30:] = 20  # of padding

    def loss(prediction: np.ndarray, batch: Batch) -> float:
        return KIND.loss(torch.from_numpy(prediction), batch, task.spec).item()

    alone = [collate(KIND, [each]) for each in ((x, lines), (x[:, :60], (lines[1],)))]
    parts = [loss(prediction[:1], alone[0]), loss(prediction[1:, :, :30], alone[1])]
    assert loss(prediction, both) == pytest.approx(sum(parts) / 2, rel=1e-5) and max(parts) < 0.7

    def measures(prediction: np.ndarray) -> dict[str, float]:
        sums = KIND.sums(torch.from_numpy(prediction), both, task.spec)
        return KIND.measures({name: each.numpy() for name, each in sums.items()}, task.spec)

    assert measures(prediction) == {"line_error": 0, "missed": 0, "false": 0, "pixel_error": 0}
    wrong = measures(np.full_like(prediction, -20))
    assert wrong["line_error"] == wrong["missed"] == 1 and np.isnan(wrong["false"])
    half = prediction.copy()
    half[1] = -20  # 2 of 3 lines found
    assert measures(half)["line_error"] == pytest.approx(1 / 5) and measures(half)[
        "missed"
    ] == pytest.approx(1 / 3)
    names = [panel.name for panel in KIND.draw(alone[0], perfect(alone[0]), task.spec)]
    assert names == ["page", "2 of 2 lines found, 0 false"]
    assert 55_000 < sum(each.numel() for each in LineFinder(1, 3).parameters()) < 150_000  # as documented


@pytest.mark.slow
def test_training_and_an_export_that_finds_lines(pages: Path) -> None:
    result = train(configure(**SETTINGS, steps=2, evaluate_every=1), "run")
    assert list(result["errors"]) == ["line_error", "missed", "false", "pixel_error"]
    checkpoint = load_checkpoint(Run("run").best)
    assert (checkpoint.config.augment, checkpoint.config.model) == (1, "pages")
    assert make_task(checkpoint.config).count("validation") == 1
    done = mdlstm("export", "run", "--form", "scan", "-o", "baselines.onnx")
    assert done.code == 0, done.err
    assert Path("baselines.onnx").stat().st_size < 2**20
    done = mdlstm("read", "pages", "-m", "baselines.onnx", "-o", "found")
    assert done.code == 0 and "4 done" in done.err, done.err
    assert len(list(Path("found").glob("*.xml"))) == 4


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_a_page_and_its_baselines_are_distorted_alike(strength: float) -> None:
    """The darkest place across a distorted baseline is where the distorted image has it."""
    x = np.full((120, 160, 1), 0.9, np.float32)
    lines = [np.array([[30.0, y + 0.5], [130, y + 0.5]]) for y in (30, 60, 90)]
    for line in lines:
        x[int(line[0, 1]), 30:131] = 0.0
    steepest = 0.0
    for seed in range(16):
        page, moved = distort_page(x, lines, np.random.default_rng(seed), strength)
        assert page.shape == x.shape and page.dtype == np.float32 and np.isfinite(page).all()
        for line in moved:
            steepest = max(steepest, abs(float(line[-1, 1] - line[0, 1])))
            run = (line[-1] - line[0]) / np.hypot(*(line[-1] - line[0]))
            for point in line[[len(line) // 4, len(line) // 2]]:
                places = point - 0.5 + np.arange(-5, 6)[:, None] * (-run[1], run[0])
                across = ndimage.map_coordinates(page[..., 0], places[:, ::-1].T, order=1, mode="nearest")
                assert abs(int(across.argmin()) - 5) < 1.6
        if not strength:
            np.testing.assert_allclose(page, x, atol=1e-5)
            assert [len(line) > 1 for line in moved] == [True] * 3
    assert steepest > 40 if strength else not steepest  # some pages are turned by any angle


def test_no_strength_turns_a_page_into_its_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distortion, "_perspective", lambda *_: np.eye(3))
    monkeypatch.setattr(distortion, "_shade", lambda *_: np.float32(1))
    monkeypatch.setattr(distortion, "PAGE_NOISE", 0)
    x = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8, 1)
    for seed in range(64):
        page, _ = distort_page(x, (), np.random.default_rng(seed), 9.0)
        assert (np.diff(page[:, 3, 0]) >= 0).all() and page[-1, 3] > page[0, 3]


def test_widths_slants_and_strokes_of_lines_differ_and_height_and_channels_stay() -> None:
    for shape in ((1, 1, 1), (2, 3, 3), (24, 90, 3)):
        x = np.random.default_rng(0).random(shape, dtype=np.float32)
        np.testing.assert_allclose(distort_line(x, np.random.default_rng(3), 0.0), x, atol=1e-5)
        y = distort_line(x, np.random.default_rng(0), 1.0)
        assert (y.shape[0], y.shape[2], y.dtype) == (shape[0], shape[2], np.float32)
        assert abs(y.shape[1] - shape[1]) <= 0.2 * shape[1] + 1
    stroke = np.full((24, 90, 1), 0.9, dtype=np.float32)
    stroke[4:-4, 44:47] = 0.2
    images = [distort_line(stroke, np.random.default_rng(seed), 1.0)[..., 0] for seed in range(40)]
    ink = [(image < 0.6) & (image < np.median(image) - 0.1) for image in images]
    assert len({image.shape[1] for image in images}) > 5
    ends = [(np.flatnonzero(i[6]), np.flatnonzero(i[-7])) for i in ink if i[6].any() and i[-7].any()]
    slants = [top.mean() - bottom.mean() for top, bottom in ends]
    assert min(slants) < -1 < 1 < max(slants)
    areas = [i.sum() for i in ink]
    assert max(areas) > 1.5 * np.median(areas)


def test_training_batches_of_texts_are_distorted_by_seed_and_draw(tmp_path: Path) -> None:
    task = read(write_texts(tmp_path), validation=0.25, augment=1.0)
    assert np.array_equal(task.batch(0, 1, 3).x, task.batch(0, 1, 3).x)
    assert not np.array_equal(task.batch(0, 0, 6).x, task.batch(0, 1, 6).x)
    assert np.array_equal(task.batch(0, 0, 2, "validation").x, task.batch(5, 0, 2, "validation").x)
