"""The kind `baselines` in training: targets, distortion, loss, measures and report; and its export."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command import mdlstm
from helpers.pages import HEIGHT, WIDTH, alto, draw_page
from PIL import Image, ImageDraw
from scipy import ndimage

from mdlstm_tk.data import Batch, Dataset
from mdlstm_tk.data.task import collate
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.text import LineFinder, distortion
from mdlstm_tk.text.baselines_training import draw_maps
from mdlstm_tk.text.distortion import distort_page
from mdlstm_tk.text.pages import REACH
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


def test_samples_are_pages_with_the_baselines_of_their_xml(
    pages: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (pages / "empty.xml").write_text(alto("", "a.png"))
    Image.new("L", (WIDTH, HEIGHT)).save(pages / "empty.png")
    (pages / "empty.xml").write_text(alto("", "empty.png"))
    (pages / "broken.xml").write_text(alto("", "missing.png"))
    (pages / "twin.xml").write_text((pages / "a.xml").read_text())
    beyond = f'<TextLine BASELINE="{WIDTH + 9} 9 {WIDTH + 99} 9"/>'
    outline = '<TextLine><Shape><Polygon POINTS="1 1 9 1 9 9"/></Shape></TextLine>'
    of_a = (pages / "a.xml").read_text().replace("</TextBlock>", f"{beyond}{outline}</TextBlock>")
    (pages / "a.xml").write_text(of_a)
    (pages / "alto").mkdir()  # without baselines, it does not take the place of d.xml
    (pages / "alto/d.xml").write_text(alto("", "d.png"))
    (pages / "splits.json").write_text(json.dumps({"train": ["a", "b"], "valid": ["c"], "test": ["d"]}))
    task = make_task(configure(**SETTINGS))
    assert {split: list(names) for split, names in task.names.items()} == {
        "train": ["a.xml", "b.xml"],
        "validation": ["c.xml"],
        "test": ["d.xml"],
    }
    for words in (
        "without a baseline, left out: 2",
        "broken.xml: has no image",
        "twin.xml: it is",
        "lines without a baseline on their page, learned as no lines: 2",
    ):
        assert words in caplog.text, words
    batch = task.batch(0, 0, 1, "validation")
    scale = 64 / HEIGHT
    assert batch.x.shape == (1, 64, 96, 1) and batch.y.shape == (1, 2, 2, 2)
    right = 20 + 12 * 16 + 5
    np.testing.assert_allclose(batch.y[0, 0], np.array([[15, 40], [right, 40]]) * scale, rtol=1e-5)


def test_colours_become_grey(pages: Path) -> None:
    Image.open(pages / "a.png").convert("RGB").point(lambda v: v // 2).save(pages / "a.png")
    image = Image.open(pages / "b.png").convert("RGB")
    ImageDraw.Draw(image).rectangle((0, 0, 99, 9), (255, 0, 0))
    image.save(pages / "b.png")
    assert make_task(configure(**SETTINGS)).spec.channels == 1


def test_a_folder_without_baselines_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("L", (WIDTH, HEIGHT)).save("a.png")
    Path("a.xml").write_text(alto('<TextLine ID="l" HPOS="1" VPOS="1" WIDTH="9" HEIGHT="9"/>'))
    with pytest.raises(InputError, match="holds baselines"):
        make_task(configure(**SETTINGS | {"data": "."}))
    np.savez("a.npz", x=np.zeros((2, 8, 8)), y=np.zeros(2))
    with pytest.raises(InputError):
        make_task(configure(task="baselines", data="a.npz"))


def test_cropping_is_refused(pages: Path) -> None:
    with pytest.raises(InputError, match="crop"):
        make_task(configure(**SETTINGS, crop="32"))


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_the_image_and_its_baselines_are_distorted_alike(strength: float) -> None:
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


def test_maps_have_the_baselines_their_beginnings_and_ends() -> None:
    maps = draw_maps([np.array([[11.0, 21], [51, 21]])], (20, 40))
    assert maps.shape == (20, 40, 3) and maps.min() == 0 and maps.max() == 1
    assert (maps[10, 5:25, 0] == 1).all() and maps[..., 0].sum() < 80
    assert maps[10, 5, 1] == 1 and maps[10, 25, 2] == 1
    assert maps[:, 12:, 1].max() == maps[:, :18, 2].max() == 0
    assert not draw_maps([np.array([[900.0, -90], [990, -90]])], (20, 40)).any()  # beyond the page


def test_a_perfect_prediction_has_no_error_and_padding_does_not_count(pages: Path) -> None:
    task = make_task(configure(**SETTINGS))
    assert isinstance(task, Dataset)
    x, lines = task.sets["train"][0]
    both = collate(KIND, [(x, lines), (x[:, :60], (lines[1],))])
    assert both.sizes is not None
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


def test_the_network_has_about_as_many_parameters_as_documented() -> None:
    parameters = sum(each.numel() for each in LineFinder(1, 3).parameters())
    assert 55_000 < parameters < 150_000


@pytest.mark.parametrize("has_outlines", [True, False])
def test_outlines_reach_as_far_as_those_of_the_training_pages(has_outlines: bool, pages: Path) -> None:
    for path in pages.glob("*.xml"):
        if not has_outlines:
            path.write_text(re.sub("<Shape>.*?</Shape>", "", path.read_text()))
    spacing = 30.0
    expected = {"above": 16 / spacing, "below": 4 / spacing} if has_outlines else REACH
    assert make_task(configure(**SETTINGS)).spec.decoding == pytest.approx(expected)


@pytest.mark.slow
def test_training_and_an_export_that_finds_lines(pages: Path) -> None:
    result = train(configure(**SETTINGS, steps=2, evaluate_every=1), "run")
    assert list(result["errors"]) == ["line_error", "missed", "false", "pixel_error"]
    checkpoint = load_checkpoint(Run("run").best)
    assert (checkpoint.config.augment, checkpoint.config.model) == (1, "pages")
    batch = collate(KIND, [make_task(checkpoint.config).sets["validation"][0]])  # type: ignore[attr-defined]
    names = [panel.name for panel in KIND.draw(batch, perfect(batch), checkpoint.spec)]
    assert names == ["page", "2 of 2 lines found, 0 false"]
    done = mdlstm("export", "run", "--form", "scan", "-o", "baselines.onnx")
    assert done.code == 0, done.err
    assert Path("baselines.onnx").stat().st_size < 2**20
    done = mdlstm("read", "pages", "-m", "baselines.onnx", "-o", "found")
    assert done.code == 0 and "4 done" in done.err, done.err
    assert len(list(Path("found").glob("*.xml"))) == 4
