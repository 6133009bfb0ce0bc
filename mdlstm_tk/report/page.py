"""A run as one page: one file that needs neither network nor scripts."""

from __future__ import annotations

import base64
import logging
from dataclasses import asdict, replace
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from torch import nn

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk._util.text import duration, printable
from mdlstm_tk._version import __version__
from mdlstm_tk.data.task import Task
from mdlstm_tk.data.user_data import data_of_run
from mdlstm_tk.errors import InputError, MissingExtraError
from mdlstm_tk.io.files import check_free, open_output
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.report.examples import look_at
from mdlstm_tk.report.plots import draw_curves, draw_panels
from mdlstm_tk.training import Checkpoint, Run, TrainConfig, build_network, load_checkpoint
from mdlstm_tk.training.networks import count_parameters
from mdlstm_tk.training.tasks import make_task

log = logging.getLogger("mdlstm_tk.report")


def write_report(
    run: Run,
    task: Task | None = None,
    network: nn.Module | None = None,
    *,
    data: str = "",
    path: Path | None = None,
    force: bool = False,
) -> Path:
    """Write the pictures of a run, `curves.png` and `prediction.png`, and its page, which shows them.

    >>> train(config, "runs/a", on_end=write_report)

    Args:
        run: a run with a checkpoint.
        task, network: of the run; None: one that generates its data, and the best weights.
        data: the user's data of the run, or others, which are then measured alone. They are read only if
            they are named; without them there are curves, but no examples.
        path: of the page, which is returned; None: `report.html` of the run, which is replaced.
        force: replace `path` if it exists.

    Raises:
        InputError: `path` exists, the data cannot be read, or others do not fit the run, or it has learned
            all of them.
    """
    target = path or run.report
    check_free(target, force or path is None)
    checkpoint = load_checkpoint(run.checkpoint)
    config, spec, records = checkpoint.config, checkpoint.spec, run.read_metrics()
    network, task = network or checkpoint.network(), task or _task_of(checkpoint, data)
    title = f"{config.model} on {spec.name}"
    pictures, evaluation, result, sections = [], None, run.read_result(), ""
    if records:
        draw_curves(run.curves, title, records)
        pictures.append(run.curves)
    if task is not None:
        kind, untrained = kind_named(spec.kind), None
        if kind.per_position and not config.init:
            untrained = build_network(config, spec).eval().to(next(network.parameters()).device)
        sections = kind.sections(network, task, run.folder)
        if evaluation := look_at(network, task, config.seed, untrained):
            of_data = f"{config.model} on {evaluation.split} data of {task.spec.name}"
            draw_panels(run.prediction, of_data, [each.panels for each in evaluation.examples])
            pictures.append(run.prediction)
            result |= {"split": evaluation.split, "errors": evaluation.measures}
            result |= {"outputs": evaluation.outputs}
    facts = {
        "run": run.folder,
        "training": result.get("ending", f"at step {checkpoint.state.step}"),
        "best step": checkpoint.state.step,
        "time": duration(checkpoint.state.seconds),
        "parameters": f"{count_parameters(network):,}",
        "data": data or config.data or spec.name,
    }
    outputs = result.get("outputs") or {}
    head = [("", *(name.replace("_", " ") for name in each)) for each in [*outputs.values()][:1]]
    how: Any = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    template = files("mdlstm_tk.report").joinpath("report.html").read_text("utf-8")
    page = Environment(autoescape=True, finalize=_shown, **how).from_string(template)
    text = page.render(
        title=f"{title} {format_size(spec.size)}",
        facts=[*facts.items()],
        split=result.get("split"),
        crop=f", cropped to {config.crop}" if config.crop else "",
        measures=[(name.replace("_", " "), each) for name, each in result.get("errors", {}).items()],
        outputs=[*head, *((name, *each.values()) for name, each in outputs.items())],
        pictures=[(each.stem, base64.b64encode(each.read_bytes()).decode()) for each in pictures],
        worst=evaluation.worst if evaluation else [],
        sections=Markup(sections),
        settings=[each for each in asdict(config).items() if each[1] != getattr(TrainConfig, each[0])],
        footer=f"mdlstm-tk {__version__}, {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
    )
    with open_output(target) as file:
        file.write(text.encode())
    return target


def _task_of(checkpoint: Checkpoint, data: str) -> Task | None:
    """The task of a run, with the user's data if they are named, or others to measure."""
    config, spec = checkpoint.config, checkpoint.spec
    if config.data and data:
        return data_of_run(replace(config, data=data), spec, checkpoint.state, kind_named(spec.kind))
    try:
        if config.data:
            raise InputError("the run was trained on data of yours; name them with --data PATH")
        task = make_task(replace(config, data=data))
        if task.digest != checkpoint.state.data:
            raise InputError("the run was trained on a task of its own")
    except (InputError, MissingExtraError) as error:
        if data:
            raise
        log.info("no examples: %s", error)
        return None
    task.spec = spec
    return task


def _shown(value: Any) -> Any:
    if isinstance(value, float):
        return "–" if value != value else f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return value if isinstance(value, Markup) else "–" if value is None else printable(value)
