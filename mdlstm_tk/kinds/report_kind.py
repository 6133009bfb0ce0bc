"""The questions that pictures and reports of a run ask a kind of task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from mdlstm_tk.data.spec import Array, Batch, Floats, Split, TaskSpec
from mdlstm_tk.kinds.examples import spread

if TYPE_CHECKING:
    from markupsafe import Markup
    from torch import nn

    from mdlstm_tk.data import Task
    from mdlstm_tk.report.evaluation import Example, SplitEvaluation
    from mdlstm_tk.report.panels import Color, Panel
    from mdlstm_tk.training.config import TrainConfig
    from mdlstm_tk.training.run_folder import Run


class Reported(NamedTuple):
    """A run, as its report shows it.

    Attributes:
        network: has the best weights.
        task: of the run; None if its data are not there.
        config: of the run.
        evaluation: of the network; None without data.
        result: the content of `result.json`; {} if there is none.
        data: the path of the user's data; "" if it is not given.
    """

    network: nn.Module
    task: Task | None
    config: TrainConfig
    evaluation: SplitEvaluation | None
    result: Mapping[str, Any]
    data: str


class ReportKind:
    """A kind of task, as pictures and reports see it. `TrainingKind` is one.

    Attributes:
        percentages: the measures that are shown in per cent.
        examples: samples in the report of a run, and as many of the worst ones.
        pictured: samples in `prediction.png`.
        report_template: the HTML template of a report, from the folder of the package.
    """

    percentages: ClassVar[frozenset[str]] = frozenset()
    examples: ClassVar[int] = 6
    pictured: ClassVar[int] = 12
    report_template: ClassVar[str] = "report/report.html"

    def choose_examples(
        self, total: int, count: int, read_targets: Callable[[], Iterable[Array]]
    ) -> list[int]:
        """Choose samples that represent a split.

        Args:
            total: samples of the split.
            count: how many to choose, at most.
            read_targets: returns the targets of all samples in order.

        Returns:
            Their indices, in increasing order.
        """
        return spread(range(total), count)

    def decoded_spec(self, spec: TaskSpec, run: Run, step: int) -> TaskSpec:
        """The description of a task with the numbers by which a run turns outputs into answers.

        Args:
            spec: of the task.
            run: the run.
            step: of the weights.
        """
        return spec

    def confidence(self, prediction: Floats) -> float:
        """By which wrong predictions of equal error are sorted in a report, for a batch of one."""
        return 0.0

    def panels(self, batch: Batch, prediction: Floats, spec: TaskSpec, name: str) -> list[Panel]:
        """Draw a sample and its prediction: one image with a caption, or several in a row.

        Args:
            batch: the sample as a batch of one.
            prediction: the network's output for it.
            spec: of the task.
            name: of the sample.
        """
        from mdlstm_tk.report.panels import Panel, draw_input, visible

        return [Panel("input", draw_input(visible(batch.x, batch)), sample=name)]

    def colors(self, spec: TaskSpec) -> dict[str, Color]:
        """The colors of the classes in panels, by name; {} if they have none."""
        return {}

    def picture(
        self, examples: Sequence[Example], network: nn.Module, config: TrainConfig, split: Split
    ) -> list[Panel]:
        """The panels of `prediction.png`.

        Args:
            examples: samples that represent the split.
            network: has the best weights.
            config: of the run.
            split: as users call it.
        """
        return [panel for example in examples for panel in example.panels]

    def examples_text(self, spec: TaskSpec) -> str:
        """The text above the examples of a report, which says what they show."""
        return ""

    def figures(self, evaluation: SplitEvaluation, spec: TaskSpec) -> list[Markup]:
        """Figures below the measures of the outputs in a report, in SVG."""
        return []

    def evaluate_examples(
        self, network: nn.Module, task: Task, config: TrainConfig, run: Run, step: int
    ) -> SplitEvaluation:
        """Run a network on the split that a report shows.

        Args:
            network: has the best weights.
            task: of the run.
            config: of the run.
            run: the run.
            step: that the weights are of.
        """
        from mdlstm_tk.report.evaluation import evaluate_split

        return evaluate_split(network, task, config)

    def report_values(self, reported: Reported) -> dict[str, Any]:
        """Further values of the template of a report."""
        return {}
