"""`infer_paths`: which files are run, and where and in which format results go."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.crafted_models import node
from helpers.small_models import classifier, density, scores, segmenter, write_model
from PIL import Image

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime import Inference, Session, decode, infer_paths
from mdlstm_tk.runtime.infer import find_model

RNG = np.random.default_rng(0)
PALETTE = (1, 2, 3, 4, 5, 6, 7, 8, 9)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with inputs, the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "sub").mkdir(parents=True)
    np.save("in/a.npy", RNG.random((4, 6), dtype=np.float32))
    np.save("in/b.npy", RNG.random((2, 3, 5, 1), dtype=np.float32))
    np.savez("in/c.npz", one=RNG.random((4, 6)), two=RNG.random((3, 3)))
    np.savetxt("in/d.csv", RNG.random((4, 6)), delimiter=",")
    Image.fromarray(RNG.integers(0, 256, (4, 6)).astype(np.uint8)).save("in/sub/e.png")
    return tmp_path


def finish(run: Inference) -> list[Any]:
    results = [*run]
    assert [result.error for result in results] == [None] * len(run.jobs)
    return results


def made(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*.out.*") if path.is_file()}


def test_arrays_go_beside_their_inputs_or_below_a_folder(folder: Path) -> None:
    model = write_model(folder / "m.onnx")
    for output, place in ((None, "in"), ("out", "out")):
        results = finish(infer_paths(["in"], model, output))
        files = ("a.out.npy", "b.out.npy", "c.out.npz", "d.out.npy", "sub/e.out.npy")
        names = {f"{place}/{name}" for name in files}
        assert made(folder) >= names and {result.job.target for result in results} == names
        for name in ("a", "b"):
            np.testing.assert_array_equal(np.load(f"{place}/{name}.out.npy"), 2 * np.load(f"in/{name}.npy"))
        assert {*np.load(f"{place}/c.out.npz")} == {"one", "two"}
        pixels = np.asarray(Image.open("in/sub/e.png")) / np.float32(255)
        np.testing.assert_allclose(np.load(f"{place}/sub/e.out.npy"), 2 * pixels, rtol=1e-6)
    with pytest.raises(InputError, match="--force"):
        infer_paths(["in"], model)
    finish(infer_paths(["in"], model, force=True))  # results are no inputs
    Image.new("L", (3, 3)).save("in/a.png")
    finish(infer_paths(["in/a.png", "in/a.npy"], model))  # whose names differ in their suffixes alone
    assert made(folder) >= {"in/a.png.out.npy", "in/a.npy.out.npy"}
    finish(infer_paths(["in/sub/e.png"], model, "y.npy", resize=(2, None)))
    assert np.load("y.npy").shape == (2, 3)


@pytest.mark.parametrize("form", ["npy", "npz", "csv", "json"])
def test_a_format_says_how_and_not_what(folder: Path, form: str) -> None:
    models = write_model(folder / "m.onnx"), segmenter(folder / "s.onnx", mask_values=(0, 7, 9))
    for k, model in enumerate(models):
        session = Session(model)
        expected: Any = decode(session(np.load("in/a.npy")), session.metadata)
        finish(infer_paths(["in/a.npy"], model, f"{k}.{form}"))
        finish(infer_paths(["in/a.npy"], model, f"{k}.dat", output_format=form))
        assert Path(f"{k}.{form}").read_bytes() == Path(f"{k}.dat").read_bytes()
        read: dict[str, Callable[[Any], Any]] = {
            "npy": np.load,
            "npz": lambda path: np.load(path)["y"],
            "csv": lambda path: np.loadtxt(path, delimiter=","),
            "json": lambda path: np.array(json.loads(path.read_text())),
        }
        np.testing.assert_allclose(read[form](Path(f"{k}.{form}")), expected, rtol=1e-6)


def test_the_masks_of_a_segmenter_are_pictures_and_its_scores_are_asked_for(folder: Path) -> None:
    model = segmenter(folder / "m.onnx", mask_values=(0, 7, 9), mask_palette=PALETTE)
    session = Session(model)
    Path("in/b.npy").unlink()  # png holds one mask
    finish(infer_paths(["in"], model, "masks"))
    names = ("a.out.png", "c.out.npz", "d.out.png", "sub/e.out.png")
    assert made(folder) == {f"masks/{name}" for name in names}
    mask = Image.open("masks/a.out.png")
    y = session(np.load("in/a.npy"))
    np.testing.assert_array_equal(np.asarray(mask), decode(y, session.metadata))
    assert mask.getpalette()[21:24] == [4, 5, 6]  # type: ignore[index]
    finish(infer_paths(["in/a.npy"], model, "raw.npy", raw=True))
    np.testing.assert_array_equal(np.load("raw.npy"), y)
    np.save("column.npy", np.ones((4, 1)))
    assert finish(infer_paths(["column.npy"], model))[0].shapes == [(4, 1)]
    finish(infer_paths(["in/a.npy"], model, "p/", probabilities=True))
    np.testing.assert_allclose(np.load("p/a.out.npy").sum(-1), 1, rtol=1e-6)


def test_answers_go_to_one_table(folder: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    model = classifier(folder / "m.onnx")
    results = finish(infer_paths(["in"], model))
    lines = capfdbinary.readouterr().out.decode().splitlines()
    names = [line.split("\t")[0].removeprefix("in/") for line in lines]
    assert names == ["a.npy", "b.npy[0]", "b.npy[1]", "c.npz[one]", "c.npz[two]", "d.csv", "sub/e.png"]
    assert not made(folder) and sum(len(result.rows) for result in results) == len(lines)
    x = np.load("in/b.npy")
    label = ("cat", "dög", "<b>")[int(scores(x[1].mean()).argmax())]
    assert lines[2].split("\t")[1] == label
    finish(infer_paths(["in/a.npy"], model, top=2))
    assert len(capfdbinary.readouterr().out.decode().split("\t")) == 4  # a single file needs no name
    for form in ("tsv", "csv", "json"):
        finish(infer_paths(["in"], model, f"t.{form}"))
    assert Path("t.csv").read_text().splitlines()[0] == "file,label,probability"
    assert [row["file"] for row in json.loads(Path("t.json").read_text())] == [
        f"in/{each}" for each in names
    ]
    with pytest.raises(InputError, match="--force"):
        infer_paths(["in"], model, "t.csv")
    finish(infer_paths(["in/a.npy"], model, "raw.npy", raw=True))
    assert np.load("raw.npy").shape == (3,)


def test_a_file_that_cannot_be_used_has_an_error_and_others_go_on(folder: Path) -> None:
    Path("in/bad.npy").write_bytes(b"no array")
    np.save("in/nan.npy", np.full((4, 6), np.nan))
    np.save("in/wide.npy", np.zeros((4, 6, 7)))
    with zipfile.ZipFile("in/bytes.npz", "w") as archive:
        archive.writestr("x", b"no array")
    os.mkfifo("in/pipe.npy")  # it would never end
    results = infer_paths(["in", "nix.npy"], write_model(folder / "m.onnx"))
    errors = {Path(each.job.source).name: each.error for each in results if each.error}
    assert errors.keys() == {"bad.npy", "nan.npy", "wide.npy", "bytes.npz", "nix.npy"}
    assert all(name in str(error) for name, error in errors.items())
    assert len(made(folder)) == 5
    run = infer_paths(["in"], classifier(folder / "c.onnx"), "t.csv")
    assert sum(1 for result in run if result.error) == 4
    assert len(Path("t.csv").read_text().splitlines()) == 8
    assert [
        r.error is None for r in infer_paths(["in/bad.npy"], folder / "c.onnx", "t.csv", force=True)
    ] == [False]
    assert len(Path("t.csv").read_text().splitlines()) == 8  # no rows take the place of none


def test_one_image_is_a_png_whichever_axes_it_has(folder: Path) -> None:
    """A side of one or three pixels is no batch and no colours."""
    for layout, channels, grid in product(("N H W C", "N C H W"), (1, 3), ((1, 7), (7, 1), (3, 4), (4, 3))):
        shape = (*grid, channels) if layout.endswith("C") else (channels, *grid)
        x = RNG.random(shape, dtype=np.float32) / 2
        np.save("x.npy", x)
        model = write_model(folder / "m.onnx", layout=layout, channels=channels, outputs=channels)
        finish(infer_paths(["x.npy"], model, "y.png", force=True))
        pixels = np.asarray(Image.open("y.png"))
        expected = np.rint(255 * 2 * (x if layout.endswith("C") else np.moveaxis(x, 0, -1)))
        np.testing.assert_array_equal(pixels.reshape(expected.shape), expected)
    np.save("x.npy", np.zeros((5, 4, 3, 1)))
    (result,) = infer_paths(["x.npy"], segmenter(folder / "s.onnx"), "masks.png")
    assert "one image" in str(result.error) and not Path("masks.png").exists()


def test_a_data_set_gives_its_samples_in_their_extents(folder: Path) -> None:
    x, sizes = RNG.random((3, 4, 6), dtype=np.float32), np.array([[4, 6], [2, 3], [1, 6]])
    np.savez("in/set.npz", x=x, y=np.arange(3), sizes=sizes)
    for padded in ((), ("sizes",)):
        inputs = ("x", *padded)
        model = segmenter(folder / "s.onnx", inputs=inputs)
        finish(infer_paths(["in/set.npz"], model, "s.npz", force=True))
        masks = np.load("s.npz")
        assert [masks[f"x[{k}]"].shape for k in range(3)] == [(4, 6), (2, 3), (1, 6)]
    results = finish(infer_paths(["in/set.npz"], classifier(folder / "c.onnx"), "c.json"))
    expected = [scores(x[k, :h, :w].mean()).argmax() for k, (h, w) in enumerate(sizes)]
    assert [row["label"] for row in results[0].rows] == [("cat", "dög", "<b>")[k] for k in expected]
    np.savez("in/plain.npz", x=x, y=np.arange(3))
    assert len(finish(infer_paths(["in/plain.npz"], classifier(folder / "c.onnx"), "p.json"))[0].rows) == 3
    nats = finish(infer_paths(["in/set.npz"], density(folder / "d.onnx"), "d.json"))[0].rows
    assert [row["nats"] for row in nats] == [
        pytest.approx(2 * x[k, :h, :w].sum(), abs=1e-3) for k, (h, w) in enumerate(sizes)
    ]
    for alone in (x, x[..., None], x[0, ..., None]):  # a batch without its channels, with them, one sample
        np.savez("in/alone.npz", x=alone)
        finish(infer_paths(["in/alone.npz"], write_model(folder / "m.onnx"), "a.npy", force=True))
        np.testing.assert_array_equal(np.load("a.npy").reshape(alone.shape), 2 * alone)
    np.savez("in/set.npz", x=x, y=np.arange(3), ndim=2)
    assert len(finish(infer_paths(["in/set.npz"], classifier(folder / "c.onnx"), "s.json"))[0].rows) == 3
    wrong: dict[str, Any] = {"sizes ": {"sizes": sizes + 9}, "sizes": {"sizes": sizes - 1}}
    for name, arrays in (wrong | {"ndim": {"ndim": 1}, "ndim ": {"ndim": 3}}).items():
        np.savez("in/wrong.npz", x=x, **arrays)
        (result,) = infer_paths(["in/wrong.npz"], segmenter(folder / "s.onnx"), "w.npz")
        assert name.strip() in str(result.error)


def test_several_inputs_come_from_the_arrays_of_their_names(folder: Path) -> None:
    x, z = RNG.random((2, 1, 4, 6, 1), dtype=np.float32)
    fields = {"inputs": ("x", "z"), "output_names": ("y", "aux"), "further_windows": ((1, 1),)}
    model = write_model(folder / "m.onnx", [node("Add", "x z", "y")], **fields)
    np.savez("in/two.npz", x=x, z=z)
    np.savez("in/bad.npz", x=x, z=z[:, :, :5])
    results = {r.job.source: r for r in infer_paths(["in/two.npz", "in/bad.npz", "in/a.npy"], model, "out")}
    assert results["in/two.npz"].error is None and "x, z" in str(results["in/a.npy"].error)
    assert "bad.npz" in str(results["in/bad.npz"].error)
    np.testing.assert_array_equal(np.load("out/two.out.npz")["aux"], x + z)


def test_existing_results_are_skipped_unless_model_or_input_are_newer(folder: Path) -> None:
    model = write_model(folder / "m.onnx")
    finish(infer_paths(["in/a.npy"], model))
    run = infer_paths(["in"], model, skip_existing=True)
    assert (run.skipped, len(run.jobs)) == (1, 4)
    os.utime("in/a.npy", (1.9e9, 1.9e9))
    with pytest.raises(InputError, match="--force"):
        infer_paths(["in/a.npy"], model, skip_existing=True)
    os.utime(model, (2e9, 2e9))
    with pytest.raises(InputError, match="--force"):
        infer_paths(["in/a.npy"], model, skip_existing=True)


def test_targets_of_training_data_are_no_inputs(folder: Path) -> None:
    for name in ("images", "masks"):
        Path("data", name).mkdir(parents=True)
        Image.new("L", (4, 4)).save(f"data/{name}/a.png")
    model = segmenter(folder / "m.onnx")
    assert [job.source for job in infer_paths(["data"], model).jobs] == ["data/images/a.png"]
    for named in ("data/masks/a.png", "data/masks"):
        assert len(infer_paths([named], model).jobs) == 1
    Path("only").mkdir()
    Path("only/tags.csv").write_text("1,2\n")
    tagger = write_model(folder / "t.onnx", kind="tag", classes=("a",))
    with pytest.raises(InputError, match="name it"):
        infer_paths(["only"], tagger)


REFUSED: dict[str, dict[str, Any]] = {
    "no input": {"inputs": ["empty"], "word": "no input"},
    "no model": {"model": "empty", "word": "mdlstm export"},
    "an unknown format": {"output_format": "zip", "word": "--format"},
    "an unknown suffix": {"inputs": ["in/a.npy"], "output": "y.zip", "word": "--format"},
    "a table of arrays": {"output_format": "tsv", "word": "--format"},
    "one file for several": {"inputs": ["in/a.npy", "in/d.csv"], "output": "y.npy", "word": "folder"},
    "several on stdout": {"output": "-", "inputs": ["in"], "word": "one file"},
    "the input itself": {"inputs": ["in/a.npy"], "output": "in/a.npy", "word": "replace an input"},
    "stdin with others": {"inputs": ["-", "in/a.npy"], "word": "only input"},
    "stdin with Ray": {"inputs": ["-"], "workers": 2, "word": "only input"},
    "an option of another kind": {"top": 3, "word": "top"},
    "raw answers": {"raw": True, "probabilities": True, "word": "raw"},
    "tiles": {"tile": 8, "word": "--form tiles"},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_planned_is_refused_before_any_run(folder: Path, name: str) -> None:
    (folder / "empty").mkdir()
    case = {"inputs": ["in"], "model": write_model(folder / "m.onnx"), **REFUSED[name]}
    with pytest.raises(InputError, match=case.pop("word")):
        infer_paths(**case)
    assert not made(folder)


def test_the_model_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="mdlstm export"):
        find_model()
    names = ["one.onnx", "runs/a/two.onnx", "runs/b/three.onnx", "runs/b/four.tiles", "runs/.c/five.onnx"]
    for age, name in enumerate(names):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
        os.utime(name, (age, age))
    assert str(find_model()) == "runs/b/three.onnx"
    assert str(find_model(None, True)) == "runs/b/four.tiles"
    assert str(find_model("runs/a")) == "runs/a/two.onnx"
    assert str(find_model("runs/x.onnx")) == "runs/x.onnx"
    monkeypatch.setenv("MDLSTM_MODEL", "one.onnx")
    assert str(find_model()) == "one.onnx"


def test_chunks_and_batches_change_no_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(40):
        np.save(f"in/{k:02}.npy", RNG.random((2 + k % 3, 4), dtype=np.float32))
    model, results = classifier(folder / "m.onnx"), []
    for chunk, batch in ((256, None), (7, None), (256, 1), (3, 5)):
        monkeypatch.setattr("mdlstm_tk.runtime.infer.CHUNK", chunk)
        finish(infer_paths(["in"], model, "t.csv", batch_size=batch, force=True))
        results.append([line.rsplit(",", 1) for line in Path("t.csv").read_text().splitlines()[1:]])
    assert len({str([row for row, _ in rows]) for rows in results}) == 1
    numbers = np.array([[number for _, number in rows] for rows in results], float)
    assert np.ptp(numbers, axis=0).max() < 3e-6  # kernels of some processors round by the batch


@pytest.mark.parametrize("stops_at", [1, 3])
def test_an_interrupt_leaves_whole_files_and_no_table(folder: Path, stops_at: int) -> None:
    models = {"out": write_model(folder / "m.onnx"), "t.csv": classifier(folder / "c.onnx")}
    for output, model in models.items():
        run = iter(infer_paths(["in"], model, output))
        for _ in range(stops_at):
            next(run)
        with pytest.raises(KeyboardInterrupt):
            run.throw(KeyboardInterrupt)
    assert not Path("t.csv").exists()
    assert all(np.load(path) is not None for path in folder.glob("out/*.npy"))
