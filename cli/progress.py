"""Trainings and inferences while they run: bars, a line for each failure, answers, counts."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from math import ceil
from typing import TYPE_CHECKING, Any

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk._util.text import counted, duration, shell_quoted
from mdlstm_tk.cli import console
from mdlstm_tk.cli.console import detail, note, progress, with_flags
from mdlstm_tk.cli.options import with_imports
from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.kinds import training_of

if TYPE_CHECKING:
    from mdlstm_tk.runtime import Inference, Result
    from mdlstm_tk.training import Progress, Run, TrainConfig, TrainingJob

TIMED_STEPS = 20  # after which the length of a training is estimated


def next_of_run(run: Run, verb: str = "") -> str:
    """The command to type next for a run that has been trained.

    Args:
        run: the run, of which no model has been exported.
        verb: the verb of the command; "" for the one that its kind of task names.

    Raises:
        InputError: the checkpoint is damaged.
    """
    from mdlstm_tk.training import load_checkpoint

    checkpoint = load_checkpoint(run.checkpoint)
    spec = checkpoint.spec
    verb = verb or training_of(spec.kind).next_verb
    command = f"mdlstm {verb} {shell_quoted(run.folder)}"
    if verb == "export":
        # A model for one size would refuse samples of another, and new images of one's own may have
        # another. --size 9 means 9x9.
        is_free = checkpoint.config.data or spec.mixed_sizes or len(spec.size) == 1
        command += " --form scan" if is_free else f" --size {format_size(spec.size)}"
    return with_imports(command)


def train_with_progress(job: TrainingJob) -> dict[str, Any]:
    """Train and draw a run, with a progress bar in the main process; see `mdlstm_tk.training.train`."""
    from mdlstm_tk.report import draw_run
    from mdlstm_tk.training import RecentMetrics, train

    if not job.context.is_main:
        return train(job)
    for line in job.notes:
        note(line)
    note(job.description)
    for line in job.config.to_toml().splitlines():
        detail(f"  {line}")
    metrics, config = RecentMetrics(), job.config
    seconds = ceil(60 * config.minutes)  # the bar counts them if the clock ends the training, else steps
    try:
        done, counts = (job.seconds_done, _minutes_of(config)) if seconds else (job.steps_done, None)
        with progress(seconds or config.steps, done, counts=counts) as show:

            def on_step(state: Progress) -> None:
                metrics.add(state)
                if state.step == job.steps_done + TIMED_STEPS and (state.seconds_left or 0) >= 1:
                    note(_describe_length(state, config))
                done = seconds - ceil(state.seconds_left or 0) if seconds else state.step
                show(done, metrics.describe, state.seconds_left)

            result = train(job, on_step)
    except KeyboardInterrupt:
        if job.run.best.exists():
            draw_run(job.run, job.task)
        if job.run.last.exists():
            command = with_imports(f"mdlstm train --resume {shell_quoted(job.run.folder)}")
            note(f"interrupted; continue with: {command}")
        raise
    draw_run(job.run, job.task, job.network)
    return result


def _minutes_of(config: TrainConfig) -> Callable[[int], str]:
    """A text such as "2.5 of 10 min" for the seconds that a training with `minutes` has done."""
    minutes = config.minutes
    if minutes < 2:  # too few to count
        return lambda seconds: f"{seconds} of {60 * minutes:.0f} s"
    return lambda seconds: f"{round(seconds / 60, 1):g} of {minutes:g} min"


def _describe_length(state: Progress, config: TrainConfig) -> str:
    """The length of a training on this machine, from the rate of its first steps."""
    rate, eta = state.steps_per_second or 0.0, state.seconds_left or 0.0
    if config.minutes:
        length = duration(60 * config.minutes)
        return f"about {state.step + rate * eta:,.0f} steps in {length} on this machine"
    steps = counted(config.steps - state.step, "more step")
    return f"{steps} will take about {duration(eta)} on this machine"


@contextmanager
def tile_progress(is_shown: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Show how many tiles of a file are done, with their rate and the time left.

    Args:
        is_shown: false for several files, whose number has a bar of its own: a terminal has room for one.

    Yields:
        A function `report(done, total)`, or None if nothing is shown. The bar goes when all tiles are done.
    """
    start, first = 0.0, 0
    show: Callable[..., None] | None = None
    with ExitStack() as bar:

        def report(done: int, total: int) -> None:
            nonlocal start, first, show
            if show is None:
                start, first, show = time.perf_counter(), done, bar.enter_context(progress(total, done))
            rate = (done - first) / max(time.perf_counter() - start, 1e-9)
            show(done, f"{rate:.3g} tiles/s" if rate else "", (total - done) / rate if rate else None)
            if done == total:
                bar.close()
                show = None

        yield report if is_shown else None


def print_results(
    run: Inference, *, is_single: bool, is_json: bool, is_default_model: bool, resume: bool
) -> None:
    """Print the results of an inference, file by file, and name the command to type next.

    Args:
        run: the inference.
        is_single: the input is a single file, of which more is printed.
        is_json: print JSON on stdout, also after a failure.
        is_default_model: no model was named.
        resume: an interrupted run can be resumed.

    Raises:
        MDLSTMError: a file failed.
    """
    session = run.session
    if run.left_out:
        note(f"files that are no inputs of this model, left out: {run.left_out}")
    if run.earlier_results:
        note(f"results of mdlstm infer, left out: {run.earlier_results}; name such a file to read it")
    if is_default_model:
        _warn_of_a_newer_run(run)
    for line in run.stale:
        console.warn(line)
    isolated = ", isolated" if session.isolated else ""
    note(f"{run.model} on {session.device} ({session.provider}){isolated}")
    if run.further_models:
        note(f"for files on other grids: {', '.join(map(str, run.further_models))}")
    if session.reason:
        note(f"not on CUDA: {session.reason}")
    if not run.jobs:
        found = "the result exists" if run.skipped == 1 else f"all {run.skipped} results exist"
        note(f"nothing to do: {found}")
    records: list[dict[str, Any]] = []
    try:
        _follow(run, records, is_single, is_json)
    except (MDLSTMError, KeyboardInterrupt):
        if resume and run.jobs:
            files = [job.target for job in run.jobs if job.target != "-" and not job.replace]
            flags = "--resume --skip-existing" if any(map(os.path.exists, files)) else "--resume"
            note(f"what was done is kept beside the result; the same command with {flags} goes on")
        raise
    finally:
        if is_json:
            failed = sum(record["error"] is not None for record in records)
            facts = {name: getattr(session, name) for name in ("device", "provider", "isolated")}
            models = {"model": str(run.model), "further_models": list(map(str, run.further_models))}
            counts = {"done": len(records) - failed, "failed": failed, "skipped": run.skipped}
            console.print_json({**models, **facts, **counts, "files": records})
    if run.table and run.jobs:
        note(f"wrote {run.table}")
    elif run.jobs and (job := run.jobs[-1]).format == "npy" and job.target != "-":
        program = f"import numpy; print(numpy.load({job.target!r}).round(2))"
        is_plain = not set(job.target) & set("'\"\\$`!")
        console.next_command(f'python -c "{program}"' if is_plain else f"python -c {shell_quoted(program)}")


def _follow(run: Inference, records: list[dict[str, Any]], is_single: bool, is_json: bool) -> None:
    """Print each result as it comes, and add it to the records."""
    if not run.jobs:
        return
    document = None if is_json else run.document
    total, failed, example, start = len(run.jobs), 0, "", time.perf_counter()

    def rate() -> float:
        return len(records) / max(time.perf_counter() - start, 1e-9)

    def note_counts(beginning: str = "", end: str = "") -> None:
        if not is_single:
            counts = f"{len(records) - failed} done, {run.skipped} skipped, {failed} failed"
            note(f"{beginning}{counts}, {rate():.3g} files/s{end}")

    try:
        with nullcontext() if is_single else progress(total, lines=0) as show:
            for result in run.results:
                records.append(run.record(result))
                records[-1]["error"] = result.error and with_flags(result.error)
                if document:
                    beginning = document.begin() if len(records) == 1 else ""  # nothing if none comes
                    sys.stdout.write(beginning + document.add_in_order(result.job, result.answers))
                if result.error is None:
                    _note_result(run, result, is_single)
                    if not run.table and result.job.target != "-":
                        example = f", such as {result.job.source} → {result.job.target}"
                else:
                    failed += 1
                    console.error(result.error, label="failed")
                if show:
                    seconds_left = (total - len(records)) / rate()
                    show(len(records), f"{rate():.3g} files/s", seconds_left)
    except (MDLSTMError, KeyboardInterrupt) as error:
        if is_single and not records and isinstance(error, MDLSTMError):
            records.append({"source": run.jobs[0].source, "error": with_flags(str(error))})
        advice = "; nothing was written" if run.table else "; continue with --skip-existing"
        if run.document or (run.jobs[0].replace and not run.table):  # neither is found, or all are
            advice = ""
        note_counts("stopped: ", f", {total - len(records)} to do{advice}")
        raise
    if document:
        sys.stdout.write(document.end())
    note_counts(end=example)
    if failed:
        raise MDLSTMError(f"{failed} of {counted(total, 'file')} failed; see the lines above")


def _note_result(run: Inference, result: Result, is_single: bool) -> None:
    """Say where a result went; of a single file also the shapes and, on a terminal, a heat map."""
    job = result.job
    if result.left_out:
        note(f"{job.source}: {', '.join(result.left_out)} was left out, as it holds targets")
    if not is_single:
        detail(f"{job.source} → {run.table or job.target}")
    elif job.target != "-" and (result.answers or result.inputs is None):
        note(f"{job.source} → {job.target}")
    elif not result.answers:
        for name, y in (result.outputs or {}).items():
            x = (result.inputs or {}).get(name)
            label = job.source if name is None else f"'{name}' in {job.source}"
            if job.target != "-":
                x_shape = "" if x is None else f" {x.shape}"
                y_shape = "" if job.content == "answers" else f" {y.shape}"
                note(f"{label}{x_shape} → {job.target}{y_shape}")
            if console.on_terminal() and x is not None and x.ndim == y.ndim == 2:
                from mdlstm_tk.report.terminal_heatmap import show_grids

                show_grids(console.err(), {"input": x, "prediction": y})


def _warn_of_a_newer_run(run: Inference) -> None:
    from mdlstm_tk.runtime.model_discovery import newer_run_without_export

    if newer := newer_run_without_export(run.model):
        console.warn(
            f"the model is of an older run, because the newest, {newer}, has no export; "
            f"make one with: mdlstm export {shell_quoted(newer)}"
        )
