"""Training: it learns, it repeats, it resumes exactly, and it survives being interrupted."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mdlstm_tk.errors import DeviceError, InputError
from mdlstm_tk.training import Progress, Run, TrainConfig, build, load_checkpoint, train
from mdlstm_tk.training.loop import evaluate, losses, pick_device, running_mean
from mdlstm_tk.training.pictures import draw_run

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
    network, _ = build(checkpoint.config)
    checkpoint.load_model(network)
    assert evaluate(network, (32, 32), seed=5, count=16) < 0.01


def test_the_relevant_loss_is_the_error_at_the_second_one() -> None:
    _, task = build(SMALL)
    batch = task.batch(0, 0, 3)
    prediction = torch.rand(3, 5, 6, 1)
    overall, relevant = losses(prediction, batch)
    error = (prediction.numpy() - batch.y) ** 2
    assert overall.item() == pytest.approx(error.mean(), rel=1e-5)
    there = [error[k, row, column, 0] for k, (row, column) in enumerate(batch.second)]
    assert relevant.item() == pytest.approx(np.mean(there), rel=1e-5)


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
    assert parts.metrics.read_bytes() == whole.metrics.read_bytes()
    expected = weights(whole)
    for name, tensor in weights(parts).items():
        assert torch.equal(tensor, expected[name]), name


def test_an_interrupt_waits_for_the_step_and_leaves_what_resuming_needs(tmp_path: Path) -> None:
    run = Run(tmp_path)

    def interrupt(progress: Progress) -> None:
        if progress.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(SMALL, run, report=interrupt)
    assert load_checkpoint(run.last).step == 5
    assert [record["step"] for record in run.read_metrics()] == [1, 2, 3, 4, 5]
    train(SMALL, run, resume=True)
    whole = run_in(tmp_path / "whole", SMALL)
    assert run.metrics.read_bytes() == whole.metrics.read_bytes()


def test_a_run_folder_holds_all_it_should_and_no_pickle(tmp_path: Path) -> None:
    run = run_in(tmp_path, SMALL)
    draw_run(run)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "config.toml",
        "metrics.jsonl",
        "best.safetensors",
        "last.safetensors",
        "curves.png",
        "prediction.png",
    }
    assert TrainConfig.load(run.config) == SMALL
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in (run.curves, run.prediction))
    assert set(json.loads(run.metrics.read_text().splitlines()[0])) == {"step", "loss", "relevant"}


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
