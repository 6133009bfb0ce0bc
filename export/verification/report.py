"""The result of `verify_model`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk._util.text import counted, shell_quoted
from mdlstm_tk.errors import ParityError
from mdlstm_tk.export.verification.parity import ATOL, RTOL, Parity
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.training import Run


@dataclass(frozen=True)
class VerificationReport:
    """The result of `verify_model`; `print` shows a line for each runtime.

    Attributes:
        model: the file, or the folder with the files.
        models: the metadata of each file that was verified, by its path.
        reference: what the files were compared with, in words, with its precision.
        run: the run that they were compared with; None if it was something else.
        groups: names of the cases in each group: of one file, see `Case`; of several, one group for each.
        outcomes: the errors by runtime, then by the name of the case.
        stale: a line for each file that was exported from another checkpoint.
    """

    model: Path
    models: dict[Path, Metadata]
    reference: str
    run: Run | None
    groups: dict[str, list[str]]
    outcomes: dict[str, dict[str, Parity]]
    stale: tuple[str, ...] = ()

    @property
    def failed(self) -> list[str]:
        """Names of the runtimes that are out of tolerance on at least one case."""
        return [runtime for runtime in self.outcomes if not self.passed(runtime)]

    def passed(self, runtime: str) -> bool:
        """True if a runtime is within tolerance on all cases."""
        return all(outcome.passed for outcome in self.outcomes[runtime].values())

    def worst_errors(self, runtime: str) -> dict[str, float]:
        """The largest absolute error of a runtime in each group of cases; NaN if one of them is NaN."""
        outcomes = self.outcomes[runtime]
        errors = {
            group: [outcomes[name].max_abs for name in names if name in outcomes]
            for group, names in self.groups.items()
        }
        return {group: float(np.max(of_group)) for group, of_group in errors.items() if of_group}

    def title(self) -> str:
        """The file with its form and grid, or the folder and how many files it has; and the reference."""
        name = f"{self.model} ({counted(len(self.models), 'model')})"
        if len(self.models) == 1:
            ((path, metadata),) = self.models.items()
            grid = format_size(metadata.grid) if metadata.grid else "any size"
            name = f"{path} ({metadata.form}, {grid})"
        return f"{name}: largest error against {self.reference}"

    def tolerance(self) -> str:
        """The allowed error, which the files name; of several files the largest."""
        atol = max(metadata.parity.get("atol", ATOL) for metadata in self.models.values())
        return f"{atol:g}·s + {RTOL:g}·|y|"

    def __str__(self) -> str:
        """The title, a line for each runtime with its largest error, and the tolerance."""
        lines = [self.title()]
        for runtime in self.outcomes:
            error = np.max(list(self.worst_errors(runtime).values()))
            verdict = "within tolerance" if self.passed(runtime) else "out of tolerance"
            lines.append(f"{runtime}: {error:.1e}, {verdict}")
        return "\n".join([*lines, f"tolerance: {self.tolerance()}"])

    def as_dict(self) -> dict[str, dict[str, dict[str, Any]]]:
        """All outcomes as JSON values, by runtime and case."""
        return {
            runtime: {case: outcome.as_dict() for case, outcome in outcomes.items()}
            for runtime, outcomes in self.outcomes.items()
        }

    def raise_if_failed(self) -> None:
        """Do nothing if all runtimes passed.

        Raises:
            ParityError: a runtime failed; names the case, and the first wavefront that is wrong.
        """
        if not self.failed:
            return
        outcomes = self.outcomes[self.failed[0]]
        case, worst = next((name, o) for name, o in outcomes.items() if not o.passed)
        where = f" ({worst.first_divergence})" if worst.first_divergence else ""
        advice = ""
        if self.stale:
            where, advice = "", f"; {self.stale[0]}"
        elif self.run is not None:
            advice = (
                "; if the model was exported from another run or checkpoint, name that, else export it "
                f"again with: mdlstm export {shell_quoted(self.run.folder)} --force"
            )
        raise ParityError(
            f"{', '.join(self.failed)}: error {worst.error:.1e} against {self.reference} on "
            f"{case}{where}, {worst.max_ratio:.3g} times what the tolerance of the export allows{advice}"
        )
