"""`mdlstm train`."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mdlstm_tk._util.text import shell_quoted
from mdlstm_tk.cli.console import Verbosity, next_command, note, print_json, verbosity
from mdlstm_tk.cli.options import (
    RUN,
    ForceFolder,
    Json,
    complete_files,
    complete_from,
    complete_run,
    imported,
    option,
    output_option,
    with_imports,
)
from mdlstm_tk.cli.progress import next_of_run, train_with_progress
from mdlstm_tk.cli.settings import Settings, with_settings
from mdlstm_tk.errors import InputError

if TYPE_CHECKING:
    from mdlstm_tk.training import TrainingJob


def parse_processes(text: str) -> int | str:
    """Parse a number of processes, or "auto"."""
    if text != "auto" and not (text.isdecimal() and int(text)):
        raise InputError(f"must be a whole number of at least 1, or auto, got '{text}'")
    return text if text == "auto" else int(text)


CONFIG = option(
    "TOML file of settings.",
    *(RUN, "--config", "-c"),
    metavar="FILE",
    show_default="the task's own settings",
    autocompletion=complete_files(".toml"),
)
RESUME = option(
    "Run folder to continue, up to --steps if given.",
    *(RUN, "--resume"),
    metavar="RUN",
    show_default="a new run",
    autocompletion=complete_run,
)
PROCESSES = option(
    "Processes of this machine that share each batch; auto: one, or one per core if a short measurement "
    "finds that faster.",
    *(RUN, "--processes"),
    metavar="N|auto",
    parser=parse_processes,
    autocompletion=complete_from("auto"),
)


@with_settings
def train(
    config: Annotated[Path | None, CONFIG] = None,
    settings: Settings = None,
    resume: Annotated[Path | None, RESUME] = None,
    output: Annotated[
        Path | None, output_option("Folder of the new run.", "runs/TASK-MODEL-SIZE", "DIR")
    ] = None,
    force: ForceFolder = False,
    processes: Annotated[Any, PROCESSES] = "1",  # which the parser gets
    json: Json = False,
    **options: Any,
) -> None:
    """Train a network on a built-in task, or on your own data.

    Without options it trains the MD-LSTM on 8x8 matrices of the random-diagonal task, into runs/md-8x8.

    Every task has its own defaults; mdlstm settings TASK lists them. A file given with --config overrides
    the defaults, --set overrides the file, and the other options override all of them.
    """
    if resume is not None and (output is not None or config is not None):
        raise InputError("--resume takes folder and settings from the run; leave out -o and -c")
    options = {key: value for key, value in options.items() if value is not None}
    from mdlstm_tk import training  # it loads its parts when they are used: a typo is found before torch

    changes = training.parse_settings(settings or [])
    if resume:
        if processes == "auto":
            raise InputError("--processes auto measures new runs; give a run that is resumed a number")
        prepare = partial(training.resume_job, resume, options, changes)
    else:
        configuration = training.configure(options, changes, config)
        if processes == "auto":
            processes, reason = training.choose_processes(configuration)
            note(reason)
        prepare = partial(training.new_job, configuration, output, force)
    training.in_processes(processes, _train, prepare, json, verbosity, imported)


def _train(prepare: Callable[[], TrainingJob], json: bool, parent: Verbosity, imports: list[Path]) -> None:
    """Train in this process, which may be one of several that the command started and prints as it does."""
    if parent is not verbosity:
        from mdlstm_tk.cli.app import prepare_output

        prepare_output()
        vars(verbosity).update(vars(parent))
        verbosity.quiet = parent.quiet or os.environ["RANK"] != "0"
        imported.extend(imports)
    job = prepare()
    result = train_with_progress(job)
    if not job.context.is_main:
        return
    from mdlstm_tk.training.progress import describe_times

    run = job.run
    note(f"{run.folder} has {result['ending']}")
    if result["errors"]:
        errors = ", ".join(f"{name} {value:.5g}" for name, value in result["errors"].items())
        cropped = f" cropped to {job.config.crop}" if job.config.crop else ""
        chosen = ", which chose them" if result["in_sample"] else ""
        weights = "best weights" if job.task.count("validation") else "last weights"
        note(f"{weights}, on {result['split']} data{cropped}{chosen}: {errors}")
    else:
        note("no data were held out, on which the weights could be measured")
    note(f"{describe_times(run.read_times())}; wrote {run.best}, {run.curves}, {run.prediction}")
    if json:
        print_json({"run": str(run.folder), **result})
    quoted = shell_quoted(run.folder)
    if job.config.data:
        page = f"mdlstm report {quoted} --data {shell_quoted(job.config.data)}"
        note(f"for a page with examples: {with_imports(page)}")
    next_command(next_of_run(run))
