"""`mdlstm infer` with tiled models: files by region, interruptions, and what is refused."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command import mdlstm
from helpers.infer import Infer
from helpers.tiled_models import PALETTE, VALUES, classifier, downward, segmenter, single

from mdlstm_tk import MDLSTM
from mdlstm_tk.errors import InputError
from mdlstm_tk.export import export_onnx
from mdlstm_tk.runtime import TiledSession, infer_paths
from mdlstm_tk.runtime.postprocessing import probabilities
from mdlstm_tk.runtime.tiles.local import State
from mdlstm_tk.runtime.tiles.sources import FileSource
from mdlstm_tk.runtime.tiles.whole_grid import whole_grid_advice

tifffile: Any = pytest.importorskip("tifffile")
zarr: Any = pytest.importorskip("zarr")

PIXELS = np.random.default_rng(0).integers(0, 256, (45, 70, 3), np.uint8)
X = PIXELS / np.float32(255)


@pytest.fixture
def infer(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Infer:
    monkeypatch.chdir(tmp_path)
    return Infer(segmenter().path, capfd)


def write_zarr(path: Path, values: Any) -> None:
    zarr.create_array(str(path), shape=values.shape, chunks=(16, 16, 3), dtype=values.dtype)[:] = values


def write_pyramid(path: Path) -> None:
    with tifffile.TiffWriter(path, ome=True) as file:
        large = np.zeros((90, 140, 3), np.uint8)
        file.write(large, subifds=1, tile=(16, 16), photometric="rgb")
        file.write(PIXELS, subfiletype=1, tile=(16, 16), photometric="rgb")


SOURCES: dict[str, tuple[str, Any]] = {
    "npy": ("x.npy", lambda path: np.save(path, X)),
    "Fortran order": ("x.npy", lambda path: np.save(path, np.asfortranarray(X))),
    "big-endian": ("x.npy", lambda path: np.save(path, X.astype(">f8"))),
    "zarr": ("x.zarr", lambda path: write_zarr(path, X)),
    "tiled": ("x.tif", lambda path: tifffile.imwrite(path, PIXELS, tile=(16, 32), compression="zlib")),
    "plain": ("x.tiff", lambda path: tifffile.imwrite(path, PIXELS, photometric="rgb")),
    "strips": ("x.tif", lambda path: tifffile.imwrite(path, PIXELS, rowsperstrip=7, compression="zlib")),
    "BigTIFF": (
        "x.tif",
        lambda path: tifffile.imwrite(path, PIXELS, bigtiff=True, byteorder=">", tile=(32, 16)),
    ),
    "pyramid": ("x.ome.tif", write_pyramid),
}


@pytest.mark.parametrize("name", SOURCES)
def test_files_are_read_by_region(name: str, infer: Infer, tmp_path: Path) -> None:
    """Every kind of file gives the same mask, which keeps values and palette."""
    source, write = SOURCES[name]
    write(Path(source))
    level = ("--level", 1) if name == "pyramid" else ()
    result = infer(source, "--tile", 16, *level)
    assert result.code == 0, result.err
    (target,) = Path().glob("x*.out.tif")
    expected = np.asarray(VALUES)[segmenter().whole(X).argmax(-1)]
    with tifffile.TiffFile(target) as file:
        np.testing.assert_array_equal(file.asarray(), expected)
        assert file.pages[0].is_tiled and file.pages[0].photometric.name == "PALETTE"
        colours = np.asarray(file.pages[0].colormap)[:, list(VALUES)].T // 257
        np.testing.assert_array_equal(colours.ravel(), PALETTE)
    from PIL import Image

    np.testing.assert_array_equal(np.asarray(Image.open(target)), expected)
    assert not list(Path().glob(".*"))  # no scratch is left


@pytest.mark.parametrize(
    ("pixels", "options"),
    [
        (PIXELS[..., 0], {}),
        (PIXELS[..., 0], {"photometric": "miniswhite", "tile": (16, 16)}),
        (PIXELS[..., 0].astype(np.uint16) * 257, {"tile": (16, 16)}),
        (PIXELS[..., 0] % 4, {"photometric": "palette", "colormap": np.arange(768).reshape(3, 256) * 80}),
        (np.dstack([PIXELS, PIXELS[::-1, :, 0]]), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
        (X[..., 0], {"tile": (16, 16)}),
    ],
    ids=["grey", "white is zero", "16 bits", "palette", "opacity", "float"],
)
def test_images_are_prepared_as_whole_ones(pixels: Any, options: dict[str, Any], tmp_path: Path) -> None:
    from mdlstm_tk.runtime import load_image

    tifffile.imwrite(tmp_path / "x.tif", pixels, **options)
    for model in (segmenter(), classifier()):
        metadata = TiledSession(model.path, "cpu").metadata
        whole = load_image(tmp_path / "x.tif", metadata)
        source = FileSource(tmp_path / "x.tif", metadata)
        region = (slice(3, 40), slice(10, 70))
        expected = whole[region].reshape(37, 60, metadata.channels)
        np.testing.assert_allclose(source.read(region), expected, rtol=0, atol=1e-7, strict=True)
        source.close()


def test_results_are_written_by_region(infer: Infer) -> None:
    np.save("x.npy", X)
    expected = segmenter().whole(X)
    for target, options in (("y.npy", ()), ("y.zarr", ("--threads", 3)), ("p.npy", ("--probabilities",))):
        assert infer("x.npy", "--tile", 16, "-o", target, *options).code == 0
        y = zarr.open_array(target, mode="r")[:] if target.endswith("zarr") else np.load(target)
        wanted = probabilities(expected) if target == "p.npy" else expected
        np.testing.assert_allclose(y, wanted, atol=1e-5, strict=True)
    assert infer("x.npy", "-o", "y.zarr").code == 2  # exists
    assert infer("x.npy", "-o", "y.zarr", "--force", "--tile", 16).code == 0
    assert infer("x.npy", "y.zarr", "-o", "masks").code == 0  # y has three channels, too
    assert Path("masks/x.out.tif").exists()


def test_labels_of_several_files(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = classifier()
    infer = Infer(model.path, capfd)
    lines = []
    for name in ("a", "b"):
        x = np.random.default_rng(ord(name)).random((20, 31), dtype=np.float32)
        np.save(tmp_path / f"{name}.npy", x)
        label = ("cat", "dog", "bird")[model.whole(x[..., None]).argmax()]
        lines.append(f"{tmp_path / name}.npy\t{label}\n")
    assert infer(tmp_path / "a.npy", tmp_path / "b.npy", "--tile", 8).out == "".join(lines)
    assert infer(tmp_path / "a.npy", "--top", 2).out.count("\t") == 3
    assert infer(tmp_path / "a.npy", tmp_path / "b.npy", "-o", tmp_path / "all.csv").code == 0
    assert (tmp_path / "all.csv").read_text().count("\n") == 3


def start(*arguments: object, cwd: Path) -> subprocess.Popen[bytes]:
    """Start `mdlstm infer`, and wait until it has noted some steps."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mdlstm_tk", "infer", *map(str, arguments), "--device", "cpu"],
        cwd=cwd,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    states = [cwd / ".y.npy.mdlstm-scratch/state.npz"]
    while process.poll() is None and not any(state.exists() for state in states):
        time.sleep(0.01)
    time.sleep(0.2)
    return process


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = segmenter().path
    x = np.random.default_rng(1).random((200, 220, 3), dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    arguments = (tmp_path / "x.npy", "-o", tmp_path / "y.npy")
    process = start(*arguments, "-m", model, "--tile", 8, cwd=tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    scratch = tmp_path / ".y.npy.mdlstm-scratch"
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "y.npy").exists() and (scratch / "state.npz").exists()
    infer = Infer(model, capfd)
    left = infer(*arguments, "--tile", 8)
    assert left.code == 2 and "go on with --resume" in left.err
    other = infer(*arguments, "--tile", 16, "--resume")
    assert other.code == 2 and "another tile" in other.err and scratch.exists()
    assert infer(*arguments, "--tile", 8, "--resume").code == 0
    assert not scratch.exists()
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), TiledSession(model, "cpu")(x, tile=8))


@pytest.mark.parametrize("resume", [False, True])
def test_an_interrupt_leaves_nothing_unless_it_can_go_on(resume: bool, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((300, 300, 3), np.float32))
    options = ("--resume",) if resume else ()
    process = start("x.npy", "-m", segmenter().path, "--tile", 8, "-o", "y.npy", *options, cwd=tmp_path)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert b"Traceback" not in err
    left = [".y.npy.mdlstm-scratch"] if resume else []
    assert sorted(path.name for path in tmp_path.iterdir()) == [*left, "x.npy"]
    assert (b"--resume" in err) == resume


def test_rows_from_standard_input(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((9, 6), dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    arguments = ("infer", "-", "--stream", "-m", downward().path, "-o", "y.npy", "--device", "cpu")
    result = mdlstm(*arguments, cwd=tmp_path, stdin=(tmp_path / "x.npy").read_bytes())
    assert (result.code, result.out) == (0, ""), result.err
    expected = downward().whole(x[..., None])
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=0, atol=1e-6, strict=True)


def old_zarr(path: Path) -> None:
    zarr.create_array(str(path), shape=(8, 8, 3), dtype="f4", zarr_format=2)


def damaged_tif(path: Path) -> None:
    tifffile.imwrite(path, PIXELS, tile=(16, 16), compression="zlib")
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[3]
    data[offset : offset + 40] = bytes(40)
    path.write_bytes(data)


BAD: dict[str, tuple[str, Any, tuple[object, ...], str]] = {
    "no file": ("none.npy", None, (), "there is no file"),
    "a tile of 0": ("x.npy", lambda path: np.save(path, X), ("--tile", 0), "tile must be a positive"),
    "another type": ("x.png", lambda path: path.write_bytes(b""), (), "reads .npy, .zarr"),
    "an incomplete npy": ("x.npy", lambda path: path.write_bytes(b"\x93NUMPY"), (), "not a complete .npy"),
    "other channels": ("x.npy", lambda path: np.save(path, X[..., :2]), (), "with 3 channels"),
    "NaN": ("x.npy", lambda path: np.save(path, X * np.nan), (), "NaN"),
    "texts": ("x.npy", lambda path: np.save(path, np.array(["a"])), (), "expected real numbers"),
    "zarr 2": ("x.zarr", old_zarr, (), "format 2"),
    "no zarr": ("x.zarr", lambda path: path.mkdir(), (), "no zarr array"),
    "no TIFF": ("x.tif", lambda path: path.write_bytes(b"II*\0"), (), "cannot be read as a TIFF"),
    "a corrupt TIFF": ("x.tif", damaged_tif, (), "cannot be read as a TIFF"),
    "a stack": ("x.tif", lambda path: tifffile.imwrite(path, np.zeros((9, 30, 40), np.uint8)), (), "pages"),
    "a level too many": (
        "x.tif",
        lambda path: tifffile.imwrite(path, PIXELS),
        ("--level", 3),
        "levels 0 to 0",
    ),
    "png": ("x.npy", lambda path: np.save(path, X), ("-o", "y.png"), "writes npy, tif, zarr"),
    "too little memory": ("x.npy", lambda path: np.save(path, X), ("--max-bytes", 1000), "smaller --tile"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name: str, infer: Infer) -> None:
    source, write, options, words = BAD[name]
    if write:
        write(Path(source))
    before = sorted(Path().iterdir())
    result = infer(source, *options)
    assert result.code == 2
    (line,) = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert words in line
    assert sorted(Path().iterdir()) == before


def test_a_source_that_shrinks_is_noticed(infer: Infer, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save("x.npy", X)
    save = State.save

    def shrink(*arguments: Any) -> None:
        os.truncate("x.npy", 2000)
        save(*arguments)

    monkeypatch.setattr(State, "save", shrink)
    result = infer("x.npy", "--tile", 8, "-o", "y.npy")
    assert result.code == 2 and "has shrunk" in result.err
    assert sorted(path.name for path in Path().iterdir()) == ["x.npy"]


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    program = (
        "import resource, sys; from mdlstm_tk.cli import main;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); main(sys.argv[1:])"
    )
    command = ["infer", "x.npy", "-m", segmenter().path, "--tile", "16", "-o", "y.npy", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, command)], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 1
    assert b"File too large" in done.stderr and b"Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npy"]


def test_options_for_tiles_need_a_tiled_model(tmp_path: Path) -> None:
    export_onnx(MDLSTM(1, 2), tmp_path / "model.onnx", grid=None, form="scan")
    np.save(tmp_path / "x.npy", np.zeros((8, 8)))
    for option in ({"tile": 4}, {"resume": True}, {"level": 0}):
        with pytest.raises(InputError, match="needs a tiled model"):
            infer_paths([tmp_path / "x.npy"], tmp_path / "model.onnx", device="cpu", **option)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="only tiled models write zarr"):
        infer_paths([tmp_path / "x.npy"], tmp_path / "model.onnx", tmp_path / "y.zarr", device="cpu")
    metadata = TiledSession(classifier().path, "cpu").metadata
    with pytest.raises(InputError, match="run it in tiles: mdlstm export RUN --form tiles"):
        whole_grid_advice(str(tmp_path / "x.npy"), metadata, tmp_path / "model.onnx", 10)


def test_a_grid_too_large_for_one_run_is_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_onnx(MDLSTM(1, 2), tmp_path / "model.onnx", grid=None, form="scan")
    np.save(tmp_path / "x.npy", np.zeros((8, 8)))
    run = infer_paths([tmp_path / "x.npy"], tmp_path / "model.onnx", device="cpu")
    assert run.advice is None
    monkeypatch.setattr("mdlstm_tk.runtime.tiles.whole_grid.available_memory", lambda: 60_000)
    run = infer_paths([tmp_path / "x.npy"], tmp_path / "model.onnx", device="cpu")
    assert run.advice is not None and "8x8" in run.advice and "--tile 512" in run.advice


def test_a_run_folder_names_its_tiled_model(tmp_path: Path) -> None:
    """Where an option asks for tiles, the .onnx files in the folder are passed over."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/model-8x8.onnx").touch()
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(InputError, match=r"holds no \.tiles model.*--form tiles"):
        infer_paths([tmp_path / "x.npy"], tmp_path / "run", device="cpu", tile=16)
    shutil.copy(segmenter().path, tmp_path / "run/model.tiles")
    run = infer_paths([tmp_path / "x.npy"], tmp_path / "run", device="cpu", tile=16)
    assert run.model == tmp_path / "run/model.tiles" and run.kind == "segment"


def test_axes_of_results_are_those_of_the_array(tmp_path: Path) -> None:
    """One output has an axis where the one channel of x has one, as in a run on the whole grid."""
    model = single()
    x = np.random.default_rng(0).random((9, 12), dtype=np.float32)
    for name, values in (("flat", x), ("deep", x[..., None])):
        np.save(tmp_path / f"{name}.npy", values)
        list(infer_paths([tmp_path / f"{name}.npy"], model.path, device="cpu", tile=4).outcomes)
        y = np.load(tmp_path / f"{name}.out.npy")
        np.testing.assert_allclose(y, TiledSession(model.path, "cpu")(values, tile=4), strict=True)
        assert y.shape == values.shape
