"""Options that several verbs have: choices, checks and completions. Imports neither torch nor NumPy."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from mdlstm_tk._util.text import is_plain_text, shell_quoted
from mdlstm_tk.errors import InputError, require

DEVICES = ("auto", "cpu", "cuda")
Form = Literal["unrolled", "scan", "tiles"]
ExportDtype = Literal["float32", "float16", "int8"]
Format = Literal["npy", "npz", "json", "png", "csv", "txt", "tsv", "xml", "tif", "zarr"]
Engine = Literal["local", "ray"]

imported: list[Path] = []  # by this call

OUTPUT = "Output"
DATA = "Data"
RUN = "Run"
EXECUTION = "Execution"
LIMITS = "Limits"
TILES = "Tiles"


def parse_device(text: str) -> str:
    """Check the name of a device."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", text):
        raise InputError(f"must be auto, cpu, cuda or cuda:N, got '{text}'")
    return text


def parse_size_text(text: str) -> str:
    """Check the size of a grid."""
    from mdlstm_tk._util.sizes import parse_size  # imported late: `infer` takes no sizes

    parse_size(text)
    return text


def parse_free_size_text(text: str) -> str:
    """Check the size of a two-dimensional grid whose extents may be free."""
    from mdlstm_tk._util.sizes import parse_free_size

    parse_free_size(text)
    return text


def import_files(files: list[Path] | None) -> list[Path] | None:
    """Run the files of --import, so that the cells, networks and tasks that they register are known."""
    if files:
        require("torch", "train")
        from mdlstm_tk._util.user_code import import_file

        for path in map(Path, files):
            if path not in imported:
                import_file(path)
                imported.append(path)
    return files


def complete_from(*words: str) -> Callable[[str], list[str]]:
    """A completion that offers these words."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


def complete_run(incomplete: str) -> list[str]:
    """Offer run folders below runs/ and below the folder that is being typed."""
    folders = {Path("runs"), Path(incomplete), Path(incomplete).parent}
    found = {str(path.parent) for folder in folders for path in folder.glob("*/*.safetensors")}
    return sorted(name for name in found if name.startswith(incomplete) and is_plain_text(name))


def complete_model_file(incomplete: str) -> list[str]:
    """Offer .onnx files here, in run folders and in the folder that is being typed, and folders."""
    from mdlstm_tk.runtime.model_discovery import models_in  # imported late: it imports NumPy

    found = {str(path) for folder in [Path(), *Path("runs").glob("*")] for path in models_in(folder)}
    found = {name for name in found if name.startswith(incomplete) and is_plain_text(name)}
    return sorted({*found, *_entries(incomplete, (".onnx", ".tiles"))})


def complete_model_or_run(incomplete: str) -> list[str]:
    """Offer what `info` takes."""
    return [*complete_run(incomplete), *complete_model_file(incomplete)]


def complete_files(*suffixes: str) -> Callable[[str], list[str]]:
    """A completion that offers files with these suffixes, and folders."""
    return lambda incomplete: _entries(incomplete, suffixes)


def _entries(incomplete: str, suffixes: tuple[str, ...]) -> list[str]:
    folder, start = os.path.split(incomplete)
    try:
        names = sorted(os.listdir(folder or "."))
    except OSError:
        return []
    names = [name for name in names if name.startswith(start) and is_plain_text(name)]  # shells print them
    paths = [os.path.join(folder, name) for name in names if start or not name.startswith(".")]
    folders = [path + os.sep for path in paths if os.path.isdir(path)]
    return [path for path in paths if path.lower().endswith(suffixes) and not os.path.isdir(path)] + folders


def with_imports(command: str) -> str:
    """A command with --import for each file that this call has imported."""
    return " ".join([command, *(f"--import {shell_quoted(path)}" for path in imported)])


Import = Annotated[
    list[Path] | None,
    typer.Option(
        "--import",
        metavar="FILE",
        is_eager=True,
        callback=import_files,
        show_default=False,
        autocompletion=complete_files(".py"),
        help="Python file of yours to run first, which registers cells, networks or tasks; repeatable.",
        rich_help_panel=RUN,
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on stdout.", rich_help_panel=OUTPUT)
]
ForceFolder = Annotated[
    bool, typer.Option("--force", help="Write into a folder that is not empty.", rich_help_panel=OUTPUT)
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="auto|cpu|cuda|cuda:N",
        parser=parse_device,
        autocompletion=complete_from(*DEVICES),
        help="Device to run on; auto: CUDA if it works, else the CPU.",
    ),
]
MaxBytes = Annotated[
    int | None,
    typer.Option(
        "--max-bytes",
        min=1,
        show_default="1 GiB",
        help="Maximum size of a file in bytes, before and after decompression; of a tiled run, about the "
        "resident memory.",
        rich_help_panel=LIMITS,
    ),
]
Tile = Annotated[
    int | None,
    typer.Option(
        "--tile",
        metavar="N",
        show_default="512",
        help="Extent of a tile along each axis, for a tiled model (.tiles).",
        rich_help_panel=TILES,
    ),
]
Level = Annotated[
    int | None,
    typer.Option(
        "--level",
        min=0,
        metavar="K",
        show_default="0, the largest",
        help="Level of a TIFF with a pyramid to read, for a tiled model.",
        rich_help_panel=TILES,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on with a tiled run that was interrupted, and keep what an interruption leaves.",
        rich_help_panel=TILES,
    ),
]
Stream = Annotated[
    bool,
    typer.Option(
        "--stream",
        help="Read rows from stdin as a .npy, and write those of the result as they come, for a tiled "
        "model whose directions go downwards.",
        rich_help_panel=TILES,
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        min=0,
        show_default="no limit; 120 with --isolated",
        help="Maximum duration of one run of the model, in seconds.",
        rich_help_panel=LIMITS,
    ),
]
Isolated = Annotated[
    bool,
    typer.Option(
        "--isolated",
        help="Run the model in a process with limits on memory and time, for a file that you did not make.",
        rich_help_panel=LIMITS,
    ),
]
Trusted = Annotated[
    bool,
    typer.Option(
        "--trusted",
        help="Allow operators outside the list of the model check, for a file of yours.",
        rich_help_panel=LIMITS,
    ),
]
ModelFile = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="PATH",
        help="Exported .onnx or .tiles file, or a folder of .onnx files.",
        autocompletion=complete_model_file,
        show_default="$MDLSTM_MODEL, the latest run's export, or the only .onnx here",
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="PATH",
        help="File for the result of one input, folder for the results of several, or - for stdout. A "
        ".csv, .tsv, .json or .txt file takes the labels or texts for several inputs.",
        show_default="beside the inputs; stdout for labels and texts",
        rich_help_panel=OUTPUT,
    ),
]
Probabilities = Annotated[
    bool,
    typer.Option(
        "--probabilities",
        help="Write the probability of every class, by name in csv and json, else as arrays; of texts, "
        "their confidence in tsv and csv.",
        rich_help_panel=OUTPUT,
    ),
]
Beam = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Texts that a recogniser compares while it reads a line.  [default: 1, or 16 with --lm]",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
LanguageModel = Annotated[
    Path | None,
    typer.Option(
        "--lm",
        metavar="FILE",
        help="Language model that a recogniser follows: an ARPA file of characters, such as "
        "lm.arpa.gz of a run.",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
SkipExisting = Annotated[
    bool,
    typer.Option(
        "--skip-existing",
        help="Leave out inputs whose result exists; continues an interrupted call.",
        rich_help_panel=OUTPUT,
    ),
]
ForceFile = Annotated[
    bool, typer.Option("--force", help="Replace results that exist.", rich_help_panel=OUTPUT)
]
OutputFormat = Annotated[
    Format | None,
    typer.Option(
        "--format",
        help="File format of the results: txt, tsv, csv and json hold labels, texts and masks, xml pages, "
        "npy and npz the network's outputs; png holds masks, or values clipped to [0, 1] with 8 bits. "
        "The fields of txt and tsv are separated by tabs.",
        show_default="txt for labels and texts, xml for pages, png for masks, npz for .npz, else npy",
        rich_help_panel=OUTPUT,
    ),
]
Top = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="K",
        help="Name the K most likely classes of a classifier with their probabilities.",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
Threads = Annotated[
    int,
    typer.Option(
        min=0, help="CPU threads of one run, or of all tiles; 0: one per core.", rich_help_panel=EXECUTION
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Samples per run, or tiles of a tiled model.",
        show_default="64, or fewer for grids above 64x64; 4 tiles",
        rich_help_panel=EXECUTION,
    ),
]
EngineName = Annotated[
    Engine,
    typer.Option(
        help="Where files and tiles are run: in this process, or distributed with Ray on $RAY_ADDRESS.",
        rich_help_panel=EXECUTION,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of processes of --engine ray.",
        show_default="one per CPU",
        rich_help_panel=EXECUTION,
    ),
]
