"""Whatever a task trains on, `mdlstm infer` reads; and no result of `mdlstm infer` is ever data."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command import ENVIRONMENT, mdlstm, succeed
from helpers.crafted_models import node
from helpers.pages import draw_page, transcription
from helpers.small_models import write_model
from helpers.user_data import (
    read,
    write_classes,
    write_image,
    write_masks,
    write_targets,
    write_texts,
)

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime import infer_paths
from mdlstm_tk.runtime.io.results import is_result
from mdlstm_tk.text import read_page, write_page

RNG = np.random.default_rng(0)
LAYOUTS = {1: "N T C", 2: "N H W C", 3: "N D H W C"}
Y = {
    "grid": lambda x: x,
    "classify": lambda x: np.arange(len(x)) % 2,
    "segment": lambda x: (x > 0.5).astype(np.int64),
    "transcribe": lambda x: np.array([f"a{'b' * (k % 2)}" for k in range(len(x))]),
}


def model_for(task: Any, path: Path) -> Path:
    """A small model for the samples of a task, with what an export says about them."""
    spec, ndim = task.spec, len(task.spec.size)
    fields: dict[str, Any] = {"layout": LAYOUTS[ndim], "kind": spec.kind, "channels": spec.channels}
    fields |= {"classes": spec.classes or None, "mask_values": spec.mask_values or None}
    if spec.preprocessing is not None:
        fields["preprocessing"] = spec.preprocessing.to_json()
    outputs = spec.channels if spec.kind == "density" else spec.outputs
    kept = {"classify": 0, "transcribe": 1}.get(spec.kind, ndim)  # grid axes of y
    axes = list(range(1, ndim + 1 - kept))
    nodes = [node("ReduceMean", "x axes", "m", keepdims=0)] if axes else [node("Identity", "x", "m")]
    constants = {"weights": RNG.normal(size=(spec.channels, outputs)).astype(np.float32)}
    constants |= {"axes": np.int64(axes)} if axes else {}
    fields["window"] = (1,) * ndim if kept == ndim else None
    nodes.append(node("MatMul", "m weights", "y"))
    return write_model(path, nodes, constants, outputs=outputs, axes=kept + 2, **fields)


FOLDERS: dict[str, tuple[Any, Callable[[Path], Any], str]] = {
    "classes": ("classify", lambda path: write_classes(path, {"a": 3, "b": 3}), "."),
    "masks": ("segment", write_masks, "images"),
    "targets": ("grid", write_targets, "images"),
    "texts": ("transcribe", write_texts, "."),
    "images": ("density", lambda path: write_classes(path, {"a": 6}), "."),
    "pages": ("transcribe", lambda path: [draw_page(path / f"p{k}") for k in range(3)], "."),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders(name: str, tmp_path: Path) -> None:
    kind, write, inputs = FOLDERS[name]
    write(tmp_path / "data")
    model = model_for(read(tmp_path / "data", kind), tmp_path / "m.onnx")
    done = succeed("infer", tmp_path / "data" / inputs, "-o", tmp_path / "out", "-m", model)
    assert len(list((tmp_path / "out").rglob("*.*"))) >= 3, done.err


@pytest.mark.parametrize("name", ["masks", "targets"])
def test_targets_beside_images_are_no_inputs(name: str, tmp_path: Path) -> None:
    kind, write, _ = FOLDERS[name]
    write(tmp_path / "data/train")
    model = model_for(read(tmp_path / "data/train", kind), tmp_path / "m.onnx")
    for folder in ("data", "data/train", "data/train/images"):
        done = succeed("infer", tmp_path / folder, "-o", tmp_path / "out", "-m", model, "--force")
        results = [path for path in (tmp_path / "out").rglob("*.*") if path.is_file()]
        assert results and not any(name in path.parts for path in results)
        assert ("left out" in done.err) == (folder != "data/train/images")
    succeed("infer", tmp_path / "data/train" / name, "-o", tmp_path / "named", "-m", model)


@pytest.mark.parametrize("ndim", LAYOUTS)
@pytest.mark.parametrize("kind", [*Y, "density"])
@pytest.mark.parametrize("channels", [None, 1, 2])
@pytest.mark.parametrize("with_sizes", [False, True])
def test_arrays(kind: Any, ndim: int, channels: int | None, with_sizes: bool, tmp_path: Path) -> None:
    if ndim != 2 and kind in ("transcribe", "density"):
        pytest.skip("which this kind does not train on")
    grid = (9, 6, 5)[:ndim]
    x = RNG.random((8, *grid, *([channels] if channels else []))).astype(np.float32)
    arrays = {"x": x, "ndim": ndim}
    arrays |= {} if kind == "density" else {"y": Y[kind](x[..., 0] if channels else x)}
    arrays |= {"sizes": RNG.integers(1, np.array(grid) + 1, (8, ndim))} if with_sizes else {}
    if kind == "transcribe":
        arrays |= {"sizes": np.full((8, 2), grid)} if with_sizes else {}
    for optional in ("", *["ndim"] * (ndim == 2)):
        path = tmp_path / "train.npz"
        np.savez(path, **{name: value for name, value in arrays.items() if name != optional})
        model = model_for(read(path, kind), tmp_path / "m.onnx")
        done = succeed("infer", path, "-m", model, "-o", f"{tmp_path}/out/", "--force")
        assert ("y was left out" in done.err) == (kind != "density")
        (result,) = (tmp_path / "out").iterdir()
        if result.suffix == ".txt":
            assert len(result.read_text().splitlines()) == 8
            continue
        with np.load(result) as file:
            assert sum(1 if with_sizes else len(y) for y in file.values()) == 8
            are_masks = all(y.dtype.kind in "iu" for y in file.values())
        assert are_masks == (kind == "segment")


def image(path: Path) -> None:
    write_image(path, RNG.integers(0, 255, (5, 7)))


RESULTS = {
    "classes": lambda path: image(path / "a/0.out.png"),
    "masks": lambda path: image(path / "masks/0.out.png"),
    "targets": lambda path: image(path / "images/0.out.png"),
    "texts": lambda path: (path / "0.out.txt").write_text("ab"),
    "images": lambda path: image(path / "a/0.out.png"),
    "pages": lambda path: write_read_page(path / "p0.xml", path / "a_read.xml"),
}


def write_read_page(source: Path, target: Path) -> None:
    """Write a page with other texts, as `mdlstm infer` does."""
    page = read_page(source)
    write_page(page, {line.id: transcription("bbbb") for line in page.lines}, target)


@pytest.mark.parametrize("name", FOLDERS)
def test_results_are_no_data(name: str, tmp_path: Path) -> None:
    kind, write, _ = FOLDERS[name]
    write(tmp_path / "data")
    before = read(tmp_path / "data", kind)
    model = model_for(before, tmp_path / "m.onnx")
    inputs = {job.source for job in infer_paths([tmp_path / "data"], model, tmp_path / "new").jobs}
    RESULTS[name](tmp_path / "data")
    after, note = (
        read(tmp_path / "data", kind),
        f"results of mdlstm infer in {tmp_path / 'data'}, left out: 1",
    )
    assert after.names == before.names and not after.skipped
    assert note in after.summary
    run = infer_paths([tmp_path / "data"], model, tmp_path / "new")
    assert {job.source for job in run.jobs} == inputs and run.earlier_results == 1


def test_a_folder_of_nothing_but_results_says_so(tmp_path: Path) -> None:
    draw_page(tmp_path / "in/p")
    model = model_for(read(tmp_path / "in", "transcribe", validation=0.5), tmp_path / "m.onnx")
    write_read_page(tmp_path / "in/p.xml", tmp_path / "in/p.xml")
    with pytest.raises(InputError, match=r"results of mdlstm infer in .*in, left out: 1"):
        read(tmp_path / "in", "transcribe")
    with pytest.raises(InputError, match=r"p\.xml is a result of mdlstm infer; .*name the file"):
        infer_paths([tmp_path / "in"], model)  # and its image is no line
    assert len(infer_paths([tmp_path / "in/p.xml"], model).jobs) == 1
    (tmp_path / "in/p.png").unlink()
    with pytest.raises(InputError, match="only 1 result of mdlstm infer, which may be named"):
        infer_paths([tmp_path / "in"], model)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX pipes")
def test_a_page_and_an_array_come_by_pipes_in_pieces(tmp_path: Path) -> None:
    page = draw_page(tmp_path / "p", ["ab", None, "b"])
    model = model_for(read(tmp_path, "transcribe", validation=0.5), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", RNG.random((6, 9)))
    write_model(tmp_path / "double.onnx")
    for file, arguments in (
        (page, (model,)),
        (page, (model, "-o", "out/")),
        (tmp_path / "x.npy", ("double.onnx",)),
    ):
        data = file.read_bytes()
        command = [sys.executable, "-m", "mdlstm_tk", "infer", "-", "-m", *map(str, arguments)]
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=os.environ | ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None
        for part in (data[:3], data[3:5], data[5:]):
            process.stdin.write(part)
            process.stdin.flush()
        output = process.communicate()[0]
        assert process.returncode == 0
        if file == page and len(arguments) == 1:
            assert len(output.splitlines()) == 3
    assert is_result(tmp_path / "out/stdin.xml")
    np.testing.assert_allclose(np.load(io.BytesIO(output)), 2 * np.load(tmp_path / "x.npy"), rtol=1e-6)


def test_labels_of_a_folder_go_to_standard_output(tmp_path: Path) -> None:
    write_classes(tmp_path / "data", {"a": 2, "b": 2})
    model = model_for(read(tmp_path / "data", "classify"), tmp_path / "m.onnx")
    printed = succeed("infer", tmp_path / "data", "-m", model).out
    assert succeed("infer", tmp_path / "data", "-o", "-", "-m", model).out == printed != ""
    done = mdlstm("infer", tmp_path / "data", "-o", "-", "--format", "npy", "-m", model)
    assert done.code == 2 and "answers to several inputs" in done.err
