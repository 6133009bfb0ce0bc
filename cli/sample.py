"""`mdlstm sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mdlstm_tk._util.sizes import for_axes, format_size, parse_size
from mdlstm_tk.cli import console, options
from mdlstm_tk.cli.train import next_of_run

GIVEN = "Image to complete: its upper rows, or a .npy file with NaN where it is to be drawn."
OUTPUT = "File for all images: .png, or .npy for the numbers."


def _parse_size(text: str) -> tuple[int, ...]:
    return for_axes(parse_size(text), 2)


def sample(
    run: options.RunFolder = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Number of images.")] = 64,
    size: Annotated[
        Any, typer.Option(metavar="SIZE", parser=_parse_size, help="As 28x20.  (default: as in training)")
    ] = None,
    given: Annotated[Path | None, typer.Option(metavar="FILE", help=GIVEN)] = None,
    temperature: Annotated[
        float, typer.Option(min=0, help="Below 1, likely values become likelier.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the images.")] = 0,
    output: Annotated[Path, options.output(OUTPUT, "FILE")] = Path("samples.png"),
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Draw images with a trained density model, position by position, or complete an image.

    Equal seeds give equal images.
    """
    from mdlstm_tk.density import sample_run
    from mdlstm_tk.training import latest_run, open_run

    source = open_run(run) if run else latest_run()
    how: Any = {"given": given, "temperature": temperature, "seed": seed, "output": output, "force": force}
    images = sample_run(source, count, size, **how)
    extents = format_size(images.shape[1:3])
    if json:
        values = {"source": str(source.folder), "path": str(output), "images": count, "size": extents}
        console.print_json(values)
    console.note(f"{output}: {count} of {extents}, drawn with {source.folder}")
    next_of_run(source.folder, "export")
