"""`mdlstm export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from mdlstm_tk._util.sizes import parse_free_size, parse_size
from mdlstm_tk._util.text import shell_quoted
from mdlstm_tk.cli import options
from mdlstm_tk.cli.console import detail, next_command, note, print_json
from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.choices import Dtype, Form

MODEL = "Model"
FORM = (
    "Form of the graph: unrolled for one size, faster on small grids; scan for any size, smaller, and as "
    "fast or faster on large grids; or tiles for grids larger than memory."
)
SIZE = "Grid size, as 8 for all axes or 8x12, or 48x* for any width; repeatable."
PADDED = "Add an input for the sizes of padded samples, so that smaller grids run in one batch."
MULTIPLE_OF = "What the size must be a multiple of: for a network with strides and --form scan."
DTYPE = "Data type of weights and activations."
ATOL = "Maximum error against the float64 reference, in units of the largest value of a feature."
WEB = "Write a web page that runs the model in the browser instead."
WEB_RUNTIME = "File or folder that holds onnxruntime-web, for --web."
DATA = "Your data that the run was trained on, for --web: the page will hold some of them."


def _parse_multiple(text: str) -> int | tuple[int, ...]:
    extents = parse_size(text)
    return extents[0] if len(extents) == 1 else extents


def export(
    run: options.RunFolder = None,
    size: Annotated[
        list[Any] | None,
        options.size_option(
            SIZE, "the run's own size, or any with --form scan or for mixed sizes", parse_free_size, MODEL
        ),
    ] = None,
    form: Annotated[
        Form | None,
        options.option(FORM, MODEL, show_default="unrolled, scan with --web or for mixed sizes"),
    ] = None,
    padded: Annotated[bool, options.option(PADDED, MODEL, "--padded")] = False,
    multiple_of: Annotated[Any, options.size_option(MULTIPLE_OF, False, _parse_multiple, MODEL)] = None,
    dtype: Annotated[Dtype, options.option(DTYPE, MODEL)] = "float32",
    atol: Annotated[
        float | None,
        options.option(ATOL, MODEL, min=0, show_default="1e-5, 5e-3 for float16"),
    ] = None,
    output: Annotated[
        Path | None,
        options.output_option(
            "File, or folder for several sizes.", "model-SIZE.onnx, or model.tiles, in the run"
        ),
    ] = None,
    web: Annotated[Path | None, options.option(WEB, options.OUTPUT, metavar="DIR")] = None,
    web_runtime: Annotated[
        Path | None,
        options.option(WEB_RUNTIME, options.OUTPUT, metavar="PATH", show_default="downloaded with npm"),
    ] = None,
    data: Annotated[str | None, options.data_option(DATA)] = None,
    force: Annotated[bool, options.force_option("Replace files that exist.")] = False,
    json: options.Json = False,
) -> None:
    """Export a trained network to ONNX, for one grid size or any, verified before a file is written."""
    arguments = dict(locals())
    if output and web:
        raise InputError("-o and --web are mutually exclusive; give one of them")
    if (web_runtime or data) and not web:
        raise InputError("--web-runtime and --data are for a web page; give --web DIR, or leave them out")
    from mdlstm_tk.export import export_run_sizes
    from mdlstm_tk.export.browser.build import WebPage
    from mdlstm_tk.export.options import RunOptions
    from mdlstm_tk.training import latest_run

    run = run or latest_run().folder
    detail(f"exporting {run}")
    page = WebPage(web, web_runtime, data or "", note) if web else None
    options_of_run: Any = {name: arguments[name] for name in RunOptions.__annotations__}
    reports = export_run_sizes(run, size or [None], page or output, force=force, **options_of_run)
    if json:
        print_json([report.as_dict() for report in reports])
    else:
        for report in reports:
            note(str(report))
            if report.needs_trust:
                note(f"{report.path} runs with --trusted only, for its {', '.join(report.needs_trust)}")
    infer = f"mdlstm infer FILE -m {shell_quoted(reports[-1].path)}"
    next_command(page.next_command if page else infer)
