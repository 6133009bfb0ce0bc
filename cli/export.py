"""`mdlstm export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdlstm_tk.cli.console import next_command, note, print_json, quoted
from mdlstm_tk.errors import InputError, require
from mdlstm_tk.sizes import parse_size

if TYPE_CHECKING:
    from mdlstm_tk.export.targets import ExportTarget


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
    from mdlstm_tk.export import export_run_sizes
    from mdlstm_tk.training import latest_run

    target = _target(output, server_repo, web, web_runtime, force)
    reports = export_run_sizes(
        run or latest_run(),
        [parse_size(text) for text in size] if size else [None],
        target or output,
        form=form,
        padded=smaller,
        dtype=dtype,
        functions=functions,
        atol=atol,
        force=force,
    )
    if json:
        print_json([report.as_dict() for report in reports])
    elif not quiet:
        for report in reports:
            note(report.summary())
    if not quiet:
        next_command(target.next_command if target else f"mdlstm infer FILE -m {quoted(reports[-1].path)}")


def _target(
    output: Path | None, server_repo: Path | None, web: Path | None, web_runtime: Path | None, force: bool
) -> ExportTarget | None:
    """The target that the options name; None for files."""
    from mdlstm_tk.export.targets import ServerRepository, WebPage

    if sum(option is not None for option in (output, server_repo, web)) > 1:
        raise InputError("-o, --server-repo and --web are mutually exclusive; give one of them")
    if web_runtime and not web:
        raise InputError("--web-runtime needs --web DIR; give both")
    if server_repo:
        return ServerRepository(server_repo, force)
    return WebPage(web, web_runtime, force) if web else None
