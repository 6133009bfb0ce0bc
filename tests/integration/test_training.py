"""Training: it learns, and equal seeds give equal numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.training import DIGITS, SMALL, run_in

from mdlstm_tk.data import DiagonalTask
from mdlstm_tk.errors import InputError
from mdlstm_tk.report import draw_run
from mdlstm_tk.training import Run, TrainConfig, build, evaluate, load_checkpoint, predict
from mdlstm_tk.training.evaluation import evaluate_run
from mdlstm_tk.training.losses import loss_of
from mdlstm_tk.training.progress import running_mean


def test_the_md_network_learns_the_task(trained: Run) -> None:
    records = trained.read_metrics()
    relevant = running_mean([record["relevant"] for record in records])
    assert relevant[19] > 0.05
    assert relevant[59] < 0.05
    assert relevant[-1] < 0.005


def test_a_network_trained_on_8x8_works_on_32x32(trained: Run) -> None:
    checkpoint = load_checkpoint(trained.best)
    errors = evaluate(checkpoint.network(), DiagonalTask((32, 32)), "test", checkpoint.config)
    assert errors["relevant"] < 0.01


def test_the_relevant_loss_is_the_squared_error_at_the_second_one() -> None:
    _, task = build(SMALL)
    batch = task.batch(0, 0, 3)
    prediction = torch.rand(3, 5, 6, 1)
    error = (prediction.numpy() - batch.y) ** 2
    assert loss_of(prediction, batch, task.spec).item() == pytest.approx(error.mean(), rel=1e-5)
    errors_at_second = [error[k, row, column, 0] for k, (row, column) in enumerate(batch.second)]
    assert task.measure(prediction.numpy(), batch)["relevant"] == pytest.approx(
        (np.sum(errors_at_second), 3)
    )


def test_equal_seeds_give_equal_bytes_and_other_seeds_do_not(tmp_path: Path) -> None:
    one, two = run_in(tmp_path / "1", SMALL), run_in(tmp_path / "2", SMALL)
    other = run_in(tmp_path / "3", replace(SMALL, seed=1))
    assert one.metrics.read_bytes() == two.metrics.read_bytes()
    assert one.last.read_bytes() == two.last.read_bytes()
    assert one.metrics.read_bytes() != other.metrics.read_bytes()


def test_the_files_of_a_run(tmp_path: Path) -> None:
    run = run_in(tmp_path, SMALL)
    draw_run(run)
    evaluate_run(run, build(SMALL)[1])
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "config.toml",
        "metrics.jsonl",
        "best.safetensors",
        "last.safetensors",
        "curves.png",
        "prediction.png",
        "result.json",
        "times.json",
    }
    assert TrainConfig.load(run.config) == SMALL
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in (run.curves, run.prediction))
    assert set(json.loads(run.metrics.read_text().splitlines()[0])) == {"step", "loss", "relevant", "lr"}


def test_weights_of_another_network_are_refused(trained: Run) -> None:
    other, _ = build(replace(load_checkpoint(trained.best).config, hidden=3))
    with pytest.raises(InputError, match="weights"):
        load_checkpoint(trained.best).load_model(other)


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


def test_batches_from_workers_are_the_same(tmp_path: Path) -> None:
    alone = run_in(tmp_path / "alone", DIGITS)
    helped = run_in(tmp_path / "helped", replace(DIGITS, workers=2))
    assert alone.metrics.read_bytes() == helped.metrics.read_bytes()


def test_tensorboard_holds_the_metrics(tmp_path: Path) -> None:
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
