"""`infer_paths` and `stream_paths`: from files to results, as library calls."""

from __future__ import annotations

import csv
import importlib.util
import io
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.small_models import (
    CLASSES,
    classifier,
    density,
    recogniser,
    scores,
    segmenter,
    write_model,
)
from helpers.tiled_models import downward
from PIL import Image

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime import Session, TiledSession, infer_paths
from mdlstm_tk.runtime.inference import stream_paths
from mdlstm_tk.runtime.io.npy import save_array

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


def errors(*arguments: Any, **options: Any) -> dict[str, str | None]:
    return {os.path.basename(each.job.source): each.error for each in results(*arguments, **options)}


def test_a_folder_gives_a_result_for_each_file(place: Path) -> None:
    np.save("in/bad.npy", np.zeros(3))
    Path("in/broken.npy").write_bytes(b"x")
    run = infer_paths(["in"], "m.onnx", "out", device="cpu")
    assert (run.model, run.session.device, run.skipped, len(run.jobs)) == (Path("m.onnx"), "cpu", 0, 9)
    assert not Path("out").exists()  # the work is done by iterating
    found = {Path(each.job.source).name: each.error for each in run.results}
    assert "bad.npy: x has shape (3,)" in str(found.pop("bad.npy"))
    assert "not a complete .npy" in str(found.pop("broken.npy"))
    assert found.keys() == {"a.npy", "b.npy", "c.npy", "d.npy", "z.npz", "t.csv", "i.png"}
    assert not any(found.values())
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
        with pytest.raises(InputError, match=f"{name} must be at least 1, got 0"):
            infer_paths(["in"], "m.onnx", engine="ray", **{name: 0})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="inputs must be a list of files and folders, got 'in'"):
        infer_paths("in", "m.onnx")


def test_a_single_file_keeps_its_arrays_and_raises_its_errors(place: Path) -> None:
    (result,) = results(["in/a.npy"], "m.onnx")
    np.testing.assert_array_equal(result.outputs[None], np.load("in/a.out.npy"))
    np.testing.assert_array_equal(result.inputs[None], np.load("in/a.npy"))
    np.save("in/bad.npy", np.zeros(3))
    with pytest.raises(InputError, match=r"bad\.npy: x has shape \(3,\)"):
        results(["in/bad.npy"], "m.onnx")


def test_every_file_is_opened_and_read_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model and the files, also where the grids of the files choose among models."""
    os.rename("m.onnx", "run-any.onnx")
    opened: Counter[str] = Counter()

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | Path) and os.fspath(arguments[0]) in sources:
            opened[os.fspath(arguments[0])] += 1

    sources = ["run-any.onnx", "in/a.npy", "in/z.npz", "in/i.png"]
    sys.addaudithook(count)
    results(sources[1:], "run-any.onnx", "out", force=True)
    assert opened == Counter(sources)
    opened.clear()
    write_model(place / "run-9x9.onnx", grid=(9, 9))
    results(sources[1:], ".", "out", force=True)
    assert opened == Counter(sources)
    sources.clear()  # the hook stays


@pytest.mark.parametrize(
    ("layout", "shape", "name"),
    [
        ("N H W C", (5, 7, 1), "5x7"),
        ("N H W C", (3, 5, 7, 1), "5x7"),
        ("N H W C", (6, 6), "any"),
        ("N C H W", (1, 5, 7), "5x7"),
        ("N C H W", (3, 1, 5, 7), "5x7"),
        ("N C H W", (5, 7), "5x7"),
        ("N C H W", (2, 1, 6, 6), "any"),
    ],
)
def test_among_several_models_the_grid_chooses_in_their_layout(
    layout: str, shape: tuple[int, ...], name: str, tmp_path: Path
) -> None:
    write_model(tmp_path / "m-5x7.onnx", grid=(5, 7), layout=layout)
    write_model(tmp_path / "m-any.onnx", layout=layout)
    np.save(tmp_path / "x.npy", np.zeros(shape))
    run = infer_paths([tmp_path / "x.npy"], tmp_path, device="cpu")
    assert run.model.name == f"m-{name}.onnx"
    assert [each.error for each in run.results] == [None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip_existing": True, "force": True}, "skip_existing=True .* force=True"),
        ({"workers": 2}, 'workers=... needs engine="ray"'),
        ({"output": "y.npy"}, "expected a folder"),
        ({"output": "t.csv"}, "expected a folder .* takes labels or texts"),
        ({"output": "t.csv", "skip_existing": True}, "needs a folder"),
        ({"output": "t.csv", "output_format": "npy"}, 'leave out output_format="npy"'),
        ({"probabilities": True}, "probabilities=True needs a model of kind classify, transcribe, segment"),
        ({"top": 2}, r"top=\.\.\. needs a model of kind classify"),
        ({"tile": 4}, r"tile=\.\.\. needs a tiled model"),
        ({"resume": True}, r"resume=\.\.\. needs a tiled model"),
        ({"level": 0}, r"level=\.\.\. needs a tiled model"),
    ],
    ids=str,
)
def test_arguments_that_do_not_suit_are_refused(options: Any, message: str, place: Path) -> None:
    before = sorted(place.rglob("*"))
    model = "m.onnx" if not {"tile", "resume", "level"} & options.keys() else place / "m.onnx"
    with pytest.raises(InputError, match=message):
        infer_paths(["in"], model, device="cpu", **options)
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (recogniser, {"top": 2}, "of kind transcribe"),
        (density, {"probabilities": True}, "of kind density"),
        (segmenter, {"top": 2}, "of kind segment"),
        (segmenter, {"output": "masks.csv"}, "takes labels or texts"),
        (classifier, {"top": 2, "probabilities": True}, "give one of them"),
    ],
)
def test_options_that_do_not_suit_the_kind_are_refused(
    make: Any, options: Any, message: str, place: Path
) -> None:
    with pytest.raises(InputError, match=message):
        infer_paths(["in"], make(place / "k.onnx"), device="cpu", **options)


def test_labels_are_collected_in_the_order_of_the_inputs(place: Path) -> None:
    model = classifier(place / "k.onnx")
    expected = []
    for name, value in (("c", 1), ("a", 0), ("d", -1), ("b", 2)):
        shape = (8, 8) if name in "cd" else (5, 7)  # files of one shape run together
        np.save(f"{name}.npy", np.full(shape, value))
        expected.append((f"{name}.npy", CLASSES[int(scores(np.full(1, value))[0].argmax())]))
    sources = [name for name, _ in expected]
    found = results(sources, model, "t.csv")
    assert {each.job.target for each in found} == {"-"}
    rows = csv.DictReader(io.StringIO(Path("t.csv").read_text(encoding="utf-8")))
    assert [(row["file"], row["label"]) for row in rows] == expected
    results(sources, model, "t.tsv")
    lines = Path("t.tsv").read_text(encoding="utf-8").splitlines()
    assert [tuple(line.split("\t")) for line in lines] == expected
    with pytest.raises(InputError, match=r"t\.tsv exists"):
        infer_paths(sources, model, "t.tsv", device="cpu")
    results(["c.npy"], model, "one.tsv")
    assert Path("one.tsv").read_text(encoding="utf-8") == "c.npy\tcat\n"


def test_probabilities_instead_of_labels(place: Path) -> None:
    np.save("x.npy", RNG.standard_normal((2, 5, 6, 1)))
    (result,) = results(["x.npy"], classifier(place / "k.onnx"), probabilities=True)
    np.testing.assert_allclose(np.load("x.out.npy").sum(-1), 1, atol=1e-6)
    assert not result.answers


def test_targets_in_a_file_to_train_on_are_left_out(place: Path) -> None:
    np.savez("train.npz", x=np.ones((2, 3, 4)), y=["a", "b"])
    (result,) = results(["train.npz"], "m.onnx")
    assert result.left_out == ("y",) and list(result.outputs) == ["x"]


class Stdin(io.TextIOWrapper):
    def __init__(self, *rows: Any) -> None:
        data = io.BytesIO()
        np.save(data, np.concatenate(rows))
        super().__init__(io.BufferedReader(io.BytesIO(data.getvalue())))  # type: ignore[arg-type]


def test_rows_are_streamed_into_a_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = RNG.random((6, 5, 1), dtype=np.float32)
    monkeypatch.setattr(sys, "stdin", Stdin(x))
    save_array("y.npy", np.zeros(1))
    with pytest.raises(InputError, match=r"y\.npy exists.*force=True"):
        stream_paths(downward().path, "y.npy", device="cpu")
    assert stream_paths(downward().path, "y.npy", device="cpu", force=True) == (6, 3)
    whole = TiledSession(downward().path, "cpu")(x)
    np.testing.assert_allclose(np.load("y.npy"), whole, atol=1e-6)
    with pytest.raises(InputError, match="stream=True needs a tiled model"):
        stream_paths("m.onnx", device="cpu")


def test_the_model_is_closed_when_the_work_is_done(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    monkeypatch.setattr(Session, "close", lambda self: closed.append("closed"))
    run = infer_paths(["in"], "m.onnx", "out", device="cpu")
    next(run.results)
    assert not closed
    list(run.results)
    assert closed == ["closed"]


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_ray_gives_the_results_of_this_process(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save("in/bad.npy", np.zeros(3))
    local = errors(["in"], "m.onnx", "local")
    ray = errors(["in"], "m.onnx", "ray", engine="ray", workers=1)
    assert local == ray and local["bad.npy"]
    names = {path.relative_to("local") for path in Path("local").rglob("*.np?")}
    assert names == {path.relative_to("ray") for path in Path("ray").rglob("*.np?")}
    for name in names:
        assert Path("local", name).read_bytes() == Path("ray", name).read_bytes()
    with pytest.raises(InputError, match='engine="ray" takes files'):
        infer_paths(["-"], "m.onnx", engine="ray")
