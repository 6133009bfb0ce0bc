"""`mdlstm export`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from mdlstm_tk._util.sizes import parse_free_size, parse_size
from mdlstm_tk.cli import console, options
from mdlstm_tk.errors import InputError
from mdlstm_tk.io.metadata import Dtype, Form

SIZE = "Grid size, as 8 for all axes, 8x12, or 48x* for any width; repeatable.  (default: as in training)"
FORM = "unrolled: for one size, faster on small grids; scan: any size; tiles: grids larger than memory."
PADDED = "Add an input for the sizes of padded samples, so that smaller grids run in one batch."
MULTIPLE_OF = "What extents must be multiples of: for a network with strides and --form scan."
ATOL = "Maximum error against float64, in units of a feature's largest.  (default: 1e-5; float16: 5e-3)"
OUTPUT = "File, or folder for several sizes.  (default: model-SIZE.onnx, or model.tiles, in the run)"
WEB_RUNTIME = "File or folder that holds onnxruntime-web, for --web.  (default: downloaded with npm)"
DATA = "Your data that the run was trained on, for --web: the page will hold some of them."


def _parse_multiple(text: str) -> int | tuple[int, ...]:
    extents = parse_size(text)
    return extents[0] if len(extents) == 1 else extents


def export(
    run: options.RunFolder = None,
    size: Annotated[
        list[Any] | None, typer.Option(metavar="SIZE", parser=parse_free_size, help=SIZE)
    ] = None,
    form: Annotated[Form | None, typer.Option(help=FORM)] = None,
    padded: Annotated[bool, typer.Option("--padded", help=PADDED)] = False,
    multiple_of: Annotated[
        Any, typer.Option(metavar="SIZE", parser=_parse_multiple, help=MULTIPLE_OF)
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Data type of weights and activations.")] = "float32",
    atol: Annotated[float | None, typer.Option(min=0, help=ATOL)] = None,
    output: Annotated[Path | None, options.output(OUTPUT)] = None,
    force: options.Force = False,
    web: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a web page that runs the model in a browser.")
    ] = None,
    web_runtime: Annotated[Path | None, typer.Option(metavar="PATH", help=WEB_RUNTIME)] = None,
    data: Annotated[str | None, typer.Option(metavar="PATH", help=DATA)] = None,
    json: options.Json = False,
) -> None:
    """Export a trained network to ONNX, for one grid size or any, verified before a file is written."""
    if output and web:
        raise InputError("-o and --web exclude each other; give one of them")
    if (web_runtime or data) and not web:
        raise InputError("--web-runtime and --data are for a web page; give --web DIR, or leave them out")
    from mdlstm_tk.export import export_run
    from mdlstm_tk.export.browser.build import WebPage
    from mdlstm_tk.export.runs import find_checkpoint
    from mdlstm_tk.training import latest_run

    run, sizes = run or latest_run().folder, size or [None]
    if len(sizes) > 1 and output and output.suffix:
        raise InputError(f"{output} is one file, got {len(sizes)} sizes; give a folder instead")
    console.note(f"exporting {run}", least=2)
    settings: Any = {"padded": padded, "multiple_of": multiple_of, "dtype": dtype, "atol": atol}
    page = WebPage(web, web_runtime, data or "", console.note) if web else None
    if page:
        if form == "tiles":
            raise InputError("form 'tiles' is for files; leave out the web page")
        runtime = page.prepare(len(sizes), force)
        with tempfile.TemporaryDirectory() as scratch:
            report = export_run(run, scratch, grid=sizes[0], form=form or "scan", **settings)
            reports = [page.write(report, find_checkpoint(run)[0], runtime)]
    else:
        reports = [export_run(run, output, grid=grid, form=form, force=force, **settings) for grid in sizes]
    if json:
        console.print_json([report.as_dict() for report in reports])
    for report in [] if json else reports:
        console.note(str(report))
        if report.needs_trust:
            console.note(f"{report.path} runs with --trusted only, for its {', '.join(report.needs_trust)}")
    if page:
        console.note(f"next: {page.next_command}")
    else:
        console.next_command("infer", "FILE", "-m", reports[-1].path)
