"""`mdlstm_tk.runtime.jobs`: which files are read, and where results go."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.refusal import refused

from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds import all_kinds
from mdlstm_tk.runtime import Metadata
from mdlstm_tk.runtime.jobs import (
    Job,
    ResultOptions,
    find_files,
    is_single_file,
    plan_jobs,
    remaining_jobs,
)
from mdlstm_tk.runtime.model_discovery import find_models, newer_run_without_export

GRID = Metadata("0", None, "scan", "N H W C", 1, 1)
CLASSIFIER = replace(GRID, outputs=2, window=None, kind="classify", classes=("a", "b"))
SEGMENTER = replace(GRID, outputs=2, kind="segment", classes=("a", "b"))
TILED = replace(SEGMENTER, form="tiles")
VOLUMES = replace(SEGMENTER, layout="N D H W C", window=(1, 1, 1))
TWO = replace(GRID, output_names=("y", "z"), further_windows=((1, 1),))


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with files in folders and with some that are ignored."""
    monkeypatch.chdir(tmp_path)
    read = "x.npy in/one.npy in/a/two.NPZ in/a/b/i.PNG in/t.csv in/out/z.npy"
    ignored = "in/notes.txt in/.git/hidden.npy in/a/.hidden.npy in/a/old.out.npy private.npy"
    for name in f"{read} {ignored}".split():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    if os.name == "posix":
        os.mkfifo("in/a/pipe.npy")
        Path("in/link").symlink_to("../in")
        Path("in/linked.npy").symlink_to("../private.npy")
    return tmp_path


def test_folders_are_searched_in_a_fixed_order(tree: Path) -> None:
    files, left_out, results = find_files(["in", "x.npy"], "in/out")
    linked = ["linked.npy"] * (os.name == "posix")
    assert [file.relative for file in files] == [
        *linked,
        *("one.npy", "t.csv", "a/two.NPZ", "a/b/i.PNG", "x.npy"),
    ]
    assert (left_out, [file.relative for file in results]) == (1, ["a/old.out.npy"])  # and notes.txt
    Path("none").mkdir()
    for inputs, message in ((["none"], "no input file in none"), (["-", "x.npy"], "the only input")):
        with pytest.raises(InputError, match=message):
            find_files(inputs, None)


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_links_to_folders_are_followed_once_and_dead_ones_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("in/z", "elsewhere/sub", "out"):
        Path(folder).mkdir(parents=True)
        Path(folder, "x.npy").touch()
    links = {
        "a": "z",
        "b": "../elsewhere",
        "c": "../elsewhere",
        "d": "../out",
        "loop": "loop",
        "z/up": "..",
    }
    dead = {"gone.npy": "none", "gone.xml": "none", "gone.txt": "none", "gone.out.npy": "none"}
    dead |= {"loop.npy": "loop.npy"}
    for name, target in (links | dead).items():
        Path("in", name).symlink_to(target)
    with pytest.warns(
        UserWarning, match=r"^links that lead to no file, left out: 4, such as in/gone\.npy$"
    ):
        files, left_out, _ = find_files(["in"], "out")
    assert [file.source for file in files] == ["in/z/x.npy", "in/b/sub/x.npy"]
    assert left_out == 0


def plan(
    inputs: list[str], metadata: Metadata = GRID, output: str | None = None, **options: Any
) -> list[Job]:
    files = find_files(inputs, output).files
    chosen = ResultOptions(probabilities=options.pop("probabilities", False))
    single = is_single_file(inputs)
    return plan_jobs(files, metadata, output, options=chosen, is_single=single, **options)


@pytest.mark.parametrize(
    ("source", "metadata", "output", "options", "target", "file_format"),
    [
        ("x.npy", GRID, None, {}, "x.out.npy", "npy"),
        ("in/a/two.NPZ", GRID, None, {}, "in/a/two.out.npz", "npz"),
        ("x.npy", GRID, "deep/y.PNG", {}, "deep/y.PNG", "png"),
        ("x.npy", GRID, "y", {}, "y", "npy"),
        ("x.npy", GRID, "y.npy", {"output_format": "npz"}, "y.npy", "npz"),
        ("x.npy", GRID, "in", {}, "in/x.out.npy", "npy"),
        ("x.npy", GRID, "new/", {}, "new/x.out.npy", "npy"),
        ("x.npy", GRID, "-", {}, "-", "npy"),
        ("-", GRID, None, {}, "-", "npy"),
        ("-", GRID, "in", {}, "in/stdin.out.npy", "npy"),
        ("x.npy", TWO, None, {}, "x.out.npz", "npz"),
        ("x.npy", SEGMENTER, None, {}, "x.out.png", "png"),
        ("x.npy", SEGMENTER, None, {"probabilities": True}, "x.out.npy", "npy"),
        ("x.npy", VOLUMES, None, {}, "x.out.npy", "npy"),
        ("x.npy", TILED, None, {}, "x.out.tif", "tif"),
        ("x.npy", TILED, "y.tiff", {}, "y.tiff", "tif"),
        ("x.npy", replace(VOLUMES, form="tiles"), None, {}, "x.out.npy", "npy"),
        ("x.npy", CLASSIFIER, None, {}, "-", "txt"),
        ("x.npy", CLASSIFIER, None, {"output_format": "npy"}, "x.out.npy", "npy"),
        ("x.npy", CLASSIFIER, None, {"probabilities": True}, "x.out.npy", "npy"),
        ("x.npy", CLASSIFIER, "in", {}, "in/x.out.txt", "txt"),
    ],
)
@pytest.mark.usefixtures("tree")
def test_where_the_result_of_one_file_goes(
    source: str, metadata: Metadata, output: str | None, options: Any, target: str, file_format: str
) -> None:
    (job,) = plan([source], metadata, output, **options)
    assert job[:3] == (source, target, file_format)


@pytest.mark.parametrize(
    ("metadata", "options", "content"),
    [
        (GRID, {}, "outputs"),
        (CLASSIFIER, {}, "lines"),
        (CLASSIFIER, {"output_format": "npy"}, "outputs"),
        (CLASSIFIER, {"output_format": "json", "probabilities": True}, "lines"),
        (CLASSIFIER, {"probabilities": True}, "probabilities"),
        (SEGMENTER, {}, "answers"),
        (SEGMENTER, {"output_format": "json"}, "answers"),
        (SEGMENTER, {"output_format": "npy"}, "outputs"),
        (SEGMENTER, {"output_format": "json", "probabilities": True}, "probabilities"),
        (VOLUMES, {}, "answers"),  # in npy
        (TILED, {"output_format": "zarr"}, "outputs"),
    ],
)
@pytest.mark.usefixtures("tree")
def test_what_the_result_of_a_file_holds(metadata: Metadata, options: Any, content: str) -> None:
    (job,) = plan(["x.npy"], metadata, **options)
    assert job.content == content


@pytest.mark.parametrize("kind", [each.name for each in all_kinds()])
@pytest.mark.parametrize("output_format", [None, "npz", "json"])
@pytest.mark.usefixtures("tree")
def test_several_outputs_are_numbers(kind: str, output_format: Any) -> None:
    fields: Any = {"kind": kind, "outputs": 3, "classes": ("a", "b", "c")}
    metadata = Metadata("0", None, "scan", "N H W C", 1, output_names=("y", "z"), **fields)
    (job,) = plan(["x.npy"], metadata, output_format=output_format)
    assert (job.format, job.content) == (output_format or "npz", "outputs")


@pytest.mark.parametrize(
    ("metadata", "output", "targets", "file_format"),
    [
        (GRID, None, ["in/a/b/i.out.npy", "in/a/two.out.npz"], None),
        (GRID, "new", ["new/b/i.out.npy", "new/two.out.npz"], None),
        (SEGMENTER, "new", ["new/b/i.out.png", "new/two.out.npz"], None),
        (CLASSIFIER, None, ["-", "-"], "txt"),
        (CLASSIFIER, "new", ["new/b/i.out.txt", "new/two.out.txt"], "txt"),
        (CLASSIFIER, "t.csv", ["-", "-"], "csv"),
        (CLASSIFIER, "-", ["-", "-"], "txt"),
    ],
)
@pytest.mark.usefixtures("tree")
def test_where_the_results_of_a_folder_go(
    metadata: Metadata, output: str | None, targets: list[str], file_format: str | None
) -> None:
    jobs = plan(["in/a"], metadata, output)
    assert sorted(job.target for job in jobs) == targets
    assert file_format is None or {job.format for job in jobs} == {file_format}


@pytest.mark.parametrize(
    ("inputs", "output", "message"),
    [
        (["in"], "-", "takes answers to several inputs, but npy of one"),
        (["in"], "y.npy", "expected a folder"),
        (["x.npy"], "y.mat", "unsupported file type '.mat'"),
        (["x.npy"], "y.zarr", "only tiled models write zarr"),
        (["x.npy"], "x.npy", "overwrite"),
        (["x.npy", "in/x.npy"], "new", r"both .*x\.out\.npy"),
        (["x.npy", "./x.npy"], None, r"the inputs name \./x\.npy twice; name it once"),
        (["x.npy", "in/one.npy", "in/../x.npy"], "new", r"the inputs name in/\.\./x\.npy twice"),
        (["in", "in/one.npy"], "new", r"the inputs name in/one\.npy twice"),
    ],
)
@pytest.mark.usefixtures("tree")
def test_an_output_that_does_not_suit_is_refused(
    inputs: list[str], output: str | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        plan(inputs, GRID, output)


def test_a_zarr_array_of_any_name_is_a_result_that_exists(tree: Path) -> None:
    Path("y.npy").mkdir()
    Path("y.npy/zarr.json").touch()
    (job,) = plan(["x.npy"], TILED, "y.npy", output_format="zarr")
    assert job.target == "y.npy"
    refused(r"y\.npy exists.*force=True", lambda: remaining_jobs([job], skip_existing=False, force=False))


def test_results_that_exist_are_kept_or_replaced_as_asked(tree: Path) -> None:
    jobs = [Job("x.npy", "y.npy", "npy"), Job("x.npy", "-", "txt"), Job("x.npy", "new.npy", "npy")]
    Path("y.npy").touch()
    assert remaining_jobs(jobs, skip_existing=True, force=False) == [
        job._replace(replace=False) for job in jobs[1:]
    ]
    assert remaining_jobs(jobs, skip_existing=False, force=True) == jobs
    with pytest.raises(InputError, match=r"y\.npy exists.*force=True"):
        remaining_jobs(jobs, skip_existing=False, force=False)


def test_a_suffix_of_a_format_names_a_file_and_no_folder(tree: Path) -> None:
    for name in ("r.tif", "r.tiff", "r.npy"):
        with pytest.raises(InputError, match="expected a folder"):
            find_files(["in"], name)


def test_a_run_may_hold_tiled_exports_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MDLSTM_MODEL", raising=False)
    run = Path("runs/md")
    run.mkdir(parents=True)
    for name in ("config.toml", "model.tiles"):
        (run / name).touch()
    for model, tiled in ((None, False), (None, True), (run, False), (run, True)):
        assert find_models(model, tiled=tiled) == [run / "model.tiles"]
    assert newer_run_without_export(run / "model.tiles") is None


def test_the_model_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MDLSTM_MODEL", raising=False)
    with pytest.raises(InputError, match=r"no exported model here.*model=\.\.\."):
        find_models(None)
    Path("only.onnx").touch()
    assert find_models(None) == [Path("only.onnx")]
    Path("two.onnx").touch()
    with pytest.raises(InputError, match=r"2 \.onnx models"):
        find_models(None)
    for time, name in enumerate(("old/model-8x8.onnx", "new/model-any.onnx", "new/model-8x8.onnx")):
        path = Path("runs", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (time, time))
    assert [path.name for path in find_models(None)] == ["model-any.onnx", "model-8x8.onnx"]
    assert find_models("runs/old") == [Path("runs/old/model-8x8.onnx")]
    with pytest.raises(InputError, match=r"holds no \.tiles model.*form=.tiles"):
        find_models("runs/old", tiled=True)
    monkeypatch.setenv("MDLSTM_MODEL", "some.onnx")
    assert find_models(None) == [Path("some.onnx")]


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_a_link_to_an_input_is_no_place_for_a_result(tree: Path) -> None:
    Path("y.npy").symlink_to("in/one.npy")
    with pytest.raises(InputError, match=r"would overwrite the input y\.npy"):
        plan(["in/one.npy"], GRID, "y.npy")


def test_a_table_never_replaces_an_input(tree: Path) -> None:
    files = find_files(["in/t.csv", "x.npy"], "./in/t.csv").files
    with pytest.raises(InputError, match="result of all inputs would overwrite"):
        plan_jobs(files, CLASSIFIER, "./in/t.csv")
    names = {Path(file.source).name for file in find_files(["in"], "./in/t.csv").files}
    assert "t.csv" not in names and "one.npy" in names


def test_models_of_equal_times_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.onnx", "c.onnx", "a.onnx"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    assert [path.name for path in find_models(tmp_path)] == ["a.onnx", "b.onnx", "c.onnx"]
