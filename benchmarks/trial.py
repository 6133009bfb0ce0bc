"""Compare what `mdlstm infer` makes of files with what torch makes of them in training.

    python benchmarks/trial.py                  # all kinds of tasks; takes a few minutes
    python benchmarks/trial.py segment grid -o trial

For each kind of task, this script writes files of every type, trains a short run on them, exports it for
grids of any size, and runs `mdlstm infer` on the files. The other side of the comparison is the network of
the run in torch, for the samples that training reads from the same files. The exit code is 1 if a file is
not read, a number differs by more than 1e-5, or a label, text or mask differs.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from performance import markdown
from PIL import Image
from trial_files import ARRAY_TYPES, IMAGE_TYPES, MASK_VALUES, Data, Extents, write_data

from mdlstm_tk.data import KINDS, Kind, batches
from mdlstm_tk.data.spec import SPLITS
from mdlstm_tk.export import export_run
from mdlstm_tk.runtime.postprocessing import labels, transcripts
from mdlstm_tk.training import (
    Run,
    default_config,
    load_checkpoint,
    make_task,
    new_job,
    predict,
    run_job,
)

TOLERANCE = 1e-5
SETTINGS = {"steps": 12, "hidden": 4, "batch_size": 8, "evaluate_every": 6, "validation": 0.25}


@dataclass
class Row:
    """The outcome for the files of one type.

    Attributes:
        kind: kind of the task, and how its images are prepared if that is not the default.
        file_type: type of the files.
        files: number of files.
        read: number of files that the model took.
        difference: largest difference to the outputs of the network in torch.
        agreeing: number of files whose label, text or mask is that of torch; for kind "grid", of those
            whose numbers differ by no more than `TOLERANCE`.
    """

    kind: str
    file_type: str
    files: int = 0
    read: int = 0
    difference: float = 0.0
    agreeing: int = 0

    @property
    def passed(self) -> bool:
        return 0 < self.files == self.read == self.agreeing and self.difference <= TOLERANCE

    def cells(self) -> list[str]:
        """The row of a table."""
        agreement = f"{100 * self.agreeing / self.files:.0f} %"
        counts = [str(self.files), str(self.read)]
        return [self.kind, self.file_type, *counts, f"{self.difference:.1e}", agreement]


class Sample(NamedTuple):
    """What torch makes of a sample.

    Attributes:
        outputs: of the network.
        answer: its label or text, or its mask in the values of the training masks; None for kind "grid".
    """

    outputs: np.ndarray[Any, Any]
    answer: Any


def train_and_export(kind: Kind, data: Path, folder: Path, **settings: Any) -> tuple[Run, Path]:
    """Train a short run, and export it for grids of any size."""
    config = default_config(kind, str(data)).updated({**SETTINGS, **settings}, "trial")
    run_job(new_job(config, folder))
    return Run(folder), export_run(folder, form="scan").path


def torch_samples(run: Run) -> Iterator[tuple[Extents, Sample]]:
    """What the run's network in torch makes of each sample that training reads, by the sample's extents."""
    checkpoint = load_checkpoint(run.checkpoint)
    network, spec = checkpoint.network().eval(), checkpoint.spec
    task = make_task(checkpoint.config.updated({"augment": 0.0}, "trial"))
    for split in SPLITS:
        for batch in batches(task, split, checkpoint.config.seed, 1):
            with torch.no_grad():
                y = predict(network, batch, torch.device("cpu")).numpy()
            answer: Any = None
            if spec.kind == "classify":
                answer = spec.classes[int(labels(y)[0])]
            elif spec.kind == "transcribe":
                (answer,) = transcripts(y, spec.classes)
            elif spec.kind == "segment":
                answer = np.asarray(MASK_VALUES)[labels(y)[0]]
            height, width = batch.x.shape[1:3]
            yield (height, width), Sample(y[0], answer)


def infer(*arguments: object) -> None:
    """Run `mdlstm infer`. Files that it cannot use are missing among its results."""
    command = [sys.executable, "-m", "mdlstm_tk", "infer", *map(str, arguments), "-q"]
    subprocess.run(command, check=False)


def read_results(kind: Kind, data: Data, model: Path, folder: Path) -> dict[tuple[Path, str], Sample]:
    """Run `mdlstm infer` on all files; what it writes for each sample, by file and the sample's name."""
    paths = [path for _, path, _ in data.files]
    infer(*paths, "-m", model, "--format", "npz", "-o", folder / "outputs")
    answers: dict[tuple[Path, str], Any] = {}
    if kind == "segment":
        infer(*paths, "-m", model, "-o", folder / "masks")
        for path in paths:
            mask = folder / "masks" / f"{path.stem}.out.png"
            if mask.exists():
                answers[path, "y"] = np.asarray(Image.open(mask))
    elif kind != "grid":
        infer(*paths, "-m", model, "-o", folder / "answers.csv")
        with (folder / "answers.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                answers[Path(row["file"]), row["sample"] or "y"] = row.get("label", row.get("text"))
    results = {}
    for path in paths:
        result = folder / "outputs" / f"{path.stem}.out.npz"
        if result.exists():
            with np.load(result) as outputs:
                results |= {
                    (path, name): Sample(y, answers.get((path, name))) for name, y in outputs.items()
                }
    return results


def compare(kind: Kind, data: Data, folder: Path, **settings: Any) -> list[Row]:
    """Train, export and infer, and compare the outcome with torch.

    Args:
        kind: kind of the task.
        data: what `write_data` returned.
        folder: where to write the run and the results.
        **settings: settings of the training.

    Returns:
        A row for each type of file.
    """
    run, model = train_and_export(kind, data.path, folder / "run", **settings)
    expected = dict(torch_samples(run))
    results = read_results(kind, data, model, folder)
    title = ", ".join([kind, *(f"{name} {value}" for name, value in settings.items())])
    rows: dict[str, Row] = {}
    for file_type, path, samples in data.files:
        row = rows.setdefault(file_type, Row(title, file_type))
        row.files += 1
        row.read += all((path, name) in results and samples[name] in expected for name in samples)
        agree = True
        for name, extents in samples.items():
            want, got = expected.get(extents), results.get((path, name))
            if want is None or got is None:
                agree = False
                continue
            difference = float(np.abs(want.outputs - got.outputs.reshape(want.outputs.shape)).max())
            row.difference = max(row.difference, difference)
            agree &= difference <= TOLERANCE if kind == "grid" else np.array_equal(want.answer, got.answer)
        row.agreeing += agree
    return list(rows.values())


def run_trial(
    kind: Kind, folder: Path, file_types: Sequence[str], samples: int = 2, **settings: Any
) -> list[Row]:
    """Write data for one kind of task, and compare what `mdlstm infer` makes of them with torch.

    Args:
        kind: kind of the task.
        folder: where to write.
        file_types: keys of `IMAGE_TYPES` or of `ARRAY_TYPES`.
        samples: number of files of each type.
        **settings: settings of the training.

    Returns:
        A row for each type of file.
    """
    data = write_data(kind, folder / "data", file_types, samples)
    return compare(kind, data, folder, **settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"kinds of tasks: {', '.join(KINDS)}")
    parser.add_argument("-o", "--output", type=Path, help="Folder for all files; else a temporary one.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.output or Path(temporary)
        rows = []
        for kind in arguments.kinds or KINDS:
            rows += run_trial(kind, folder / kind, list(IMAGE_TYPES))
            if kind in ("grid", "classify"):
                rows += run_trial(kind, folder / f"{kind}-arrays", list(ARRAY_TYPES), 8)
    columns = ["task", "type of file", "files", "read", "largest difference to torch", "agreement"]
    print(markdown(columns, [row.cells() for row in rows]))
    if not all(row.passed for row in rows):
        sys.exit("some files were not read, or differ from torch")


if __name__ == "__main__":
    main()
