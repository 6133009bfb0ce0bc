"""Kinds with a number for each sample in named columns: their files, trainings, exports and answers."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command import mdlstm
from helpers.training import quick, run_in
from helpers.user_data import read, write_image

from mdlstm_tk.errors import InputError
from mdlstm_tk.export import export_run
from mdlstm_tk.kinds import training_of
from mdlstm_tk.kinds.decoding import write_decoding
from mdlstm_tk.report import render_report
from mdlstm_tk.report.evaluation import with_decoding
from mdlstm_tk.runtime import Session
from mdlstm_tk.training import Run, load_checkpoint, make_task, new_job

TABLES = {
    "regress": ("targets.csv", "file,height,temp °C", [f"{1.5 * k},{-0.25 * k * k}" for k in range(12)]),
    "tag": ("tags.csv", "file,labels", ["cat;dog" if k % 3 == 0 else "dog" * (k % 2) for k in range(12)]),
}
COUNT = 12


def write_table(folder: Path, kind: str, rows: list[str] | None = None, header: str = "") -> Path:
    """Write images and the table of a kind, with other rows or another header if they are given."""
    name, own_header, own_rows = TABLES[kind]
    for k in range(COUNT):
        write_image(folder / f"images/{k:02}.png", np.full((6, 7), 20 * k))
    lines = [f"images/{k:02}.png,{row}" for k, row in enumerate(own_rows)] if rows is None else rows
    (folder / name).write_text("\n".join([header or own_header, *lines]), encoding="utf-8")
    return folder


def test_the_order_of_the_rows_is_not_that_of_the_labels(tmp_path: Path) -> None:
    rows = [f"images/{k:02}.png,{labels}" for k, labels in enumerate(["dog", "cat", "", "cow;cat"])]
    for k, order in enumerate((rows, rows[::-1], [*rows[:3], "images/03.png,cat;cow"])):
        tags = read(write_table(tmp_path / str(k), "tag", order), "tag", validation=0.0)
        assert tags.spec.classes == ("cat", "cow", "dog")


def test_labels_may_be_called_as_columns_of_documents(tmp_path: Path) -> None:
    rows = ["images/00.png,error;file", "images/01.png,sample"]
    task = read(write_table(tmp_path, "tag", rows), "tag", validation=0.0)
    assert task.spec.classes == ("error", "file", "sample")


def test_tags_without_validation_and_test_data(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", quick(write_table(tmp_path / "a", "tag"), "tag", validation=0.0))
    assert run.read_result()["threshold"] == 0.5
    assert "threshold" in json.dumps(run.read_result())
    assert render_report(run, data=str(tmp_path / "a"))


@pytest.fixture(scope="module", params=TABLES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of a kind on a folder of images, and its export."""
    folder = tmp_path_factory.mktemp(request.param)
    config = quick(write_table(folder / "data", request.param), request.param, resize="6x7")
    run = run_in(folder / "run", config)
    export_run(run.folder, grid=(6, 7))
    return run


def test_tables_hold_the_targets(tmp_path: Path) -> None:
    task = read(write_table(tmp_path / "r", "regress"), "regress", validation=0.0)
    assert task.spec.classes == ("height", "temp °C")
    y = task.batch(0, 0, COUNT).y
    expected = [(1.5 * k, -0.25 * k * k) for k in range(COUNT)]
    np.testing.assert_array_equal(sorted(map(tuple, y.tolist())), sorted(expected))
    np.testing.assert_allclose(task.spec.target_mean, np.mean(expected, axis=0))
    np.testing.assert_allclose(task.spec.target_std, np.std(expected, axis=0))
    tags = read(write_table(tmp_path / "t", "tag"), "tag", validation=0.0)
    assert tags.spec.classes == ("cat", "dog")
    assert "2 labels: cat (4), dog (8)" in tags.summary
    assert tags.batch(0, 0, COUNT).y.sum(0).tolist() == [4, 8]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("kind", TABLES)
def test_arrays_hold_the_targets_and_perhaps_their_names(kind: str, named: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, (9, 3))
    y[0] = 1  # each label occurs
    names = {"names": np.array(["p", "q", "r"])} if named else {}
    np.savez(tmp_path / "x.npz", x=rng.random((9, 4, 5)), y=y, **names)
    task = read(tmp_path / "x.npz", kind, validation=0.0)
    assert task.spec.classes == (("p", "q", "r") if named else ("y0", "y1", "y2"))
    rows = sorted(map(tuple, task.batch(0, 0, 9).y.astype(int).tolist()))
    assert rows == sorted(map(tuple, y.tolist()))


BAD_TABLES = {
    "no table": ("regress", None, "", "targets.csv is missing"),
    "other name": ("regress", [], "image,height", "first row is 'image,height'"),
    "equal names": ("regress", [], "file,a,a", "first row is 'file,a,a'"),
    "no name": ("tag", [], "file", "expected file,labels"),
    "semicolons": ("regress", [], "file;height", "with commas between cells"),
    "text": ("regress", ["images/00.png,tall"], "file,height", "could not convert string to float: 'tall'"),
    "in Python": ("regress", ["images/00.png,1_000"], "file,height", "line 2: it holds no number"),
    "infinite": ("regress", ["images/00.png,inf"], "file,height", "its height is inf"),
    "missing": (
        "regress",
        ["", "images/00.png,"],
        "file,height",
        "targets.csv, line 3: it holds no number",
    ),
    "more cells": (
        "regress",
        ["images/00.png,1,2"],
        "file,height",
        "it has 3 cells, but the first row has 2",
    ),
    "no image": ("regress", ["images/99.png,1"], "file,height", "99.png"),
    "too large": ("regress", ["images/00.png,1e39"], "file,height", "its height is 1e+39"),
    "constant": ("regress", [f"images/{k:02}.png,7" for k in range(9)], "file,height", "height is about 7"),
    "unresolved": (
        *("regress", [f"images/{k:02}.png,{10**9 + k}" for k in range(9)]),
        *("file,height", "height is about 1e+09"),
    ),
    "too small": (
        *("regress", [f"images/{k:02}.png,{k}e-50" for k in range(9)]),
        *("file,height", "height is about 4e-50"),
    ),
    "reserved": ("regress", ["images/00.png,1"], "file,file", "'file'"),
    "one column each": ("tag", ["images/00.png,1,0"], "file,cat,dog", "expected file,labels"),
    "UTF-16": ("regress", ["images/00.png\0,1"], "file,height", "targets.csv is not a text in UTF-8"),
    "no labels": ("tag", ["images/00.png,"], "file,labels", "the labels are"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_tables_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    kind, rows, header, expected = BAD_TABLES[case]
    write_table(tmp_path, kind, rows, header)
    if rows is None:
        (tmp_path / TABLES[kind][0]).unlink()
    with pytest.raises(InputError) as caught:
        read(tmp_path, kind, validation=0.0)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_rows_that_cannot_be_used_and_images_without_one_are_named(tmp_path: Path) -> None:
    rows = ["images/00.png,1", "./images/../images/00.png,2", "", "images/01.png,3,4", '"images/02.png",5']
    task = read(write_table(tmp_path, "regress", rows, "file,height"), "regress", validation=0.0)
    assert task.count("train") == 2
    summary = "\n".join(task.summary)
    assert "targets.csv, line 3: line 2 names ./images/../images/00.png as well" in summary
    assert "targets.csv, line 5: it has 3 cells" in summary
    assert "images that targets.csv does not name, left out: 9" in summary


def test_rows_that_cannot_be_used_are_named_with_the_folder_of_their_split(tmp_path: Path) -> None:
    write_table(tmp_path / "train", "regress", ["images/00.png,1", "images/01.png,2"], "file,height")
    write_table(tmp_path / "Val", "regress", ["images/00.png,1", "images/01.png,3,4"], "file,height")
    assert [line.split(":")[0] for line in read(tmp_path, "regress").skipped] == ["Val/targets.csv, line 3"]


BAD_ARRAYS: dict[str, tuple[str, dict[str, Any], str]] = {
    "axes": ("regress", {"y": np.ones((4, 2, 2))}, "y is"),
    "names": ("regress", {"y": np.ones((4, 2)), "names": np.array(["a"])}, "names is"),
    "equal names": ("regress", {"y": np.ones((4, 2)), "names": np.array(["a", "a"])}, "2 different texts"),
    "counts": ("tag", {"y": np.full((4, 2), 3)}, "other numbers than 0 and 1"),
    "shares": ("tag", {"y": np.full((4, 2), 0.5)}, "y is float64"),
    "infinite": ("regress", {"y": np.full(4, np.inf)}, "its y0 is inf"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    kind, arrays, expected = BAD_ARRAYS[case]
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).random((4, 5, 6)), **arrays)
    with pytest.raises(InputError) as caught:
        read(tmp_path / "x.npz", kind, validation=0.0)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", TABLES)
def test_arrays_of_all_splits_have_the_same_columns(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, columns in (("train", 3), ("val", 2)):
        y = rng.integers(0, 2, (4, columns))
        np.savez(tmp_path / f"{name}.npz", x=rng.random((4, 5, 6)), y=y)
    with pytest.raises(InputError, match="are y0, y1, y2 in one split and y0, y1 in another"):
        read(tmp_path, kind)


def test_answers_are_those_of_the_network_in_every_format(run: Run, tmp_path: Path) -> None:
    model, data = run.folder / "model-6x7.onnx", run.folder.parent / "data"
    session, names = Session(model), load_checkpoint(run.best).spec.classes
    more = ["--probabilities"] if session.metadata.kind == "tag" else []
    result = mdlstm("infer", data, "-m", model, "-o", tmp_path / "all.json", *more)
    assert result.code == 0, result.err
    records = json.loads((tmp_path / "all.json").read_text())
    assert len(records) == COUNT
    outputs = session(np.stack([np.full((6, 7, 1), 20 * k / 255, np.float32) for k in range(COUNT)]))
    assert mdlstm("infer", data, "-m", model, "-o", tmp_path / "all.csv", "--quiet").code == 0
    rows = list(csv.DictReader((tmp_path / "all.csv").open(encoding="utf-8")))
    lines = mdlstm("infer", data, "-m", model).out.splitlines()
    for record, row, line, y in zip(records, rows, lines, outputs, strict=True):
        if session.metadata.kind == "regress":
            assert [record[name] for name in names] == pytest.approx(y.tolist(), rel=1e-4, abs=1e-6)
            assert [float(row[name]) for name in names] == [record[name] for name in names]
            assert [float(cell) for cell in line.split("\t")[1:]] == [record[name] for name in names]
        else:
            p = 1 / (1 + np.exp(-y.astype(np.float64)))
            found = [record[f"probability_{name}"] for name in names]
            assert found == pytest.approx(p.tolist(), abs=1e-5)
            threshold = session.metadata.more["threshold"]
            labels = [n for n, each in zip(names, p, strict=True) if each >= threshold]
            assert row["labels"] == line.split("\t")[1] == record["labels"] == ";".join(labels)


def test_the_threshold_of_the_validation_data_is_in_the_file(tmp_path: Path) -> None:
    config = quick(write_table(tmp_path / "data", "tag"), "tag", resize="6x7")
    run = run_in(tmp_path / "run", config)
    result = run.read_result()
    chosen = json.loads((run.folder / "decoding.json").read_text())
    assert chosen == {"threshold": result["threshold"], "step": result["step"]}
    (run.folder / "decoding.json").write_text(json.dumps({**chosen, "threshold": 0.875}))
    metadata = Session(export_run(run.folder, grid=(6, 7)).path).metadata
    assert metadata.more["threshold"] == 0.875
    (run.folder / "decoding.json").unlink()
    with pytest.warns(UserWarning, match="has not been calibrated"):
        export_run(run.folder, grid=(6, 7), force=True)


def test_pictures_and_reports_of_labels_have_the_threshold_of_the_run(tmp_path: Path) -> None:
    data = write_table(tmp_path / "data", "tag")
    run = run_in(tmp_path / "run", config := quick(data, "tag", resize="6x7"))
    checkpoint, task, kind = load_checkpoint(run.best), make_task(config), training_of("tag")
    for threshold in (0.01, 0.99):
        write_decoding(run, {"threshold": threshold}, checkpoint.step)
        decoded = with_decoding(task, run, checkpoint.step)
        shown = kind.evaluate_examples(checkpoint.network(), decoded, config, run, checkpoint.step)
        assert shown.examples
        for example in shown.examples:
            given = np.full(len(task.spec.classes), threshold < 0.5)
            (panel,) = example.panels
            assert ("no label" in panel.name.split("truth")[0]) == (threshold > 0.5)
            assert example.error == pytest.approx((given != example.batch.y[0]).mean())
        assert f"of at least {100 * threshold:.0f} %" in render_report(run, data=str(data))


def test_a_report_has_measures_of_each_column(run: Run) -> None:
    data = str(run.folder.parent / "data")
    kind = load_checkpoint(run.best).spec.kind
    page = render_report(run, data=data)
    for name, measures in run.read_result()["outputs"].items():
        assert f'<th scope="row">{name}</th>' in page and measures
    assert page.count("over the true values") == (2 if kind == "regress" else 0)
    assert set(training_of(kind).further_measures) <= run.read_result()["errors"].keys()


def test_labels_that_training_does_not_have_are_named(tmp_path: Path) -> None:
    write_table(tmp_path / "train", "tag", [f"images/{k:02}.png,cat" for k in range(6)])
    write_table(tmp_path / "val", "tag", ["images/07.png,dog", '"images/08.png","cat;\nfish"'])
    task = read(tmp_path, "tag")
    assert task.spec.classes == ("cat", "dog", "fish")  # a cell may hold a line end
    assert "labels without samples to train on: dog, fish" in task.summary


def test_a_measure_that_the_task_does_not_have_is_refused_before_training(tmp_path: Path) -> None:
    config = quick(write_table(tmp_path / "data", "regress"), "regress", resize="6x7", best_by="f1_macro")
    with pytest.raises(InputError, match="nmse, r2"):
        new_job(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
