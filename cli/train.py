"""`mdlstm train`: every setting of a training is an option."""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from mdlstm_tk.cells import cell_names
from mdlstm_tk.cli import console, options
from mdlstm_tk.errors import InputError, require
from mdlstm_tk.models.registry import model_names
from mdlstm_tk.training.config import TrainConfig, configure
from mdlstm_tk.training.tasks import task_names

CONFIG, OUTPUT = "TOML file of settings.", "Folder of the run.  (default: runs/TASK-MODEL-SIZE)"
METAVARS = {"data": "PATH", "init": "RUN", "windows": "SIZE,...", "device": "auto|cpu|cuda|cuda:N"}
METAVARS |= dict.fromkeys(("size", "resize", "crop"), "SIZE")
REGISTERED = {"task": task_names, "model": model_names, "cell": cell_names}
KEYWORD = inspect.Parameter.KEYWORD_ONLY
WINDOW = 20  # steps of the mean loss that the progress shows


def with_settings(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb that takes **settings an option for each field of `TrainConfig`, in panels."""
    own = [*inspect.signature(verb, eval_str=True).parameters.values()][:-1]
    defaults, added = asdict(configure()), []
    for name, each in TrainConfig.__dataclass_fields__.items():
        words = each.metadata["words"] or (("true", "false") if each.type == "bool" else ())
        listed = f" ({', '.join(REGISTERED[name]())})" if name in REGISTERED else ""
        default = str(defaults[name]).lower().removesuffix(".0")
        help = f"{each.metadata['help'].rstrip('.')}{listed}.{f'  (default: {default})' if default else ''}"
        metavar = METAVARS.get(name) or "|".join(words) or ("NAME" if listed else "VALUE")
        how: Any = {"help": help, "metavar": metavar, "rich_help_panel": each.metadata["panel"]}
        names = [f"--{name.replace('_', '-')}", *(["-m"] if name == "model" else [])]
        option = Annotated[str | None, typer.Option(*names, **how, show_default=False)]
        added.append(inspect.Parameter(name, KEYWORD, default=None, annotation=option))
    parameters = [*added, *(each.replace(kind=KEYWORD) for each in own)]
    verb.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    verb.__annotations__ = {each.name: each.annotation for each in parameters}
    return verb


@with_settings
def train(
    config: Annotated[Path | None, typer.Option("--config", "-c", metavar="FILE", help=CONFIG)] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Run folder to continue.")] = None,
    output: Annotated[Path | None, options.output(OUTPUT, "DIR")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
    processes: Annotated[int, typer.Option(min=1, help="Processes that share each batch.")] = 1,
    json: options.Json = False,
    **settings: Any,
) -> None:
    """Train a network on a built-in task, or on your own data.

    Without options it trains the MD-LSTM on 8x8 matrices of the random-diagonal task, into runs/md-8x8. The
    defaults below are those of that task; `mdlstm info TASK` lists those of another. A file given with
    --config overrides them, options override both.
    """
    if resume is not None and (output is not None or config is not None):
        raise InputError("--resume takes folder and settings from the run; leave out -o and -c")
    for module in ("torch", "jinja2", "matplotlib"):
        require(module, "train")
    from mdlstm_tk import report, training

    if processes > 1:
        rest = iter(console.words)  # of which --processes takes one more
        words = [w for w in rest if not (w == "--processes" and next(rest)) and "--processes=" not in w]
        sys.exit(_launch(processes, words))
    if os.environ.get("RANK", "0") != "0":
        console.level = -1  # the first process speaks for all
    settings = {key: value for key, value in settings.items() if value is not None}
    start = training.load_checkpoint(training.open_run(resume).last) if resume else None
    chosen = start.config.resumed(settings) if start else training.configure(config, **settings)
    seconds, ended, began = 60 * chosen.minutes, list[Any](), list[Any]()
    losses, values = deque[float](maxlen=WINDOW), dict[str, float]()

    def on_step(state: Any, loss: float, measures: Any) -> None:
        losses.append(loss)
        began[:] = began or [state]  # the first step has compiled kernels, and does not count
        steps, time = state.step - began[0].step, state.seconds - began[0].seconds
        values.update({"loss": sum(losses) / len(losses), **measures})
        texts = [f"{name} {value:.4g}" for name, value in values.items()]
        text = ", ".join([*texts, *([f"{steps / time:.3g} steps/s"] if time else [])])
        show(state.seconds if seconds else state.step, text)

    def on_end(run: Any, task: Any, network: Any) -> None:
        ended.append(run)
        report.write_report(run, task, network)

    done = (start.state.seconds if seconds else start.state.step) if start else 0
    how: Any = {"on_step": on_step, "on_end": on_end}
    try:
        with console.progress(seconds or chosen.steps, done, "s" if seconds else "steps") as show:
            if resume:
                result = training.resume(resume, **how, **settings)
            else:
                result = training.train(chosen, output, force=force, **how)
    except KeyboardInterrupt as stop:
        if stop.args:  # the run, whose checkpoint is written
            console.next_command("train", "--resume", *stop.args)
        raise
    for run in ended:  # in the first process
        pace = f", {result['steps_per_second']:.3g} steps/s" if result["steps_per_second"] else ""
        console.note(f"{run.folder} has {result['ending']}{pace}")
        errors = ", ".join(f"{name} {value:.4g}" for name, value in result["errors"].items())
        cropped = f" cropped to {chosen.crop}" if chosen.crop else ""
        chose = ", which chose them" if result["in_sample"] else ""
        on_data = f"on {result['split']} data{cropped}{chose}: {errors}"
        console.note(f"best weights, {on_data}" if errors else "nothing was held out to measure them on")
        files = [each for each in (run.best, run.curves, run.prediction, run.report) if each.exists()]
        console.note(f"wrote {', '.join(map(str, files))}")
        if json:
            console.print_json({"run": str(run.folder), **result})
        next_of_run(run.folder)


def _launch(processes: int, words: Sequence[str]) -> int:
    """Run `mdlstm` with these words in several processes, by torch's launcher, and return the exit code.
    Each has its share of the cores as threads."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # errors are one line
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    try:
        main(["--standalone", f"--nproc-per-node={processes}", "-m", "mdlstm_tk", *words])
    except ChildFailedError as failed:
        return next(iter(failed.failures.values())).exitcode
    except SignalException:
        return 130
    return 0


def next_of_run(folder: Path, verb: str = "") -> None:
    """Name the command to type next for a run."""
    from mdlstm_tk._util.sizes import format_size
    from mdlstm_tk.kinds import kind_named
    from mdlstm_tk.training import load_checkpoint, open_run

    checkpoint = load_checkpoint(open_run(folder).checkpoint)
    spec = checkpoint.spec
    verb = verb or kind_named(spec.kind).next_verb
    # A model for one size would refuse samples of another, and new images of one's own may have another.
    is_free = checkpoint.config.data or spec.mixed_sizes or len(spec.size) == 1
    size = ["--form", "scan"] if is_free else ["--size", format_size(spec.size)]
    console.next_command(verb, folder, *(size if verb == "export" else []))
