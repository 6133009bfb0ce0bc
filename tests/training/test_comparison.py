"""Comparisons of networks: their runs, their summaries and their tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.user_data import write_arrays

from mdlstm_tk.data import DatasetTask, GaussianField, TaskSpec
from mdlstm_tk.errors import InputError
from mdlstm_tk.models import register
from mdlstm_tk.report import draw_comparison, draw_run
from mdlstm_tk.training import (
    compare_models,
    configure,
    load_checkpoint,
    make_task,
    plan_comparison,
    register_task,
)
from mdlstm_tk.training.comparison import (
    Comparison,
    ComparisonProgress,
    configure_comparison,
    with_equal_parameters,
)
from mdlstm_tk.training.diagonal_comparison import diagonal_rows, summarize_diagonal
from mdlstm_tk.training.distributed import DistributedContext
from mdlstm_tk.training.networks import build_network, count_parameters, fit_config
from mdlstm_tk.training.tasks import default_config

TINY = configure({"size": "4", "hidden": 3, "steps": 20, "batch_size": 2})


@pytest.mark.parametrize("models", [("md", "lines"), ("lines", "md")], ids=" → ".join)
def test_parameters_are_equal_with_the_windows_that_suit_the_data(
    models: tuple[str, str], tmp_path: Path
) -> None:
    """Those of md are larger for wide lines."""
    texts = np.array(["ab", "ba"] * 4)
    data = write_arrays(tmp_path / "a.npz", "transcribe", x=np.zeros((8, 64, 900)), y=texts)
    values = {"task": "transcribe", "data": str(data), "model": models[0], "hidden": 60, "layers": 1}
    task = make_task(config := configure(values))
    counts = []
    for model in models:
        fitted = fit_config(with_equal_parameters(config, model, task), task)
        assert bool(fitted.windows) == (model == "md")
        counts.append(count_parameters(build_network(fitted, task.spec)))
    assert counts[1] == pytest.approx(counts[0], rel=0.1)


def test_a_summary_of_training_losses() -> None:
    solved_at_30, never_solved = [1.0] * 10 + [0.0] * 110, [1.0] * 120
    summary = summarize_diagonal([[2.0] * 120, [4.0] * 120], [solved_at_30, never_solved])
    # 20 steps average below 0.05 for the first time when the last of the ten ones has left the window
    assert summary == {"overall": 3.0, "relevant": 0.5, "relevant_worst": 1.0, "passes_at": [30, None]}
    columns, rows = diagonal_rows({"md": summary})
    assert rows == [["md", "3.0000", "0.50000", "1.00000", "never", "30, never: 1"]]
    assert len(columns) == len(rows[0])


@pytest.mark.parametrize("original_settings", [False, True])
def test_a_comparison_on_the_diagonal(tmp_path: Path, original_settings: bool) -> None:
    plan = plan_comparison(TINY, 2, tmp_path / "compare", original_settings=original_settings)
    states: list[ComparisonProgress] = []
    comparison = compare_models(plan, states.append)
    draw_comparison(comparison)
    assert [state.steps_done for state in states] == list(range(1, plan.total_steps + 1))
    assert {(state.model, state.seed) for state in states} == {
        (model, seed) for model in plan.models for seed in (0, 1)
    }
    assert json.loads((plan.folder / "summary.json").read_text()) == comparison.results
    assert {path.name for path in plan.folder.glob("*.png")} == {"overall.png", "relevant.png"}
    assert [row[0] for row in comparison.table().rows] == list(plan.models)
    curves = comparison.curves("relevant")
    assert all(len(losses) == TINY.steps for seeds in curves.values() for losses in seeds)
    assert all(one != other for one, other in curves.values())  # of the two seeds
    checkpoints = {model: load_checkpoint(plan.run(model, 1).last) for model in plan.models}
    config = checkpoints["md"].config
    assert (config.seed, config.layer_norm, config.lr == 0.01) == (1, original_settings, original_settings)
    units = {checkpoint.config.hidden for checkpoint in checkpoints.values()}
    parameters = [count_parameters(checkpoint.network()) for checkpoint in checkpoints.values()]
    assert (units == {3}) == original_settings
    assert (max(parameters) < 1.2 * min(parameters)) == (not original_settings)  # of three to seven units
    assert comparison.table().title.endswith("units" if original_settings else "parameters")


def test_networks_leave_out_settings_that_they_do_not_have(tmp_path: Path) -> None:
    plan = plan_comparison(TINY.updated({"cell": "leaky"}, "test"), 1, tmp_path / "compare")
    compare_models(plan)
    cells = [load_checkpoint(plan.run(model, 0).last).config.cell for model in plan.models]
    assert cells == ["leaky", "", ""]


@pytest.mark.usefixtures("fresh_registries")
def test_a_task_without_evaluation_data_has_pictures_and_a_table_without_errors(tmp_path: Path) -> None:
    task = GaussianField((4, 4))
    task.count = lambda split: 0  # type: ignore[method-assign]
    register_task("training-only", kind="grid")(lambda config: task)
    plan = plan_comparison(TINY.updated({"task": "training-only"}, "test"), 1, tmp_path / "compare")
    table = compare_models(plan, on_run_end=draw_run).table()
    assert all(plan.run(model, 0).prediction.exists() for model in plan.models)
    assert table.columns == ["model", "hidden", "parameters", "seconds"]
    assert [row[0] for row in table.rows] == list(plan.models)


def test_networks_are_compared_without_held_out_samples(tmp_path: Path) -> None:
    data = write_arrays(tmp_path / "x.npz", "classify")
    values = {"task": "classify", "data": str(data), "validation": 0.0, "steps": 2, "hidden": 2}
    plan = plan_comparison(configure({**values, "patience": 0}), 1, tmp_path / "compare")
    assert compare_models(plan).table().columns == ["model", "hidden", "parameters", "seconds"]


def test_a_table_of_errors_on_test_data(tmp_path: Path) -> None:
    plan = plan_comparison(configure_comparison("digits", {"steps": 2}), 2, tmp_path / "compare")
    entry = {"hidden": 4, "parameters": 99, "seconds": [1.0, 2.0], "errors": {"error": [0.25, 0.75]}}
    results = {**dict.fromkeys(plan.models, entry), "1-NN": {"errors": {"error": [0.5, 0.5]}}}
    table = Comparison(plan, results).table()
    assert table.rows[0] == [plan.models[0], "4", "99", "0.5", "0.25–0.75", "2"]
    assert table.rows[-1] == ["1-NN", "", "", "0.5", "0.5–0.5", ""]
    assert len(table.columns) == len(table.rows[0])


def test_networks_are_compared_after_equally_many_steps(tmp_path: Path) -> None:
    for key, value in (("minutes", 0.5), ("patience", 1)):
        with pytest.raises(InputError, match=rf"equally many steps, got {key}={value}"):
            plan_comparison(TINY.updated({key: value}, "test"), 1, tmp_path / "compare")
    path = write_arrays(tmp_path / "x.npz", "grid")  # training on such data ends when it gets no better
    assert default_config("grid", str(path)).patience > 0
    assert configure_comparison("grid", {"data": str(path)}).patience == 0


@pytest.mark.usefixtures("fresh_registries")
def test_what_cannot_be_compared_is_refused_before_the_first_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seeds in (0, -1):
        with pytest.raises(InputError, match=f"seeds must be at least 1, got {seeds}"):
            plan_comparison(TINY, seeds, tmp_path / "compare")
    with pytest.raises(InputError, match="from random weights"):
        configure_comparison("digits", {"init": "runs/a"})
    register("constant", kind="classify")(
        lambda channels, outputs, hidden=1: torch.nn.Linear(channels, outputs)
    )
    with pytest.raises(InputError, match="'constant' is no larger with more hidden units"):
        plan_comparison(configure_comparison("digits", {"steps": 2}), 1, tmp_path / "compare")
    register("constant", kind="classify")(  # it is larger from 4 units on
        lambda channels, outputs, hidden=1: torch.nn.Linear(channels, outputs * max(1, hidden // 2))
    )
    plan_comparison(configure_comparison("digits", {"steps": 2}), 1, tmp_path / "larger")
    several = DistributedContext(1, 2, torch.device("cpu"))
    monkeypatch.setattr("mdlstm_tk.training.distributed.init", lambda device: several)
    with pytest.raises(InputError, match="compared in one process"):
        plan_comparison(TINY, 1, tmp_path / "compare")
    assert not (tmp_path / "compare").exists()


def test_a_comparison_says_what_besides_the_networks_its_numbers_differ_by(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((20, 3, 3), np.float32)
    np.savez(path := tmp_path / "x.npz", x=x, y=x)  # each seed holds out other samples; none are for tests
    settings = {"data": str(path), "hidden": "3", "batch_size": "2", "evaluate_every": "1"}
    config = configure_comparison("grid", {"steps": 2, **settings})
    plan = plan_comparison(config, 2, tmp_path / "compare")
    comparison = compare_models(plan)
    results = comparison.results
    assert list(results) == list(plan.models) and all("mse" in each["errors"] for each in results.values())
    assert comparison.table().title.endswith("on validation data, which chose them")
    assert any("for train" in line for line in plan.notes)
    assert comparison.notes == (
        "each seed has validation samples of its own, which the range of the errors includes",
    )


@pytest.mark.usefixtures("fresh_registries")
def test_unequal_networks_and_baselines_of_their_names_are_told_apart(tmp_path: Path) -> None:
    class WithBaselines(DatasetTask):
        def baselines(self, seed: int, samples: int) -> dict[str, dict[str, float]]:
            return {"large": {"error": 0.25}, "guess": {"error": 0.5}}

    x = np.random.default_rng(0).random((6, 2, 2, 1), np.float32)
    samples = [(each, np.array(k % 2)) for k, each in enumerate(x)]
    spec = TaskSpec("rows", "classify", 1, 2, (2, 2), ("a", "b"))
    task = WithBaselines(spec, {"train": samples, "validation": samples})
    register_task("rows", kind="classify")(lambda config: task)

    @register("large", kind="classify")
    class Large(torch.nn.Module):
        def __init__(self, channels: int, outputs: int, *, hidden: int = 1) -> None:
            super().__init__()
            self.first = torch.nn.Linear(channels, 5000)
            self.second = torch.nn.Linear(5000, hidden)
            self.third = torch.nn.Linear(hidden, outputs)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.third(self.second(self.first(x))).mean((1, 2))

    config = configure_comparison("rows", {"steps": 2, "hidden": 2})
    plan = plan_comparison(config, 1, tmp_path / "compare")
    assert [line.split(",")[0] for line in plan.notes if "parameters" in line] == [
        "large has 15005 parameters with 1 hidden unit"
    ]
    results = compare_models(plan).results
    assert list(results) == [*plan.models, "large (baseline)", "guess"]
    assert len(results["large"]["errors"]["error"]) == 1
    assert results["large (baseline)"]["errors"] == {"error": [0.25]}
