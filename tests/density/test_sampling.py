"""Density models on the command line: training, drawing and completing images."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command import mdlstm
from PIL import Image

from mdlstm_tk.data import Dataset
from mdlstm_tk.density import sample_run
from mdlstm_tk.density.contact_sheet import contact_sheet, draw_samples, write_samples
from mdlstm_tk.density.drawings import drawn_section
from mdlstm_tk.density.sampling import draw_images, read_given, uniform_numbers
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.training import Run, load_checkpoint, make_task


def test_the_result_of_a_run_is_in_nats_and_in_bits_for_each_value(density_run: Run) -> None:
    errors = json.loads(density_run.result.read_text())["errors"]
    assert errors["bits_per_dim"] == pytest.approx(errors["nats"] / np.log(2) / 64)
    assert 0 < errors["bits_per_dim"] < np.log2(17) + 0.5  # log2(17) is chance for 17 levels


def test_the_command_draws_what_the_library_draws(density_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "drawn.npy"
    arguments = ("-n", 5, "--seed", 3, "--temperature", 0.5, "-o", path, "--json")
    assert json.loads(mdlstm("sample", density_run.folder, *arguments).out)["images"] == 5
    drawn = np.load(path)
    assert (drawn == sample_run(density_run, 5, seed=3, temperature=0.5)).all()
    more = sample_run(density_run, 7, seed=3, temperature=0.5)
    assert (drawn == more[:5]).all()  # an image does not depend on how many follow
    assert (drawn != sample_run(density_run, 5, seed=4, temperature=0.5)).any()
    assert (drawn != sample_run(density_run, 5, seed=3)).any()
    assert drawn.shape == (5, 8, 8, 1)
    assert set(np.unique(np.rint(drawn * 16))) <= set(range(17))
    assert sample_run(density_run, 2, (3, 10)).shape == (2, 3, 10, 1)
    again = mdlstm("sample", density_run.folder, *arguments)
    assert again.code == 2
    assert "drawn.npy exists" in again.err


@pytest.mark.parametrize("suffix", [".png", ".npy"])
def test_an_image_is_completed(density_run: Run, suffix: str, tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 17, (3, 8))
    top = tmp_path / f"top{suffix}"
    if suffix == ".png":
        Image.fromarray(np.rint(levels / 16 * 255).astype(np.uint8)).save(top)
    else:
        np.save(top, levels / np.float32(16))
    target = tmp_path / "whole.npy"
    assert mdlstm("sample", density_run.folder, "--given", top, "-n", 4, "-o", target).code == 0
    whole = np.load(target)
    assert (np.rint(whole[:, :3, :, 0] * 16) == levels).all()
    assert len({image.tobytes() for image in whole[:, 3:]}) == 4


def test_values_that_are_nan_are_drawn(tmp_path: Path) -> None:
    values = np.full((2, 3), np.nan, np.float32)
    values[1, 2] = 0.5
    np.save(tmp_path / "part.npy", values)
    given = read_given(tmp_path / "part.npy", (4, 3), 1)
    assert np.argwhere(~np.isnan(given)).tolist() == [[1, 2, 0]] and given[1, 2, 0] == 0.5


GIVEN = {
    "too many rows": (np.zeros((9, 8)), r"\(9, 8, 1\).*up to 8 rows"),
    "another width": (np.zeros((4, 7)), r"\(4, 7, 1\).*8 positions"),
    "more channels": (np.zeros((4, 8, 2)), r"\(4, 8, 2\).*1 channel"),
    "too large": (np.full((4, 8), 1.5), "from 0 to 1"),
    "nothing known": (np.full((4, 8), np.nan), "from 0 to 1"),
}


@pytest.mark.parametrize("name", GIVEN)
def test_given_values_that_do_not_fit_are_refused(name: str, tmp_path: Path) -> None:
    values, message = GIVEN[name]
    np.save(tmp_path / "given.npy", values.astype(np.float32))
    with pytest.raises(InputError, match=message):
        read_given(tmp_path / "given.npy", (8, 8), 1)


def test_one_array_of_several_is_not_guessed(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=np.zeros((8, 8)), b=np.ones((8, 8)))
    with pytest.raises(InputError, match=r"two\.npz holds 2 arrays, expected one image"):
        read_given(tmp_path / "two.npz", (8, 8), 1)


def test_each_image_may_have_its_own_given_part(density_run: Run) -> None:
    part = np.zeros((8, 4, 8, 1), np.float32)
    assert not sample_run(density_run, 8, given=part)[:, :4].any()
    with pytest.raises(InputError, match="all of an image of 8x8 is given"):
        sample_run(density_run, 2, given=np.zeros((2, 8, 8, 1), np.float32))


@pytest.mark.parametrize("drawn", [torch.zeros(2, 1, 4, 6), torch.full((2, 4, 6, 1), torch.nan)])
def test_what_a_network_of_the_users_own_draws_is_held(drawn: torch.Tensor) -> None:
    network = torch.nn.Identity()
    network.sample = lambda *_, **__: drawn
    with pytest.raises(
        InputError, match=r"Identity\.sample returned .* expected \(2, 4, 6, 1\) in \[0, 1\]"
    ):
        draw_images(network, 2, (4, 6), 1)


def test_pictures_that_no_file_holds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"more than a \.gif holds; write a \.png"):
        write_samples(tmp_path / "a.gif", np.zeros((1, 1, 70_000, 1), np.float32))
    assert list(tmp_path.iterdir()) == []


def test_a_whole_image_leaves_nothing_to_draw(density_run: Run) -> None:
    whole = np.zeros((8, 8, 1), np.float32)
    with pytest.raises(InputError, match="all of an image of 8x8 is given"):
        sample_run(density_run, 2, given=whole)
    assert sample_run(density_run, 2, (9, 8), given=whole).shape == (2, 9, 8, 1)
    whole[7, 7] = np.nan
    assert not sample_run(density_run, 2, given=whole)[:, :7].any()


def test_a_picture_shows_all_images_and_an_animation_shows_the_order(tmp_path: Path) -> None:
    images = (uniform_numbers(0, 5, (2, 3), 1) > 0.5).astype(np.float32)
    write_samples(tmp_path / "sheet.png", images)
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    zoom = 19  # write_samples makes an image about 56 pixels wide, and leaves 4 between two
    for k, image in enumerate(images):
        top, left = 4 + k // 2 * (2 * zoom + 4), 4 + k % 2 * (3 * zoom + 4)
        shown = pixels[top : top + 2 * zoom : zoom, left : left + 3 * zoom : zoom]
        assert (shown == 255 * image).all()
    assert contact_sheet(images[:1, :, :1]).shape == (2 * 28 + 8, 28 + 8, 3)  # no place for another one
    mask = np.array([[True, False, True], [False, False, False]])
    write_samples(tmp_path / "order.gif", images, mask)
    with Image.open(tmp_path / "order.gif") as animation:
        assert animation.n_frames == 1 + 4  # what the mask holds, then one position more in each frame
        drawn = []
        for frame in range(animation.n_frames):
            animation.seek(frame)
            colours = np.asarray(animation.convert("RGB")).astype(int)
            brightest = colours[4 : 4 + 2 * zoom : zoom, 4 : 4 + 3 * zoom : zoom].max(-1)
            is_drawn = brightest % 255 == 0  # pixels not yet drawn are neither black nor white
            drawn.append(is_drawn.ravel().tolist())
    assert drawn[0] == mask.ravel().tolist()
    assert [sum(frame) for frame in drawn] == [2, 3, 4, 5, 6]
    assert drawn[1][1]


def test_a_run_of_another_kind_does_not_draw(trained: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is of kind grid; only runs of kind density draw images"):
        draw_samples(tmp_path / "images.png", trained.folder)
    with pytest.raises(InputError, match=r"'\.jpg'"):
        draw_samples(tmp_path / "images.jpg")


@pytest.mark.parametrize("arguments", [{"n": 0}, {"n": -1}, {"n": 1, "size": (0, 3)}, {"n": 1, "seed": -1}])
def test_numbers_that_draw_no_image_are_refused(density_run: Run, arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="n and size must be at least 1, seed at least 0"):
        sample_run(density_run, **arguments)


def test_infer_prints_nats_and_bits(density_run: Run, density_model: Path, tmp_path: Path) -> None:
    images = sample_run(density_run, 2, (5, 7))
    for name, image in zip(("a", "b"), images, strict=True):
        np.save(tmp_path / f"{name}.npy", image[..., 0])
    np.save(tmp_path / "both.npy", images)
    network = load_checkpoint(density_run.checkpoint).network()
    with torch.no_grad():
        nats = (-network.log_prob(torch.from_numpy(images))).tolist()
    bits = [value / np.log(2) / (5 * 7) for value in nats]
    files = [tmp_path / "a.npy", tmp_path / "b.npy"]
    lines = mdlstm("infer", *files, "-m", density_model).out.splitlines()
    for path, line, expected in zip(files, lines, zip(nats, bits, strict=True), strict=True):
        name, *numbers = line.split("\t")
        assert name == str(path)
        assert list(map(float, numbers)) == pytest.approx(expected, abs=2e-4)
    assert mdlstm("infer", tmp_path / "both.npy", "-m", density_model, "-o", tmp_path / "t.csv").code == 0
    header, *rows = (tmp_path / "t.csv").read_text().splitlines()
    assert header == "file,nats,bits_per_dim"
    assert [row.split(",")[0] for row in rows] == [f"{tmp_path / 'both.npy'}[{k}]" for k in range(2)]
    assert [float(row.split(",")[1]) for row in rows] == pytest.approx(nats, abs=2e-4)
    # an image of another size, in colours that a grey model does not take
    pixels = np.repeat(np.rint(images[0] * 255).astype(np.uint8), 3, axis=-1)
    Image.fromarray(pixels).save(tmp_path / "colours.png")
    printed = mdlstm("infer", tmp_path / "colours.png", "-m", density_model).out
    assert float(printed.split("\t")[0]) == pytest.approx(nats[0], abs=2e-4)
    mdlstm("infer", files[0], "-m", density_model, "--raw", "-o", tmp_path / "map.npy")
    assert -np.load(tmp_path / "map.npy").sum() == pytest.approx(nats[0], abs=2e-4)


def test_the_report_shows_drawn_images_and_what_is_likely(density_run: Run) -> None:
    checkpoint = load_checkpoint(density_run.checkpoint)
    network, task = checkpoint.network(), make_task(checkpoint.config)
    section = kind_named("density").sections(network, task, density_run.folder)
    assert section.count("<img") == 3
    rows = dict(re.findall(r'<tr><th scope="row">([^<]+)</th><td>(-[\d.]+)</td></tr>', section))
    names = ["test data", "turned by 90°", "noise (pixels shuffled)", "pieces of photographs"]
    assert [*rows] == names
    x = torch.from_numpy(task.batch(0, 0, 256, "test").x)
    with torch.no_grad():
        for name, images in (("test data", x), ("turned by 90°", x.rot90(1, (1, 2)))):
            assert float(rows[name]) == pytest.approx(float(network.log_prob(images).mean()), abs=0.06)


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", 1.5), ("temperature", "1"), ("size", (8.0, 8)), ("count", "a"), ("output", 3)],
)
def test_an_argument_of_another_type_is_named(name: str, value: object, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"output": tmp_path / "a.png", name: value}
    with pytest.raises(InputError, match=f"^{name} must be"):
        draw_samples(**arguments)


def test_a_report_on_other_data_has_no_training_images(density_run: Run) -> None:
    """A drawn one is near to none of them."""
    checkpoint = load_checkpoint(density_run.best)
    images = np.random.default_rng(0).integers(0, 2, (5, *checkpoint.spec.size, 1)).astype(np.float32)
    task = Dataset(checkpoint.spec, {"test": [(image, None) for image in images]}, kind_named("density"))
    section = drawn_section(checkpoint.network(), task)
    assert section.count("<img") == 2 and "nearest" not in section
