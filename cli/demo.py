"""`mdlstm demo`: the main job from end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mdlstm_tk.cli.console import err, note
from mdlstm_tk.errors import require


def demo(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for all of it.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of training.")] = 1000,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
) -> None:
    """Train an MD-LSTM, export it, run it on a matrix from disk, verify it. Under two minutes."""
    require("torch", "train")
    from mdlstm_tk.cli.export import export
    from mdlstm_tk.cli.infer import infer
    from mdlstm_tk.cli.train import train_with_progress
    from mdlstm_tk.cli.verify import verify
    from mdlstm_tk.data import DiagonalTask
    from mdlstm_tk.runtime import load_array, save_array
    from mdlstm_tk.training import TrainConfig, new_job, new_run

    config = TrainConfig(steps=steps)
    run = new_run("demo", output, force)
    _title("1/4", f"mdlstm train -o {run.folder} --steps {steps}")
    train_with_progress(new_job(config, run.folder, force=True))

    _title("2/4", f"mdlstm export {run.folder} --size 8 --size 32")
    export(run.folder, ["8", "32"], force=True)

    matrix = run.folder / "matrix.npy"
    batch = DiagonalTask(config.grid).batch(seed=2026, step=0, count=1)
    save_array(matrix, batch.x[0, ..., 0])
    model = run.folder / "model-8x8.onnx"
    _title("3/4", f"mdlstm infer {matrix} -m {model}")
    infer([str(matrix)], str(model), force=True)
    y = load_array(matrix.with_name("matrix.out.npy"))
    row, column = batch.second[0].tolist()
    note(f"the second one is due at row {row}, column {column}; predicted there: {y[row, column]:.3f}")

    _title("4/4", f"mdlstm verify {model} --against {run.folder}")
    verify(model, run.folder)
    note(f"\nlook at {run.curves} and {run.prediction}")


def _title(step: str, command: str) -> None:
    err().print(f"\n[{step}] {command}", style="bold", markup=False)
