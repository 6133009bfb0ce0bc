"""Training learns, with every kind of task, precision and option, and says what it did."""

from __future__ import annotations

import json
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.layouts import samples, write

from mdlstm_tk.errors import InputError
from mdlstm_tk.models import register
from mdlstm_tk.training import (
    Run,
    build_network,
    configure,
    evaluate,
    latest_run,
    load_checkpoint,
    make_task,
    memory,
    open_run,
    train,
)
from mdlstm_tk.training.checkpoint import State

SMALL = {"hidden": 4, "steps": 6, "batch_size": 4, "evaluate_every": 3}


@pytest.mark.slow
def test_the_original_task_is_solved(tmp_path: Path) -> None:
    """Relevant loss below 0.001 after 1000 steps on 8×8, and right on grids four times as large."""
    result = train(configure(evaluate_every=200), tmp_path / "run")
    assert result["errors"]["relevant"] < 0.001
    records = Run(tmp_path / "run").read_metrics()
    assert records[-1]["validation"]["relevant_32x32"] < 0.01


def test_digits_are_learned_in_bfloat16(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 80, "hidden": 8, "evaluate_every": 80, "warmup": 5, "lr": 0.02}
    config = configure(task="digits", precision="bf16", augment=0, batch_size=32, **settings)
    result = train(config, tmp_path / "run")
    assert result["errors"]["error"] < 0.5  # 0.9 by chance
    assert result["split"] == "test" and not result["in_sample"]
    assert [*result["outputs"]] == [*"0123456789"]


@pytest.mark.parametrize("kind", ["grid", "classify", "segment", "regress", "tag"])
def test_each_kind_learns_from_images(kind: str, tmp_path: Path) -> None:
    """Targets that follow from brightness are learned in some steps; the files of a run say how well."""
    data = write(tmp_path / "data", kind, "split folders", samples(kind, 60))
    settings: dict[str, Any] = {"steps": 120, "hidden": 8, "batch_size": 8, "evaluate_every": 40}
    settings |= {"lr": 0.02, "augment": 0, "warmup": 5}
    config = configure(task=kind, data=str(data), **settings)
    task = make_task(config)
    before = task.spec
    result = train(config, tmp_path / "run", task=task)
    assert task.spec is before  # what a run has learned is in its checkpoint alone
    name, error = next(iter(result["errors"].items()))
    most = {"mse": 0.02, "error": 0.2, "nmse": 0.9, "hamming_loss": 0.3}[name]
    assert error < most
    run = Run(tmp_path / "run")
    assert json.loads(run.result.read_text()) == json.loads(json.dumps(result))
    best = load_checkpoint(run.best)
    task = make_task(best.config)
    task.spec = best.spec
    assert evaluate(best.network(), task, "test") == pytest.approx(result["errors"])
    records = run.read_metrics()
    assert [record["step"] for record in records] == [*range(1, 121)]
    validated = {record["step"]: record["validation"] for record in records if "validation" in record}
    assert [*validated] == [40, 80, 120]
    assert np.mean([r["loss"] for r in records[-10:]]) < np.mean([r["loss"] for r in records[:10]])


def test_the_best_weights_are_those_of_the_best_validation(tmp_path: Path) -> None:
    """By the first measure, or by another one, which may be better if higher."""
    content = samples("classify", 30)
    data = write(tmp_path / "data", "classify", "folder", content)
    settings: dict[str, Any] = {"task": "classify", "data": str(data), "validation": 0.4, **SMALL}
    settings["steps"] = 15
    for best_by, sign in (("", 1), ("f1_macro", -1), ("balanced_error", 1)):
        run = Run(tmp_path / f"run-{best_by}")
        result = train(configure(**settings, best_by=best_by), run.folder)
        validations = {r["step"]: r["validation"] for r in run.read_metrics() if "validation" in r}
        scores = {step: sign * each[best_by or "error"] for step, each in validations.items()}
        assert scores[result["step"]] == min(scores.values())
        assert result["errors"] == pytest.approx(validations[result["step"]], rel=1e-6)
        assert result["in_sample"]
    for wrong in ({"best_by": "nothing"}, {"best_by": "f1_macro", "validation": 0}):
        with pytest.raises(InputError, match="best_by"):
            train(configure(**{**settings, **wrong}), tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()
    result = train(configure(**{**settings, "validation": 0}), tmp_path / "plain")  # the last are the best
    assert (result["step"], result["errors"], result["split"]) == (15, {}, None)


def test_patience_and_minutes_end_a_training(tmp_path: Path) -> None:
    config = configure(**{**SMALL, "steps": 400, "evaluate_every": 1}, patience=2, lr=1e-9)
    result = train(config, tmp_path / "patience")
    assert len(Run(tmp_path / "patience").read_metrics()) < 400 and "patience" in result["ending"]
    config = configure(hidden=4, batch_size=4, minutes=1 / 60, schedule="cosine")
    result = train(config, tmp_path / "minutes")
    assert 1 <= result["seconds"] < 30 and "patience" not in result["ending"]
    assert State(step=3, stale=3).describe(configure(**SMALL)) == "done 3 steps"
    rates = [record["lr"] for record in Run(tmp_path / "minutes").read_metrics()]
    assert len(rates) > 5 and rates[-1] < rates[0] / 10  # the schedule follows the clock


def test_the_average_follows_the_weights(tmp_path: Path) -> None:
    """By the decay, but faster in the first steps."""
    seen, last = list[Any](), tmp_path / "run" / "last.safetensors"

    def keep(state: Any, *_: Any) -> None:
        seen.append(load_checkpoint(last).tensors if state.step > 1 else {})

    config = configure(**{**SMALL, "steps": 14, "evaluate_every": 1}, average=0.5)
    train(config, tmp_path / "run", on_step=keep)
    every = [*seen[2:], load_checkpoint(last).tensors]
    name = "head.bias"
    for step, (before, after) in enumerate(pairwise(every), start=2):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * before[f"average.{name}"] + (1 - decay) * after[f"model.{name}"]
        torch.testing.assert_close(after[f"average.{name}"], expected)


def test_recurrent_weights_alone_decay(tmp_path: Path) -> None:
    """Without a gradient, which one clipped to almost nothing is, Adam leaves the others as they are."""
    weights = []
    for steps, decay in ((1, 0.0), (2, 0.0), (1, 2.0)):
        run, words = Run(tmp_path / f"{steps}-{decay}"), {"clip": 1e-30, "lr": 1e-3, "weight_decay": decay}
        train(configure(**{**SMALL, "steps": steps, **words}), run.folder)
        weights.append(load_checkpoint(run.last).network().state_dict())
    for name, start in weights[0].items():
        factor = 1 - 2e-3 if "weight_hh" in name else 1.0
        torch.testing.assert_close(weights[1][name], start, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(weights[2][name], factor * start, rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("fresh_registries")
def test_further_predictions_count_in_the_loss_alone(tmp_path: Path) -> None:
    """A network may return a tuple in training: the loss adds 0.3 of each further one."""

    @register("two-headed", kind="classify")
    class TwoHeaded(torch.nn.Module):
        def __init__(self, channels: int, outputs: int, *, hidden: int = 4) -> None:
            super().__init__()
            self.one, self.other = (torch.nn.Linear(64, outputs) for _ in range(2))

        def forward(self, x: torch.Tensor) -> Any:
            x = x.flatten(1)
            return (self.one(x), self.other(x)) if self.training else self.one(x)

    config = configure(task="digits", model="two-headed", **{**SMALL, "steps": 1}, lr=1e-12, average=0)
    train(config, tmp_path / "run")
    task = make_task(config)
    network: Any = build_network(config, task.spec)
    batch = task.batch(config.seed, 0, config.batch_size)
    outputs = network.train()(torch.from_numpy(batch.x))
    one, other = (torch.nn.functional.cross_entropy(y, torch.from_numpy(batch.y)) for y in outputs)
    assert Run(tmp_path / "run").read_metrics()[0]["loss"] == pytest.approx(float(one + 0.3 * other))


def test_a_training_that_needs_more_memory_than_there_is_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(task="textures", batch_size=64, hidden=64)
    assert memory.available_memory() is None or memory.available_memory() > 2**20
    monkeypatch.setattr(memory, "available_memory", lambda: 10**8)
    with pytest.raises(InputError, match="memory"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_folders_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first free name; a folder that is not empty only by force; the newest run is the latest."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        latest_run()
    folders = []
    for settings in ({}, {}, {"task": "digits"}):
        train(configure(**settings, **SMALL), on_end=lambda run, *_: folders.append(str(run.folder)))
    assert folders == ["runs/md-8x8", "runs/md-8x8-2", "runs/digits-md-8x8"]
    assert latest_run().folder == Path(folders[-1])
    with pytest.raises(InputError):
        train(configure(**SMALL), folders[0])
    Path(folders[0], "model-8x8.onnx").write_text("of the run before")
    train(configure(**SMALL, task="digits"), folders[0], force=True)
    assert not Path(folders[0], "model-8x8.onnx").exists()
    (tmp_path / "empty").mkdir()
    for wrong in ("nowhere", "empty"):
        with pytest.raises(InputError):
            open_run(wrong)


def test_damaged_checkpoints_are_refused_in_one_line(trained: Run, tmp_path: Path) -> None:
    data, path = trained.last.read_bytes(), tmp_path / "last.safetensors"
    for where in (0, 7, 200, 3000, len(data) - 9):
        path.write_bytes(data[:where])
        with pytest.raises(InputError) as raised:
            load_checkpoint(path)
        assert "\n" not in str(raised.value)
        path.write_bytes(data[:where] + b"\xff" + data[where + 1 :])
        with suppress(InputError):  # a wrong number may be one, too
            load_checkpoint(path)


def test_event_files_have_what_the_metrics_have(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(configure(**SMALL, tensorboard=True), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    losses = [event.value for event in events.Scalars("loss")]
    assert losses == pytest.approx([record["loss"] for record in Run(tmp_path / "run").read_metrics()])
    assert len(events.Scalars("validation/relevant")) == 2
