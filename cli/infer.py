"""`mdlstm infer`: run an exported model on files with NumPy and ONNX Runtime, never torch or onnx."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any

import typer

from mdlstm_tk.cli import options
from mdlstm_tk.kinds import all_documents
from mdlstm_tk.runtime.io import READABLE


def infer(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="Files, and folders of files, of the types npy, npz, csv, png, jpg, tif, bmp, gif, webp, "
            "pgm, ppm, {documents}for tiled models npy, tif, zarr; or - for one file of any of these "
            "types on stdin.",
            autocompletion=options.complete_files(
                *(*READABLE, ".zarr"), *(each.suffix for each in all_documents())
            ),
            show_default=False,
        ),
    ],
    model: options.ModelFile = None,
    output: options.Output = None,
    output_format: options.OutputFormat = None,
    probabilities: options.Probabilities = False,
    skip_existing: options.SkipExisting = False,
    force: options.ForceFile = False,
    json: options.Json = False,
    device: options.Device = "auto",
    threads: options.Threads = 1,
    batch_size: options.BatchSize = None,
    engine: options.EngineName = "local",
    workers: options.Workers = None,
    tile: options.Tile = None,
    level: options.Level = None,
    resume: options.Resume = False,
    max_bytes: options.MaxBytes = None,
    timeout: options.Timeout = None,
    isolated: options.Isolated = False,
    trusted: options.Trusted = False,
    **of_kind: Any,
) -> None:
    """Run an exported model on arrays and images.

    Arrays have the shape (H, W), (H, W, C) or (N, H, W, C) and are used as they are. Images are prepared as
    in training: turned upright, converted to the colours that the model takes, and scaled to [0, 1].

    The result of matrix.npy is matrix.out.npy, beside it. Answers, such as the labels of a classifier, are
    printed, or collected in one table with -o labels.csv. The masks of a segmenter are written as PNG with
    the values and the palette of the masks that it was trained on, those of volumes as npy.

    Files of equal shape run together. A file that cannot be used is reported, the others go on, and the
    exit code is 1. Folders are searched recursively, without hidden files and earlier results (*.out.* and
    pages that a model has written). In a folder of models, each file gets one that takes its grid.

    A tiled model (.tiles) reads npy, tif and zarr by region, so that they may be larger than the memory,
    and writes npy, zarr, and masks as tif.

    A model file cannot read or write other files. It may take any time and memory; --isolated limits both.
    """
    arguments = {**locals(), **of_kind}
    del arguments["files"], arguments["of_kind"]
    if max_bytes is not None:
        with suppress(ImportError):  # the limit of Pillow is that of this process
            from PIL import Image

            from mdlstm_tk.runtime.preprocessing import PIXEL_BYTES

            Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, max_bytes // PIXEL_BYTES)
    from mdlstm_tk.cli.progress import print_results, tile_progress
    from mdlstm_tk.runtime.inference import infer_paths
    from mdlstm_tk.runtime.jobs import is_single_file

    is_single, is_default_model = is_single_file(files), model is None
    with tile_progress(is_single) as report:
        run = infer_paths(files, **arguments, report=report)
        print_results(
            run, is_single=is_single, is_json=json, is_default_model=is_default_model, resume=resume
        )
