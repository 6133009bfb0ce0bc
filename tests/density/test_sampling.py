"""Density models on the command line: data, drawing and completing images, answers, and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command import mdlstm
from helpers.layouts import save
from helpers.pages import read
from PIL import Image

from mdlstm_tk.data import SPLITS, Dataset
from mdlstm_tk.density import DigitsDensity, sample_run
from mdlstm_tk.density.report import drawn_section, nearest_images
from mdlstm_tk.density.sampling import contact_sheet
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.training import Run, load_checkpoint, make_task

RANDOM = np.random.default_rng(0)


def test_arrays_and_images_are_data_of_kind_density(tmp_path: Path) -> None:
    images = RANDOM.integers(0, 256, (12, 4, 5)).astype(np.uint8)
    np.savez(tmp_path / "x.npz", x=images / np.float32(255))
    for k, image in enumerate(images):
        save(tmp_path / f"bytes/{k}.png", image)
    for name, levels, outputs in (("x.npz", 2, 1), ("bytes", 256, 256)):
        task = read(tmp_path / name, "density", levels=levels)
        assert (task.spec.outputs, task.spec.mean, task.count("train")) == (outputs, (), 12)
        x, y, _ = task.batch(0, 0, 12)
        pixels = np.rint(x[..., 0] * 255).astype(np.uint8)
        assert (y == x).all() and {*map(bytes, pixels)} == {*map(bytes, images)}


def test_digits_in_black_and_white_are_those_in_grey_above_a_threshold_and_the_same_in_all_runs() -> None:
    kind = kind_named("density")
    binary, grey = DigitsDensity(kind, 0).sets, DigitsDensity(kind, 0, binary=False).sets
    pairs = [(x, y > 0) for k in SPLITS for (x, _), (y, _) in zip(grey[k], binary[k], strict=True)]
    dark, light = map(np.array, zip(*((x[~y].max(), x[y].min()) for x, y in pairs), strict=True))
    assert (dark < light).all()  # each image has a threshold, and others have others
    assert 0.6 < dark.max() < 0.7 + 1 / 16 and 0.4 > light.min() > 0.3 - 1 / 16
    other = DigitsDensity(kind, 1).sets
    assert {y.tobytes() for _, y in pairs} == {(y > 0).tobytes() for k in SPLITS for y, _ in other[k]}


def test_the_command_draws_what_the_library_draws(density_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "drawn.npy"
    arguments = ("-n", 5, "--seed", 3, "--temperature", 0.5, "-o", path, "--json")
    told = json.loads(mdlstm("sample", density_run.folder, *arguments).out)
    assert (told["images"], told["size"], told["path"]) == (5, "8x8", str(path))
    drawn = np.load(path)
    assert drawn.shape == (5, 8, 8, 1) and set(np.unique(drawn * 16)) <= set(range(17))
    assert (drawn == sample_run(density_run, 5, seed=3, temperature=0.5)).all()
    more = sample_run(density_run.folder, 7, seed=3, temperature=0.5)
    assert (drawn == more[:5]).all()  # an image does not depend on how many follow
    assert (drawn != sample_run(density_run, 5, seed=4, temperature=0.5)).any()
    assert (drawn != sample_run(density_run, 5, seed=3)).any()
    assert mdlstm("sample", density_run.folder, *arguments).code == 2  # it exists


@pytest.mark.parametrize("suffix", [".png", ".npy"])
def test_an_image_is_completed(density_run: Run, suffix: str, tmp_path: Path) -> None:
    levels = RANDOM.integers(0, 17, (3, 8))
    top, whole = tmp_path / f"top{suffix}", tmp_path / "whole.npy"
    if suffix == ".png":
        Image.fromarray(np.rint(levels / 16 * 255).astype(np.uint8)).save(top)
    else:
        np.save(top, levels / np.float32(16))
    assert mdlstm("sample", density_run.folder, "--given", top, "-n", 4, "-o", whole).code == 0
    drawn = np.load(whole)
    assert (np.rint(drawn[:, :3, :, 0] * 16) == levels).all()
    assert len({image.tobytes() for image in drawn[:, 3:]}) == 4
    part = np.repeat(drawn[:, :4], 2, axis=2)  # of each image another one
    assert (sample_run(density_run, 4, (5, 16), given=part)[:, :4] == part).all()


def test_what_draws_no_image_is_refused(trained: Run, density_run: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=np.zeros((4, 8)), b=np.ones((4, 8)))
    np.save(tmp_path / "wide.npy", np.zeros((4, 9)))
    wrong: list[Any] = [{"given": tmp_path / name} for name in ("two.npz", "wide.npy")]
    for run, options in [(trained, {}), *((density_run, each) for each in [*wrong, {"output": "a.jpg"}])]:
        with pytest.raises(InputError):
            sample_run(run, 2, **options)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_sheet_shows_all_images(channels: int, density_run: Run, tmp_path: Path) -> None:
    images = RANDOM.integers(0, 2, (5, 2, 3, channels)).astype(np.float32)
    pixels, zoom = contact_sheet(images), 19  # an image is about 56 pixels wide, and 4 are between two
    for k, image in enumerate(images):
        top, left = 4 + k // 2 * (2 * zoom + 4), 4 + k % 2 * (3 * zoom + 4)
        shown = pixels[top : top + 2 * zoom : zoom, left : left + 3 * zoom : zoom]
        assert (shown == 255 * image[..., : 3 if channels == 3 else 1]).all()
    assert contact_sheet(images[:1, :, :1]).shape == (2 * 28 + 8, 28 + 8, 3)  # no place for another one
    drawn = sample_run(density_run, 3, output=tmp_path / "sheet.png")
    assert (np.asarray(Image.open(tmp_path / "sheet.png")) == contact_sheet(drawn)).all()


def test_infer_prints_nats_and_bits(density_run: Run, density_model: Path, tmp_path: Path) -> None:
    images = sample_run(density_run, 2, (5, 7))
    for name, image in zip(("a", "b"), images, strict=True):
        np.save(tmp_path / f"{name}.npy", image[..., 0])
    network: Any = load_checkpoint(density_run.checkpoint).network()
    with torch.no_grad():
        nats = (-network.log_prob(torch.from_numpy(images))).tolist()
    files = [tmp_path / "a.npy", tmp_path / "b.npy"]
    lines = mdlstm("infer", *files, "-m", density_model).out.splitlines()
    for path, line, expected in zip(files, lines, nats, strict=True):
        name, *numbers = line.split("\t")
        assert name == str(path)
        both = [expected, expected / np.log(2) / (5 * 7)]
        assert list(map(float, numbers)) == pytest.approx(both, abs=2e-4)
    # an image of another size, in colours that a grey model does not take
    pixels = np.repeat(np.rint(images[0] * 255).astype(np.uint8), 3, axis=-1)
    Image.fromarray(pixels).save(tmp_path / "colours.png")
    printed = mdlstm("infer", tmp_path / "colours.png", "-m", density_model).out
    assert float(printed.split("\t")[0]) == pytest.approx(nats[0], abs=2e-4)
    mdlstm("infer", files[0], "-m", density_model, "--raw", "-o", tmp_path / "map.npy")
    assert -np.load(tmp_path / "map.npy").sum() == pytest.approx(nats[0], abs=2e-4)
    errors = density_run.read_result()["errors"]
    assert errors["bits_per_dim"] == pytest.approx(errors["nats"] / np.log(2) / 64)


def test_the_report_shows_drawn_images_beside_the_nearest_ones(density_run: Run) -> None:
    checkpoint = load_checkpoint(density_run.checkpoint)
    network, task, kind = checkpoint.network(), make_task(checkpoint.config), kind_named("density")
    assert kind.sections(network, task, density_run.folder).count("<img") == 3
    images = RANDOM.random((5, 8, 8, 1), np.float32)
    moved = np.clip(images[::-1] + 0.01, 0, 1)
    assert (nearest_images(moved, [images[:2], images[2:]]) == images[::-1]).all()
    others = Dataset(checkpoint.spec, {"test": [(image, None) for image in images]}, kind)
    section = drawn_section(network, others)  # on other data there are no training images
    assert section.count("<img") == 2 and "nearest" not in section
