"""`mdlstm export`."""

from __future__ import annotations

import shlex
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdlstm_tk._util.sizes import parse_free_size, parse_size
from mdlstm_tk.cli import console, options
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.io.metadata import Dtype, Form

if TYPE_CHECKING:
    from mdlstm_tk.export import ExportReport

SIZE = "Grid size, as 8 for all axes, 8x12, or 48x* for any width; repeatable.  (default: as in training)"
FORM = "unrolled: for one size, faster on small grids; scan: any size; tiles: grids larger than memory."
PADDED = "Add an input for the sizes of padded samples, so that smaller grids run in one batch."
MULTIPLE_OF = "What extents must be multiples of: for a network with strides and --form scan."
ATOL = "Maximum error against float64, in units of a feature's largest.  (default: 1e-5; float16: 5e-3)"
OUTPUT = "File, or folder for several sizes.  (default: model-SIZE.onnx, or model.tiles, in the run)"
WEB_RUNTIME = "File that `npm pack` saved of onnxruntime-web, for --web.  (default: npm fetches it)"
DATA = "Your data that the run was trained on, for --web: the page will hold some of them."


def _parse_multiple(text: str) -> int | tuple[int, ...]:
    extents = parse_size(text)
    return extents[0] if len(extents) == 1 else extents


def _export_page(
    run: Path, folder: Path, package: Path | None, data: str, settings: dict[str, Any]
) -> ExportReport:
    """Export a run, and write the page of its model; returns the report of the model in the page."""
    from mdlstm_tk.export import export_run
    from mdlstm_tk.export.browser.build import check_page, load_runtime, write_page
    from mdlstm_tk.export.browser.examples import page_examples

    force, examples = settings["force"], list[dict[str, Any]]()
    check_page(folder, force)  # before the export takes its time
    runtime = load_runtime(package)
    with tempfile.TemporaryDirectory() as scratch:
        report = export_run(run, scratch, **settings)
        try:
            examples = page_examples(run, report.metadata, data)
        except MDLSTMError as error:
            console.note(f"no examples: {error}")
        title = (run.parent if run.is_file() else run).resolve().name
        path = write_page(report.path, folder, runtime, title=title, examples=examples, force=force)
    return replace(report, path=path)


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
    if web and (form == "tiles" or len(size or ()) > 1):
        raise InputError(
            "--web takes one size, or none for any, and no form 'tiles'; leave out one of both"
        )
    from mdlstm_tk.export import export_run
    from mdlstm_tk.training import latest_run

    run, sizes = run or latest_run().folder, size or [None]
    if len(sizes) > 1 and output and output.suffix:
        raise InputError(f"{output} is one file, got {len(sizes)} sizes; give a folder instead")
    console.note(f"exporting {run}", least=2)
    settings: Any = {"padded": padded, "multiple_of": multiple_of, "dtype": dtype, "atol": atol}
    if web:
        settings |= {"grid": sizes[0], "form": form or "scan", "force": force}
        reports = [_export_page(run, web, web_runtime, data or "", settings)]
    else:
        reports = [export_run(run, output, grid=g, form=form, force=force, **settings) for g in sizes]
    if json:
        console.print_json([report.as_dict() for report in reports])
    for report in [] if json else reports:
        console.note(str(report))
        if report.needs_trust:
            console.note(f"{report.path} runs with --trusted only, for its {', '.join(report.needs_trust)}")
    if web:
        server = f"python -m http.server --bind 127.0.0.1 -d {shlex.quote(str(web))}"
        console.note(f"next: {server}  # and open http://localhost:8000")
    else:
        console.next_command("infer", "FILE", "-m", reports[-1].path)
