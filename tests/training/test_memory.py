"""The estimate of memory, and the refusal that names the setting that helps."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mdlstm_tk.data import DiagonalTask
from mdlstm_tk.errors import InputError
from mdlstm_tk.models import register
from mdlstm_tk.training import TrainConfig, configure, make_task, memory, new_job
from mdlstm_tk.training.memory import available_memory, check_memory, estimate_memory

CPU = torch.device("cpu")


def test_networks_of_standardised_data_are_estimated() -> None:
    config = configure({"size": "16"})
    task = make_task(config)
    plain = estimate_memory(config, task, 4)
    task.spec = replace(task.spec, mean=(0.5,), std=(2.0,))
    standardised = estimate_memory(config, task, 4)
    assert plain is not None and standardised is not None and standardised.batch >= plain.batch


def estimate(**settings: Any) -> memory.MemoryEstimate:
    config = configure({"size": "16", **settings})
    result = estimate_memory(config, make_task(config), config.batch_size)
    assert result is not None
    return result


def test_the_estimate_grows_with_what_takes_memory() -> None:
    small = estimate()
    assert estimate(batch_size=64).batch == pytest.approx(4 * small.batch, rel=0.1)
    assert estimate(size="32").batch == pytest.approx(4 * small.batch, rel=0.2)
    wide = estimate(hidden=64)
    assert wide.weights > 10 * small.weights
    assert estimate(workers=2).cache > small.cache == memory.LIBRARY_BYTES


@pytest.mark.parametrize(
    ("settings", "available", "advice"),
    [
        ({"hidden": 2000, "size": "4", "batch_size": 1}, 10**8, "a smaller --hidden or --layers"),
        ({"size": "64", "batch_size": 64, "hidden": 64}, 10**8, "--batch-size 16"),
        ({"size": "512", "batch_size": 1, "hidden": 64}, 10**8, "a smaller --size"),
        ({"hidden": 1_000_000}, 10**12, "a smaller --hidden or --layers"),
    ],
)
def test_the_setting_that_helps_is_named(
    settings: dict[str, Any], available: int, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: available)
    with pytest.raises(InputError, match=f"needs about .* are available; try {advice}"):
        new_job(configure(settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_note_holds_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    config, task = configure({}), DiagonalTask((8, 8))
    monkeypatch.setattr(memory, "available_memory", lambda: 3 * 10**9)
    assert check_memory(config, task, 16, CPU).endswith("more memory; 3 GB are available")
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    assert check_memory(config, task, 16, CPU).endswith("more memory")


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"model": "lines"}, "a smaller --size"),  # it has two predictions, and no windows
        ({"model": "md"}, "--windows 4x4,2x1"),  # the default windows are 2x2 and 2x1
        ({"model": "md", "windows": "3x1,2"}, "--windows 6x2,2x2"),
    ],
)
def test_windows_that_help_are_larger(
    settings: dict[str, str], advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure({"task": "digit-strings", "batch_size": 1, **settings})
    task = make_task(config)
    assert "more memory" in check_memory(config, task, 1, CPU)
    monkeypatch.setattr(memory, "available_memory", lambda: 1)
    monkeypatch.setattr(memory, "LIBRARY_BYTES", 0)
    monkeypatch.setattr(memory, "WEIGHT_COPIES", 0)
    with pytest.raises(InputError, match=f"try {advice}"):
        check_memory(config, task, 1, CPU)


@pytest.mark.usefixtures("fresh_registries")
def test_a_network_that_needs_values_is_not_estimated() -> None:
    class ByValue(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if bool(x.sum() > 0) else x

    register("by-value")(lambda channels, outputs, *, hidden=1: ByValue(channels, outputs))

    config = TrainConfig(size="8", model="by-value")
    assert check_memory(config, DiagonalTask((8, 8)), 16, CPU) == ""


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="needs POSIX")
def test_the_available_memory_is_a_part_of_all() -> None:
    everything = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < (available_memory() or 0) <= everything


def test_memory_of_a_gpu_that_torch_keeps_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run in a process takes what the first one has freed."""
    numbers = {"mem_get_info": (10**9, 8 * 10**9), "memory_reserved": 3 * 10**9, "memory_allocated": 10**9}
    for name, value in numbers.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    text = check_memory(configure({}), DiagonalTask((8, 8)), 16, torch.device("cuda"))
    assert text.endswith("more memory on cuda; 3 GB are available")
