"""The parts of a report on readings of lines: the worst and the middling ones, edits, confidences, cuts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from mdlstm_tk.data import Task
from mdlstm_tk.errors import InputError
from mdlstm_tk.report.evaluation import Example, SplitEvaluation, make_examples, split_to_show
from mdlstm_tk.report.plots import svg_reliability
from mdlstm_tk.text.cuts import cut_panels
from mdlstm_tk.text.decoding import Decoding
from mdlstm_tk.text.reading import Line, describe_lines, evaluate_lines
from mdlstm_tk.training.config import TrainConfig

WORST_LINES, MIDDLING_LINES = 50, 6


@dataclass(frozen=True)
class LineExample(Example):
    """A line and its reading.

    Attributes:
        line: how it was read.
    """

    line: Line


@dataclass(frozen=True)
class LinesEvaluation(SplitEvaluation):
    """The evaluation of a split of lines; its examples are those whose error is about the median.

    Attributes:
        lines: how each was read.
    """

    lines: tuple[Line, ...] = ()


def evaluate_split(
    network: nn.Module, task: Task, config: TrainConfig, decoding: Decoding
) -> LinesEvaluation:
    """Read all lines of the split that influenced training least."""
    label, task, split = split_to_show(task)
    errors, lines = evaluate_lines(network, task, split, config, decoding=decoding)
    ranking = sorted(range(len(lines)), key=lambda k: lines[k].character_error, reverse=True)
    middle = max((len(ranking) - MIDDLING_LINES) // 2, 0)
    worst = [k for k in ranking[:middle] if lines[k].character_error > 0][:WORST_LINES]
    examples, worst_examples = (
        [
            LineExample(**vars(example), line=lines[k])
            for k, example in zip(
                indices, make_examples(network, task, split, config, indices), strict=True
            )
        ]
        for indices in (ranking[middle : middle + MIDDLING_LINES], worst)
    )
    return LinesEvaluation(
        label, task.count(split), errors, examples, worst_examples, {}, lines=tuple(lines)
    )


def report_values(
    evaluation: SplitEvaluation | None, result: Mapping[str, Any], data: str
) -> dict[str, Any]:
    """See `ReportKind.report_values`; the texts are those of an evaluation, or else of `result.json`."""
    texts = describe_lines(evaluation.lines) if isinstance(evaluation, LinesEvaluation) else _texts(result)
    return {
        "texts": texts if "reliability" in texts else {},
        "intervals": texts.get("intervals", {}),
        "confusions": texts.get("confusions", []),
        "reliability": svg_reliability(texts["reliability"]) if texts.get("reliability") else "",
        "cuts": cut_panels(Path(data)) if data else [],
    }


def _texts(result: Mapping[str, Any]) -> dict[str, Any]:
    """The result of `describe_lines`, from `result.json`; {} if it has none.

    Raises:
        InputError: it holds something else.
    """
    if {"intervals", "confusions", "reliability"}.isdisjoint(result):
        return {}
    try:
        ends = {k: v and (float(v[0]), float(v[1])) for k, v in result["intervals"].items()}
        return {
            "intervals": ends,
            "confusions": [
                (str(truth), str(read), int(count)) for truth, read, count in result["confusions"]
            ],
            "pages": [(str(page), float(error), int(count)) for page, error, count in result["pages"]],
            "reliability": [(float(a), float(b), int(count)) for a, b, count in result["reliability"]],
            "calibration_error": float(result["calibration_error"]),
            **{name: int(result[name]) for name in ("groups", "edits")},
        }
    except (TypeError, ValueError, LookupError, AttributeError):
        raise InputError("result.json holds no readings of texts; delete it to go on") from None
