"""Starting from the weights of another run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.training import DIGITS, SMALL, run_in
from helpers.user_data import write_arrays

from mdlstm_tk import InputError
from mdlstm_tk.data import TaskSpec
from mdlstm_tk.models import register
from mdlstm_tk.training import (
    Checkpoint,
    TrainConfig,
    build_network,
    default_config,
    load_checkpoint,
    new_job,
)
from mdlstm_tk.training.run_state import RunState

TEXTS = TrainConfig(task="transcribe", model="lines", hidden=2, steps=2, batch_size=4, average=0.5)


def lines(folder: Path, texts: list[str], **settings: object) -> TrainConfig:
    """The configuration of a run on ten lines."""
    folder.mkdir()
    x = np.random.default_rng(0).random((10, 5, 24))  # three steps of the network lines
    data = write_arrays(folder / "lines.npz", "transcribe", x=x, y=(texts * 10)[:10])
    return replace(TEXTS, data=str(data), **settings)  # type: ignore[arg-type]


def test_shared_characters_keep_their_rows_and_all_other_weights_are_taken(tmp_path: Path) -> None:
    old = run_in(tmp_path / "old", lines(tmp_path / "a", ["bad", "dab", "cab"]))
    job = new_job(lines(tmp_path / "b", ["dib", "bid"], init=str(old.folder)), tmp_path / "new")
    fresh = new_job(lines(tmp_path / "c", ["dib", "bid"]), tmp_path / "fresh").network.state_dict()
    before, after = load_checkpoint(old.checkpoint).weights(), job.network.state_dict()
    assert any("the weights of 3 of 4 outputs are kept, the others are new" in note for note in job.notes)
    assert (load_checkpoint(old.checkpoint).spec.classes, job.task.spec.classes) == (
        ("a", "b", "c", "d"),
        ("b", "d", "i"),
    )
    heads = [name for name in after if "head" in name or "shortcut" in name]
    assert len(heads) == 4
    for name in heads:  # blank, b, d, i here; blank, a, b, c, d there
        assert torch.equal(after[name][:3], before[name][[0, 2, 4]]), name
        assert torch.equal(after[name][3], fresh[name][3]), name
    for name in after.keys() - set(heads) - {"mean", "std"}:
        assert torch.equal(after[name], before[name]), name


@pytest.mark.parametrize("task", ["digits", "digits-binary", "digits-grey", "digit-strings"])
def test_digits_that_another_seed_trained_on_are_no_test_data(task: str, tmp_path: Path) -> None:
    run = run_in(tmp_path / "old", replace(DIGITS, steps=1))
    config = default_config(task).updated({"seed": 1, "init": str(run.folder)}, "test")
    with pytest.MonkeyPatch.context() as patch:  # of networks of other kinds
        patch.setattr("mdlstm_tk.training.checkpoint.Checkpoint.start", lambda *arguments: ())
        jobs = [
            new_job(each, tmp_path / f"new{bool(each.init)}") for each in (config, replace(config, init=""))
        ]
    notes = [job.notes for job in jobs]
    assert any("that the network is tested on are trained on as well" in note for note in notes[0])
    assert not any("trained on" in note for note in notes[1])


def test_classes_of_masks_keep_their_weights_at_every_position_of_a_window(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((10, 4, 4), np.float32)
    config = TrainConfig(task="segment", hidden=2, steps=2, batch_size=4, windows="2")
    old, new = (
        replace(config, data=str(write_arrays(tmp_path / name, "segment", x=x, y=y)))
        for name, y in (("a.npz", (3 * x).astype(int)), ("b.npz", 2 * (2 * x).astype(int)))
    )
    run = run_in(tmp_path / "old", old)
    network = new_job(replace(new, init=str(run.folder)), tmp_path / "new").network
    images = torch.from_numpy(x[..., None])
    y = load_checkpoint(run.checkpoint).network()(images)[..., [0, 2]]
    torch.testing.assert_close(network(images), y, rtol=0, atol=1e-6)


def test_training_starts_from_the_weights(tmp_path: Path) -> None:
    old = run_in(tmp_path / "old", SMALL)
    config = replace(SMALL, init=str(old.folder), steps=1, lr=1e-9, seed=3)
    new = run_in(tmp_path / "new", config)
    there, here = (load_checkpoint(run.checkpoint).weights() for run in (old, new))
    for name, weight in here.items():
        torch.testing.assert_close(weight, there[name], rtol=0, atol=1e-6)


def test_another_network_is_refused_with_what_differs(tmp_path: Path) -> None:
    old = run_in(tmp_path / "old", lines(tmp_path / "a", ["bad", "dab"], layers=2))
    config = lines(tmp_path / "b", ["dab"], layers=2, init=str(old.folder))
    for settings, message in (
        ({"hidden": 3}, "has hidden 2, got 3; make them equal"),
        ({"model": "md"}, "has model lines, got md"),
        ({"layers": 3}, "has layers 2, got 3"),
        ({"layers": 1}, "has layers 2, got 1"),
    ):
        with pytest.raises(InputError, match=message):
            new_job(replace(config, **settings), tmp_path / "new")  # type: ignore[arg-type]


@pytest.mark.parametrize(("theirs", "ours"), [("", "stable"), ("leaky", ""), ("stable", "mean")])
def test_weights_of_another_cell_of_equal_shapes_are_refused(
    theirs: str, ours: str, tmp_path: Path
) -> None:
    old = run_in(tmp_path / "old", replace(SMALL, cell=theirs))
    config, named = replace(SMALL, cell=ours, init=str(old.folder)), ours or "graves"  # the default
    with pytest.raises(InputError, match=f"layers with the cell {theirs or 'graves'}, got {named}"):
        new_job(config, tmp_path / "new")
    new_job(replace(config, cell=theirs or "graves"), tmp_path / "new")


def test_a_run_of_another_kind_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    old = run_in(tmp_path / "old", SMALL)
    config = lines(tmp_path / "a", ["bad"], init=str(old.folder))
    with pytest.raises(InputError, match="init names a run of kind grid"):
        new_job(config, tmp_path / "new")
    with pytest.raises(InputError, match="there is no run folder"):
        new_job(replace(config, init=str(tmp_path / "none")), tmp_path / "new")


def test_other_channels_are_refused() -> None:
    config, specs = TrainConfig(), [TaskSpec("any", "grid", channels, 1, (2, 2)) for channels in (1, 3)]
    for old, new in (specs, specs[::-1]):
        with pytest.raises(InputError, match=f"{old.channels} channels?, got grid with {new.channels}"):
            Checkpoint(config, old, RunState(), {}).start(torch.nn.Identity(), config, new)


@pytest.mark.usefixtures("fresh_registries")
def test_any_names_of_tensors_are_taken(tmp_path: Path) -> None:
    """Also those that the wrapper `Normalized` gives to the network and to its numbers."""

    class Mine(torch.nn.Module):
        def __init__(self, channels: int, outputs: int, *, hidden: int) -> None:
            super().__init__()
            self.network, self.mean = (
                torch.nn.Linear(channels, outputs),
                torch.nn.Parameter(torch.rand(hidden)),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.network(x + self.mean.mean()).mean((1, 2))

    register("mine", kind="classify")(Mine)
    config = TrainConfig(model="mine")
    specs = [TaskSpec("any", "classify", 1, len(names), (2, 2), tuple(names)) for names in ("ab", "cba")]
    old, new = (build_network(replace(config, seed=seed), spec) for seed, spec in enumerate(specs))
    before, fresh = old.state_dict(), new.network.weight[0].clone()
    tensors = {f"model.{name}": tensor for name, tensor in before.items()}
    Checkpoint(config, specs[0], RunState(), tensors).start(new, config, specs[1])
    after = new.state_dict()
    assert torch.equal(after["mean"], before["mean"])
    assert torch.equal(after["network.weight"], torch.stack([fresh, *before["network.weight"].flip(0)]))


def test_levels_of_a_density_keep_the_weights_of_their_values() -> None:
    """The single logit for two levels is that of white."""
    config = TrainConfig(model="pixel", hidden=2)
    specs = [TaskSpec("any", "density", 1, outputs, (2, 2)) for outputs in (1, 3, 5)]
    networks = [build_network(replace(config, seed=seed), spec) for seed, spec in enumerate(specs)]
    weights = [network.heads[0][-1].weight for network in networks]
    for k, rows, old_rows in ((1, [2], [0]), (2, [0, 2, 4], [0, 1, 2])):
        tensors = {f"model.{name}": tensor for name, tensor in networks[k - 1].state_dict().items()}
        old = Checkpoint(config, specs[k - 1], RunState(), tensors)
        (note,) = old.start(networks[k], config, specs[k])
        assert f"{len(rows)} of {2 * k + 1} outputs" in note
        assert torch.equal(weights[k][rows], weights[k - 1][old_rows])
