"""What a run came to: `result.json`, the best checkpoint's errors on data that chose nothing."""

from __future__ import annotations

import json
from typing import Any

from mdlstm_tk.runtime.files import replacing
from mdlstm_tk.tasks import Stream, Task
from mdlstm_tk.training.checkpoint import load_checkpoint
from mdlstm_tk.training.run import Run
from mdlstm_tk.training.trainer import evaluate


def conclude(run: Run, task: Task, seconds: float) -> dict[str, Any]:
    """Measure the best checkpoint on the test stream, or on validation if there is none, and write it down.

    Args:
        run: that has ended.
        task: it was trained on.
        seconds: that training took.

    Returns:
        What `result.json` holds.
    """
    checkpoint = load_checkpoint(run.best)
    network = checkpoint.network()
    stream: Stream = "test" if task.count("test") else "validation"
    result = {
        "task": task.name,
        "model": checkpoint.config.model,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "step": checkpoint.step,
        "seconds": round(seconds, 1),
        "stream": stream,
        "errors": evaluate(network, task, stream, checkpoint.config),
    }
    with replacing(run.result) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result
