"""Density models on the command line: training, drawing and completing images."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers.crafted_runs import in_process
from PIL import Image

from mdlstm_tk.data import DatasetTask, TaskSpec
from mdlstm_tk.errors import InputError
from mdlstm_tk.export import export_drawing, export_run
from mdlstm_tk.export.drawing import drawing_metadata, write_drawing
from mdlstm_tk.models import create
from mdlstm_tk.report import other_images, render_report
from mdlstm_tk.report.drawings import _kinds_of_images
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.samples import Given, read_given, uniform_numbers, write_samples
from mdlstm_tk.training import Run, default_config, load_checkpoint, sample_run, train
from mdlstm_tk.training.evaluation import evaluate_run
from mdlstm_tk.training.tasks import make_task

TINY = {"steps": 6, "hidden": 4, "batch_size": 8, "evaluate_every": 3, "warmup": 0}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on grey digits. Tests must not change it."""
    run = Run(tmp_path_factory.mktemp("density") / "run")
    run.folder.mkdir()
    config = default_config("digits-grey").updated(TINY, "test")
    train(config, run)
    evaluate_run(run, make_task(config))
    return run


def test_the_result_of_a_run_is_in_nats_and_in_bits_for_each_value(run: Run) -> None:
    errors = json.loads(run.result.read_text())["errors"]
    assert errors["bits_per_dim"] == pytest.approx(errors["nats"] / np.log(2) / 64)
    assert 0 < errors["bits_per_dim"] < np.log2(17) + 0.5


def test_the_command_draws_what_the_library_draws(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "drawn.npy"
    arguments = ("sample", run.folder, "-n", 5, "--seed", 3, "-o", path, "--json")
    assert json.loads(in_process(capfd, *arguments).out)["images"] == 5
    drawn = np.load(path)
    assert (drawn == sample_run(run, 5, seed=3)).all()
    assert (drawn[:2] == sample_run(run, 2, seed=3)).all()  # an image does not depend on how many follow
    assert (drawn != sample_run(run, 5, seed=4)).any()
    assert drawn.shape == (5, 8, 8, 1)
    assert set(np.unique(np.rint(drawn * 16))) <= set(range(17))
    assert sample_run(run, 2, (3, 10)).shape == (2, 3, 10, 1)
    again = in_process(capfd, *arguments)
    assert again.code == 2
    assert "drawn.npy exists" in again.err


@pytest.mark.parametrize("suffix", [".png", ".npy"])
def test_an_image_is_completed(
    run: Run, suffix: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    levels = np.random.default_rng(0).integers(0, 17, (3, 8))
    half = tmp_path / f"half{suffix}"
    if suffix == ".png":
        Image.fromarray(np.rint(levels / 16 * 255).astype(np.uint8)).save(half)
    else:
        np.save(half, levels / np.float32(16))
    target = tmp_path / "whole.npy"
    assert in_process(capfd, "sample", run.folder, "--given", half, "-n", 4, "-o", target).code == 0
    whole = np.load(target)
    assert (np.rint(whole[:, :3, :, 0] * 16) == levels).all()
    assert len({image.tobytes() for image in whole[:, 3:]}) == 4


def test_values_that_are_nan_are_drawn(tmp_path: Path) -> None:
    values = np.full((2, 3), np.nan, np.float32)
    values[1, 2] = 0.5
    np.save(tmp_path / "part.npy", values)
    given = read_given(tmp_path / "part.npy", (4, 3), 1)
    assert np.argwhere(given.mask).tolist() == [[1, 2]]
    assert given.values.sum() == given.values[1, 2, 0] == 0.5


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


def test_a_picture_shows_all_images_and_an_animation_shows_the_order(tmp_path: Path) -> None:
    images = (uniform_numbers(0, 5, (2, 3), 1) > 0.5).astype(np.float32)
    write_samples(tmp_path / "sheet.png", images)
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    zoom = 19  # 56 / 3
    for k, image in enumerate(images):
        top, left = 4 + k // 2 * (2 * zoom + 4), 4 + k % 2 * (3 * zoom + 4)
        shown = pixels[top : top + 2 * zoom : zoom, left : left + 3 * zoom : zoom]
        assert (shown == 255 * image).all()
    given = np.array([[True, False, True], [False, False, False]])
    write_samples(tmp_path / "order.gif", images, given)
    with Image.open(tmp_path / "order.gif") as animation:
        assert animation.n_frames == 1 + 4  # what is given, then one position more in each frame
        drawn = []
        for frame in range(animation.n_frames):
            animation.seek(frame)
            colours = np.asarray(animation.convert("RGB")).astype(int)
            grey = (colours[4 : 4 + 2 * zoom : zoom, 4 : 4 + 3 * zoom : zoom].max(-1)) % 255 == 0
            drawn.append(grey.ravel().tolist())
    assert drawn[0] == given.ravel().tolist()
    assert [sum(frame) for frame in drawn] == [2, 3, 4, 5, 6]
    assert drawn[1][1]


BAD = {
    "another kind of file": (["-o", "x.jpg"], "'.jpg'"),
    "no images": (["-n", "0"], "at least 1"),
    "no temperature": (["--temperature", "0"], "temperature"),
    "a size of one axis": (["--size", "8x8x8"], "8x8x8"),
    "a file that is not there": (["--given", "nowhere.png"], "nowhere.png"),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_options_are_one_line(
    name: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    options, named = BAD[name]
    monkeypatch.chdir(tmp_path)
    result = in_process(capfd, "sample", run.folder, *options)
    assert result.code == 2
    assert named in result.err
    assert len(result.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_run_of_another_kind_cannot_draw(trained: Run) -> None:
    with pytest.raises(InputError, match="kind grid"):
        sample_run(trained, 1)


@pytest.fixture(scope="module")
def model(run: Run) -> Path:
    """The exported network of the run, for any size."""
    path = run.folder.parent / "model.onnx"
    export_run(run, path, form="scan")
    return path


def test_infer_prints_nats_and_bits_for_each_file(
    run: Run, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images = sample_run(run, 2, (5, 7))
    for name, image in zip(("a", "b"), images, strict=True):
        np.save(tmp_path / f"{name}.npy", image[..., 0])
    np.save(tmp_path / "both.npy", images)
    network = load_checkpoint(run.checkpoint).network()
    with torch.no_grad():
        nats = (-network.log_prob(torch.from_numpy(images))).tolist()
    bits = [value / np.log(2) / 35 for value in nats]
    files = [tmp_path / "a.npy", tmp_path / "b.npy"]
    lines = in_process(capfd, "infer", *files, "-m", model).out.splitlines()
    for path, line, expected in zip(files, lines, zip(nats, bits, strict=True), strict=True):
        name, *numbers = line.split("\t")
        assert name == str(path)
        assert list(map(float, numbers)) == pytest.approx(expected, abs=2e-4)
    assert (
        in_process(capfd, "infer", tmp_path / "both.npy", "-m", model, "-o", tmp_path / "t.csv").code == 0
    )
    header, *rows = (tmp_path / "t.csv").read_text().splitlines()
    assert header == "file,array,sample,nats,bits_per_dim"
    assert [float(row.split(",")[3]) for row in rows] == pytest.approx(nats, abs=2e-4)
    summary = json.loads(in_process(capfd, "infer", files[0], "-m", model, "--json").out)
    assert summary["files"][0]["answers"][0]["nats"] == pytest.approx(nats[0], abs=2e-4)
    # an image of another size, in colours that a grey model does not take
    pixels = np.repeat(np.rint(images[0] * 255).astype(np.uint8), 3, axis=-1)
    Image.fromarray(pixels).save(tmp_path / "colours.png")
    _, *numbers = in_process(capfd, "infer", tmp_path / "colours.png", "-m", model).out.strip().split("\t")
    assert float(numbers[0]) == pytest.approx(nats[0], abs=2e-4)
    np.save(tmp_path / "bytes.npy", np.linspace(0, 255, 35).reshape(5, 7))
    refused = in_process(capfd, "infer", tmp_path / "bytes.npy", "-m", model)
    assert refused.code == 1
    assert "from 0 to 255; a density model expects levels in [0, 1]; divide them by 255" in refused.err
    in_process(capfd, "infer", files[0], "-m", model, "--format", "npy", "-o", tmp_path / "map.npy")
    assert -np.load(tmp_path / "map.npy").sum() == pytest.approx(nats[0], abs=2e-4)


@pytest.fixture(scope="module")
def drawing(run: Run) -> Path:
    """The exported graph that draws images with the run."""
    return export_drawing(run, run.folder.parent / "drawing.onnx")


@pytest.mark.parametrize("size", [None, (1, 1), (3, 11), (9, 2)])
def test_onnx_runtime_draws_what_torch_draws(run: Run, drawing: Path, size: tuple[int, int] | None) -> None:
    session = Session(drawing, "cpu")
    assert (session.sample(7, size, seed=5) == sample_run(run, 7, size, seed=5)).all()
    height, width = size or (8, 8)
    values = np.random.default_rng(0).integers(0, 17, (height, width, 1)) / np.float32(16)
    given = Given(values, np.random.default_rng(1).random((height, width)) < 0.5)
    options = {"seed": 2, "given": given, "temperature": 0.5}
    drawn = session.sample(4, size, **options)
    assert (drawn == sample_run(run, 4, size, **options)).all()
    assert (drawn[:, given.mask] == values[given.mask]).all()


@pytest.mark.parametrize(
    ("channels", "outputs", "options"),
    [(1, 1, {"layers": 2}), (3, 4, {}), (2, 1, {"cell": "leaky", "layer_norm": True, "layers": 3})],
)
def test_all_kinds_of_networks_are_exported_to_draw(
    channels: int, outputs: int, options: dict[str, object], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = create("pixel", channels, outputs, kind="density", hidden=4, **options)
    model = write_drawing(network)
    onnx.checker.check_model(model, full_check=True)
    onnx.helper.set_model_props(model, drawing_metadata(network, (4, 5)).to_props())
    uniform = uniform_numbers(0, 5, (4, 5), channels)
    drawn = Session(model.SerializeToString(), "cpu").sample(5, uniform=uniform)
    assert (drawn == network.sample(5, (4, 5), uniform=torch.from_numpy(uniform)).numpy()).all()


def test_the_command_draws_with_a_model_and_without_torch(
    run: Run, drawing: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "drawn.npy"
    code = (
        "import sys\nfrom mdlstm_tk.cli.main import main\ntry: main(sys.argv[1:])\n"
        "finally: assert not {'torch', 'onnx', 'numba'} & set(sys.modules)"
    )
    arguments = [sys.executable, "-c", code, "sample", drawing, "-n", "3", "-o", target]
    subprocess.run([str(each) for each in arguments], check=True, capture_output=True)
    assert (np.load(target) == sample_run(run, 3)).all()
    again = in_process(capfd, "export", run.folder, "--drawing", "-o", drawing)
    assert again.code == 2
    assert "exists" in again.err


def test_other_models_and_networks_do_not_draw(trained: Run, model: Path) -> None:
    for path in (trained.folder / "model-8x8.onnx", model):
        with pytest.raises(InputError, match="does not draw"):
            Session(path, "cpu").sample(1)
    with pytest.raises(InputError, match=r"MDNet.*pixel"):
        export_drawing(trained)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"n": 0}, "at least 1"),
        ({"temperature": 0.0}, "temperature"),
        ({"n": 10**6, "size": (2**14, 2**14)}, "1000000 images of 16384x16384"),
        ({"n": 10**6, "size": (1, 2**14)}, "1000000 images of 1x16384"),
        ({"uniform": np.zeros((2, 8, 8), np.float32)}, r"\(2, 8, 8\)"),
        ({"given": Given(np.zeros((4, 8, 1), np.float32), np.ones((4, 8), bool))}, r"\(4, 8, 1\)"),
    ],
)
def test_wrong_arguments_of_a_model_that_draws_are_refused(
    drawing: Path, arguments: dict[str, object], expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        Session(drawing, "cpu").sample(**({"n": 2} | arguments))  # type: ignore[arg-type]


def test_the_page_shows_drawn_images_neighbours_and_what_is_likely(run: Run) -> None:
    page = render_report(run)
    assert page.count('<section id="drawn">') == 1
    rows = dict(re.findall(r'<tr><th scope="row">([^<]+)</th><td>(-[\d.]+)</td></tr>', page))
    *others, another_set = rows
    assert others == ["test data", "turned by 90°", "noise (pixels shuffled)"]
    assert another_set in ("clothes", "pieces of photographs")
    checkpoint = load_checkpoint(run.checkpoint)
    x = torch.from_numpy(make_task(checkpoint.config).batch(0, 0, 256, "test").x)
    with torch.no_grad():
        network = checkpoint.network()
        assert float(rows["test data"]) == pytest.approx(float(network.log_prob(x).mean()), abs=0.06)
        turned = network.log_prob(x.rot90(1, (1, 2)))
        assert float(rows["turned by 90°"]) == pytest.approx(float(turned.mean()), abs=0.06)
    assert "test data" in page[page.index("<svg", page.index("What is likely")) :]


def test_a_report_measures_images_unlike_the_data() -> None:
    data = np.random.default_rng(0).random((5, 3, 4, 3), np.float32)
    task = DatasetTask(TaskSpec("own", "density", 3, 4, (3, 4)), {})
    kinds = _kinds_of_images(task, data, "test")
    turned, noise, digits = list(kinds)[1:]
    assert (turned, noise, digits) == ("turned by 180°", "noise (pixels shuffled)", "handwritten digits")
    assert (kinds[turned] == data[:, ::-1, ::-1]).all()
    pixels, shuffled = (images.reshape(5, 12, 3).tolist() for images in (data, kinds[noise]))
    assert shuffled != pixels
    assert [sorted(image) for image in shuffled] == [sorted(image) for image in pixels]
    assert kinds[digits].shape == data.shape
    assert (kinds[digits] == kinds[digits][..., :1]).all()


@pytest.mark.parametrize("has_clothes", [False, True])
def test_digits_are_compared_with_clothes_or_photographs(
    has_clothes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 28, 28)).astype(np.uint8)
    if has_clothes:
        for name in ("train", "t10k"):
            content = struct.pack(">4I", 0x803, *images.shape) + images.tobytes()
            (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(content)
    monkeypatch.setattr(other_images, "FOLDER", tmp_path)
    for name, outputs in (("digits-binary", 1), ("digits-grey", 17)):
        task = DatasetTask(TaskSpec(name, "density", 1, outputs, (8, 8)), {})
        found = other_images.other_images(task, 5)
        assert found is not None
        assert (found[0], found[1].shape) == (
            "clothes" if has_clothes else "pieces of photographs",
            (5, 8, 8, 1),
        )
        values = np.unique(found[1])
        assert list(values) == [0, 1] if outputs == 1 else len(values) > 50
