"""The page: what is known of a run, filled into `report.html`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from mdlstm_tk._version import __version__
from mdlstm_tk.data import TaskSpec
from mdlstm_tk.data.metrics import texts
from mdlstm_tk.errors import InputError, MissingExtraError
from mdlstm_tk.report.evaluation import Example, Judgement, judge
from mdlstm_tk.report.exports import BATCH, measure_exports
from mdlstm_tk.report.text_alignment import Edit, align
from mdlstm_tk.runtime.io.files import atomic_write, ensure_writable
from mdlstm_tk.runtime.postprocessing import labels, probabilities, transcripts
from mdlstm_tk.sizes import format_size
from mdlstm_tk.training import Checkpoint, Run, TrainConfig, default_config, load_checkpoint, make_task
from mdlstm_tk.viz.panels import class_colour, panels_of
from mdlstm_tk.viz.svg import Picture, curves, embed

SHARES = (
    "error",
    "character_error",
    "string_error",
    "unexplained",
)  # errors to be read in per cent
MATRIX = 40  # classes, beyond which a confusion matrix is too large to read
FREQUENT = 15  # confusions or edits that are listed


@dataclass(frozen=True)
class Shown:
    """An example in the page.

    Attributes:
        number: of the sample, from 1.
        pictures: of it.
        said: the predicted class or text, "" if there is no such thing.
        truth: the true one.
        sure: the predicted class's probability.
        edits: of the predicted text.
        error: by the task's own measure.
    """

    number: int
    pictures: list[Picture]
    error: float
    said: str = ""
    truth: str = ""
    sure: float | None = None
    edits: tuple[Edit, ...] = ()


def write_report(
    run: Run,
    path: Path | None = None,
    force: bool = False,
    on_message: Callable[[str], None] = lambda message: None,
) -> Path:
    """Write the page of a run, and return its path.

    Args:
        run: a run with a checkpoint.
        path: the file to write; `report.html` in the run folder, which is replaced, if None.
        force: replace `path` if it exists.
        on_message: called with one line for each thing that takes time or cannot be done.

    Raises:
        InputError: `path` exists, or the run's checkpoint is damaged or belongs to another network.
        MissingExtraError: there are exports, but ONNX Runtime is not installed.
        MDLSTMError: `path` cannot be written.
    """
    target = path or run.report
    ensure_writable(target, force or path is None)
    with atomic_write(target) as temporary:
        temporary.write_text(render_report(run, on_message), encoding="utf-8")
    return target


def render_report(run: Run, on_message: Callable[[str], None] = lambda message: None) -> str:
    """The page of a run as HTML text; arguments and errors as of `write_report`."""
    checkpoint = load_checkpoint(run.checkpoint)
    config, spec = checkpoint.config, checkpoint.spec
    network = checkpoint.network()
    judgement, missing = None, ""
    try:
        task = make_task(config)
    except (InputError, MissingExtraError) as error:
        missing = str(error)
        on_message(f"no examples: {missing}")
    else:
        on_message(f"judging {config.model} on {task.name}")
        judgement = judge(network, task, config)
    result = _result(run, checkpoint)
    records = run.read_metrics()
    if exports := [path.name for path in run.folder.glob("model*.onnx")]:
        on_message(f"measuring {', '.join(sorted(exports))}")
    return _template().render(
        version=__version__,
        date=datetime.now().astimezone(),
        run=run.folder,
        config=config,
        spec=spec,
        step=checkpoint.step,
        steps=records[-1]["step"] if records else checkpoint.step,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        seconds=result.get("seconds"),
        errors=result["errors"] if result else judgement.errors if judgement else {},
        split=result["split"] if result else judgement.split if judgement else "",
        curves=curves(records) if records else [],
        validated=any(record.get("validation") for record in records),
        missing=missing,
        judgement=judgement,
        first=[_show(example, spec) for example in judgement.first] if judgement else [],
        worst=[_show(example, spec) for example in judgement.worst] if judgement else [],
        colours=[class_colour(k) for k in range(len(spec.classes))],
        classes=_classes(judgement),
        confused=_confused(judgement, spec),
        matrix=MATRIX,
        frequent=FREQUENT,
        exports=measure_exports(run, spec.size),
        batch=BATCH,
        settings=_settings(config),
    )


def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        measure=_measure, percent=_percent, size=format_size, duration=_duration, bytes=_bytes, ms=_ms
    )
    return environment.get_template("report.html")


def _result(run: Run, checkpoint: Checkpoint) -> dict[str, Any]:
    """What `result.json` says, if it is of this checkpoint."""
    try:
        result: dict[str, Any] = json.loads(run.result.read_text(encoding="utf-8"))
        return result if result["step"] == checkpoint.step and result["errors"] else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _show(example: Example, spec: TaskSpec) -> Shown:
    batch, prediction = example.batch, example.prediction
    pictures = [embed(panel) for panel in panels_of(batch, prediction, spec)]
    plain = Shown(example.number + 1, pictures, example.error)
    if spec.kind == "classify":
        said, truth = int(labels(prediction)[0]), int(batch.y[0])
        sure = float(probabilities(prediction)[0, said])
        return replace(plain, said=spec.classes[said], truth=spec.classes[truth], sure=sure)
    if spec.kind == "transcribe":
        (text,), (true,) = transcripts(prediction, spec.classes), texts(batch, spec)
        return replace(plain, said=text, truth=true, edits=tuple(align(text, true)))
    return plain


def _classes(judgement: Judgement | None) -> list[dict[str, Any]]:
    """Of each class: how many there are, the share missed, and how well truth and prediction overlap."""
    if judgement is None or judgement.confusion is None:
        return []
    matrix = judgement.confusion
    right, there, taken = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    return [
        {
            "count": int(n),
            "missed": 1 - hit / n if n else None,
            "false": 1 - hit / claimed if claimed else None,
            "overlap": hit / (n + claimed - hit) if n + claimed else None,
        }
        for hit, n, claimed in zip(*map(npt.NDArray.tolist, (right, there, taken)), strict=True)
    ]


def _confused(judgement: Judgement | None, spec: TaskSpec) -> list[tuple[str, str, int]]:
    """Truth, what it was taken for, and how often: the most frequent ones."""
    if judgement is None or judgement.confusion is None:
        return []
    wrong = judgement.confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(wrong, axis=None, kind="stable")[::-1][:FREQUENT]
    places = [divmod(int(place), len(wrong)) for place in order]
    return [(spec.classes[t], spec.classes[s], int(wrong[t, s])) for t, s in places if wrong[t, s]]


def _settings(config: TrainConfig) -> list[tuple[str, Any, Any, bool]]:
    """Name, value, the task's default, and whether they differ."""
    start = asdict(default_config(config.task, config.data))
    if config.data or start["size"] == config.size or default_config(config.task).grid == config.grid:
        start["size"] = config.size  # "8" is "8x8", and data has the size that it has
    return [(name, value, start[name], value != start[name]) for name, value in asdict(config).items()]


def _measure(value: float, name: str) -> str:
    """An error, with three digits."""
    return f"{100 * value:.3g} %" if name in SHARES else f"{value:.3g}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours} h"] * (hours > 0) + [f"{minutes} min"] * (minutes > 0)
    return " ".join([*parts, f"{rest} s"] if not hours else parts)


def _bytes(count: int) -> str:
    return f"{count / 1024:.0f} KiB" if count < 1024**2 else f"{count / 1024**2:.1f} MiB"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g}"
