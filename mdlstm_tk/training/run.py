"""Run folders: `runs/NAME/` holds settings, checkpoints, metrics, result, pictures and report of a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from mdlstm_tk._util.folders import is_empty, locked
from mdlstm_tk._util.sizes import format_size
from mdlstm_tk._util.text import to_json
from mdlstm_tk.data.task import Task
from mdlstm_tk.errors import InputError
from mdlstm_tk.io.files import open_output
from mdlstm_tk.training.checkpoint import Checkpoint, load_checkpoint
from mdlstm_tk.training.config import TrainConfig
from mdlstm_tk.training.distributed import Group

RUNS = Path("runs")
Record = dict[str, Any]
"""A line of `metrics.jsonl`: "step", "loss", "lr", and "validation" of some, measures by name."""


class Run:
    """The files of a run."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.config, self.metrics = self.folder / "config.toml", self.folder / "metrics.jsonl"
        self.best, self.last = self.folder / "best.safetensors", self.folder / "last.safetensors"
        self.result, self.report = self.folder / "result.json", self.folder / "report.html"
        self.curves, self.prediction = self.folder / "curves.png", self.folder / "prediction.png"

    @property
    def checkpoint(self) -> Path:
        """The best checkpoint, or the last one if training ended before the first validation."""
        return self.best if self.best.exists() else self.last

    def read_metrics(self) -> list[Record]:
        """The records of all steps, without a last line that a killed process has not ended."""
        lines = self.metrics.read_bytes().split(b"\n") if self.metrics.exists() else [b""]
        return [json.loads(line) for line in lines[:-1]]

    def read_result(self) -> dict[str, Any]:
        """The content of `result.json`; {} if there is none."""
        result: dict[str, Any] = json.loads(self.result.read_bytes()) if self.result.exists() else {}
        return result

    @staticmethod
    def write(path: Path, text: str) -> None:
        """Write a file, which appears whole or not at all."""
        with open_output(path) as file:
            file.write(text.encode())

    @contextmanager
    def opened(self, start: Checkpoint, group: Group) -> Iterator[Callable[[list[Record]], None]]:
        """Lock the folder, remove what training makes outdated, and yield a function that adds records; in
        other processes than the main one do nothing."""
        if not group.is_main:
            yield lambda records: None
            return
        with locked(self.folder, "give another folder"), ExitStack() as stack:
            if start.state.step and load_checkpoint(self.last).state.step != start.state.step:
                raise InputError(f"{self.folder} has gone on since it was opened; open it again")
            outdated = [self.result, self.curves, self.prediction, self.report]
            if not start.state.step:
                models = [*self.folder.glob("model*.onnx"), self.folder / "model.tiles"]
                of_run = [*models, self.folder / "lm.arpa.gz"] if self.checkpoint.exists() else []
                outdated += [self.best, self.last, *of_run]
            for path in outdated:
                path.unlink(missing_ok=True)
            self.write(self.config, start.config.to_toml())
            kept = [record for record in self.read_metrics() if record["step"] <= start.state.step]
            self.write(self.metrics, "".join(to_json(record) + "\n" for record in kept))
            file = stack.enter_context(self.metrics.open("a", encoding="utf-8"))
            events: Any = None
            if start.config.tensorboard:
                from torch.utils.tensorboard import SummaryWriter

                events = SummaryWriter(str(self.folder), purge_step=start.state.step + 1)
                stack.callback(events.close)

            def add(records: list[Record]) -> None:
                file.write("".join(to_json(record) + "\n" for record in records))
                file.flush()
                for record in records if events else ():
                    values = {"loss": record["loss"], "lr": record["lr"]}
                    values |= {f"validation/{k}": v for k, v in record.get("validation", {}).items()}
                    for name, value in values.items():
                        events.add_scalar(name, value, record["step"])

            yield add


def new_run(config: TrainConfig, task: Task, folder: str | Path | None, force: bool) -> Run:
    """Create the folder of a new run.

    Args:
        config, task: name it if `folder` is None: the first free one of runs/TASK-MODEL-SIZE, …-2, ….
        folder: the folder.
        force: allow a folder that is not empty.

    Raises:
        InputError: the folder is not empty.
    """
    if folder is None:
        task_name = "" if config.task == TrainConfig.task else f"{task.spec.name}-"
        name = f"{task_name}{config.model}-{format_size(task.spec.size)}".replace("/", "-").lower()
        for k in count(1):
            run = Run(RUNS / (name if k == 1 else f"{name}-{k}"))
            with suppress(FileExistsError):
                run.folder.mkdir(parents=True)
                return run
    run = Run(folder or "")
    if not force and not is_empty(run.folder):
        raise InputError(f"{folder} is not empty; give another folder, or force (--force)")
    run.folder.mkdir(parents=True, exist_ok=True)
    return run


def open_run(folder: str | Path) -> Run:
    """The run in a folder.

    Raises:
        InputError: it holds no checkpoint.
    """
    run = Run(folder)
    if not run.checkpoint.exists():
        raise InputError(f"{folder} is no folder of a run; give one that `mdlstm train` wrote")
    return run


def latest_run() -> Run:
    """The run in runs/ that was trained last.

    Raises:
        InputError: there is none.
    """
    found = list(RUNS.glob("*/last.safetensors"))
    if not found:
        raise InputError("there is no run in runs/ here; create one with: mdlstm train")
    return Run(max(found, key=lambda path: path.stat().st_mtime_ns).parent)
