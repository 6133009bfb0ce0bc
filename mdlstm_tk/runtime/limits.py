"""Run this command again in a child process with limits on memory and time, for files of strangers.

The model check keeps out what is known to be dangerous. The child limits the rest: a model that runs for
hours or takes all memory, an image that unpacks to gigabytes, and a mistake in ONNX Runtime or Pillow that
ends the process. Against an attacker who can run code in it, use a container.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from mdlstm_tk.errors import MDLSTMError

BASE_BYTES = 2**30  # address space of Python and ONNX Runtime themselves


def run_limited(words: Sequence[str], seconds: float, memory: int) -> int:
    """Run `mdlstm` with these words in a child process, with so many seconds, and so many bytes of memory
    beside those of the programs themselves; returns its exit code."""
    if sys.platform == "win32":
        raise MDLSTMError("--isolated needs Linux or macOS; run files of others in a container")
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (BASE_BYTES + memory,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    child = subprocess.Popen([sys.executable, "-m", "mdlstm_tk", *words], preexec_fn=limit)
    try:
        code = child.wait(seconds)
    except BaseException as error:
        child.kill()
        child.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise MDLSTMError(f"stopped after {seconds:g} s; allow more with --timeout") from None
        raise
    if code < 0:
        raise MDLSTMError(f"the isolated process ended by signal {-code}; allow more with --max-bytes")
    return code
