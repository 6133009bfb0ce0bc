"""`infer_paths` and `stream_paths`: from files to results, as library calls."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command import mdlstm
from helpers.crafted_models import node, with_large_intermediate
from helpers.small_models import classifier, density, recogniser, segmenter, write_model
from PIL import Image

from mdlstm_tk.errors import InputError, StoppedError
from mdlstm_tk.runtime import Session, infer_paths
from mdlstm_tk.runtime.jobs import files_of_form, find_files

RNG = np.random.default_rng(0)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a model that doubles x and a folder of files of many kinds and shapes."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "m.onnx")
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    for name, shape in {"a": (5, 8), "b": (3, 8, 5, 1), "c": (5, 8), "deep/d": (2, 2)}.items():
        np.save(folder / f"{name}.npy", RNG.random(shape))
    np.savez(folder / "z.npz", u=RNG.random((8, 8)), v=RNG.random((3, 5, 8, 1)), w=RNG.random((8, 8)))
    np.savetxt(folder / "t.csv", RNG.random((4, 4)), delimiter=",")
    Image.effect_noise((7, 6), 50).save(folder / "i.png")
    return tmp_path


def results(*arguments: Any, **options: Any) -> list[Any]:
    return list(infer_paths(*arguments, device="cpu", **options).results)


def test_a_folder_gives_a_result_for_each_file(place: Path) -> None:
    np.save("in/bad.npy", np.zeros(3))
    Path("in/broken.npy").write_bytes(b"x")
    run = infer_paths(["in"], "m.onnx", "out", device="cpu")
    assert (run.model, run.session.device, run.skipped, len(run.jobs)) == (Path("m.onnx"), "cpu", 0, 9)
    assert not Path("out").exists()  # the work is done by iterating
    errors = {Path(each.job.source).name: each.error for each in run.results}
    assert "bad.npy: x has shape (3,)" in str(errors.pop("bad.npy"))
    assert "not a complete .npy" in str(errors.pop("broken.npy"))
    assert errors.keys() == {"a.npy", "b.npy", "c.npy", "d.npy", "z.npz", "t.csv", "i.png"}
    assert not any(errors.values())
    np.testing.assert_allclose(np.load("out/b.out.npy"), 2 * np.load("in/b.npy"), rtol=1e-6)
    np.testing.assert_allclose(np.load("out/deep/d.out.npy"), 2 * np.load("in/deep/d.npy"), rtol=1e-6)
    with np.load("out/z.out.npz") as y, np.load("in/z.npz") as x:
        assert list(y) == list(x)  # in this order, although arrays of one shape run together
        for name in x:
            np.testing.assert_allclose(y[name], 2 * x[name], rtol=1e-6)
    again = infer_paths(["in"], "m.onnx", "out", device="cpu", skip_existing=True)
    assert again.skipped == 7
    assert [Path(job.source).name for job in again.jobs] == ["bad.npy", "broken.npy"]


def test_numbers_below_1_and_a_path_in_place_of_a_list_are_refused(place: Path) -> None:
    for name in ("top", "batch_size", "workers", "tile"):
        with pytest.raises(InputError, match=f"{name}=0 is out of range; give at least 1"):
            infer_paths(["in"], "m.onnx", engine="ray", **{name: 0})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^inputs must be a list .*, got 'in'"):
        infer_paths("in", "m.onnx")
    wrong: dict[str, Any] = {"engine": "bla", "probabilities": "yes", "top": 1.5, "batch_size": "3"}
    for name, value in (wrong | {"output_format": "NPY", "output": 3, "beam": 2.5, "tile": (3, 4)}).items():
        with pytest.raises(InputError, match=f"^{name} must be "):
            infer_paths(["in"], "m.onnx", **{name: value})


@pytest.mark.parametrize("name", ["files", "model", "output", "lm"])
def test_an_empty_path_is_refused_and_named(name: str, place: Path) -> None:
    """`Path` would take it for the current folder. The command line gives it as it is."""
    arguments: dict[str, Any] = {name: [""] if name == "files" else ""}
    words = [""] if name == "files" else ["x.npy", f"--{name}", ""]
    name = "inputs" if name == "files" else name
    with pytest.raises(InputError, match=rf"^{name} must be .*a path.*, got \[?''"):
        infer_paths(arguments.pop("files", ["x.npy"]), **arguments)
    done = mdlstm("infer", *words)
    assert done.code == 2 and re.match(rf"error: {name} must be .*a path.*, got \[?''\]?\n$", done.err)


def test_a_single_file_keeps_its_arrays_and_raises_its_errors(place: Path) -> None:
    (result,) = results(["in/a.npy"], "m.onnx")
    np.testing.assert_array_equal(result.outputs[None], np.load("in/a.out.npy"))
    np.testing.assert_array_equal(result.inputs[None], np.load("in/a.npy"))
    np.save("in/bad.npy", np.zeros(3))
    with pytest.raises(InputError, match=r"bad\.npy: x has shape \(3,\)"):
        results(["in/bad.npy"], "m.onnx")


@pytest.mark.parametrize("isolated", [False, True])
def test_a_run_that_needs_too_much_memory_is_told_of_tiles(isolated: bool, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(with_large_intermediate(10**12).SerializeToString())
    np.save(tmp_path / "x.npy", np.ones((2, 2)))
    with pytest.raises(StoppedError, match=r"x\.npy: .* memory .*with a model from: .*form=.tiles"):
        results([tmp_path / "x.npy"], tmp_path / "m.onnx", isolated=isolated)


@pytest.mark.parametrize(
    ("layout", "shape", "name"),
    [
        ("N H W C", (3, 5, 7, 1), "5x7"),
        ("N H W C", (6, 6), "any"),
        ("N C H W", (1, 5, 7), "5x7"),
        ("N C H W", (3, 1, 5, 7), "5x7"),
        ("N L C", (2, 5, 1), "5"),
    ],
)
def test_among_several_models_the_grid_chooses_in_their_layout(
    layout: str, shape: tuple[int, ...], name: str, tmp_path: Path
) -> None:
    axes = layout.count(" ") - 1
    grid = (5, 7, 2)[:axes]
    options: dict[str, Any] = {"layout": layout, "window": (1,) * axes, "axes": axes + 2}
    write_model(tmp_path / f"m-{'x'.join(map(str, grid))}.onnx", grid=grid, **options)
    write_model(tmp_path / "m-any.onnx", **options)
    np.save(tmp_path / "x.npy", np.zeros(shape))
    run = infer_paths([tmp_path / "x.npy"], tmp_path, device="cpu")
    assert run.model.name == f"m-{name}.onnx"
    assert [each.error for each in run.results] == [None]


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (write_model, {"skip_existing": True, "force": True}, "skip_existing=True .* force=True"),
        (write_model, {"workers": 2}, 'workers=... needs engine="ray"'),
        (write_model, {"output": "t.csv"}, "expected a folder .* takes answers of kind"),
        (write_model, {"output": "t.csv", "skip_existing": True}, "needs a folder"),
        (write_model, {"output": "t.csv", "output_format": "npy"}, 'leave out output_format="npy"'),
        (write_model, {"tile": 4}, r"tile=\.\.\. needs a tiled model"),
        (write_model, {"resume": True}, r"resume=\.\.\. needs a tiled model"),
        (write_model, {"level": 0}, r"level=\.\.\. needs a tiled model"),
        (recogniser, {"top": 2}, "of kind transcribe"),
        (density, {"probabilities": True}, "of kind density"),
        (classifier, {"top": 2, "probabilities": True}, "give one of them"),
    ],
)
def test_arguments_that_do_not_suit_are_refused(make: Any, options: Any, message: str, place: Path) -> None:
    model = make(place / "k.onnx")
    before = sorted(place.rglob("*"))
    with pytest.raises(InputError, match=message):
        infer_paths(["in"], model, device="cpu", **options)
    assert sorted(place.rglob("*")) == before


def test_the_model_is_closed_when_the_work_is_done(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    monkeypatch.setattr(Session, "close", lambda self: closed.append("closed"))
    run = infer_paths(["in"], "m.onnx", "out", device="cpu")
    next(run.results)
    assert not closed
    list(run.results)
    assert closed == ["closed"]


def test_a_damaged_stream_is_named_as_such_among_several_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.onnx", "b.onnx"):
        write_model(tmp_path / name)
    (tmp_path / "x").write_bytes(b"\x93NUMPY")
    with open(tmp_path / "x") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(InputError, match=r"standard input is not a complete \.npy"):
            infer_paths(["-"], tmp_path)


RESULT_OF = {  # by format, a model that writes it
    "npy": write_model,
    "npz": write_model,
    "csv": write_model,
    "json": classifier,
    "txt": classifier,
    "tsv": recogniser,
    "png": segmenter,
}


@pytest.mark.parametrize("output_format", RESULT_OF)
@pytest.mark.parametrize("is_table", [False, True])
@pytest.mark.parametrize("force", [False, True])
def test_a_result_that_appears_after_planning_is_kept(
    output_format: Any, is_table: bool, force: bool, tmp_path: Path
) -> None:
    make = RESULT_OF[output_format]
    if is_table and make not in (classifier, recogniser):
        pytest.skip("which is no table")
    model, inputs = make(tmp_path / "m.onnx"), tmp_path / "in"
    inputs.mkdir()
    for name in ("a", "b"):
        np.save(inputs / f"{name}.npy", np.eye(4))
    target = tmp_path / f"out/a.out.{output_format}"
    output = target if is_table else target.parent
    run = infer_paths([inputs], model, output, output_format=output_format, device="cpu", force=force)
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(b"mine")
    if is_table and not force:
        with pytest.raises(InputError, match="exists"):
            list(run.results)
    else:
        errors = [result.error for result in run.results]
        assert "exists" in str(errors[0]) if not force else errors == [None, None]
    assert (target.read_bytes() == b"mine") == (not force)


def test_the_mask_of_a_volume_is_npy_unless_outputs_are_asked_for(tmp_path: Path) -> None:
    axes: dict[str, Any] = {"layout": "N D H W C", "window": (1, 1, 1), "axes": 5}
    nodes = [node("Concat", "x x", "y", axis=-1)]
    model = write_model(
        tmp_path / "m.onnx",
        nodes,
        outputs=2,
        kind="segment",
        classes=("a", "b"),
        mask_values=(3, 9),
        **axes,
    )
    np.save(tmp_path / "x.npy", np.ones((2, 3, 4)))
    for options, shape, kinds in (({}, (2, 3, 4), "iu"), ({"output_format": "npy"}, (2, 3, 4, 2), "f")):
        (result,) = infer_paths([tmp_path / "x.npy"], model, device="cpu", force=True, **options).results
        y = np.load(result.job.target)
        assert (y.shape, y.dtype.kind in kinds) == (shape, True)
        assert y.max() == (3 if "u" in kinds else 1)


def test_zarr_arrays_in_a_folder_are_inputs_of_tiled_models_alone(tmp_path: Path) -> None:
    (tmp_path / "in/x.zarr/c").mkdir(parents=True)
    for name in ("in/x.zarr/zarr.json", "in/x.zarr/c/0", "in/y.csv", "in/z.npy"):
        (tmp_path / name).touch()
    files = find_files([str(tmp_path / "in")], None).files
    for form, names in (("tiles", ["x.zarr", "z.npy"]), ("scan", ["y.csv", "z.npy"])):
        assert sorted(file.relative for file in files_of_form(files, form)) == names
