"""kraken (https://kraken.re), trained and run in its own environment, for `handwriting.py`."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from mdlstm_tk.runtime.ctc import Transcription
from mdlstm_tk.runtime.pages import read_page
from mdlstm_tk.training.text_errors import Line

READ_WITH_KRAKEN = """
import json, sys
from kraken.configs import RecognitionInferenceConfig
from kraken.lib.xml import XMLPage
from kraken.tasks import RecognitionTaskModel
from PIL import Image
model, texts = RecognitionTaskModel.load_model(sys.argv[1]), {}
for path in sys.argv[2:]:
    page = XMLPage(path)
    config = RecognitionInferenceConfig(accelerator="cpu", num_line_workers=0)
    records = model.predict(Image.open(page.imagename), page.to_container(), config)
    texts[path] = {record.id: record.prediction for record in records}
json.dump(texts, sys.stdout)
"""


def train_kraken(
    environment: Path, files: Mapping[str, Mapping[Path, str]], folder: Path, minutes: float
) -> tuple[list[Line], dict[str, Any]]:
    """Train kraken's default recogniser on the same files, for as many minutes, on the CPU.

    Args:
        environment: a virtual environment, which is made if there is none.
        files: XML files of each split, with the writer of each.
        folder: for lists of files, checkpoints, and the model.
        minutes: to train for.

    Returns:
        The test lines as its best weights read them; the number of parameters, and the size of the file.
    """
    ketos, python = environment / "bin/ketos", environment / "bin/python"
    if not ketos.exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "kraken>=7,<8"], check=True)
    checkpoints = folder / "checkpoints"
    shutil.rmtree(checkpoints, ignore_errors=True)  # those of an interrupted training had more minutes
    folder.mkdir(parents=True, exist_ok=True)
    for split, paths in files.items():
        (folder / f"{split}.txt").write_text("".join(f"{path.absolute()}\n" for path in paths), "utf-8")
    options = f"-d cpu --workers 0 --threads {torch.get_num_threads()} -s 0"
    training_options = "-f xml -t train.txt -e valid.txt -u NFC -o checkpoints -q fixed -N 1000"
    command = [ketos.absolute(), *options.split(), "train", *training_options.split()]
    with (folder / "train.log").open("w") as log:
        training = subprocess.Popen(
            command,
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=take_interrupts,
        )
        try:
            training.wait(minutes * 60)
        except subprocess.TimeoutExpired:
            training.send_signal(signal.SIGINT)  # kraken then writes its last checkpoint
            training.wait(600)
    # kraken names the checkpoint of each epoch by its accuracy, as checkpoint_07-0.8123.ckpt
    best = max(checkpoints.glob("checkpoint_*.ckpt"), key=accuracy, default=None)
    if best is None:
        raise SystemExit(f"kraken wrote no checkpoint; see {folder / 'train.log'}")
    model = folder / "model.safetensors"
    subprocess.run([ketos, "convert", "-o", model, best], check=True, stdout=sys.stderr)
    arguments = [python, "-c", READ_WITH_KRAKEN, model, *files["test"]]
    texts = json.loads(subprocess.run(arguments, check=True, stdout=subprocess.PIPE).stdout)
    lines = []
    for path, writer in files["test"].items():
        for line in read_page(path).lines:
            if line.text:
                reading = Transcription(texts[str(path)].get(line.id, ""), 1.0, ())
                lines.append(Line(f"{path} {line.id}", writer, line.text, reading))
    with safe_open(model, "np") as weights:
        parameters = sum(weights.get_tensor(key).size for key in weights.keys())  # noqa: SIM118
    return lines, {"parameters": parameters, "bytes": model.stat().st_size}


def take_interrupts() -> None:
    """Let this process be interrupted; a shell has its jobs in the background ignore that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def accuracy(checkpoint: Path) -> float:
    """The accuracy in the name of kraken's checkpoint; -1 of the one that an interrupt wrote."""
    text = checkpoint.stem.rpartition("-")[2]
    return float(text) if text.replace(".", "").isdigit() else -1.0
