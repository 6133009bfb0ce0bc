"""`mdlstm info`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from mdlstm_tk.cli.console import next_command, print_json, quoted, table
from mdlstm_tk.errors import require


def info(
    target: Annotated[Path, typer.Argument(metavar="MODEL|RUN", help="A .onnx, or a run's folder.")],
    max_bytes: Annotated[
        int | None, typer.Option(min=1, help="That a model may take; by default 1 GiB.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Say what a model or a run is."""
    if target.is_dir():
        facts, models = _run_facts(target), sorted(target.glob("*.onnx"))
    else:
        facts, models = _model_facts(target, max_bytes), [target]
    if json:
        print_json(facts)
    else:
        unset = {"grid": "any"}
        shown = {name: unset.get(name, "") if value is None else value for name, value in facts.items()}
        table([str(target), ""], [[name, str(value)] for name, value in shown.items()], texts=2)
    next_command(
        f"mdlstm infer FILE -m {quoted(models[-1])}" if models else f"mdlstm export {quoted(target)}"
    )


def _model_facts(path: Path, max_bytes: int | None) -> dict[str, Any]:
    from mdlstm_tk.runtime import Session
    from mdlstm_tk.runtime.io.npy import MAX_BYTES

    with Session(path, "cpu", max_bytes=max_bytes or MAX_BYTES) as session:
        return {"kind": "model", "bytes": path.stat().st_size, **asdict(session.metadata)}


def _run_facts(folder: Path) -> dict[str, Any]:
    require("torch", "train")
    from mdlstm_tk.training import load_checkpoint, open_run
    from mdlstm_tk.training.run_folder import metric_names

    run = open_run(folder)
    last = load_checkpoint(run.last if run.last.exists() else run.best)
    best = load_checkpoint(run.checkpoint)
    network = last.network()
    metrics = run.read_metrics()
    recent = metrics[-100:]
    return {
        "kind": "run",
        **asdict(last.config),
        "task": last.spec.name,
        "steps_done": last.step,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "best_step": best.step,
        "best_score": best.score,
        **{f"last_100_{name}": _mean([record[name] for record in recent]) for name in metric_names(recent)},
        "exports": sorted(path.name for path in folder.glob("*.onnx")),
    }


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
