"""`mdlstm export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdlstm_tk._util.sizes import parse_free_size, parse_size
from mdlstm_tk._util.text import shell_quoted
from mdlstm_tk.cli.console import detail, next_command, note, print_json
from mdlstm_tk.cli.options import (
    OUTPUT,
    ExportDtype,
    Form,
    Json,
    complete_files,
    complete_run,
    parse_free_size_text,
    parse_size_text,
    with_imports,
)
from mdlstm_tk.errors import InputError, require

if TYPE_CHECKING:
    from mdlstm_tk.export.targets import ExportTarget

MODEL = "Model"


def export(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN]", help="Run folder.", show_default="the latest run", autocompletion=complete_run
        ),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SIZE",
            parser=parse_free_size_text,
            help="Grid size, as 8 or 8x12, or 48x* for any width; repeatable.",
            show_default="the run's own size, or any size with --form scan",
            rich_help_panel=MODEL,
        ),
    ] = None,
    form: Annotated[
        Form | None,
        typer.Option(
            help="Form of the graph: unrolled for one size, faster on small grids; scan for any size, "
            "smaller, and as fast or faster on large grids; or tiles for grids larger than memory.",
            show_default="unrolled, or scan with --web",
            rich_help_panel=MODEL,
        ),
    ] = None,
    drawing: Annotated[
        bool,
        typer.Option(
            "--drawing",
            help="Write the graph that mdlstm sample draws images with, of a run of kind density.",
            rich_help_panel=MODEL,
        ),
    ] = False,
    padded: Annotated[
        bool,
        typer.Option(
            "--padded",
            help="Add an input for the sizes of padded samples, so that smaller grids run in one batch.",
            rich_help_panel=MODEL,
        ),
    ] = False,
    multiple_of: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            parser=parse_size_text,
            help="What the size must be a multiple of: for a network with strides and --form scan.",
            show_default="any size",
            rich_help_panel=MODEL,
        ),
    ] = None,
    dtype: Annotated[
        ExportDtype,
        typer.Option(
            help="Data type of weights and activations; int8 is for the matrix products alone.",
            rich_help_panel=MODEL,
        ),
    ] = "float32",
    functions: Annotated[
        bool,
        typer.Option(
            "--functions",
            help="Write each wavefront as one named node, to look at in Netron.",
            rich_help_panel=MODEL,
        ),
    ] = False,
    atol: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Maximum error against the float64 reference, in units of the largest output, at least 1.",
            show_default="1e-5, 5e-3 for float16, 5e-2 for int8",
            rich_help_panel=MODEL,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="File, or folder for several sizes.",
            show_default="model-SIZE.onnx, or model.tiles, in the run folder",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    server_repo: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Add the model to a model repository of NVIDIA Triton Inference Server instead.",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    web: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write a web page that runs the model in the browser instead.",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    web_runtime: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="File or folder that holds onnxruntime-web, for --web.",
            show_default="downloaded with npm",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Your data that the run was trained on, for --web: the page will hold some of them.",
            show_default="no examples of your own data",
            autocompletion=complete_files(".npz"),
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace files that exist.", rich_help_panel=OUTPUT)
    ] = False,
    json: Json = False,
) -> None:
    """Export a trained network to ONNX, for one grid size or any, verified before a file is written."""
    if form == "tiles" and (server_repo or web):
        raise InputError("--form tiles is for files; leave out --server-repo and --web")
    if sum(option is not None for option in (output, server_repo, web)) > 1:
        raise InputError("-o, --server-repo and --web are mutually exclusive; give one of them")
    if web_runtime and not web:
        raise InputError("--web-runtime needs --web DIR; give both")
    if data and not web:
        raise InputError("--data is for the examples of a page; give --web DIR, or leave it out")
    require("torch", "train")
    require("onnx", "train")
    require("onnxruntime", "cpu")
    from mdlstm_tk.export import export_drawing, export_run_sizes
    from mdlstm_tk.training import latest_run

    run = run or latest_run().folder
    detail(f"exporting {run}")
    if drawing:
        others = {
            "--size": size,
            "--form": form,
            "--server-repo": server_repo,
            "--padded": padded,
            "--multiple-of": multiple_of,
            "--dtype": dtype != "float32",
            "--functions": functions,
            "--atol": atol is not None,
            "--data": data,
        }
        if given := [name for name, value in others.items() if value]:
            raise InputError(f"--drawing draws images of any size, row by row; leave out {given[0]}")
        page = _target(None, web, web_runtime, force, "")
        path = export_drawing(run, page or output, force=force)
        if json:
            print_json({"path": str(path), "bytes": path.stat().st_size})
        else:
            note(f"{path}: draws images of any size, {path.stat().st_size / 1024:.0f} KiB")
        next_command(page.next_command if page else f"mdlstm sample {shell_quoted(path)}")
        return
    target = _target(server_repo, web, web_runtime, force, data or "")
    reports = export_run_sizes(
        run,
        [parse_free_size(text) for text in size] if size else [None],
        target or output,
        form=form,
        padded=padded,
        multiple_of=parse_size(multiple_of) if multiple_of else None,
        dtype=dtype,
        functions=functions,
        atol=atol,
        force=force,
    )
    if json:
        print_json([report.as_dict() for report in reports])
    else:
        for report in reports:
            note(str(report))
            if report.needs_trust:
                note(f"{report.path} runs with --trusted only, for its {', '.join(report.needs_trust)}")
        if reports[-1].metadata.kind == "density" and not target:
            draw = with_imports(f"mdlstm export {shell_quoted(run)} --drawing")
            note(f"to draw images without PyTorch, export a second file: {draw}")
    next_command(
        target.next_command if target else f"mdlstm infer FILE -m {shell_quoted(reports[-1].path)}"
    )


def _target(
    server_repo: Path | None, web: Path | None, web_runtime: Path | None, force: bool, data: str
) -> ExportTarget | None:
    """The target that the options name; None for files."""
    from mdlstm_tk.export.targets import ServerRepository, WebPage

    if server_repo:
        return ServerRepository(server_repo, force)
    return WebPage(web, web_runtime, force, data, note) if web else None
