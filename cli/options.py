"""Options that several verbs have: choices, checks and completions. Imports neither torch nor NumPy."""

from __future__ import annotations

import copy
import inspect
import logging
import os
from collections.abc import Callable, Iterable
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from mdlstm_tk._util.text import is_plain_text, shell_quoted
from mdlstm_tk.cli.console import verbosity
from mdlstm_tk.errors import InputError, imports_of
from mdlstm_tk.kinds import all_documents, all_kinds
from mdlstm_tk.runtime.choices import Engine, parse_device
from mdlstm_tk.runtime.combinations import describe_documents, describe_formats, describe_option
from mdlstm_tk.runtime.io import Format

DEVICES = ("auto", "cpu", "cuda")

imported: list[Path] = []  # files that this call has imported

OUTPUT = "Output"
DATA = "Data"
RUN = "Run"
EXECUTION = "Execution"
LIMITS = "Limits"
TILES = "Tiles"
MESSAGES = "Messages"


def _device(text: str) -> str:
    """The name of a device, which is checked."""
    parse_device(text)
    return text


def parse_path(text: str | Path) -> Path:
    """A path; an empty text, which a variable of the shell may be, is none. `Path` takes it for the current
    folder."""
    if not os.fspath(text):
        raise typer.BadParameter("expected a path, got an empty text")
    return Path(text)


def import_files(arguments: list[str]) -> None:
    """Run the files of --import, which register cells, networks, tasks and kinds of tasks. This precedes
    the making of the command, which gets the options of these kinds."""
    words = arguments[: arguments.index("--")] if "--" in arguments else arguments
    named = (
        after if word == "--import" else word.removeprefix("--import=")
        for word, after in pairwise([*words, None])
        if word and (word == "--import" or word.startswith("--import="))
    )
    files = [Path(name) for name in named if name is not None]
    if files:
        from mdlstm_tk._util.user_code import import_file

        with imports_of("train"):
            for path in files:
                if path not in imported:
                    import_file(path)
                    imported.append(path)


def complete_from(*words: str) -> Callable[[str], list[str]]:
    """A completion that offers these words."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


def complete_run(incomplete: str) -> list[str]:
    """Offer run folders below runs/ and below the folder that is being typed."""
    folders = {Path("runs"), Path(incomplete), Path(incomplete).parent}
    runs = {str(path.parent) for folder in folders for path in folder.glob("*/*.safetensors")}
    return sorted(name for name in runs if name.startswith(incomplete) and is_plain_text(name))


def complete_model_file(incomplete: str) -> list[str]:
    """Offer .onnx files here, in run folders and in the folder that is being typed, and folders."""
    from mdlstm_tk.runtime.model_discovery import models_in  # imported late: it imports NumPy

    models = {str(path) for folder in [Path(), *Path("runs").glob("*")] for path in models_in(folder)}
    models = {name for name in models if name.startswith(incomplete) and is_plain_text(name)}
    return sorted({*models, *_entries(incomplete, (".onnx", ".tiles"))})


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


def option(help: str, panel: str | None, *names: str, **settings: Any) -> Any:
    """An option in a panel of the help; the settings are those of `typer.Option`."""
    return typer.Option(*names, help=help, rich_help_panel=panel, **settings)


def output_option(help: str, default: str | bool = True, metavar: str = "PATH") -> Any:
    """The option -o of a verb."""
    return option(help, OUTPUT, "--output", "-o", metavar=metavar, show_default=default)


def force_option(help: str) -> Any:
    """The option --force of a verb that replaces what exists."""
    return option(help, OUTPUT, "--force")


def size_option(
    help: str, default: str | bool, parse: Callable[[str], Any], panel: str | None = None
) -> Any:
    """An option that takes the size of a grid, as `parse` returns it."""
    return option(help, panel, metavar="SIZE", parser=parse, show_default=default)


def data_option(help: str) -> Any:
    """The option --data of a verb that reads the data that a run was trained on."""
    complete = complete_files(".npz")
    return option(help, OUTPUT, metavar="PATH", show_default=False, autocompletion=complete)


RunFolder = Annotated[
    Path | None,
    typer.Argument(
        metavar="[RUN]",
        help="Run folder.",
        show_default="the newest run in runs/",
        autocompletion=complete_run,
    ),
]
Import = Annotated[
    list[Path] | None,
    option(
        "Python file of yours to run first, which registers cells, networks, tasks or kinds of tasks; "
        "repeatable.",
        *(RUN, "--import"),
        metavar="FILE",
        show_default=False,
        autocompletion=complete_files(".py"),
    ),
]
Json = Annotated[bool, option("Print the result as JSON on stdout.", OUTPUT, "--json")]
ForceFolder = Annotated[bool, force_option("Write into a folder that is not empty.")]
Device = Annotated[
    str,
    option(
        "Device to run on; auto: CUDA if it works, else the CPU.",
        *(None, "--device"),
        metavar="auto|cpu|cuda|cuda:N",
        parser=_device,
        autocompletion=complete_from(*DEVICES),
    ),
]
FILE_BYTES = "Maximum size of a file in bytes, before and after decompression"
FileBytes = Annotated[int | None, option(f"{FILE_BYTES}.", LIMITS, min=1, show_default="1 GiB")]
MaxBytes = Annotated[
    int | None,
    option(
        f"{FILE_BYTES}; of infer in tiles, about the resident memory; with --isolated, also the memory of "
        "that process, else 4 GiB.",
        LIMITS,
        min=1,
        show_default="1 GiB",
    ),
]
Timeout = Annotated[
    float | None,
    option(
        "Maximum duration of one run of the model, in seconds.",
        LIMITS,
        min=0,
        show_default="no limit; 120 with --isolated",
    ),
]
ISOLATED = "Run the model in a process with limits on memory and time, for a file that you did not make."
Isolated = Annotated[bool, option(ISOLATED, LIMITS, "--isolated")]
TRUSTED = "Allow operators outside the list of the model check, for a file of yours."
Trusted = Annotated[bool, option(TRUSTED, LIMITS, "--trusted")]

# Options of `mdlstm infer`. The names in braces stand for texts about kinds, see `with_kind_options`.
ModelFile = Annotated[
    str | None,
    option(
        "Exported .onnx or .tiles file, or a folder of models of one task.",
        *(None, "--model", "-m"),
        metavar="PATH",
        autocompletion=complete_model_file,
        show_default="$MDLSTM_MODEL, the newest export below runs/, or the only .onnx here",
    ),
]
Output = Annotated[
    str | None,
    output_option(
        "File for the result of one input, folder for the results of several, or - for stdout. A .csv, "
        ".tsv, .json or .txt file takes the answers to several inputs.",
        "beside the inputs; stdout for answers",
    ),
]
OutputFormat = Annotated[
    Format | None,
    option(
        "File format of the results: {formats}. png holds values in [0, 1] with 8 bits; tabs "
        "separate the fields of txt and tsv.",
        *(OUTPUT, "--format"),
        show_default="txt for answers, {document_formats}png for masks, npz for .npz, else npy",
    ),
]
PROBABILITIES = (
    "Write the probability of every class, of samples by name in csv and json, else as arrays; of other "
    "answers, their confidence. {probabilities}."
)
Probabilities = Annotated[bool, option(PROBABILITIES, OUTPUT, "--probabilities")]
SKIP_EXISTING = "Leave out inputs whose result exists; continues an interrupted call."
SkipExisting = Annotated[bool, option(SKIP_EXISTING, OUTPUT, "--skip-existing")]
ForceFile = Annotated[bool, force_option("Replace results that exist.")]
THREADS = "CPU threads of one run, or of all tiles; 0: one per core."
Threads = Annotated[int, option(THREADS, EXECUTION, min=0)]
BatchSize = Annotated[
    int | None,
    option(
        "Samples per run, or tiles of a tiled model.",
        EXECUTION,
        min=1,
        show_default="64, or fewer for grids above 64x64; 4 tiles",
    ),
]
ENGINE = "Where files and tiles are run: in this process, or distributed with Ray on $RAY_ADDRESS."
EngineName = Annotated[Engine, option(ENGINE, EXECUTION)]
WORKERS = "Number of processes of --engine ray."
Workers = Annotated[int | None, option(WORKERS, EXECUTION, min=1, show_default="one per CPU")]
TILE = "Extent of a tile along each axis, for a tiled model (.tiles)."
Tile = Annotated[int | None, option(TILE, TILES, metavar="N", show_default="512")]
LEVEL = "Level of a TIFF with a pyramid to read, for a tiled model."
Level = Annotated[int | None, option(LEVEL, TILES, min=0, metavar="K", show_default="0, the largest")]
RESUME = "Go on with a tiled run that was interrupted, and keep what an interruption leaves."
Resume = Annotated[bool, option(RESUME, TILES, "--resume")]


def messages(
    ctx: typer.Context,
    *,
    import_: Import = None,
    quiet: Annotated[bool, option("Print only errors and data.", MESSAGES, "--quiet", "-q")] = False,
    verbose: Annotated[bool, option("Print more about what is done.", MESSAGES, "--verbose", "-v")] = False,
    debug: Annotated[bool, option("Print the traceback of an error, too.", MESSAGES, "--debug")] = False,
) -> None:
    """The options of all verbs: how much is printed, and --import, see `import_files`."""
    if quiet and verbose:
        raise InputError("-q and -v are mutually exclusive; give one of them")
    verbosity.quiet, verbosity.verbose, verbosity.debug = quiet, verbose, debug
    logging.getLogger("mdlstm_tk").setLevel(logging.ERROR if quiet else logging.NOTSET)
    flags = {param.name: min(param.opts, key=len) for param in ctx.command.params}
    verbosity.flags = {**flags, "grid": flags["size"]} if "size" in flags else flags


def with_kind_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a verb that takes **of_kind an option for each that a registered kind declares, in a panel of
    its answers, and in its help the texts about kinds. Other verbs stay as they are."""
    if "of_kind" not in inspect.signature(function).parameters:
        return function
    texts = {
        "formats": describe_formats(),
        "documents": describe_documents(),
        "document_formats": "".join(
            f"{each.format} for {each.name}s with -o, " for each in all_documents()
        ),
        "probabilities": describe_option("probabilities"),
    }
    added: dict[str, inspect.Parameter] = {}
    for kind in all_kinds():
        for each in kind.options:
            help = f"{each.help} {describe_option(each.name)}."
            settings: dict[str, Any] = {"metavar": each.metavar, "show_default": each.default or False}
            if each.type in (int, float):
                settings["min"] = each.least
            flag = option(help, kind.answers.capitalize(), f"--{each.name.replace('_', '-')}", **settings)
            value = str if each.type is Path else each.type  # a `Path` of an empty text is the folder here
            annotation = Annotated[value | None, flag]  # type: ignore[valid-type]
            parameter = inspect.Parameter(
                each.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
            )
            added.setdefault(each.name, parameter)

    @wraps(function)
    def call(**options: Any) -> None:
        function(**options)

    more = [f"    {each.help}\n" for each in all_documents()]
    call.__doc__ = "\n".join([function.__doc__ or "", *more])
    own = [_with_texts(parameter, texts) for parameter in parameters_of(function)]
    return with_parameters(call, [*own, *added.values()])


def _with_texts(parameter: inspect.Parameter, texts: dict[str, str]) -> inspect.Parameter:
    """A parameter of a verb whose help has texts in place of their names in braces."""
    (settings,) = parameter.annotation.__metadata__
    settings = copy.copy(settings)
    for name in ("help", "show_default"):
        if isinstance(text := getattr(settings, name), str):
            setattr(settings, name, text.format(**texts))
    return parameter.replace(annotation=Annotated[parameter.annotation.__origin__, settings])


def with_messages(function: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the options of `messages`."""
    extra = inspect.signature(messages, eval_str=True).parameters

    @wraps(function)
    def call(**options: Any) -> None:
        messages(**{name: options.pop(name) for name in extra})
        function(**options)

    return with_parameters(call, [*parameters_of(function), *extra.values()])


def parameters_of(function: Callable[..., None]) -> list[inspect.Parameter]:
    """The parameters of a verb, without **options."""
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    return [parameter for parameter in parameters if parameter.kind != parameter.VAR_KEYWORD]


def with_parameters(
    function: Callable[..., None], parameters: Iterable[inspect.Parameter]
) -> Callable[..., None]:
    """Give a function that takes **options these parameters, from which Typer makes its options."""
    keywords = [_with_parser(parameter.replace(kind=parameter.KEYWORD_ONLY)) for parameter in parameters]
    function.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in keywords}
    return function


def _with_parser(parameter: inspect.Parameter) -> inspect.Parameter:
    """A parameter of a verb that takes a path has it parsed by `parse_path`."""
    value, *settings = get_args(parameter.annotation) or (None,)  # that of the context is a class alone
    if not settings or not {Path, list[Path]} & {value, *get_args(value)}:
        return parameter
    with_parser = copy.copy(settings[0])
    with_parser.parser = parse_path
    return parameter.replace(annotation=Annotated[value, with_parser])
