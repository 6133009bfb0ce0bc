"""Several processes train together: with the losses of one process, and one of them writes files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers.command import ENVIRONMENT, Result, mdlstm, mdlstm_process, succeed

from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.training import (
    Run,
    configure,
    in_processes,
    load_checkpoint,
    new_job,
)
from mdlstm_tk.training import processes as processes_module
from mdlstm_tk.training.distributed import DistributedContext, init
from mdlstm_tk.training.processes import cores
from mdlstm_tk.training.trainer import Trainer

RUN = ("train", "--task", "digit-strings", "--hidden", "4", "--steps", "12", "--batch-size", "8")
SETTINGS = ("--evaluate-every", "6", "--warmup", "0", "--average", "0.9", "--dropout", "0")
# Without dropout, as each process draws masks of its own.
SMALL = ("train", "--size", "4", "--hidden", "3")
several_cores = pytest.mark.skipif(cores() < 2, reason="needs two cores")


def torchrun(*arguments: object, cwd: Path) -> Result:
    """Call `mdlstm` in two processes that torchrun starts."""
    start = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    done = subprocess.run(
        [sys.executable, *start, "-m", "mdlstm_tk", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, **ENVIRONMENT},
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.mark.slow
@several_cores
def test_two_processes_have_the_losses_of_one_process(tmp_path: Path) -> None:
    calls = {"one": mdlstm, "torchrun": torchrun, "two": partial(mdlstm_process, "train", "--processes", 2)}
    for name, call in calls.items():
        done = call(*RUN[name == "two" :], *SETTINGS, "-o", name, "--json", cwd=tmp_path)
        assert done.code == 0, done.err
        assert done.err.count("next: mdlstm export") == 1
        assert json.loads(done.out)["run"] == name
    one, *several = (Run(tmp_path / name).read_metrics() for name in calls)
    assert np.ptp([record["loss"] for record in one]) > 0.1
    for records in several:
        assert [record["step"] for record in records] == list(range(1, 13))
        losses = [[record["loss"] for record in each] for each in (one, records)]
        np.testing.assert_allclose(*losses, rtol=0, atol=1e-5)
        assert records[-1]["validation"] == pytest.approx(one[-1]["validation"], abs=0.01)
    files = [{path.name for path in (tmp_path / name).iterdir()} for name in calls]
    assert files[0] == files[1] == files[2]
    errors = [json.loads((tmp_path / name / "result.json").read_text())["errors"] for name in calls]
    assert errors[1:] == [pytest.approx(errors[0], abs=0.01)] * 2


@pytest.mark.slow
@several_cores
def test_the_error_of_a_process_is_one_line(tmp_path: Path) -> None:
    done = mdlstm(*SMALL, "--batch-size", "3", "-o", "odd", "--processes", "2", cwd=tmp_path)
    line = "batch_size 3 cannot be shared evenly by 2 processes; choose a multiple of their number"
    assert (done.code, done.err) == (2, f"error: {line}\n")
    assert not (tmp_path / "odd").exists()


@pytest.mark.slow
@several_cores
@pytest.mark.parametrize("end", ["result", "error", "kill"])
def test_a_process_ends_all(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if end == "result":
        assert in_processes(2, _meet, end) == (0, 2, max(1, cores() // 2))
    else:
        error, text = (InputError, "rank 1") if end == "error" else (MDLSTMError, "1 terminated.*SIGKILL")
        with pytest.raises(error, match=text):
            in_processes(2, _meet, end)


def _meet(end: str) -> tuple[int, int, int]:
    """Meet the other process, after which that of rank 1 ends in some way."""
    context = init("cpu")
    assert context.all_gather([context.rank]) == [0, 1]
    if context.rank and end == "error":
        raise InputError("rank 1")
    if context.rank and end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if end != "result":
        context.all_gather([0])  # fails, as the other process does not come
    return context.rank, context.world_size, torch.get_num_threads()


@pytest.mark.slow
@several_cores
@pytest.mark.skipif(sys.platform == "win32", reason="needs groups of processes")
def test_an_interrupt_ends_all_processes_with_a_checkpoint(tmp_path: Path) -> None:
    """A terminal sends Ctrl-C to all processes that it knows."""
    options = ("--steps", "1000000", "--evaluate-every", "10", "-o", "run", "--processes", "2", "-q")
    process = subprocess.Popen(
        [sys.executable, "-m", "mdlstm_tk", *SMALL, *options],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        env={**os.environ, **ENVIRONMENT},
        start_new_session=True,
        text=True,
    )
    last = tmp_path / "run/last.safetensors"
    while not last.exists() and process.poll() is None:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130 and "Traceback" not in err
    records = Run(tmp_path / "run").read_metrics()
    assert load_checkpoint(last).step == len(records) == records[-1]["step"]


@pytest.mark.parametrize(
    ("options", "variables", "message"),
    [
        (("--processes", "0"), {}, "--processes"),
        (("--processes", "two"), {}, "--processes"),
        (("--processes", "3"), {}, "number of cores, 2, got 3"),
        (("--processes", "2"), {"RANK": "0"}, "torchrun"),
    ],
)
def test_processes_that_cannot_be_started_are_refused(
    options: tuple[str, ...],
    variables: dict[str, str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes_module, "cores", lambda: 2)
    done = mdlstm("train", *options, env=variables, cwd=tmp_path)
    assert (done.code, done.err.count("\n")) == (2, 1) and message in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@several_cores
def test_all_processes_follow_one_clock(tmp_path: Path) -> None:
    """Were each to look at its own, one would end before the other, which would wait for it forever."""
    options = ("--minutes", "0.1", "--evaluate-every", "10", "--processes", 2, "-o", "run")
    succeed(*SMALL, *options, cwd=tmp_path)
    state = load_checkpoint(tmp_path / "run/last.safetensors").state
    assert state.seconds >= 6 and len(Run(tmp_path / "run").read_metrics()) == state.step


@pytest.mark.slow
@several_cores
def test_two_processes_resume_what_one_has_begun(tmp_path: Path) -> None:
    succeed(*SMALL, "--steps", "4", "-o", "run", cwd=tmp_path)
    done = torchrun("train", "--resume", "run", "--steps", "6", cwd=tmp_path)
    assert done.code == 0, done.err
    assert load_checkpoint(tmp_path / "run/last.safetensors").step == 6
    validations = [record.get("validation", {}) for record in Run(tmp_path / "run").read_metrics()]
    assert [*validations[3]] == [*validations[5]] == ["relevant", "relevant_16x16"]


def test_processes_share_a_batch_evenly() -> None:
    ranks = [DistributedContext(rank, 3, torch.device("cpu")) for rank in range(3)]
    sizes = sorted(np.random.default_rng(0).integers(1, 100, 12).tolist())  # as those of a batch may be
    shares = [sizes[each.shard] for each in ranks]
    assert sorted(size for share in shares for size in share) == sizes
    assert {len(share) for share in shares} == {ranks[0].share(12)}
    sums = [sum(share) for share in shares]
    assert max(sums) - min(sums) <= sizes[-1] - sizes[0]  # not all large samples are one's
    with pytest.raises(InputError, match="evenly"):
        ranks[0].share(10)
    alone = init("cpu")
    assert alone.is_main
    assert alone.all_reduce_sum([1.0, 2.0]) == [1.0, 2.0]


def test_processes_of_one_machine_do_not_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="cuda:1; give --device cuda"):
        init("cuda:1")


def test_errors_that_only_another_process_has_are_part_of_the_sums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task may name its errors after the samples that a process got."""
    trainer = Trainer(new_job(configure({"size": 4, "hidden": 2}), tmp_path / "run"))
    monkeypatch.setattr(DistributedContext, "all_gather", lambda _, names: ["small", *names])
    names, values = trainer._backward(trainer.task.batch(0, 0, 2), False)
    assert names == ["small", "relevant"]
    assert list(values[3:5]) == [0, 0] and values[6] == 2


def test_all_processes_validate_with_the_buffers_of_the_main_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch normalisation follows the batches of its own process."""
    config = configure({"task": "digit-strings", "model": "lines", "hidden": 2, "batch_size": 1})
    trainer = Trainer(new_job(config, tmp_path / "run"))
    trainer.context = DistributedContext(1, 2, torch.device("cpu"))
    monkeypatch.setattr(dist, "broadcast", lambda buffer, src: buffer.fill_(5 + src))
    monkeypatch.setattr("mdlstm_tk.training.trainer.evaluate", lambda *_: {})
    trainer.validate()
    assert trainer.best_weights is not None
    buffers = dict(trainer.network.named_buffers())
    assert buffers and all((trainer.best_weights[name] == 5).all() for name in buffers)
