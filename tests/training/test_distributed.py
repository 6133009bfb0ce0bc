"""Several processes train together: with the losses of one process, and one of them writes files."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers.command import ENVIRONMENT, Result, mdlstm
from helpers.forks import processes

from mdlstm_tk.cli import main
from mdlstm_tk.errors import InputError
from mdlstm_tk.training import Run, configure, load_checkpoint, new_job
from mdlstm_tk.training.distributed import DistributedContext, init
from mdlstm_tk.training.trainer import Trainer

RUN = ("train", "--task", "digit-strings", "--hidden", "4", "--steps", "12", "--batch-size", "8")
SETTINGS = ("--set", "evaluate_every=6", "--set", "warmup=0", "--set", "average=0.9", "--set", "dropout=0")
# Without dropout, as each process draws masks of its own.


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


def forked(*arguments: object, cwd: Path) -> Result:
    """Call `mdlstm` in two processes that start faster than torchrun's, with the variables that it sets."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    texts = list(map(str, arguments))
    pair = [processes().Process(target=_rank, args=(rank, port, cwd, texts)) for rank in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join()
    err = "".join((cwd / f"stderr-{rank}").read_text() for rank in range(2))
    return Result(max(process.exitcode or 0 for process in pair), "", err)


def _rank(rank: int, port: int, cwd: Path, arguments: list[str]) -> None:
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": 2,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in place.items()} | ENVIRONMENT)
    os.chdir(cwd)
    with open(f"stderr-{rank}", "w", encoding="utf-8") as sys.stderr:
        try:
            main(arguments)
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()  # a fork runs no functions at exit


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_process(tmp_path: Path) -> None:
    records = []
    for count, call in ((1, mdlstm), (2, torchrun)):
        done = call(*RUN, *SETTINGS, "-o", f"run-{count}", cwd=tmp_path)
        assert done.code == 0, done.err
        records.append(Run(tmp_path / f"run-{count}").read_metrics())
        assert done.err.count("next: mdlstm export") == 1
    one, two = records
    assert [record["step"] for record in two] == list(range(1, 13))
    assert np.ptp([record["loss"] for record in one]) > 0.1
    np.testing.assert_allclose([r["loss"] for r in one], [r["loss"] for r in two], rtol=0, atol=1e-5)
    assert two[-1]["validation"] == pytest.approx(one[-1]["validation"], abs=0.01)
    files = [{path.name for path in (tmp_path / f"run-{n}").iterdir()} for n in (1, 2)]
    assert files[0] == files[1]
    errors = [json.loads((tmp_path / f"run-{n}/result.json").read_text())["errors"] for n in (1, 2)]
    assert errors[0] == pytest.approx(errors[1], abs=0.01)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a fork server")
def test_two_processes_resume_and_refuse_a_batch_that_they_cannot_share(tmp_path: Path) -> None:
    small = ("--size", "4", "--hidden", "3", "--steps", "4")
    done = mdlstm("train", *small, "-o", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    done = forked("train", "--resume", "run", "--steps", "6", cwd=tmp_path)
    assert done.code == 0, done.err
    assert load_checkpoint(tmp_path / "run/last.safetensors").step == 6
    validations = [record.get("validation", {}) for record in Run(tmp_path / "run").read_metrics()]
    assert [*validations[3]] == [*validations[5]] == ["relevant", "relevant_16x16"]
    done = forked("train", *small, "--batch-size", "3", "-o", "odd", cwd=tmp_path)
    assert done.code != 0
    assert "batch_size 3" in done.err
    assert not (tmp_path / "odd").exists()


def test_the_shards_of_a_batch() -> None:
    ranks = [DistributedContext(rank, 3, torch.device("cpu")) for rank in range(3)]
    parts = [list(range(12))[each.shard(12)] for each in ranks]
    assert parts == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    with pytest.raises(InputError, match="evenly"):
        ranks[0].shard(10)
    alone = init("cpu")
    assert alone.is_main
    assert alone.all_reduce_sum([1.0, 2.0]) == [1.0, 2.0]


def test_processes_of_one_machine_do_not_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match='cuda:1; give device="cuda"'):
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
