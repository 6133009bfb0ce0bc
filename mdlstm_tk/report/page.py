"""Fill the template `report.html` with the evaluation of a run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from functools import partial
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, Undefined
from markupsafe import Markup

from mdlstm_tk._util.sizes import format_size, is_size
from mdlstm_tk._util.text import duration, printable, shell_quoted
from mdlstm_tk._version import __version__
from mdlstm_tk.data import TaskSpec
from mdlstm_tk.errors import InputError, MissingExtraError
from mdlstm_tk.io.files import check_free, open_output
from mdlstm_tk.kinds import training_of
from mdlstm_tk.kinds.report_kind import Reported
from mdlstm_tk.report.evaluation import SplitEvaluation
from mdlstm_tk.report.exports import BATCH, find_exports, measure_exports
from mdlstm_tk.report.plots import measure_label, svg_curves
from mdlstm_tk.training import Checkpoint, Run, TrainConfig, default_config, load_checkpoint, load_task
from mdlstm_tk.training.networks import count_parameters
from mdlstm_tk.training.run_task import describe_changes, describe_overlap

MAX_UNLISTED_CLASSES = 12  # up to here the matrix suffices, and confusions are not listed
MAX_MATRIX = 40  # classes of the largest confusion matrix that is shown
MAX_ROWS = 15  # confusions or pages in a list of the most frequent or the worst ones
MIN_LINE_ASPECT = 6  # width / height from which an image takes the full width of the page


def write_report(
    run: Run,
    path: Path | None = None,
    force: bool = False,
    on_message: Callable[[str], None] = lambda message: None,
    data: str = "",
) -> Path:
    """Write the page of a run, and return its path.

    Args:
        run: a run with a checkpoint.
        path: the file to write. None: `report.html` in the run folder, replaced if it exists.
        force: replace `path` if it exists.
        on_message: called with one line for each thing that takes time or cannot be done.
        data: folder or file of the user's data, for runs trained on such data. If empty, the page has no
            examples.

    Raises:
        InputError: `path` exists, `data` cannot be read or are others, or the run's checkpoint, metrics or
            result are damaged or belong to another network.
        MissingExtraError: there are exports, but ONNX Runtime is not installed.
        MDLSTMError: `path` cannot be written.
    """
    target = path or run.report
    check_free(target, force or path is None)
    with open_output(target, force or path is None) as file:
        file.write(render_report(run, on_message, data).encode())
    return target


def render_report(
    run: Run, on_message: Callable[[str], None] = lambda message: None, data: str = ""
) -> str:
    """Return the page of a run as HTML text; arguments and errors as of `write_report`."""
    checkpoint = load_checkpoint(run.checkpoint)
    config, kind = checkpoint.config, training_of(checkpoint.spec.kind)
    spec = kind.decoded_spec(checkpoint.spec, run, checkpoint.step)
    network = checkpoint.network()
    if exports := find_exports(run):
        on_message(f"measuring {', '.join(path.name for path in exports)}")
    measurements = measure_exports(exports, spec.size)
    for export in measurements:
        if export.stale:
            on_message(export.stale)
    evaluation, task, problem, overlap = None, None, "", list[str]()
    try:
        known = run.read_samples()
        learned = run.read_learned()
        task = load_task(config, spec, data, known, learned)
    except (InputError, MissingExtraError) as error:
        if data:
            raise
        problem = str(error)
        on_message(f"no examples: {problem}")
    else:
        overlap = describe_overlap(task.identities, learned)
        if known and task.identities:
            with suppress(InputError):  # of samples that were trained on, which the overlap names
                overlap += describe_changes(known, task.identities)
        for line in overlap:
            on_message(line)
        on_message(f"evaluating {config.model} on {task.name}")
        evaluation = kind.evaluate_examples(network, task, config, run, checkpoint.step)
    result = _read_result(run, checkpoint)
    errors, split = result.get("errors", {}), result.get("split", "")
    if evaluation is not None:
        errors, split = evaluation.errors, evaluation.split
    records = run.read_metrics()
    values: dict[str, Any] = {"confusions": _confusions(evaluation, spec), "intervals": {}}
    values["outputs"] = result.get("outputs", {})
    if evaluation is not None:
        values["outputs"] = kind.outputs(evaluation.sums, spec) if evaluation.sums else {}
    values["figures"] = kind.figures(evaluation, spec) if evaluation else []
    values |= kind.report_values(Reported(network, task, config, evaluation, result, data))
    return _template(kind.report_template, kind.percentages).render(
        version=__version__,
        date=datetime.now().astimezone(),
        run=run.folder,
        config=config,
        spec=spec,
        step=checkpoint.step,
        steps=records[-1]["step"] if records else checkpoint.step,
        parameters=count_parameters(network),
        seconds=run.read_times().training or None,
        errors=errors,
        split=split,
        curves=svg_curves(records, config.best_by) if records else [],
        validated=any(record.get("validation") for record in records),
        problem=problem,
        overlap=overlap,
        evaluation=evaluation,
        examples=evaluation.examples if evaluation else [],
        worst=evaluation.worst if evaluation else [],
        examples_text=kind.examples_text(spec),
        is_per_position=kind.has_grid_targets,
        colors=list(kind.colors(spec).values()),
        is_long=spec.size[-1] >= MIN_LINE_ASPECT * spec.size[0],
        max_matrix=MAX_MATRIX,
        max_rows=MAX_ROWS,
        exports=measurements,
        batch=BATCH,
        settings=_settings(config, spec),
        **values,
    )


def _template(name: str, percentages: Collection[str]) -> Template:
    """A template of the package, which shows some errors in per cent."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent.parent),
        autoescape=True,
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        metric=partial(_format_metric, percentages=percentages),
        measure=measure_label,
        percent=_format_percent,
        interval=_format_interval,
        shown=_show_spaces,
        grid_size=format_size,
        duration=duration,
        file_size=_format_bytes,
        ms=_format_ms,
        shell=shell_quoted,
    )
    return environment.get_template(name)


def _finalize(value: Any) -> Any:
    """Show control characters of a value as escapes. HTML is escaped afterwards."""
    return value if isinstance(value, Markup | Undefined) else printable(value)


def _read_result(run: Run, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the content of `result.json`; {} if there is none or it describes another checkpoint."""
    result = run.read_result()
    return result if result.get("step") == checkpoint.step and result.get("errors") else {}


def _confusions(evaluation: SplitEvaluation | None, spec: TaskSpec) -> list[tuple[str, str, int]]:
    """Return the most frequent confusions: true class, predicted class, and how often."""
    if evaluation is None or evaluation.confusion is None or len(spec.classes) <= MAX_UNLISTED_CLASSES:
        return []
    counts = evaluation.confusion.copy()
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:MAX_ROWS]
    pairs = [divmod(int(index), len(counts)) for index in order]
    return [(spec.classes[t], spec.classes[p], int(counts[t, p])) for t, p in pairs if counts[t, p]]


def _settings(config: TrainConfig, spec: TaskSpec) -> list[tuple[str, Any, Any, bool]]:
    """Return key, value and default of each setting, and True if value and default differ."""
    try:
        defaults = asdict(default_config(config.task, config.data))
    except InputError:  # the file that registers the task is not imported
        defaults = asdict(TrainConfig(task=config.task, data=config.data))
    defaults["data_from_run"] = config.data_from_run
    size = defaults["size"]
    if config.data or not size or is_size(size, spec.size):
        defaults["size"] = config.size  # "8" equals "8x8"; without a default the data determine the size
    return [(key, value, defaults[key], value != defaults[key]) for key, value in asdict(config).items()]


def _format_metric(value: float, name: str, percentages: Collection[str]) -> str:
    return f"{100 * value:.3g} %" if name in percentages else f"{value:.3g}"


def _format_percent(value: float) -> str:
    return "–" if isnan(value) else f"{100 * value:.1f} %"


def _format_interval(ends: Sequence[float]) -> str:
    return " – ".join(f"{100 * end:.3g}" for end in ends)


def _show_spaces(text: str) -> str:
    return text.replace(" ", "␣")


def _format_bytes(count: int) -> str:
    return f"{count / 1024:.0f} KiB" if count < 1024**2 else f"{count / 1024**2:.1f} MiB"


def _format_ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g}"
