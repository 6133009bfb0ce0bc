"""What a run came to: `result.json`, the best checkpoint's errors on data that chose nothing."""

from __future__ import annotations

import json
from typing import Any

from mdlstm_tk.data import Split, Task
from mdlstm_tk.runtime.io.files import atomic_write
from mdlstm_tk.training.checkpoint import load_checkpoint
from mdlstm_tk.training.run_folder import Run
from mdlstm_tk.training.trainer import evaluate


def evaluate_run(run: Run, task: Task, seconds: float) -> dict[str, Any]:
    """Measure the best checkpoint on the test split, or on validation if there is none, and write it down.

    Args:
        run: that has ended.
        task: it was trained on.
        seconds: that training took.

    Returns:
        What `result.json` holds.
    """
    checkpoint = load_checkpoint(run.best)
    network = checkpoint.network()
    split: Split = "test" if task.count("test") else "validation"
    result = {
        "task": task.name,
        "model": checkpoint.config.model,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "step": checkpoint.step,
        "seconds": round(seconds, 1),
        "split": split,
        "errors": evaluate(network, task, split, checkpoint.config),
    }
    with atomic_write(run.result) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result
