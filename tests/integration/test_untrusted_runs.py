"""Run folders and configurations from strangers: every verb ends with a result or one line, and soon."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.crafted_runs import (
    CHECKPOINTS,
    Metadata,
    Tensors,
    assert_refused,
    copied,
    edit_checkpoint,
    edit_run,
    in_process,
    put,
    sets,
    sparse,
)
from helpers.training import run_in

from mdlstm_tk import InputError
from mdlstm_tk.export import export_run
from mdlstm_tk.training import Run, TrainConfig, describe_run, load_checkpoint
from mdlstm_tk.training.progress import TrainingTimes

posix = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run with an export."""
    config = TrainConfig(size="4", hidden=2, steps=3, evaluate_every=2, batch_size=2)
    run = run_in(tmp_path_factory.mktemp("good") / "run", config)
    export_run(run.folder)
    return run.folder


@pytest.fixture
def run(good: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return copied(good, tmp_path / "run")


def verbs(run: Path) -> dict[str, tuple[object, ...]]:
    """Every call that reads a run."""
    return {
        "info": ("info", run),
        "report": ("report", run),
        "export": ("export", run, "--force"),
        "verify": ("verify", run),
        "verify a file": ("verify", run / "model-4x4.onnx"),
        "resume": ("train", "--resume", run, "--steps", 4),
    }


def huge_grid(metadata: Metadata) -> None:
    metadata["config"]["size"] = "16384x16384"
    metadata["spec"]["size"] = [16384, 16384]


def too_few_classes(metadata: Metadata) -> None:
    metadata["config"]["task"] = "digits"
    metadata["spec"].update(kind="classify", classes=["a", "b"], outputs=3)


def deep(metadata: Metadata) -> str:
    return json.dumps(metadata)[:-1] + ', "x": ' + "[" * 10**5 + "]" * 10**5 + "}"


METADATA: dict[str, tuple[Callable[[Metadata], object], str]] = {
    "a million layers": (sets("config", "layers", value=10**6), "layers"),
    "a thousand layers": (sets("config", "layers", value=1000), "do not fit"),
    "many units": (sets("config", "hidden", value=30_000), "do not fit"),
    "too many units for any machine": (sets("config", "hidden", value=10**6), "do not fit"),
    "many levels": (sets("config", "windows", value="1x1," * 10**5 + "1x1"), "windows"),
    "a long number": (sets("config", "size", value="9" * 5000), "size"),
    "a size that no machine holds": (sets("spec", "size", value=[10**5, 10**5]), "size"),
    "another size": (sets("config", "size", value="5"), "size"),
    "an unknown setting": (sets("config", "colour", value=1), "colour"),
    "a setting that is a list": (sets("config", "task", value=[[]]), "task"),
    "a surrogate in a setting": (sets("config", "data", value="\ud800"), "data"),
    "a zero byte in a setting": (sets("config", "data", value="a\0b"), "data"),
    "a kind that is a list": (sets("spec", "kind", value=["grid"]), "kind"),
    "a kind that is a dict": (sets("spec", "kind", value={"grid": 1}), "kind"),
    "too few classes": (too_few_classes, "classes"),
    "a surrogate in a name": (sets("spec", "name", value="\udcff"), "name"),
    "classes without outputs": (sets("spec", "classes", value=["a"]), "classes"),
    "channels": (sets("spec", "channels", value=10**400), "channels"),
    "outputs": (sets("spec", "outputs", value=-1), "outputs"),
    "a size that is a text": (sets("spec", "size", value="4x4"), "size"),
    "a mean that is not a number": (sets("spec", "mean", value=[math.nan]), "mean"),
    "a deviation of 0": (lambda m: m["spec"].update(mean=[0], std=[0]), "std"),
    "a rate of 2": (sets("spec", "base_rate", value=2), "base_rate"),
    "mask values": (sets("spec", "mask_values", value=[0, 0]), "mask_values"),
    "a palette": (sets("spec", "mask_palette", value=[1, 2, 3]), "mask_palette"),
    "preprocessing": (sets("spec", "preprocessing", value=[3]), "task"),
    "preprocessing to another size": (
        sets("spec", "preprocessing", value={"channels": 1, "resize": [1, 2, 3]}),
        "task",
    ),
    "an unknown field": (sets("spec", "colour", value=1), "colour"),
    "a spec that is a list": (sets("spec", value=[]), "damaged|task"),
    "a negative step": (sets("step", value=-1), "step"),
    "a step that is not a number": (sets("step", value=math.nan), "step"),
    "a step that is true": (sets("step", value=True), "step"),
    "a best step after the last": (sets("best_step", value=10**9), "best_step"),
    "a score that is not a number": (sets("score", value=math.nan), "score"),
    "a score that is a text": (sets("score", value="0"), "score"),
    "another schema": (sets("schema", value={}), "schema"),
    "deep nesting": (deep, "damaged"),
    "a number": (lambda m: "3", "damaged"),
    "no JSON": (lambda m: "{", "damaged"),
}


@pytest.mark.parametrize("case", METADATA)
def test_metadata_of_a_checkpoint(case: str, run: Path) -> None:
    change, named = METADATA[case]
    edit_run(run, change)
    with pytest.raises(InputError, match=named) as error:
        load_checkpoint(run / "best.safetensors").network()
    assert len(str(error.value)) < 600 and "\n" not in str(error.value)


def test_every_verb_refuses_damaged_metadata(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    edit_run(run, METADATA["a kind that is a list"][0])
    for call in verbs(run).values():
        assert_refused(in_process(capfd, *call), ".safetensors")
    assert sorted(path.name for path in run.iterdir() if path.suffix == ".png") == []


def test_a_grid_that_takes_hours(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    edit_run(run, huge_grid)
    for name in ("info", "verify"):
        assert in_process(capfd, *verbs(run)[name]).code == 0
    report = in_process(capfd, "report", run)
    assert report.code == 0 and "no examples: --size 16384x16384" in report.err
    assert_refused(in_process(capfd, *verbs(run)["export"]), "--size")
    assert_refused(in_process(capfd, *verbs(run)["resume"]), "16384x16384")


def without(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(name)


def adds(name: str, tensor: torch.Tensor) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: tensor})


WEIGHTS: dict[str, Callable[[Tensors], object]] = {
    "none": lambda tensors: tensors.clear(),
    "one is missing": without("model.head.bias"),
    "one too many": adds("model.more", torch.zeros(1)),
    "another shape": adds("model.head.bias", torch.zeros(3, 3)),
    "another type": adds("model.head.bias", torch.zeros(1, dtype=torch.complex64)),
    "an average that is none": adds("average.n_averaged", torch.zeros(())),
}
OPTIMIZER: dict[str, Callable[[Tensors], object]] = {
    "a parameter that is not there": adds("optimizer.999.x", torch.zeros(2)),
    "no number": adds("optimizer.x", torch.zeros(2)),
    "a negative number": adds("optimizer.-1.step", torch.zeros(())),
    "a long number": adds(f"optimizer.{'9' * 5000}.step", torch.zeros(())),
    "another shape": adds("optimizer.0.exp_avg", torch.zeros(2)),
    "an unknown state": adds("optimizer.0.more", torch.zeros(())),
    "a step that is not a number": adds("optimizer.0.step", torch.tensor(math.nan)),
    "a negative step": adds("optimizer.0.step", torch.tensor(-1.0)),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_of_another_network(case: str, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    edit_run(run, change_tensors=WEIGHTS[case])
    for call in verbs(run).values():
        assert_refused(in_process(capfd, *call), ".safetensors")


@pytest.mark.parametrize("case", OPTIMIZER)
def test_states_of_no_optimizer(case: str, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    edit_run(run, change_tensors=OPTIMIZER[case])
    before = sorted((path.name, path.read_bytes()) for path in run.iterdir())
    assert_refused(in_process(capfd, *verbs(run)["resume"]), "optimizer.")
    assert sorted((path.name, path.read_bytes()) for path in run.iterdir()) == before


def test_weights_that_are_not_numbers(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def spoil(tensors: Tensors) -> None:
        tensors.update(
            {name: torch.full_like(t, math.nan) for name, t in tensors.items() if "model" in name}
        )

    edit_run(run, change_tensors=spoil)
    codes = {name: in_process(capfd, *call).code for name, call in verbs(run).items()}
    assert codes["info"] == codes["report"] == 0
    assert codes["resume"] == 1, "training diverged"
    assert codes["export"] in (1, 3) and codes["verify"] == 3


HEADER = struct.Struct("<Q")
FILES: dict[str, bytes | str | Callable[[Path], object]] = {
    "nothing": b"",
    "random bytes": bytes(range(256)) * 9,
    "a header of a terabyte": HEADER.pack(2**40),
    "a header that is no JSON": HEADER.pack(10) + b'{"a": [[[[',
    "a header that is too long": sparse(2**26, HEADER.pack(2**25)),
    "a terabyte of nothing": sparse(2**40, HEADER.pack(2) + b"{}"),
    "a folder": lambda path: path.mkdir(),
    "a named pipe": lambda path: os.mkfifo(path),
    "a link to itself": lambda path: path.symlink_to(path),
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


@posix
@pytest.mark.parametrize("case", FILES)
def test_something_else_in_place_of_a_checkpoint(
    case: str, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in CHECKPOINTS:
        put(run / name, FILES[case])
    for name, call in verbs(run).items():
        result = in_process(capfd, *call)
        if name.startswith("verify") and case == "a link to itself":  # then there is no run
            assert result.code == 0, result.err
        else:
            assert_refused(result, str(run))


@posix
@pytest.mark.parametrize("case", ["a folder", "a named pipe", "random bytes", "a device"])
def test_something_else_in_place_of_the_other_files(
    case: str, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.toml", "result.json", "times.json", "model-other.onnx"):
        put(run / name, FILES[case])
    assert in_process(capfd, "info", run).code == 0
    assert in_process(capfd, "report", run).code == 0
    resumed = in_process(capfd, "train", "--resume", run, "--steps", 4)
    assert resumed.code == (1 if case == "a folder" else 0)
    assert sum(line.startswith("error: ") for line in resumed.err.splitlines()) == (case == "a folder")


RECORD = {"step": 1, "loss": 0.5, "relevant": 0.5, "lr": 0.1}


def records(*changes: dict[str, Any]) -> str:
    return "".join(json.dumps({**RECORD, "step": k, **c}) + "\n" for k, c in enumerate(changes, 1))


METRICS: dict[str, bytes | str | Callable[[Path], object]] = {
    "a list": "[]\n",
    "a number": "3\n",
    "another object": '{"a": 1}\n',
    "a loss that is a text": records({"loss": "0"}),
    "a loss that is a list": records({"loss": []}),
    "a loss that is true": records({"loss": True}),
    "a loss of 401 digits": '{"step": 1, "lr": 1, "loss": 1' + "0" * 400 + "}\n",
    "a loss of 5000 digits": '{"step": 1, "lr": 1, "loss": 1' + "0" * 4999 + "}\n",
    "a loss that is too large": records({"loss": 1e300}),
    "other names": records({}, {"other": 1}),
    "a name that is a formula": records({r"$\frac$": 1}),
    "many names": records({f"a{k}": k for k in range(100)}),
    "a negative step": records({"step": -1}),
    "a step that is a text": records({"step": "1"}),
    "steps out of order": records({"step": 2}, {"step": 1}),
    "a validation that is a list": records({"validation": [1]}),
    "a validation of texts": records({"validation": {"relevant": "x"}}),
    "deep nesting": "[" * 10_000 + "\n",
    "no UTF-8": b"\xff\xfe\n",
    "a line that is incomplete": '{"step": 1,\n' + records({}),
    "a gigabyte in one line": sparse(2**30),
    "a gigabyte after a record": sparse(2**30, records({}).encode()),
    "a folder": lambda path: path.mkdir(),
    "a named pipe": lambda path: os.mkfifo(path),
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


@posix
@pytest.mark.parametrize("case", METRICS)
def test_metrics(case: str, run: Path) -> None:
    put(run / "metrics.jsonl", METRICS[case])
    with pytest.raises(InputError, match=r"metrics\.jsonl") as error:
        Run(run).read_metrics()
    assert len(str(error.value)) < 900


@pytest.mark.parametrize(
    "changes",
    [
        ({"loss": math.nan}, {}),
        ({}, {"loss": math.inf}, {"loss": -math.inf}),
        ({"loss": 1e99}, {"loss": 1e-300}),
        ({"loss": -1e99}, {"validation": {"relevant": math.nan}}),
        ({"validation": {"other": 1}},),
    ],
)
def test_metrics_that_are_odd_but_numbers(
    changes: tuple[dict[str, Any], ...], run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    put(run / "metrics.jsonl", records(*changes))
    described = in_process(capfd, "info", run, "--json")
    assert described.code == 0

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    json.loads(described.out, parse_constant=refuse)
    assert in_process(capfd, "report", run).code == 0


def test_an_incomplete_last_record_is_left_out(run: Path) -> None:
    with Run(run).metrics.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [record["step"] for record in Run(run).read_metrics()] == [1, 2, 3]


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "[" * 10**5,
        '{"errors": {"$a": 1}, "step": 2, "split": "test"}',
        '{"errors": {"a": "x"}, "step": 2, "split": "test"}',
        '{"errors": {"a": 1}, "step": 2, "split": "$x$"}',
        '{"errors": {"a": 1}, "step": [], "split": "test"}',
        '{"errors": {"a": NaN}, "step": 2, "split": "test"}',
        '{"steps": 1e400, "training": NaN, "validation": -1, "compilation": "x"}',
        '{"steps": 1, "training": 1, "validation": 1, "compilation": 1, "more": 1}',
        '{"steps": 1.5, "training": 1, "validation": 1, "compilation": 1}',
    ],
)
def test_results_and_times(content: str, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("result.json", "times.json"):
        put(run / name, content)
    assert Run(run).read_times() == TrainingTimes()
    assert in_process(capfd, "info", run).code == 0
    assert in_process(capfd, "report", run).code == 0


def test_a_run_on_one_task_that_says_it_was_on_another(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    edit_run(run, sets("spec", "base_rate", value=None))  # which the task has, but no network needs
    assert describe_run(run)["task"] == "diagonal"
    edit_run(run, sets("config", "task", value="gaussian-field"))
    report = in_process(capfd, "report", run)
    assert report.code == 0, report.err
    edit_run(run, sets("config", "task", value="digits"))
    assert "no examples: the task digits is not what" in in_process(capfd, "report", run).err
    assert_refused(in_process(capfd, "train", "--resume", run, "--steps", 4), "digits")


def test_errors_name_the_file(run: Path) -> None:
    edit_checkpoint(run / "best.safetensors", sets("config", "lr", value=-1))
    with pytest.raises(InputError, match=r"best\.safetensors: lr must be above 0"):
        load_checkpoint(run / "best.safetensors")
