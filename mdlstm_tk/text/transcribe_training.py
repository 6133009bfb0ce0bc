"""The kind `transcribe`: one text for each sample. The loss is CTC (Graves et al. 2006)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mdlstm_tk._util.text import counted, is_plain_text, quoted
from mdlstm_tk.data.arrays import read_name
from mdlstm_tk.data.samples import MemoryBudget, Survey
from mdlstm_tk.data.spec import Array, Batch, Extents, Floats, RawSample, Sample, Split, TaskSpec
from mdlstm_tk.data.targets import TargetOptions, Targets
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds.report_kind import Reported
from mdlstm_tk.kinds.training_kind import COMMON_DEFAULTS, Sums, TargetRule, TrainingKind
from mdlstm_tk.text.decoding import Decoding, read_run
from mdlstm_tk.text.distortion import distort_line
from mdlstm_tk.text.encoding import (
    TaskTexts,
    TextExtent,
    fit_texts,
    normalise,
    texts_without_room,
)
from mdlstm_tk.text.page_folders import list_pages, list_texts, list_transcripts
from mdlstm_tk.text.transcribe import KIND

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mdlstm_tk.data import Task
    from mdlstm_tk.data.user_data import UserDataTask
    from mdlstm_tk.report.evaluation import SplitEvaluation
    from mdlstm_tk.report.panels import Panel
    from mdlstm_tk.training.config import TrainConfig
    from mdlstm_tk.training.job import TrainingJob
    from mdlstm_tk.training.run_folder import Run


class Transcribe(TrainingKind):
    folder_format = (
        "a folder with page images and their ALTO or PAGE XML, with images of lines and their "
        "NAME.gt.txt, or with images and a labels.tsv of file, tab, text"
    )
    array_format = "an .npz file with x and texts y (N,)"
    target_dtypes = "US"
    target_files = (".txt", ".tsv", ".xml")
    target_name = "text"
    is_cropped = False
    is_planar = True
    error_names = ("character_error", "word_error", "string_error")
    percentages = frozenset(error_names)
    report_template = "text/report.html"
    defaults = COMMON_DEFAULTS | {
        "model": "lines",
        "resize": "64x*",
        "hidden": 48,
        "dropout": 0.2,
        "steps": 20000,
        "batch_size": 8,
        "lr": 0.003,
        "warmup": 300,
        "average": 0.998,
        "augment": 1.0,
        "evaluate_every": 1000,
        "patience": 0,
    }

    def list_folder(self, path: Path, budget: MemoryBudget) -> tuple[list[RawSample], list[str]]:
        if (path / KIND.table).exists():
            return list_texts(path)
        samples, notes = list_pages(path, budget)
        lines, others = list_transcripts(path)
        return [*samples, *lines], [*notes, *others]

    def distort(
        self, samples: Sequence[Sample], rngs: Sequence[np.random.Generator], strength: float
    ) -> list[Sample]:
        pairs = zip(samples, rngs, strict=True)
        return [(distort_line(x, rng, strength), y) for (x, y), rng in pairs]

    def complete(
        self, task: UserDataTask, splits: Mapping[Split, Sequence[Survey]], targets: Targets
    ) -> None:
        texts = [normalise(survey.target) for survey in splits["train"]]
        task.of_kind = TaskTexts(
            texts,
            [TextExtent.of(split, survey, targets) for split, each in splits.items() for survey in each],
        )
        learned = {k for survey in splits["train"] for k in targets.encode(survey.target)}
        absent = "".join(name for k, name in enumerate(targets.classes, 1) if k not in learned)
        if absent:
            task.summary = [*task.summary, f"characters without samples to train on: {absent}"]

    def spec_fields(self, train: Sequence[Survey], targets: Targets) -> dict[str, Any]:
        return {"text_direction": targets.direction}

    def widest_step(self, task: Task) -> int:
        # a text of invisible marks needs no room
        room = (
            each.width // each.ctc_steps for each in getattr(task.of_kind, "extents", ()) if each.ctc_steps
        )
        return min(room, default=task.spec.size[1])

    def check_steps(self, columns: int | None, task: Task, remedy: str) -> list[str]:
        texts = texts_without_room(columns, task)
        if not texts:
            return []
        named = quoted([f"{each.name}: {each.text:.40}" for each in texts])
        need = counted(len(texts), "text needs", "texts need")
        line = f"{need} more steps than the network makes of their images ({named})"
        if sum(each.split == "train" for each in texts) == task.count("train"):
            raise InputError(f"{line}, among them all that it would be trained on; try {remedy}")
        return [f"{line}, so nothing is learned from them; try {remedy}"]

    def read_array(self, y: Array, index: int, extents: Extents, names: Sequence[str]) -> Any:
        return read_name(y, index)

    def survey(self, target: Any, survey_numbers: Callable[[Array], Any]) -> tuple[Any, Any]:
        text = normalise(target)
        if not text:
            raise InputError("its text is empty")
        if not is_plain_text(text):
            raise InputError("its text holds a control character, such as a tab")
        return target, text

    def fit(self, targets: Sequence[Any], options: TargetOptions) -> Targets:
        return fit_texts(targets)

    def collate(self, x: Array, targets: Sequence[Any], pad: Callable[..., Array]) -> Array:
        return pad(targets, (max(map(np.size, targets)),), 0, np.int64)

    def rule(self, batch: Batch, spec: TaskSpec) -> TargetRule:
        n, k = len(batch.x), spec.outputs
        note = ", 0 only after the end of a text"
        return TargetRule(np.int64, (n, *batch.y.shape[1:2]), (n, None, k), 0, k - 1, note)

    def keeps_rule(self, y: Array) -> bool:
        return not ((y[:, :-1] == 0) & (y[:, 1:] > 0)).any()

    def loss(self, prediction: Tensor, batch: Batch, spec: TaskSpec, columns: int | None) -> Tensor:
        """CTC, divided by the length of the text; samples without room for their text are left out."""
        from mdlstm_tk.text.ctc_loss import ctc_loss

        return ctc_loss(prediction, batch, columns)

    def conclude(
        self, job: TrainingJob, step: int, split: Split
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Choose how texts are read, and read them."""
        from mdlstm_tk.text.calibration import calibrate
        from mdlstm_tk.text.reading import describe_lines, evaluate_lines

        decoding = job.context.broadcast(calibrate(job, step) if job.context.is_main else Decoding())
        errors, lines = evaluate_lines(
            job.network, job.task, split, job.config, job.context, decoding=decoding
        )
        return errors, describe_lines(lines)

    def target_text(self, batch: Batch, spec: TaskSpec) -> str | None:
        from mdlstm_tk.text.measures import target_texts

        return target_texts(batch, spec)[0]

    def metadata(self, run: Run, step: int, spec: TaskSpec) -> dict[str, Any]:
        return {"text_direction": spec.text_direction, **asdict(read_run(run, step))}

    def panels(self, batch: Batch, prediction: Floats, spec: TaskSpec, name: str) -> list[Panel]:
        from mdlstm_tk.report.panels import ShownAnswer, answer_panel
        from mdlstm_tk.text.measures import predicted_texts, target_texts

        (reading,), (truth,) = predicted_texts(prediction, spec), target_texts(batch, spec)
        return [answer_panel(batch, ShownAnswer(reading, truth, reading == truth), name, "read")]

    def evaluate_examples(
        self, network: nn.Module, task: Task, config: TrainConfig, run: Run, step: int
    ) -> SplitEvaluation:
        from mdlstm_tk.text.report import evaluate_split

        return evaluate_split(network, task, config, read_run(run, step))

    def report_values(self, reported: Reported) -> dict[str, Any]:
        from mdlstm_tk.text.report import report_values

        return report_values(reported.evaluation, reported.result, reported.data)

    def measures(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> Sums:
        from mdlstm_tk.text.ctc_loss import line_steps
        from mdlstm_tk.text.measures import count_edits, predicted_texts, target_texts

        steps = line_steps(batch, prediction.shape[1])  # the others see padding
        logits = [y[:n] for y, n in zip(prediction.cpu().numpy(), steps.tolist(), strict=True)]
        texts = predicted_texts(logits, spec)
        edits = list(map(count_edits, texts, target_texts(batch, spec)))
        return {
            "character_error": (sum(e.character_edits for e in edits), sum(e.characters for e in edits)),
            "word_error": (sum(e.word_edits for e in edits), sum(e.words for e in edits)),
            "string_error": (sum(e.character_edits > 0 for e in edits), len(edits)),
        }


TRAINING = Transcribe()
