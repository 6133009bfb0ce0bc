"""`mdlstm export`."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdlstm_tk.cli.console import next_command, note, print_json, quoted
from mdlstm_tk.errors import InputError, require
from mdlstm_tk.export.targets import find_place
from mdlstm_tk.sizes import format_size, parse_size

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mdlstm_tk.export import Report
    from mdlstm_tk.training import Checkpoint, Run


def export(
    run: Annotated[Path | None, typer.Argument(help="A run's folder; else the latest.")] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            help="Of the grid: 8 or 8x12; repeatable. Else the run's own, or any for --form scan."
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(help="unrolled: fastest for one size. scan: one file, any size, and best for --web."),
    ] = None,
    smaller: Annotated[
        bool, typer.Option("--sizes", help="Take padded samples and their sizes: smaller grids run, too.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="Of weights and activations: float32 or float16.")] = "float32",
    functions: Annotated[
        bool, typer.Option("--functions", help="One named node a wavefront, to look at in Netron.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File, or folder for several sizes.")
    ] = None,
    atol: Annotated[
        float | None,
        typer.Option(min=0, help="Absolute error against float64 to allow: 1e-5, for float16 5e-3."),
    ] = None,
    server_repo: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Into a model repository for NVIDIA Triton Inference Server."),
    ] = None,
    web: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Into a page that runs the model in a browser.")
    ] = None,
    web_runtime: Annotated[
        Path | None,
        typer.Option(help="For --web: onnxruntime-web from this file or folder; else npm fetches it."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Export a trained network to ONNX, for a grid of any size, verified before it is written.

    Writes model-8x8.onnx, or model-any.onnx, into the run's folder unless told where else.
    """
    require("torch", "train")
    require("onnx", "train")
    require("onnxruntime", "cpu")
    from mdlstm_tk.runtime.io.files import ensure_writable
    from mdlstm_tk.training import latest_run, load_checkpoint, open_run

    found = open_run(run) if run else latest_run()
    checkpoint = load_checkpoint(found.best if found.best.exists() else found.last)
    form = form or ("scan" if web else "unrolled")
    own = None if form == "scan" else checkpoint.config.grid
    sizes = [parse_size(text) for text in size] if size else [own]
    if web and len(sizes) > 1:
        raise InputError(f"a page has one model, got {len(sizes)} sizes; give one --size, or none for any")
    place = find_place(output, server_repo, web, web_runtime, force)
    options = {"form": form, "sizes": smaller, "dtype": dtype, "functions": functions, "atol": atol}
    with tempfile.TemporaryDirectory() as scratch:
        targets = _targets(found, sizes, Path(scratch) if place else output)
        for target in targets:
            ensure_writable(target, force)
        reports = [
            export_run(found, checkpoint, grid, path, **options)
            for grid, path in zip(sizes, targets, strict=True)
        ]
        if place:
            name = found.folder.resolve().name
            for k, (grid, target) in enumerate(zip(sizes, targets, strict=True)):
                other = None if grid == checkpoint.config.grid else target.stem.removeprefix("model-")
                reports[k] = replace(reports[k], path=place.take(target, name, other))
    if json:
        print_json([_summary(report) for report in reports])
    elif not quiet:
        for report in reports:
            note(describe(report))
    if not quiet:
        next_command(place.then if place else f"mdlstm infer FILE -m {quoted(targets[-1])}")


def export_run(
    run: Run, checkpoint: Checkpoint, grid: tuple[int, ...] | None, path: Path, **options: Any
) -> Report:
    """Export a run's checkpoint for one grid, or for any; options as of `export_onnx`."""
    from mdlstm_tk.export import export_onnx

    spec = checkpoint.spec
    source = run.best if run.best.exists() else run.last
    about = {
        "model": checkpoint.config.model,
        "task": spec.name,
        "kind": spec.kind,
        "classes": spec.classes or None,
        "checkpoint_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
    }
    inputs = task_inputs(spec.name, grid or spec.size)
    return export_onnx(
        checkpoint.network(),
        path,
        grid=grid,
        channels=spec.channels,
        channels_last=True,
        inputs=inputs,
        about=about,
        **options,
    )


def task_inputs(
    task: str | None, grid: tuple[int, ...], seed: int = 0
) -> dict[str, npt.NDArray[np.float32]]:
    """Matrices of the diagonal task to verify its networks with, where there are any of that size."""
    from mdlstm_tk.data import DiagonalTask

    if task != "diagonal" or min(grid) < 3:
        return {}
    return {f"task × {count}": DiagonalTask(grid).batch(seed, 0, count, "validation").x for count in (1, 7)}


def describe(report: Report) -> str:
    """The report as a line."""
    about = report.metadata
    extents = ", ".join(map(str, about.grid or about.layout.split()[1:-1]))
    y = {"classify": "N", "transcribe": "N, T"}.get(about.kind or "", f"N, {extents}")
    return (
        f"{report.path}: x (N, {extents}, {about.channels}) → y ({y}, {about.outputs}), "
        f"{about.form}, {report.nodes} nodes, {report.bytes / 1024:.0f} KiB, "
        f"max error {report.max_abs:.1e} against float64, {report.seconds:.1f} s"
    )


def _summary(report: Report) -> dict[str, object]:
    return {
        "path": str(report.path),
        "grid": report.metadata.grid,
        "form": report.metadata.form,
        "nodes": report.nodes,
        "bytes": report.bytes,
        "max_abs": report.max_abs,
        "seconds": report.seconds,
    }


def _targets(run: Run, sizes: Sequence[tuple[int, ...] | None], output: Path | None) -> list[Path]:
    """Where each size goes."""
    names = [f"model-{format_size(grid) if grid else 'any'}.onnx" for grid in sizes]
    if len(set(names)) < len(names):
        raise InputError(f"--size names a size twice: {', '.join(names)}")
    if output is None:
        return [run.folder / name for name in names]
    if output.suffix == ".onnx":
        if len(sizes) > 1:
            raise InputError(f"-o {output} is one file for {len(sizes)} sizes; give a folder")
        return [output]
    if output.is_file():
        raise InputError(f"-o {output} is a file; give a folder, or a name that ends in .onnx")
    return [output / name for name in names]
