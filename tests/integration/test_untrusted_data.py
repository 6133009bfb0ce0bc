"""Data folders from strangers: nothing outside them is read, and data are opened only if asked for."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.crafted_runs import assert_refused, copied, edit_run, in_process, put, sets, sparse
from helpers.user_data import read, write_arrays, write_classes, write_image, write_masks, write_texts

from mdlstm_tk import InputError
from mdlstm_tk.data import Kind
from mdlstm_tk.export import export_run, verify_model
from mdlstm_tk.export.browser.examples import page_examples
from mdlstm_tk.export.tensor_spec import read_metadata
from mdlstm_tk.report import render_report
from mdlstm_tk.training import Run, default_config, load_checkpoint, new_job, train
from mdlstm_tk.training.tasks import load_task
from mdlstm_tk.viz.run_pictures import draw_run

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="links and pipes are those of POSIX")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A folder outside the data with one image."""
    write_image(tmp_path / "secret/secret.png", np.full((6, 9), 77))
    return tmp_path / "secret"


def names(path: Path, kind: Kind) -> set[str]:
    task = read(path, kind)
    return {sample.name for split in task.sets.values() for sample in split.samples}  # type: ignore[attr-defined]


def test_links_that_lead_out_are_left_out_and_counted(tmp_path: Path, secret: Path) -> None:
    data = write_classes(tmp_path / "data", {"a": 3, "b": 3})
    before = names(data, "classify")
    (data / "a/link.png").symlink_to(secret / "secret.png")
    (data / "a/inner").symlink_to(secret)
    (data / "c").symlink_to(secret)
    (data / "a/loop.png").symlink_to(data / "a/loop.png")
    assert names(data, "classify") == before
    task = read(data, "classify")
    assert task.spec.classes == ("a", "b")
    note = next(line for line in task.summary if "symbolic link" in line)
    assert "left out 4 symbolic links" in note and "copy the files" in note
    (data / "b/more.png").symlink_to(data / "a/0.png")  # which stays inside
    assert names(data, "classify") == before | {"b/more.png"}
    link = tmp_path / "link"
    link.symlink_to(data)  # the user may name the data by a link
    assert names(link, "classify") == before | {"b/more.png"}


def test_nothing_but_links_that_lead_out(tmp_path: Path, secret: Path) -> None:
    data = tmp_path / "data"
    for name in ("a", "b"):
        (data / name).mkdir(parents=True)
        (data / name / "link.png").symlink_to(secret / "secret.png")
    with pytest.raises(InputError, match="left out 2 symbolic links"):
        read(data, "classify")


@pytest.mark.parametrize("name", ["train", "images", "masks", "classes.txt"])
def test_a_part_of_the_layout_that_leads_out_is_refused(name: str, tmp_path: Path) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    root = data / "train" if name == "train" else data
    write_masks(root)
    (data / "classes.txt").write_text("zero\none\n")
    shutil.move(data / name, elsewhere)
    (data / name).symlink_to(elsewhere)
    with pytest.raises(InputError, match=rf"{name} is a link that leads out"):
        read(data, "segment")


@pytest.mark.parametrize(
    "name",
    ["../secret/secret.png", "/etc/passwd", r"..\secret\secret.png", r"C:\secret.png", "C:secret.png"],
)
def test_labels_name_no_files_outside(name: str, tmp_path: Path, secret: Path) -> None:
    data = write_texts(tmp_path / "data")
    with (data / "labels.tsv").open("a", encoding="utf-8") as file:
        file.write(f"{name}\tabc\n")
    with pytest.raises(InputError, match=r"labels\.tsv, line 9 names .*not below"):
        read(data, "transcribe")


def test_labels_name_links_that_lead_out(tmp_path: Path, secret: Path) -> None:
    data = write_texts(tmp_path / "data")
    (data / "link.png").symlink_to(secret / "secret.png")
    (data / "folder").symlink_to(secret)
    with (data / "labels.tsv").open("a", encoding="utf-8") as file:
        file.write("link.png\tabc\nfolder/secret.png\tabc\n")
    task = read(data, "transcribe")
    assert sum(map(len, task.sets.values())) == 8
    assert any("left out 3 symbolic links" in line for line in task.summary)  # with the folder itself
    (data / "labels.tsv").rename(secret / "labels.tsv")
    (data / "labels.tsv").symlink_to(secret / "labels.tsv")
    with pytest.raises(InputError, match="leads out"):
        read(data, "transcribe")


def test_pipes_devices_and_huge_files_do_not_block(tmp_path: Path) -> None:
    data = write_texts(tmp_path / "data")
    os.mkfifo(data / "pipe.png")
    put(data / "huge.png", sparse(2**40))
    (data / "folder.png").mkdir()
    with (data / "labels.tsv").open("a", encoding="utf-8") as file:
        file.write("pipe.png\tabc\nhuge.png\tabc\nfolder.png\tabc\nzero\0byte.png\tabc\n")
    task = read(data, "transcribe")
    assert len(task.skipped) == 3 and sum(map(len, task.sets.values())) == 8
    for content in (lambda path: os.mkfifo(path), sparse(2**40), lambda path: path.mkdir()):
        put(data / "labels.tsv", content)
        with pytest.raises(InputError, match=r"labels\.tsv"):
            read(data, "transcribe")
        (data / "labels.tsv").rmdir() if (data / "labels.tsv").is_dir() else (data / "labels.tsv").unlink()
    masks = write_masks(tmp_path / "masks")
    put(masks / "masks/0.png", sparse(2**40))
    assert len(read(masks, "segment").skipped) == 1


def test_a_thousand_nested_folders(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", {"a": 3, "b": 3})
    descriptor = os.open(data / "a", os.O_RDONLY)
    for _ in range(1000):
        os.mkdir("d", dir_fd=descriptor)
        inner = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    assert len(names(data, "classify")) == 6
    os.system(f"rm -rf '{data}'")  # which shutil cannot do in every version of Python


def test_names_that_are_no_unicode_are_refused_before_training(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", {"a": 3, "b": 3})
    try:
        (data / "b").rename(data / os.fsdecode(b"\xff"))
    except OSError:
        pytest.skip("this file system has Unicode names only")
    with pytest.raises(InputError, match="classes"):
        read(data, "classify")


def test_a_class_whose_name_is_a_formula(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", {r"$\frac$": 4, "b": 4})
    config = default_config("classify", str(data)).updated(
        {"steps": 1, "hidden": 2, "device": "cpu", "batch_size": 2}, "here"
    )
    job = new_job(config, tmp_path / "run")
    train(job)
    draw_run(job.run, job.task)
    assert job.run.prediction.exists()


@pytest.fixture(scope="module")
def trained_on_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on user data, `data.npz` beside it, with an export."""
    folder = tmp_path_factory.mktemp("data")
    data = write_arrays(folder / "data.npz", "classify")
    config = default_config("classify", str(data)).updated(
        {"steps": 2, "hidden": 2, "batch_size": 2, "device": "cpu"}, "here"
    )
    train(new_job(config, folder / "run"))
    export_run(folder / "run", form="scan")
    return folder


@pytest.fixture
def run(trained_on_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that run, whose data end the test if they are opened."""
    run = copied(trained_on_data / "run", tmp_path / "run")
    edit_run(run, sets("config", "data", value=str(tmp_path / "private.npz")))
    edit_run(run, sets("config", "data_from_run", value="../private.npz"))
    (run / "config.toml").write_text(f'data = "{tmp_path / "private.npz"}"\n')
    shutil.copy(trained_on_data / "data.npz", tmp_path / "private.npz")
    monkeypatch.chdir(tmp_path)
    return run


def _refuse(path: Path, *_: object, **__: object) -> None:
    pytest.fail(f"{path} was opened")


def test_data_that_a_run_names_are_not_opened_unasked(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mdlstm_tk.data.user_data.read_data", _refuse)
    (tmp_path / "private.npz").unlink()
    os.mkfifo(tmp_path / "private.npz")  # which would block whoever opened it otherwise
    for arguments in (("info", "run"), ("export", "run", "--force"), ("verify", "run")):
        result = in_process(capfd, *arguments)
        assert result.code == 0, result.err
    report = in_process(capfd, "report", "run", "--json")
    assert report.code == 0, report.err
    assert "private.npz" in report.err and "--data PATH" in report.err
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "--data PATH" in page and "data:image/png" not in page
    assert json.loads(report.out)["path"].endswith("report.html")


def test_library_calls_do_not_open_the_data_of_a_run_unasked(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mdlstm_tk.data.user_data.read_data", _refuse)
    model = export_run(run, "m.onnx").path
    assert verify_model(model, run).failed == []
    render_report(Run(run))
    messages: list[str] = []
    metadata = read_metadata(model.read_bytes(), "m.onnx")
    assert page_examples(Run(run), metadata, on_message=messages.append) == []
    assert len(messages) == 1 and "--data PATH" in messages[0]
    with pytest.raises(InputError, match="--data PATH"):
        draw_run(Run(run))


def test_data_that_the_user_names_are_shown(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report = in_process(capfd, "report", "run", "--data", "private.npz")
    assert report.code == 0 and "no examples" not in report.err
    assert "data:image/png" in (run / "report.html").read_text(encoding="utf-8")
    metadata = read_metadata(next(run.glob("*.onnx")).read_bytes(), "model")
    assert page_examples(Run(run), metadata, "private.npz")
    assert_refused(in_process(capfd, "export", "run", "--data", "private.npz", "--force"), "--web")
    shutil.copytree(run, tmp_path / "built-in")
    edit_run(tmp_path / "built-in", sets("config", "data", value=""))
    other = in_process(capfd, "report", "built-in", "--data", "private.npz")
    assert other.code == 2 or "leave out --data" in other.err


def test_a_task_is_loaded_from_where_the_caller_says(run: Path) -> None:
    checkpoint = load_checkpoint(run / "last.safetensors")
    with pytest.raises(InputError, match=r"private\.npz.*--data PATH"):
        load_task(checkpoint.config, checkpoint.spec)
    assert load_task(checkpoint.config, checkpoint.spec, "private.npz").spec.name == "private"
