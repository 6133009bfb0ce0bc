"""Compare what `mdlstm infer` makes of files with what torch makes of them in training.

    python benchmarks/trial.py                               # all trials; takes a few minutes
    python benchmarks/trial.py segment "grid, arrays" -o trial

For each kind of task, this script writes files of every type, trains a short run on them, exports it for
grids of any size, and runs `mdlstm infer` on the files. The other side of the comparison is the network of
the run in torch, for the samples that training reads from the same files. The exit code is 1 if a file is
not read, a number differs by more than 1e-5, or a label, text or mask differs.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from measuring import argument_parser, markdown
from PIL import Image
from trial_files import ARRAY_TYPES, IMAGE_TYPES, MASK_VALUES, Data, write_data

from mdlstm_tk._util.text import text_of_field
from mdlstm_tk.data import KINDS, Kind
from mdlstm_tk.data.task import collate
from mdlstm_tk.export import export_run
from mdlstm_tk.runtime.postprocessing import labels, transcripts
from mdlstm_tk.training import Run, default_config, load_checkpoint, make_task, new_job, predict, train

COLUMNS = ("trial", "type of file", "files", "read", "largest difference to torch", "agreement")
TOLERANCE = 1e-5
QUICK = {"steps": 80, "hidden": 8, "lr": 0.02, "warmup": 5, "batch_size": 8, "average": 0.0}
SETTINGS = {kind: {**QUICK, "steps": 300} if kind == "transcribe" else QUICK for kind in KINDS}


class Trial(NamedTuple):
    """A comparison: a kind of task, the types of its files, and settings of the training."""

    kind: Kind
    file_types: Sequence[str]
    samples: int = 2  # files of each type
    settings: Mapping[str, Any] = MappingProxyType({})


TRIALS: dict[str, Trial] = {
    **{kind: Trial(kind, tuple(IMAGE_TYPES)) for kind in KINDS},
    # Integers of 32 bits are not scaled, and a density model takes values in [0, 1].
    "density": Trial("density", tuple(name for name in IMAGE_TYPES if name != "TIFF 32 bit")),
    "segment, resized": Trial("segment", tuple(IMAGE_TYPES), settings={"resize": "12x20"}),
    "grid, arrays": Trial("grid", tuple(ARRAY_TYPES), samples=8),
    "classify, arrays": Trial("classify", tuple(ARRAY_TYPES), samples=8),
}


@dataclass
class Row:
    """The outcome for the files of one type.

    Attributes:
        trial: key of `TRIALS`.
        file_type: type of the files.
        files: number of files.
        read: number of files that the model took.
        difference: largest difference to the outputs of the network in torch; NaN if one is NaN.
        agreeing: number of files whose label, text or mask is that of torch; for kind "grid", of those
            whose numbers differ by no more than `TOLERANCE`.
    """

    trial: str
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
        return [self.trial, self.file_type, *counts, f"{self.difference:.1e}", agreement]


class Sample(NamedTuple):
    """The result of torch for a sample.

    Attributes:
        outputs: of the network.
        answer: its label or text, or its mask in the values of the training masks; None for kind "grid".
    """

    outputs: np.ndarray[Any, Any]
    answer: Any


def train_and_export(kind: Kind, data: Path, folder: Path, **settings: Any) -> tuple[Run, Path]:
    """Train a short run, and export it for grids of any size."""
    config = default_config(kind, str(data)).updated({**SETTINGS[kind], **settings}, "trial")
    train(new_job(config, folder))
    return Run(folder), export_run(folder, form="scan").path


def torch_samples(run: Run) -> Iterator[tuple[str, Sample]]:
    """The results of the run's network in torch for each sample that training reads, by its name."""
    checkpoint = load_checkpoint(run.checkpoint)
    network, spec = checkpoint.network().eval(), checkpoint.spec
    task = make_task(checkpoint.config)
    for samples in task.sets.values():
        for k, raw in enumerate(samples.samples):
            batch = collate(spec.kind, [samples[k]])
            with torch.no_grad():
                y = predict(network, batch, torch.device("cpu")).numpy()
            answer: Any = None
            if spec.kind == "classify":
                answer = spec.classes[int(labels(y)[0])]
            elif spec.kind == "transcribe":
                (answer,) = transcripts(y, spec.classes)
            elif spec.kind == "segment":
                answer = np.asarray(MASK_VALUES)[labels(y)[0]]
            yield raw.name, Sample(y[0], answer)


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
                key = Path(text_of_field(row["file"])), text_of_field(row["array"]) or "y"
                answers[key] = row.get("label", row.get("text"))
    results = {}
    for path in paths:
        result = folder / "outputs" / f"{path.stem}.out.npz"
        if result.exists():
            with np.load(result) as outputs:
                results |= {
                    (path, name): Sample(y, answers.get((path, name))) for name, y in outputs.items()
                }
    return results


def run_trial(name: str, folder: Path, **settings: Any) -> list[Row]:
    """Write files, train, export and infer, and compare the results with torch.

    Args:
        name: key of `TRIALS`.
        folder: where to write all files.
        **settings: settings of the training that differ from the trial's.

    Returns:
        A row for each type of file.
    """
    kind, file_types, count, usual = TRIALS[name]
    data = write_data(kind, folder / "data", file_types, count)
    run, model = train_and_export(kind, data.path, folder / "run", **{**usual, **settings})
    expected = dict(torch_samples(run))
    results = read_results(kind, data, model, folder)
    rows: dict[str, Row] = {}
    for file_type, path, samples in data.files:
        row = rows.setdefault(file_type, Row(name, file_type))
        row.files += 1
        row.read += all((path, array) in results for array in samples)
        agree = True
        for array, sample in samples.items():
            inferred, trained = results.get((path, array)), expected.get(sample)
            if inferred is None or trained is None:
                agree = False
                continue
            outputs = inferred.outputs.reshape(trained.outputs.shape)
            difference = float(np.abs(trained.outputs - outputs).max())
            row.difference = float(np.maximum(row.difference, difference))  # NaN if one of them is
            is_equal = np.array_equal(trained.answer, inferred.answer)
            agree &= difference <= TOLERANCE if kind == "grid" else is_equal
        row.agreeing += agree
    return list(rows.values())


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=TRIALS, help="; ".join(TRIALS))
    parser.add_argument("-o", "--output", type=Path, help="Folder for all files; else a temporary one.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.output or Path(temporary)
        rows = [row for name in arguments.names or TRIALS for row in run_trial(name, folder / name)]
    print(markdown(COLUMNS, [row.cells() for row in rows]))
    if not all(row.passed for row in rows):
        sys.exit("some files were not read, or differ from torch")


if __name__ == "__main__":
    main()
