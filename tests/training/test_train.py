"""One training: it learns, writes its files, chooses the best weights, and ends with them in memory."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training import DIGITS, SMALL, last_tensors, run_in
from helpers.user_data import write_classes

from mdlstm_tk.data import UNLABELLED, Batch, DatasetTask, DiagonalTask, TaskSpec
from mdlstm_tk.errors import InputError, MDLSTMError, MissingExtraError
from mdlstm_tk.kinds import kind_named, kind_names
from mdlstm_tk.models import register
from mdlstm_tk.report import draw_run
from mdlstm_tk.training import (
    Run,
    TrainConfig,
    build,
    configure,
    evaluate,
    job,
    load_checkpoint,
    loop,
    new_job,
    predict,
    train,
    trainer,
)
from mdlstm_tk.training.distributed import DistributedContext
from mdlstm_tk.training.evaluation import measure
from mdlstm_tk.training.losses import total_loss
from mdlstm_tk.training.progress import running_mean
from mdlstm_tk.training.run_state import RunState
from mdlstm_tk.training.trainer import Trainer


def test_the_md_network_learns_the_original_task(trained: Run) -> None:
    relevant = running_mean([record["relevant"] for record in trained.read_metrics()])
    assert relevant[19] > 0.05
    assert relevant[59] < 0.05
    assert relevant[-1] < 0.005
    checkpoint = load_checkpoint(trained.best)
    errors = evaluate(checkpoint.network(), DiagonalTask((32, 32)), "test", checkpoint.config)
    assert errors["relevant"] < 0.01


def test_the_files_and_the_result_of_a_run(tmp_path: Path) -> None:
    values = {"size": "5x6", "steps": 12, "batch_size": 4, "hidden": 4, "evaluate_every": "6"}
    config = configure(values)
    job = new_job(config, tmp_path, True)
    result = train(job)
    draw_run(job.run, job.task, job.network)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("config.toml", "metrics.jsonl", "best.safetensors", "last.safetensors"),
        *("curves.png", "prediction.png", "result.json", "times.json"),
    }
    run = Run(tmp_path)
    assert TrainConfig.load(run.config) == config
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in (run.curves, run.prediction))
    first, *_, last = run.read_metrics()
    assert set(first) == {"step", "loss", "relevant", "lr"}
    assert set(last["validation"]) == {"relevant", "relevant_20x24"}
    best = load_checkpoint(run.best)
    assert best.state.score == pytest.approx(np.sqrt(np.prod(list(last["validation"].values()))))
    assert json.loads(run.result.read_text()) == result
    assert result["errors"] == evaluate(best.network(), job.task, "test", config)
    for name, tensor in job.network.state_dict().items():  # it is left with the best weights
        assert torch.equal(tensor, best.weights()[name])


def test_bfloat16_trains_in_bfloat16_and_learns(tmp_path: Path) -> None:
    config = replace(SMALL, layers=1, precision="bf16", steps=60, size="4", lr=0.04)
    run = run_in(tmp_path, config)
    losses = [record["loss"] for record in run.read_metrics()]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])
    network, task = build(config)
    best = load_checkpoint(run.best)  # which is chosen in float32, as it is exported
    errors = evaluate(best.network(), task, "validation", replace(config, precision="fp32"))
    assert best.state.score == task.score(errors)
    batch = task.batch(0, 0, 2)
    exact, rough = (predict(network, batch, torch.device("cpu"), p) for p in ("fp32", "bf16"))
    assert exact.dtype == rough.dtype == torch.float32
    assert 1e-5 < float((exact - rough).abs().max().detach()) < 0.05


def test_batches_from_workers_are_the_same(tmp_path: Path) -> None:
    alone = run_in(tmp_path / "alone", DIGITS)
    helped = run_in(tmp_path / "helped", replace(DIGITS, workers=2))
    assert alone.metrics.read_bytes() == helped.metrics.read_bytes()


class Failing(DiagonalTask):
    """A task whose third batch needs a file that is gone, or more memory than there is."""

    is_killed = False

    def batch(self, seed: int, step: int, *rest: Any, **options: Any) -> Any:
        if step == 2 and self.is_killed:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == 2:
            raise InputError("a.png is gone")
        return super().batch(seed, step, *rest, **options)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_worker_is_that_of_the_task(tmp_path: Path, workers: int) -> None:
    with pytest.raises(InputError, match=r"^a\.png is gone$"):
        run_in(tmp_path, replace(SMALL, workers=workers), Failing((5, 6)))
    assert load_checkpoint(Run(tmp_path).last).step == 2


def test_tensorboard_holds_the_metrics(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = run_in(tmp_path, replace(SMALL, tensorboard=True, evaluate_every=6))
    read, records = events.EventAccumulator(str(tmp_path)).Reload(), run.read_metrics()
    assert {"loss", "relevant", "lr", "validation/relevant"} <= set(read.Tags()["scalars"])
    assert [event.step for event in read.Scalars("loss")] == [record["step"] for record in records]
    expected = [record["relevant"] for record in records]
    np.testing.assert_allclose([e.value for e in read.Scalars("relevant")], expected, rtol=1e-6)


def test_the_relevant_loss_is_the_squared_error_at_the_second_one() -> None:
    task = DiagonalTask((5, 6))
    batch, prediction = task.batch(0, 0, 3), torch.rand(3, 5, 6, 1)
    error = (prediction.numpy() - batch.y) ** 2
    assert total_loss([prediction], batch, task.spec).item() == pytest.approx(error.mean(), rel=1e-5)
    expected = sum(error[k, row, column, 0] for k, (row, column) in enumerate(batch.second))
    assert measure(task, prediction, batch)["relevant"] == pytest.approx((expected, 3))


@pytest.mark.parametrize("kind", [k for k in kind_names() if k not in ("transcribe", "baselines")])
def test_padding_does_not_count_in_any_error(kind: Any) -> None:
    """The sums of a batch are those of its samples, cut to their extents."""
    rng = np.random.default_rng(0)
    names = ("a", "b", "c") if kind_named(kind).name_count(3) else ()
    numbers = {"target_mean": (0.5,) * 3, "target_std": (1.0, 2.0, 3.0)} if kind == "regress" else {}
    task = DatasetTask(TaskSpec("any", kind, 2, 3, (5, 6), names, **numbers), {})
    x = rng.random((4, 5, 6, 2), np.float32)
    y = {
        "grid": rng.random((4, 5, 6, 3), np.float32),
        "classify": rng.integers(0, 3, 4),
        "segment": rng.integers(-1, 3, (4, 5, 6)),
        "density": x,
        "regress": rng.random((4, 3), np.float32),
        "tag": rng.integers(0, 2, (4, 3)).astype(np.float32),
    }[kind]
    shapes = {"density": (4, 5, 6, 2), **dict.fromkeys(("classify", "regress", "tag"), (4, 3))}
    shape = shapes.get(kind, (4, 5, 6, 3))
    prediction, sizes = rng.random(shape, np.float32), [[5, 6], [2, 3], [1, 6], [5, 1]]
    if kind == "segment":
        for mask, (height, width) in zip(y, sizes, strict=True):
            mask[height:], mask[:, width:] = UNLABELLED, UNLABELLED
    batch, expected = Batch(x, y, np.array(sizes)), dict[str, np.ndarray]()
    for k, (height, width) in enumerate(sizes):
        cut = [
            each[k : k + 1, :height, :width] if each.ndim > 2 else each[k : k + 1]
            for each in (x, y, prediction)
        ]
        for name, pair in task.measure(cut[2], Batch(cut[0], cut[1])).items():
            expected[name] = expected.get(name, 0) + np.array(pair)
    measured = measure(task, torch.from_numpy(prediction), batch)
    assert {name: tuple(map(float, pair)) for name, pair in measured.items()} == {
        name: pytest.approx(tuple(pair)) for name, pair in expected.items()
    }


def test_the_norm_of_the_whole_gradient_is_clipped(tmp_path: Path) -> None:
    """Adam's first step does not depend on the scale of the gradient, but its first moment does."""
    norms = []
    for clip in (0.0, 1e-4):
        run = run_in(tmp_path / f"{clip}", replace(SMALL, steps=1, clip=clip))
        moments = [t.flatten() for name, t in last_tensors(run).items() if name.endswith("exp_avg")]
        norms.append(float(torch.cat(moments).norm()) / 0.1)
    assert norms[0] > 1e-3
    assert norms[1] == pytest.approx(1e-4, rel=0.02)  # clip_grad_norm_ adds 1e-6 to the norm


@pytest.mark.parametrize(
    ("changes", "module"), [({"tensorboard": True}, "tensorboard"), ({}, "scipy.ndimage")]
)
def test_a_missing_package_is_found_before_the_data_are_read(
    changes: dict[str, Any], module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(job, "make_task", lambda config: pytest.fail("the data were read"))
    with pytest.raises(MissingExtraError, match=module.partition(".")[0]):
        new_job(replace(DIGITS, **changes), tmp_path / "run")


def test_the_averaged_weights_are_validated_and_exported(tmp_path: Path) -> None:
    config = replace(SMALL, average=0.9, steps=6, evaluate_every=6)
    run = run_in(tmp_path, config)
    tensors = last_tensors(run)
    network = load_checkpoint(run.last).network()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, tensors[f"average.module.{name}"])
    assert not torch.equal(network.head.weight, tensors["model.head.weight"])
    validation = evaluate(network, build(config)[1], "validation", config)
    assert run.read_metrics()[-1]["validation"] == validation


def test_without_held_out_samples_no_split_is_named(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", {"a": 3, "b": 3})
    values = {"task": "classify", "data": str(data), "validation": 0.0, "steps": 2, "hidden": 2}
    result = train(new_job(configure(values), tmp_path / "run"))
    assert (result["split"], result["in_sample"], result["errors"]) == (None, False, {})


def test_the_average_decays_as_configured(tmp_path: Path) -> None:
    job = new_job(replace(SMALL, average=0.3, steps=5), tmp_path / "run")
    trained = Trainer(job)
    name, expected = "head.weight", None
    for step in range(5):
        trained.train_step(job.task.batch(0, step, 4), interrupted=False)
        weight = trained.network.state_dict()[name].clone()
        decay = min(0.3, (1 + step) / (10 + step))
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
    assert trained.average is not None
    torch.testing.assert_close(trained.average.module.state_dict()[name], expected)


X = np.ones((4, 4, 1), np.float32)


@pytest.mark.parametrize(
    ("kind", "x", "y"),
    [
        ("grid", X, X[..., 0]),  # would be spread over another axis
        ("grid", X, np.ones((4, 4, 2))),
        ("grid", X, X[:3]),
        ("grid", X[..., 0], X),
        ("classify", X, "a"),
        ("classify", X, 1.7),
        ("classify", X, 3),
        ("segment", X, X[..., 0] / 2),
        ("segment", X, np.full((4, 4), -2)),
        ("transcribe", X, "abc"),
        ("transcribe", X, [0, 1]),  # 0 ends a text
        ("transcribe", X, [1, 4]),
        ("density", 7 * X, None),
        ("classify", np.ones((4, 4, 2), np.float32), 1),
    ],
)
def test_a_task_whose_samples_do_not_fit_its_description_is_refused(kind: Any, x: Any, y: Any) -> None:
    names = ("a", "b", "c") if kind not in ("grid", "density") else ()
    spec = TaskSpec("own", kind, 1, {"transcribe": 4, "grid": 1}.get(kind, 3), (4, 4), names)
    task = DatasetTask(spec, {"validation": [(x, y)] * 2})
    with pytest.raises(InputError, match="expected"):
        evaluate(torch.nn.Linear(1, 1), task, "validation", TrainConfig())


@pytest.mark.parametrize(("kind", "outputs"), [("grid", 3), ("classify", 3), ("density", 1)])
def test_a_network_whose_predictions_do_not_fit_the_task_is_refused(kind: Any, outputs: int) -> None:
    class Own(torch.nn.Linear):  # one output for three, logits for each position, no channel
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)[..., 0] if kind == "density" else super().forward(x)

    names = ("a", "b", "c") if kind == "classify" else ()
    y = {"grid": np.ones((4, 4, 3)), "classify": 1, "density": None}[kind]
    task = DatasetTask(TaskSpec("own", kind, 1, outputs, (4, 4), names), {"validation": [(X, y)] * 4})
    with pytest.raises(InputError, match=r"prediction of shape .* expected"):
        evaluate(Own(1, 1), task, "validation", TrainConfig())


class Poisoned(DatasetTask):
    """Images whose batch of one step holds an infinite value; without it their errors stay finite."""

    def __init__(self, step: int | None) -> None:
        images = np.random.default_rng(0).random((8, 16, 24, 1), np.float32)
        texts = np.arange(1, 9) % 3 + 1
        spec = TaskSpec("poisoned", "transcribe", 1, 4, (16, 24), ("a", "b", "c"))
        samples = list(zip(images, texts[:, None], strict=True))
        super().__init__(spec, {"train": samples, "validation": samples[:2]})
        self.poisoned_step = step

    def batch(self, seed: int, step: int, count: int, split: Any = "train", shard: Any = None) -> Any:
        batch = super().batch(seed, step, count, split, shard)
        if (step, split) == (self.poisoned_step, "train"):
            batch.x[0, 0, 0] = np.inf
        return batch


@pytest.mark.parametrize(
    ("clip", "way"), [(0.0, "at once"), (1.0, "at once"), (0.0, "later"), (0.0, "an error")]
)
def test_divergence_is_reported_and_keeps_everything_as_it_was_before(
    tmp_path: Path,
    clip: float,
    way: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights, their average, the statistics of batch normalisation, and the optimizer's state."""
    config = replace(SMALL, model="lines", layers=1, clip=clip, average=0.9, steps=4)
    whole = run_in(tmp_path / "whole", config, Poisoned(None))
    if way == "later":
        request.getfixturevalue("read_later")
    message = r"step 5.*nan.*lr"
    if way == "an error":  # such as a second Ctrl-C, after the forward pass
        losses, message = iter([trainer.total_loss] * 4), "^$"
        monkeypatch.setattr(trainer, "total_loss", lambda *arguments: next(losses)(*arguments))
    with pytest.raises((MDLSTMError, StopIteration), match=message):
        run_in(tmp_path / "run", replace(config, steps=9), Poisoned(4))
    last = load_checkpoint(Run(tmp_path / "run").last)
    assert last.step == 4
    assert any("running_var" in name for name in last.tensors)
    for name, tensor in last_tensors(whole).items():
        assert torch.equal(tensor, last.tensors[name]), name


def test_a_bounded_cell_is_suggested_unless_the_network_has_one(tmp_path: Path) -> None:
    lines = replace(SMALL, task="digit-strings", size="12x88", model="lines")  # of cell stable by default
    for config, is_bounded in ((SMALL, False), (lines, True)):
        trained = Trainer(new_job(config, tmp_path / config.model))
        with pytest.raises(MDLSTMError, match="diverged") as error:
            trained._require_finite(RunState(), [np.inf, 1.0])
        assert ("--cell stable" in str(error.value)) != is_bounded


@pytest.fixture
def read_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let metrics stay on the device, as on a GPU."""

    def sum_on_device(_: Any, values: Any) -> torch.Tensor:
        return torch.stack([torch.as_tensor(value, dtype=torch.float64) for value in values])

    monkeypatch.setattr(DistributedContext, "sum_on_device", sum_on_device)


@pytest.mark.usefixtures("read_later")
def test_metrics_that_are_read_later_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, seen = replace(DIGITS, steps=30, evaluate_every=25), []
    later = run_in(tmp_path / "later", config, on_step=lambda progress: seen.append(progress.step))
    assert seen == list(range(1, 31))
    monkeypatch.undo()
    at_once = run_in(tmp_path / "at once", config)
    assert later.metrics.read_bytes() == at_once.metrics.read_bytes()
    assert later.last.read_bytes() == at_once.last.read_bytes()


@pytest.mark.usefixtures("read_later")
@pytest.mark.parametrize(("poisoned", "done"), [(None, 6), (2, 2)])
def test_an_error_loses_no_metrics_that_are_still_to_be_read(
    poisoned: int | None, done: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it does not hide that an earlier step diverged."""
    task, whole = Poisoned(poisoned), Poisoned.batch

    def batch(self: Poisoned, seed: int, step: int, count: int, split: Any = "train", *rest: Any) -> Any:
        if (step, split) == (6, "train"):
            raise InputError("a.png has changed")
        return whole(self, seed, step, count, split, *rest)

    monkeypatch.setattr(Poisoned, "batch", batch)
    config = replace(SMALL, model="lines", layers=1, steps=9)
    with pytest.raises(MDLSTMError, match="diverged in step 3" if poisoned else "a.png has changed"):
        run_in(tmp_path, config, task)
    run = Run(tmp_path)
    assert [record["step"] for record in run.read_metrics()] == [*range(1, done + 1)]
    assert load_checkpoint(run.last).step == done


@pytest.mark.usefixtures("fresh_registries")
def test_layers_may_share_a_weight(tmp_path: Path) -> None:
    @register("shared")
    def shared(channels: int, outputs: int, *, hidden: int) -> torch.nn.Module:
        linear = torch.nn.Linear(channels, outputs)
        return torch.nn.Sequential(linear, torch.nn.Tanh(), linear)

    run = run_in(tmp_path, replace(SMALL, model="shared", layers=1, steps=2))
    network, tensors = load_checkpoint(run.last).network(), last_tensors(run)
    assert network[0] is network[2]
    assert torch.equal(tensors["model.0.weight"], tensors["model.2.weight"])


def test_a_network_is_in_eval_mode_after_an_evaluation_without_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, task = build(SMALL)
    monkeypatch.setattr(task, "count", lambda split: 0)
    assert evaluate(network.train(), task, "test", SMALL) == {}
    assert not network.training


def test_a_handler_of_c_code_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    handler_of = signal.getsignal
    handler = handler_of(signal.SIGTERM)
    monkeypatch.setattr(signal, "getsignal", lambda number: None)  # as Python answers for such a handler
    with loop.deferred_interrupt():
        assert handler_of(signal.SIGTERM) is handler


def test_an_interrupt_that_a_shell_lets_a_background_job_ignore_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with loop.deferred_interrupt() as signals:
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not signals


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_worker_is_one_line(tmp_path: Path) -> None:
    task = Failing((5, 6))
    task.is_killed = True
    with pytest.raises(MDLSTMError, match="fewer workers"):
        run_in(tmp_path, replace(SMALL, workers=1), task)
