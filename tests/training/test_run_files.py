"""The files of a run: what is damaged ends in one line that names the file, and nothing is executed."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from helpers.command import mdlstm
from helpers.refusal import refused
from helpers.training import SMALL, quick, run_in
from helpers.user_data import write_arrays, write_classes

from mdlstm_tk.data import DiagonalTask
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.report import write_report
from mdlstm_tk.text.ctc import Transcription
from mdlstm_tk.text.decoding import read_run
from mdlstm_tk.text.reading import Line, describe_lines
from mdlstm_tk.text.report import report_values
from mdlstm_tk.training import (
    Run,
    describe_run,
    evaluate,
    latest_run,
    load_checkpoint,
    new_job,
    new_run,
    open_run,
    resume_job,
    train,
)
from mdlstm_tk.training.checkpoint import METADATA_KEY
from mdlstm_tk.training.job import run_name


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_in(tmp_path_factory.mktemp("good") / "run", SMALL).folder


@pytest.fixture
def run(good: Path, tmp_path: Path) -> Run:
    """A copy of a run of SMALL."""
    return Run(Path(shutil.copytree(good, tmp_path / "run")))


def edit(path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], object]) -> None:
    """Change metadata and tensors of a checkpoint."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()[METADATA_KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(metadata, tensors)
    path.write_bytes(safetensors.torch.save(tensors, metadata={METADATA_KEY: json.dumps(metadata)}))


DEEP = "[" * 100_000
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "half": (lambda path: path.write_bytes(path.read_bytes()[:500]), "damaged"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "damaged"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "no checkpoint"),
    "another file": (lambda path: path.write_bytes(safetensors.torch.save({})), "damaged"),
    "another schema": (lambda path: edit(path, lambda m, t: m.update(schema=1)), "schema 1"),
    "no step": (lambda path: edit(path, lambda m, t: m["state"].pop("step")), "damaged"),
    "a list": (lambda path: edit(path, lambda m, t: m.update(config=[])), "damaged"),
    "a bad setting": (lambda path: edit(path, lambda m, t: m["config"].update(lr=-1)), "lr must be"),
    "another kind": (lambda path: edit(path, lambda m, t: m["spec"].update(kind="x")), "kind"),
    "a step without end": (
        lambda path: edit(path, lambda m, t: m["state"].update(step=math.inf)),
        "damaged",
    ),
    "deep": (lambda path: path.write_bytes(safetensors.torch.save({}, {METADATA_KEY: DEEP})), "damaged"),
    "a weight less": (lambda path: edit(path, lambda m, t: t.pop("model.head.bias")), "do not fit"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_checkpoint_is_one_line(case: str, run: Run) -> None:
    change, message = DAMAGE[case]
    change(run.last)
    refused(message, lambda: load_checkpoint(run.last).network())
    done = mdlstm("train", "--resume", run.folder, "--steps", 13)
    assert done.code == 2
    assert done.err.count("error: ") == 1 and done.err.splitlines()[-1].startswith("error: ")


def test_a_checkpoint_without_the_last_validation_is_validated_again(run: Run) -> None:
    def forget(metadata: dict[str, Any], tensors: object) -> None:
        del metadata["state"]["validated"], metadata["state"]["validated_on"]

    result = run.read_result()
    run.result.unlink()
    for path in (run.last, run.best):
        edit(path, forget)
    resumed = train(resume_job(run.folder))
    assert resumed["errors"] == result["errors"] and resumed["step"] == result["step"]


@pytest.mark.parametrize("name", ["metrics.jsonl", "times.json", "samples.json"])
@pytest.mark.parametrize("content", [b"{\n", b"\xff\xfe\n", b"[]\n", b'{"stop": 1}\n'])
def test_other_damaged_files_are_one_line(name: str, content: bytes, run: Run) -> None:
    (run.folder / name).write_bytes(content)
    done = mdlstm("train", "--resume", run.folder, "--steps", 13)
    assert done.code == 2
    assert name in done.err.splitlines()[-1] and "delete" in done.err.splitlines()[-1]


READ = Line("a", "a", "ab", Transcription("ab", 1.0, ()))
WRONG_TYPES = {
    "times.json": ['{"steps": "x"}', '{"training": null}', '{"steps": true}'],
    "samples.json": [
        '{"train": [[["x"], "b"]], "validation": []}',
        '{"train": [[1, "b"]], "validation": []}',
    ],
    "metrics.jsonl": [
        DEEP,
        '{"step": 1, "loss": "x"}',
        '{"step": 1, "validation": 3}',
        '{"step": true}',
        "3",
    ],
    "decoding.json": ['{"temperature": 0}', '{"lm_weight": NaN}', '{"temperature": "x"}'],
    "result.json": [
        *('{"errors": 3}', '{"errors": {"error": "x"}}', DEEP),
        *(
            json.dumps({**describe_lines([READ]), **change})
            for change in (
                {"intervals": 3},
                {"intervals": {"word_error": ["a", 1]}},
                {"confusions": [["a", "b", "c"]]},
                {"pages": {"a": 1}},
                {"reliability": [[1, 2]]},
                {"calibration_error": None},
                {"edits": None},
            )
        ),
    ],
}


@pytest.mark.parametrize(
    ("name", "text"),
    [(name, text) for name in WRONG_TYPES for text in WRONG_TYPES[name]],
    ids=lambda text: text[:40],
)
def test_values_of_another_type_are_one_line(name: str, text: str, run: Run) -> None:
    (run.folder / name).write_text(f"{text}\n")
    read = {"times": run.read_times, "samples": run.read_samples, "metrics": run.read_metrics}
    read["decoding"] = partial(read_run, run)
    report = lambda: report_values(None, run.read_result(), "")  # noqa: E731
    refused(rf"{name} holds .*delete", read.get(name.partition(".")[0], report))


def test_an_error_that_is_no_number_is_null_in_files(run: Run, tmp_path: Path) -> None:
    records = [{"step": 1, "loss": 0.5, "validation": {"error": math.nan}}]
    run.write_metrics(records)
    run.write_result({"errors": {"error": math.nan}})
    for path in (run.metrics, run.result):
        json.loads(path.read_text(), parse_constant=pytest.fail)
    assert math.isnan(run.read_metrics()[0]["validation"]["error"])
    assert math.isnan(run.read_result()["errors"]["error"])
    masks = np.full((6, 4, 4), -1)
    for split, y in (("train", np.arange(96).reshape(6, 4, 4) % 2), ("test", masks), ("val", masks)):
        path = tmp_path / "data" / f"{split}.npz"
        path.parent.mkdir(exist_ok=True)
        write_arrays(path, "segment", x=np.ones((6, 4, 4), np.float32), y=y)
    with pytest.warns(UserWarning, match="no validation gave a number"):
        unknown = run_in(tmp_path / "unknown", quick(tmp_path / "data", "segment"))
    text = unknown.metrics.read_text() + unknown.result.read_text()
    assert "NaN" not in text and "null" in text
    write_report(unknown)


def test_weights_keep_the_names_of_earlier_versions(run: Run) -> None:
    """Weights of version 0.6 load: they are the state dict of the network after "model."."""
    tensors = load_checkpoint(run.last).tensors
    layer = [f"model.body.{name}_l{k}" for k in range(2) for name in ("weight_ih", "weight_hh", "bias")]
    assert {name for name in tensors if name.startswith("model.")} == {
        *layer,
        *("model.head.weight", "model.head.bias"),
    }
    assert {name.partition(".")[0] for name in tensors} == {"model", "optimizer"}


def test_folders_of_runs(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (Path("gone"), tmp_path):
        with pytest.raises(InputError, match="mdlstm train"):
            open_run(folder)
    refused("mdlstm train", lambda: latest_run())
    assert new_run("a", None, False).folder == Path("runs/a")
    assert new_run("a", None, False).folder == Path("runs/a-2")
    with monkeypatch.context() as patch:  # another training takes the name at the same moment
        patch.setattr(Path, "exists", lambda path: False)
        assert new_run("a", None, False).folder == Path("runs/a-3")
    shutil.copytree(run.folder, "runs/a", dirs_exist_ok=True)
    assert latest_run().folder == Path("runs/a")
    for folder in (Path("runs/a"), Path("runs/a/config.toml")):
        with pytest.raises(InputError, match="give another"):
            new_run("a", folder, False)
    assert new_run("a", Path("runs/a"), True).folder == Path("runs/a")


def test_a_broken_link_in_place_of_runs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").symlink_to("gone")
    with pytest.raises(MDLSTMError, match="runs"):
        new_run("a", None, False)


def test_folders_may_be_texts_and_nothing_else(run: Run) -> None:
    assert open_run(str(run.folder)) == Run(str(run.folder)) == run  # type: ignore[arg-type]
    assert describe_run(str(run.folder)) == describe_run(run.folder)
    assert load_checkpoint(str(run.last)).step == load_checkpoint(run.last).step
    job = resume_job(str(run.folder), {"steps": 99})
    assert job.config.steps == 99 and job.run == run
    for call in (Run, open_run, load_checkpoint, resume_job, lambda folder: new_job(job.config, folder)):
        with pytest.raises(InputError, match="must be a path"):
            call(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="split must be one of train, validation, test, got 'dev'"):
        evaluate(job.network, job.task, "dev", job.config)  # type: ignore[arg-type]


def test_a_run_is_described(run: Run) -> None:
    described = describe_run(run.folder)
    assert (described["kind"], described["steps_done"], described["best_step"]) == ("run", 12, 12)
    assert (described["cell"], described["directions"]) == ("graves", 1)
    records = run.read_metrics()
    assert described["last_100_loss"] == pytest.approx(sum(r["loss"] for r in records) / 12)


def test_the_best_score_is_the_measure_that_chose_the_weights(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", {"stop": 8, "yield": 8})
    run = run_in(tmp_path / "run", quick(data, "classify", best_by="f1_macro"))
    best = [record["validation"]["f1_macro"] for record in run.read_metrics() if "validation" in record]
    assert describe_run(run.folder)["best_score"] == pytest.approx(max(best)) and max(best) > 0


def test_a_name_with_a_slash_makes_one_folder() -> None:
    """`latest_run` looks into no others."""
    assert run_name(replace(SMALL, model="me/net"), DiagonalTask((3, 4))) == "me-net-3x4"
