"""`mdlstm export`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdlstm_tk.cli.console import next_command, note, print_json
from mdlstm_tk.errors import InputError, require
from mdlstm_tk.sizes import parse_size, show_size

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mdlstm_tk.export import Report
    from mdlstm_tk.training import Checkpoint, Run


def export(
    run: Annotated[Path | None, typer.Argument(help="A run's folder; else the latest.")] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(help="Of the grid: 8 or 8x12; repeatable. Else the run's own."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File, or folder for several sizes.")
    ] = None,
    atol: Annotated[float, typer.Option(min=0, help="Absolute error against float64 to allow.")] = 1e-5,
    force: Annotated[bool, typer.Option("--force", help="Replace what exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Export a trained network to ONNX, for a grid of any size, verified before it is written.

    Writes model-8x8.onnx into the run's folder unless -o says where.
    """
    require("torch", "train")
    require("onnx", "train")
    require("onnxruntime", "cpu")
    from mdlstm_tk.runtime.files import check_free
    from mdlstm_tk.training import latest_run, load_checkpoint, open_run

    found = open_run(run) if run else latest_run()
    checkpoint = load_checkpoint(found.best if found.best.exists() else found.last)
    sizes = [parse_size(text) for text in size or [checkpoint.config.size]]
    targets = _targets(found, sizes, output)
    for target in targets:
        check_free(target, force)
    reports = [
        export_run(found, checkpoint, grid, path, atol) for grid, path in zip(sizes, targets, strict=True)
    ]
    if json:
        print_json([_summary(report) for report in reports])
    elif not quiet:
        for report in reports:
            note(describe(report))
    if not quiet:
        next_command(f"mdlstm infer matrix.npy -m {targets[-1]}")


def export_run(
    run: Run, checkpoint: Checkpoint, grid: tuple[int, ...], path: Path, atol: float = 1e-5
) -> Report:
    """Export a run's checkpoint for one grid."""
    from mdlstm_tk.export import export_onnx
    from mdlstm_tk.training import build

    network, task = build(checkpoint.config)
    checkpoint.load_model(network)
    source = run.best if run.best.exists() else run.last
    about = {
        "model": checkpoint.config.model,
        "task": task.name,
        "checkpoint_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
    }
    return export_onnx(
        network, path, grid=grid, channels=task.channels, inputs=task_inputs(grid), about=about, atol=atol
    )


def task_inputs(grid: tuple[int, ...], seed: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    """The task's own matrices to verify with, where it has any of that size."""
    from mdlstm_tk.tasks import DiagonalTask

    if min(grid) < 3:
        return {}
    return {f"task × {count}": DiagonalTask(grid).batch(seed, 0, count, "validation").x for count in (1, 7)}


def describe(report: Report) -> str:
    """The report as a line."""
    about = report.metadata
    extents = ", ".join(map(str, about.grid))
    return (
        f"{report.path}: x (N, {extents}, {about.channels}) → y (N, {extents}, {about.outputs}), "
        f"{report.nodes} nodes, {report.bytes / 1024:.0f} KiB, "
        f"max error {report.max_abs:.1e} against float64, {report.seconds:.1f} s"
    )


def _summary(report: Report) -> dict[str, object]:
    return {
        "path": str(report.path),
        "grid": list(report.metadata.grid),
        "nodes": report.nodes,
        "bytes": report.bytes,
        "max_abs": report.max_abs,
        "seconds": report.seconds,
    }


def _targets(run: Run, sizes: list[tuple[int, ...]], output: Path | None) -> list[Path]:
    """Where each size goes."""
    names = [f"model-{show_size(grid)}.onnx" for grid in sizes]
    if len(set(names)) < len(names):
        raise InputError(f"--size names a size twice: {', '.join(map(show_size, sizes))}")
    if output is None:
        return [run.folder / name for name in names]
    if output.suffix == ".onnx":
        if len(sizes) > 1:
            raise InputError(f"-o {output} is one file for {len(sizes)} sizes; give a folder")
        return [output]
    if output.is_file():
        raise InputError(f"-o {output} is a file; give a folder, or a name that ends in .onnx")
    return [output / name for name in names]
