"""Tasks and networks of the user's own: other measures, splits, and ways to be built."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training import SMALL, run_in
from helpers.user_data import write_arrays

from mdlstm_tk.data import DatasetTask, DiagonalTask, TaskSpec
from mdlstm_tk.errors import InputError
from mdlstm_tk.models import register
from mdlstm_tk.report import draw_run, write_report
from mdlstm_tk.training import (
    TrainConfig,
    load_checkpoint,
    make_task,
    new_job,
    plan_comparison,
    register_task,
    resume_job,
    train,
)
from mdlstm_tk.training.comparison import configure_comparison
from mdlstm_tk.training.networks import build_network
from mdlstm_tk.training.progress import OWN_KEYS

KINDS = {"classify": 1, "segment": np.ones((4, 5), int), "regress": [0.5, 0.1], "tag": [1, 0]}
OWN = replace(SMALL, task="own", steps=2, evaluate_every=1, hidden=2, layers=1)


def own_task(kind: str, held_out: int, measured: Any, **attributes: Any) -> DatasetTask:
    """Register a task of some kind, whose samples are measured so."""
    rng, target = np.random.default_rng(0), np.asarray(KINDS[kind])
    samples = [(rng.random((4, 5, 1), dtype=np.float32), target) for _ in range(8)]
    numbers = {"target_mean": (0.5, 0.1), "target_std": (1.0, 1.0)} if kind == "regress" else {}
    spec = TaskSpec("own", kind, 1, 2, (4, 5), ("no", "yes"), **numbers)

    class Own(DatasetTask):
        def measure(self, prediction: Any, batch: Any) -> Any:
            return measured

    task = (DatasetTask if measured is None else Own)(
        spec, {"train": samples, "validation": samples[:held_out], "test": []}
    )
    for name, value in attributes.items():
        setattr(task, name, value)
    register_task("own", kind=kind)(lambda config: task)
    return task


@pytest.mark.usefixtures("fresh_registries")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("held_out", "measured"),
    [(4, {"mishaps": (1.0, 2)}), (4, {}), (0, None)],
    ids=["own", "none", "no samples"],
)
def test_a_report_needs_neither_measures_nor_samples(
    kind: str, held_out: int, measured: Any, tmp_path: Path
) -> None:
    task = own_task(kind, held_out, measured)
    run = run_in(tmp_path, OWN, task)
    draw_run(run, task)
    page = write_report(run).read_text(encoding="utf-8")
    assert ("mishaps" in page) == bool(measured)


@pytest.mark.usefixtures("fresh_registries")
@pytest.mark.parametrize("name", OWN_KEYS)
def test_a_measure_with_a_name_of_the_record_is_refused(name: str, tmp_path: Path) -> None:
    task = own_task("classify", 4, {name: (1.0, 2)})
    with pytest.raises(InputError, match=f"the task 'own' measures '{name}', which .*give it another name"):
        run_in(tmp_path, OWN, task)


@pytest.mark.usefixtures("fresh_registries")
def test_identities_and_names_may_be_those_of_some_splits(tmp_path: Path) -> None:
    from mdlstm_tk.data.spec import SampleId

    identities = {"train": [SampleId(str(k), f"s{k}") for k in range(8)]}
    task = own_task("classify", 4, None, identities=identities, names={"train": [*"abcdefgh"]})
    run = run_in(tmp_path, OWN, task)
    train(resume_job(run.folder, {"steps": 3}, task=task))
    assert (task.sample_name("train", 2), task.sample_name("validation", 2)) == ("c", "sample 3")


def inverse_task(kind: str = "grid", **fields: Any) -> DatasetTask:
    """A task that no registered name stands for."""
    rng = np.random.default_rng(0)
    targets = {"grid": lambda x: 1 - x, "classify": lambda x: int(x.mean() > 0.5)}
    samples = [(x, targets[kind](x)) for x in rng.random((8, 4, 5, 1), np.float32)]
    values = {"channels": 1, "outputs": 1 if kind == "grid" else 2, "size": (4, 5), **fields}
    return DatasetTask(TaskSpec("inverse", kind, **values), {"train": samples, "validation": samples})


def test_a_run_of_a_task_that_was_given_is_not_taken_for_one_of_the_configuration(tmp_path: Path) -> None:
    config = replace(OWN, task="diagonal")
    run = run_in(tmp_path, config, inverse_task())
    before = run.last.read_bytes()
    message = r"trained on 'inverse', but the task diagonal is 'diagonal'; .*register the task"
    for call in (draw_run, lambda run: resume_job(run.folder, {"steps": 3})):
        with pytest.raises(InputError, match=message):
            call(run)
    notes = list[str]()
    write_report(run, on_message=notes.append)
    assert [re.search(message, note) is not None for note in notes] == [True]
    with pytest.raises(InputError, match="not what the run was trained on: name is diagonal, expected inv"):
        draw_run(run, DiagonalTask((4, 5)))
    assert run.last.read_bytes() == before
    train(resume_job(run.folder, {"steps": 3}, task=inverse_task()))
    assert load_checkpoint(run.last).step == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classes": ("cat", "dog")}, "new classes 'cat', 'dog' and no samples of 'bright', 'dark'"),
        ({"classes": ("bright", "dark")}, "the classes have another order"),
        ({"classes": ("dark", "bright", "none"), "outputs": 3}, "new classes 'none'"),
    ],
    ids=["names", "order", "count"],
)
def test_a_run_goes_on_with_its_own_task_only(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    task = inverse_task("classify", classes=("dark", "bright"))
    run = run_in(tmp_path, replace(OWN, task="digits", size="8x8"), task)
    with pytest.raises(InputError, match=f"the task inverse is not what the run was trained on: {message}"):
        resume_job(run.folder, {"steps": 3}, task=inverse_task("classify", **fields))


@pytest.mark.usefixtures("fresh_registries")
@pytest.mark.parametrize(
    ("made", "message"),
    [(lambda config: None, "returned None"), (lambda config: inverse_task(), "returned one of kind grid")],
    ids=["nothing", "another kind"],
)
def test_a_registered_function_returns_a_task_of_its_kind(made: Any, message: str) -> None:
    register_task("own", kind="classify")(made)
    with pytest.raises(InputError, match=f"'own' {message}, expected a task of kind classify"):
        make_task(OWN)


@pytest.mark.parametrize("mean", [(), (0.5,)])
@pytest.mark.parametrize("kind", ["grid", "regress"])
def test_targets_are_scaled_whether_inputs_are_or_not(kind: str, mean: tuple[float, ...]) -> None:
    classes = () if kind == "grid" else ("weight",)
    spec = TaskSpec("own", kind, 1, 1, (4, 5), classes, mean, mean, (1000.0,), (0.5,))
    y = build_network(OWN, spec)(torch.rand(2, 4, 5, 1))
    assert (y - 1000).abs().max() < 5


def test_numbers_need_no_deviation(tmp_path: Path) -> None:
    """Without `target_std` they are taken as they are."""
    rng = np.random.default_rng(0)
    samples = [(x, x.mean((0, 1)).repeat(2)) for x in rng.random((8, 4, 5, 1), np.float32)]
    spec = TaskSpec("own", "regress", 1, 2, (4, 5), ("a", "b"))
    task = DatasetTask(spec, {"train": samples, "validation": samples})
    run = run_in(tmp_path, replace(OWN, task="digits", size="8x8"), task)
    batch = task.batch(0, 0, 8, "validation")
    prediction = load_checkpoint(run.best).network().eval()(torch.from_numpy(batch.x))
    error = run.read_metrics()[-1]["validation"]["nmse"]
    assert error == pytest.approx((prediction - torch.from_numpy(batch.y)).square().mean().item(), rel=1e-4)


class OwnNetwork(torch.nn.Module):
    def __init__(self, channels: int, outputs: int, mode: str) -> None:
        super().__init__()
        self.scale = float(torch.ones(()) * 2) if mode == "value" else 1.0
        if mode == "two" and outputs != 2:
            raise ValueError("only two classes")
        self.head = torch.nn.Linear(channels, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.head(x.mean((1, 2)))


@pytest.mark.usefixtures("fresh_registries")
@pytest.mark.parametrize("mode", ["value", "two"])
def test_weights_are_taken_over_without_building_networks_of_other_outputs(
    mode: str, tmp_path: Path
) -> None:
    register("own", kind="classify")(
        lambda channels, outputs, *, hidden: OwnNetwork(channels, outputs, mode)
    )
    x, y = np.random.default_rng(0).random((8, 4, 5)), np.array(["a", "b"] * 4)
    settings = {"task": "classify", "model": "own", "steps": 1, "size": "", "validation": 0.0}
    data = [
        str(write_arrays(tmp_path / f"{k}.npz", "classify", x=x, y=each))
        for k, each in enumerate((y, y + "c"))
    ]
    config = replace(OWN, layers=TrainConfig.layers).updated({**settings, "data": data[0]}, "test")
    old = run_in(tmp_path / "old", config)
    job = new_job(replace(config, init=str(old.folder)), tmp_path / "new")
    weights = load_checkpoint(old.checkpoint).weights()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in job.network.state_dict().items())
    with pytest.raises(
        InputError, match=r"does not tell which of its weights belong to which output: .*run of the same"
    ):
        new_job(replace(config, data=data[1], init=str(old.folder)), tmp_path / "other")


def test_volumes_are_compared_by_the_networks_that_take_them(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((8, 3, 4, 2))
    data = write_arrays(tmp_path / "v.npz", "grid", x=x, y=x, ndim=3)
    config = configure_comparison("grid", {"data": str(data), "steps": 1, "hidden": 2})
    plan = plan_comparison(config, 1, tmp_path / "compare")
    assert "md" in plan.models and not {"horizontal", "snake"} & {*plan.models}
    assert any(
        "left out, as for grids of two axes: " in note and "horizontal" in note for note in plan.notes
    )
