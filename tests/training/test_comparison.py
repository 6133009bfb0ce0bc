"""Comparisons: networks with equal parameters on equal data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mdlstm_tk.errors import InputError
from mdlstm_tk.models import model_names, register
from mdlstm_tk.training import Run, configure, make_task
from mdlstm_tk.training.checkpoint import State
from mdlstm_tk.training.comparison import compare, with_equal_parameters
from mdlstm_tk.training.networks import build_network, count_parameters

SMALL: dict[str, Any] = {"steps": 8, "batch_size": 4, "evaluate_every": 50}


def test_networks_get_the_hidden_size_with_as_many_parameters() -> None:
    """The sizes of the seed's comparison are found; and any size is met as well as can be."""
    config = configure()
    task = make_task(config)
    found = {name: with_equal_parameters(config, name, task).hidden for name in model_names("grid")}
    assert found == {"md": 16, "horizontal": 25, "snake": 25, "raster": 11}
    for hidden in (1, 20):
        one = configure(hidden=hidden)
        target = count_parameters(build_network(one, task.spec))
        for name in model_names("grid"):
            other = with_equal_parameters(one, name, task)
            counts = [
                abs(count_parameters(build_network(configure(model=name, hidden=h), task.spec)) - target)
                for h in (max(other.hidden - 1, 1), other.hidden, other.hidden + 1)
            ]
            assert min(counts) == counts[1]


def test_a_comparison_trains_every_network_on_the_same_data(tmp_path: Path) -> None:
    seen: list[str] = []

    def note(run: str, state: State, *_: object) -> None:
        seen.append(f"{run} {state.step}")

    folder, results = compare(configure(size="4", hidden=4, **SMALL), tmp_path / "c", seeds=2, on_step=note)
    names = model_names("grid")
    assert [*results] == names and len(seen) == 2 * 8 * len(names)
    assert seen[-1].endswith("-1 8") and results[names[0]]["seeds"] == [0, 1]
    assert json.loads((folder / "summary.json").read_text()) == json.loads(json.dumps(results))
    for name in names:
        assert len(results[name]["relevant"]) == len(results[name]["seconds"]) == 2
        records = Run(folder / f"{name}-1").read_metrics()
        assert sum("validation" in record for record in records) == 8  # enough for curves


@pytest.mark.usefixtures("fresh_registries")
def test_own_networks_and_methods_without_one_are_compared(tmp_path: Path) -> None:
    @register("mean", kind="classify")
    class Mean(torch.nn.Module):
        def __init__(self, channels: int, outputs: int, *, hidden: int = 4) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(channels, hidden), torch.nn.Linear(hidden, outputs)
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x.mean((1, 2)))

    _, results = compare(configure(task="digits", **SMALL), tmp_path / "c", seeds=1)
    assert [*results] == ["md", "mean", "1-NN", "RBF-SVM"]
    assert all(len(entry["error"]) == 1 for entry in results.values())
    for wrong in ({"minutes": 1}, {"init": "x"}):
        with pytest.raises(InputError):
            compare(configure(task="digits", **wrong), tmp_path / "d")
