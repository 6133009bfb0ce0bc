"""`mdlstm read`: pages of text, without torch or onnx."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mdlstm_tk.cli import console, options
from mdlstm_tk.cli.infer import print_results

PAGES = "Images with ALTO or PAGE XML, and photographs of pages; folders of them."
READER = "Recogniser; or a model of kind baselines, which only finds lines."
LINE_MODEL = "Model of kind baselines, which finds the lines of photographs."
OUTPUT = "Folder for the XML of each page, or a file .tsv, .csv or .json for all texts.  (default: stdout)"
LM = "Language model that texts follow: an ARPA file of characters, such as lm.arpa.gz of a run."
BEAM = "Texts that are compared while a line is read.  (default: 1, or 64 with a language model)"


def read(
    pages: Annotated[list[str], typer.Argument(metavar="PAGE", help=PAGES)],
    model: Annotated[Path, typer.Option("--model", "-m", metavar="FILE", help=READER)],
    line_model: Annotated[Path | None, typer.Option(metavar="FILE", help=LINE_MODEL)] = None,
    output: Annotated[str | None, options.output(OUTPUT)] = None,
    beam: Annotated[int | None, typer.Option(min=1, metavar="N", help=BEAM)] = None,
    lm: Annotated[Path | None, typer.Option(metavar="FILE", help=LM)] = None,
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Draw what was found and read, as NAME.out.png.")
    ] = False,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Read pages of text: their lines, from XML or found by a model, with texts and confidences.

    With -o read/ each page is written as XML with its texts: ALTO or PAGE as it was, PAGE for a photograph.
    A page that cannot be read is reported, the others go on, and the exit code is 1.
    """
    from mdlstm_tk.text import read_pages

    run = read_pages(
        pages, model, output, line_model=line_model, beam=beam, lm=lm, overlay=overlay, force=force
    )
    if json and run.table == "-":
        run.table = None  # the rows are in the JSON
    console.note(f"{run.model} on {run.session.device}")
    print_results(run, len(run.jobs), json, {"model": str(run.model), "device": run.session.device})
