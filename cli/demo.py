"""`mdlstm demo`: the main job from end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from mdlstm_tk._util.text import shell_quoted
from mdlstm_tk.cli.console import heading, note
from mdlstm_tk.cli.options import ForceFolder, option, output_option
from mdlstm_tk.errors import require


def demo(
    steps: Annotated[int, option("Optimizer steps of the training.", None, min=1)] = 1000,
    output: Annotated[Path | None, output_option("Folder for all files.", "runs/demo", "DIR")] = None,
    force: ForceFolder = False,
) -> None:
    """Train an MD-LSTM, export it, run it on a matrix from disk, and verify it, in under two minutes."""
    require("torch", "train")
    from mdlstm_tk.cli.export import export
    from mdlstm_tk.cli.infer import infer
    from mdlstm_tk.cli.progress import train_with_progress
    from mdlstm_tk.cli.verify import verify
    from mdlstm_tk.data import DiagonalTask
    from mdlstm_tk.runtime import load_array, save_array
    from mdlstm_tk.training import configure, new_job, new_run

    config = configure({"steps": steps})
    run = new_run("demo", output, force)
    heading(f"[1/4] mdlstm train -o {shell_quoted(run.folder)} --steps {steps}")
    train_with_progress(new_job(config, run.folder, force=True))

    heading(f"[2/4] mdlstm export {shell_quoted(run.folder)} --size 8 --size 32")
    export(run.folder, [(8, 8), (32, 32)], force=True)

    matrix = run.folder / "matrix.npy"
    batch = DiagonalTask(config.grid).batch(seed=2026, step=0, count=1)
    save_array(matrix, batch.x[0, ..., 0])
    model = run.folder / "model-8x8.onnx"
    heading(f"[3/4] mdlstm infer {shell_quoted(matrix)} -m {shell_quoted(model)}")
    infer([str(matrix)], str(model), force=True)
    y = load_array(matrix.with_name("matrix.out.npy"))
    row, column = batch.second[0].tolist()
    note(f"the target's second one is at row {row}, column {column}; predicted there: {y[row, column]:.3f}")

    heading(f"[4/4] mdlstm verify {shell_quoted(model)} --against {shell_quoted(run.folder)}")
    verify(model, run.folder)
    note(f"look at {run.curves} and {run.prediction}")
