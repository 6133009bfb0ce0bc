"""Training: it learns, it repeats, it resumes exactly, and it survives being interrupted."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from itertools import pairwise
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mdlstm_tk.data import DiagonalTask
from mdlstm_tk.errors import DeviceError, InputError, MDLSTMError
from mdlstm_tk.training import Progress, Run, TrainConfig, build, evaluate, load_checkpoint, predict, train
from mdlstm_tk.training.distributed import DistributedContext, pick_device
from mdlstm_tk.training.evaluation import evaluate_run
from mdlstm_tk.training.losses import learning_rate, loss_of
from mdlstm_tk.training.progress import running_mean
from mdlstm_tk.training.trainer import Trainer
from mdlstm_tk.viz.run_pictures import draw_run

SMALL = TrainConfig(size="5x6", steps=12, batch_size=4, hidden=4, layers=2)


def run_in(folder: Path, config: TrainConfig, **options: bool) -> Run:
    folder.mkdir(exist_ok=True)
    train(config, Run(folder), **options)
    return Run(folder)


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_checkpoint(run.last).tensors


def test_the_md_network_learns_the_task(trained: Run) -> None:
    records = trained.read_metrics()
    relevant = running_mean([record["relevant"] for record in records])
    assert relevant[19] > 0.05
    assert relevant[59] < 0.05
    assert relevant[-1] < 0.005


def test_what_is_learned_at_8x8_holds_at_32x32(trained: Run) -> None:
    checkpoint = load_checkpoint(trained.best)
    errors = evaluate(checkpoint.network(), DiagonalTask((32, 32)), "test", checkpoint.config)
    assert errors["relevant"] < 0.01


def test_the_relevant_loss_is_the_error_at_the_second_one() -> None:
    _, task = build(SMALL)
    batch = task.batch(0, 0, 3)
    prediction = torch.rand(3, 5, 6, 1)
    error = (prediction.numpy() - batch.y) ** 2
    assert loss_of(prediction, batch, task.spec).item() == pytest.approx(error.mean(), rel=1e-5)
    there = [error[k, row, column, 0] for k, (row, column) in enumerate(batch.second)]
    assert task.measure(prediction.numpy(), batch)["relevant"] == pytest.approx((np.sum(there), 3))


def test_the_same_seed_gives_the_same_numbers_and_another_others(tmp_path: Path) -> None:
    one, two = run_in(tmp_path / "1", SMALL), run_in(tmp_path / "2", SMALL)
    other = run_in(tmp_path / "3", replace(SMALL, seed=1))
    assert one.metrics.read_bytes() == two.metrics.read_bytes()
    assert one.last.read_bytes() == two.last.read_bytes()
    assert one.metrics.read_bytes() != other.metrics.read_bytes()


@pytest.mark.parametrize("stop", [1, 7, 11])
def test_resuming_equals_never_having_stopped(tmp_path: Path, stop: int) -> None:
    whole = run_in(tmp_path / "whole", SMALL)
    parts = run_in(tmp_path / "parts", replace(SMALL, steps=stop))
    train(SMALL, parts, resume=True)
    records, expected_records = (
        [{**record, "validation": None} for record in run.read_metrics()] for run in (parts, whole)
    )
    assert records == expected_records  # but for what was judged where the first part ended
    expected = weights(whole)
    for name, tensor in weights(parts).items():
        assert torch.equal(tensor, expected[name]), name


def test_an_interrupt_waits_for_the_step_and_leaves_what_resuming_needs(tmp_path: Path) -> None:
    run = Run(tmp_path)

    def interrupt(progress: Progress) -> None:
        if progress.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(SMALL, run, on_step=interrupt)
    assert load_checkpoint(run.last).step == 5
    assert [record["step"] for record in run.read_metrics()] == [1, 2, 3, 4, 5]
    train(SMALL, run, resume=True)
    whole = run_in(tmp_path / "whole", SMALL)
    assert run.metrics.read_bytes() == whole.metrics.read_bytes()


def test_a_run_folder_holds_all_it_should_and_no_pickle(tmp_path: Path) -> None:
    run = run_in(tmp_path, SMALL)
    draw_run(run)
    evaluate_run(run, build(SMALL)[1], 1.0)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "config.toml",
        "metrics.jsonl",
        "best.safetensors",
        "last.safetensors",
        "curves.png",
        "prediction.png",
        "result.json",
    }
    assert TrainConfig.load(run.config) == SMALL
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in (run.curves, run.prediction))
    assert set(json.loads(run.metrics.read_text().splitlines()[0])) == {"step", "loss", "relevant", "lr"}


def test_the_best_checkpoint_is_no_worse_than_the_last(trained: Run) -> None:
    assert load_checkpoint(trained.best).score <= load_checkpoint(trained.last).score
    assert load_checkpoint(trained.best).step <= 150


def test_nothing_is_left_to_resume(tmp_path: Path) -> None:
    run = run_in(tmp_path, SMALL)
    with pytest.raises(InputError, match="12 steps already; ask for more with --steps"):
        train(SMALL, run, resume=True)


def test_weights_of_another_network_are_refused(trained: Run) -> None:
    other, _ = build(replace(load_checkpoint(trained.best).config, hidden=3))
    with pytest.raises(InputError, match="do not fit"):
        load_checkpoint(trained.best).load_model(other)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stepz": 3}, "no setting 'stepz'; did you mean 'steps'"),
        ({"steps": "many"}, "steps must be a whole number, got 'many'"),
        ({"steps": 1.5}, "steps must be a whole number, got 1.5"),
        ({"steps": 0}, "steps must be above 0"),
        ({"layer_norm": "yes"}, "layer_norm must be true or false"),
        ({"size": "8by8"}, "size must be written like 8 or 8x12"),
        ({"size": "0"}, "must be at least 1"),
        ({"directions": "2"}, "directions must be 1 or all"),
        ({"init": "zeros"}, "init must be default or seed"),
    ],
)
def test_bad_settings_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainConfig().updated(values, "here")


def test_devices_that_are_not_there_are_refused() -> None:
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(InputError, match="device must be auto, cpu"):
        pick_device("tpu")
    with pytest.raises(DeviceError, match="cuda:99"):
        pick_device("cuda:99")


def test_running_mean() -> None:
    values = list(np.random.default_rng(0).random(50))
    expected = [np.mean(values[max(0, k - 19) : k + 1]) for k in range(50)]
    np.testing.assert_allclose(running_mean(values), expected)


DIGITS = TrainConfig(
    task="digits",
    hidden=4,
    steps=14,
    batch_size=6,
    layers=2,
    dropout=0.2,
    schedule="cosine",
    warmup=3,
    clip=1.0,
    average=0.9,
    augment=1.0,
    validation=0.2,
    evaluate_every=3,
)


@pytest.mark.parametrize("stop", [2, 6, 13])
def test_all_that_has_a_state_resumes_exactly(tmp_path: Path, stop: int) -> None:
    """Dropout, schedule, average, shuffled and distorted data: stopped by an interrupt, then resumed."""
    whole = run_in(tmp_path / "whole", DIGITS)
    parts = Run(tmp_path / "parts")
    parts.folder.mkdir()

    def interrupt(progress: Progress) -> None:
        if progress.step == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        train(DIGITS, parts, on_step=interrupt)
    assert load_checkpoint(parts.last).step == stop
    train(DIGITS, parts, resume=True)
    assert parts.metrics.read_bytes() == whole.metrics.read_bytes()
    for one, other in ((parts.last, whole.last), (parts.best, whole.best)):
        assert one.read_bytes() == other.read_bytes()


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@pytest.mark.skipif("forkserver" not in get_all_start_methods(), reason="needs a fork server")
@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_again_and_again_ends_as_if_it_never_was(tmp_path: Path, seed: int) -> None:
    """SIGKILL, wherever it hits: between steps, in the middle of one, or while writing a checkpoint."""
    config = replace(DIGITS, steps=40, evaluate_every=2)
    whole, run = run_in(tmp_path / "whole", config), Run(tmp_path / "killed")
    run.folder.mkdir()
    rng, kills = np.random.default_rng(seed), 0
    # forked from a process without threads: those of this one would leave locks that nobody opens
    processes = get_context("forkserver")
    processes.set_forkserver_preload(
        ["mdlstm_tk.training.loop", "sklearn.datasets", "scipy.ndimage", "numba"]
    )
    while not run.last.exists() or load_checkpoint(run.last).step < config.steps:
        process = processes.Process(target=train, args=(config, run, run.last.exists()))
        process.start()
        before = size_of(run.metrics)
        while process.is_alive() and size_of(run.metrics) == before:
            time.sleep(0.002)
        process.join(rng.exponential(0.05))
        kills += process.is_alive()
        process.kill()
        process.join()
    assert kills
    assert run.metrics.read_bytes() == whole.metrics.read_bytes()
    assert run.last.read_bytes() == whole.last.read_bytes()
    assert run.best.read_bytes() == whole.best.read_bytes()


def test_what_a_killed_run_left_half_written_goes_when_it_resumes(tmp_path: Path) -> None:
    run = run_in(tmp_path, replace(SMALL, steps=3))
    (tmp_path / ".last.safetensors.abc.safetensors").write_bytes(b"half")
    with run.metrics.open("a") as file:
        file.write('{"step": 4, "lo')
    train(SMALL, run, resume=True)
    assert not list(tmp_path.glob(".*"))
    assert [record["step"] for record in run.read_metrics()] == list(range(1, 13))


def test_the_learning_rate_warms_up_and_falls_to_nothing() -> None:
    config = TrainConfig(lr=0.1, steps=100, warmup=10, schedule="cosine")
    rates = [learning_rate(config, step) for step in range(100)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 100)
    assert max(rates) == rates[9] == rates[10] == 0.1
    assert rates[55] == pytest.approx(0.05)
    assert 0 < rates[-1] < 0.001
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert {learning_rate(replace(config, schedule="constant"), step) for step in (10, 99, 200)} == {0.1}


def test_gradients_are_clipped_together(tmp_path: Path) -> None:
    """Adam's first step hides the scale of gradients; its first moment does not."""
    run_in(tmp_path / "free", replace(SMALL, steps=1))
    run_in(tmp_path / "clipped", replace(SMALL, steps=1, clip=1e-4))
    moments = [
        torch.cat(
            [t.flatten() for name, t in weights(Run(tmp_path / n)).items() if name.endswith("exp_avg")]
        )
        for n in ("free", "clipped")
    ]
    free, clipped = (float(moment.norm()) / 0.1 for moment in moments)
    assert free > 1e-3
    assert clipped == pytest.approx(1e-4, rel=0.02)  # clip_grad_norm_ adds 1e-6 to the norm


def test_the_averaged_weights_are_judged_and_exported(tmp_path: Path) -> None:
    config = replace(SMALL, average=0.9, steps=6, evaluate_every=6)
    run = run_in(tmp_path, config)
    tensors = weights(run)
    network = load_checkpoint(run.last).network().state_dict()
    for name, tensor in network.items():
        assert torch.equal(tensor, tensors[f"average.module.{name}"])
    assert any(not torch.equal(tensors[f"model.{name}"], tensor) for name, tensor in network.items())
    judged = run.read_metrics()[-1]["validation"]
    assert evaluate(load_checkpoint(run.last).network(), build(config)[1], "validation", config) == judged


def test_a_running_average_is_what_it_says(tmp_path: Path) -> None:
    config = replace(SMALL, average=0.3, steps=5)
    _, task = build(config)
    trainer = Trainer(config, task, DistributedContext(0, 1, torch.device("cpu")))
    name, expected = "head.weight", None
    for step in range(5):
        trainer.train_step(task.batch(0, step, 4), interrupted=False)
        weight = trainer.network.state_dict()[name].clone()
        decay = min(0.3, (1 + step) / (10 + step))
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
    assert trainer.average is not None
    torch.testing.assert_close(trainer.average.module.state_dict()[name], expected)


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_training_that_diverges_says_so_and_keeps_the_weights_before(tmp_path: Path, clip: float) -> None:
    class Poisoned(DiagonalTask):
        def batch(self, seed: int, step: int, count: int, *rest: Any, **more: Any) -> Any:
            batch = super().batch(seed, step, count, *rest, **more)
            if step == 7:
                batch.y[0, 0, 0] = np.inf
            return batch

    config = replace(SMALL, clip=clip)
    with pytest.raises(MDLSTMError, match=r"diverged in step 8: the loss is inf.*try a smaller --lr"):
        train(config, Run(tmp_path), task=Poisoned((5, 6)))
    last = load_checkpoint(Run(tmp_path).last)
    assert last.step == 7
    assert all(bool(tensor.isfinite().all()) for tensor in last.tensors.values())
    whole = run_in(tmp_path / "whole", replace(config, steps=7))
    assert all(torch.equal(tensor, last.tensors[name]) for name, tensor in weights(whole).items())


def test_training_stops_when_patience_is_over(tmp_path: Path) -> None:
    class Hopeless(DiagonalTask):
        def measure(self, prediction: Any, batch: Any) -> dict[str, tuple[float, float]]:
            self.judged = getattr(self, "judged", 0) + 1
            return {"relevant": (float(self.judged), 1)}

    config = replace(SMALL, steps=50, evaluate_every=3, patience=4)
    progress = train(config, Run(tmp_path), task=Hopeless((5, 6)))
    assert progress.step == 3 + 4 * 3
    assert load_checkpoint(Run(tmp_path).best).step == 3
    assert load_checkpoint(Run(tmp_path).last).best_step == 3


def test_bfloat16_trains_in_bfloat16_and_learns(tmp_path: Path) -> None:
    config = replace(SMALL, layers=1, precision="bf16", steps=60, size="4")
    run = run_in(tmp_path, config)
    losses = [record["loss"] for record in run.read_metrics()]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])
    network, task = build(config)
    batch = task.batch(0, 0, 2)
    exact, rough = (predict(network, batch, torch.device("cpu"), p) for p in ("fp32", "bf16"))
    assert exact.dtype == rough.dtype == torch.float32
    assert 1e-5 < float((exact - rough).abs().max().detach()) < 0.05


def test_workers_change_nothing(tmp_path: Path) -> None:
    alone = run_in(tmp_path / "alone", DIGITS)
    helped = run_in(tmp_path / "helped", replace(DIGITS, workers=2))
    assert alone.metrics.read_bytes() == helped.metrics.read_bytes()


def test_tensorboard_gets_what_the_metrics_hold(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = run_in(tmp_path, replace(SMALL, tensorboard=True, evaluate_every=6))
    read = events.EventAccumulator(str(tmp_path)).Reload()
    records = run.read_metrics()
    assert {"loss", "relevant", "lr", "validation/relevant"} <= set(read.Tags()["scalars"])
    assert [event.step for event in read.Scalars("loss")] == [record["step"] for record in records]
    np.testing.assert_allclose(
        [event.value for event in read.Scalars("relevant")],
        [record["relevant"] for record in records],
        rtol=1e-6,
    )
