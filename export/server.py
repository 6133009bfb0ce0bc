"""A model repository for NVIDIA Triton Inference Server, where one machine is not enough.

DIR/md-8x8/config.pbtxt   what the server needs to know; yours to edit
DIR/md-8x8/1/model.onnx   a version; each export adds one, and the server takes the highest
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from mdlstm_tk._version import __version__
from mdlstm_tk.errors import InputError
from mdlstm_tk.export.tensor_spec import Port, ports, read_model
from mdlstm_tk.runtime.io.files import atomic_write, staging

MAX_BATCH = 64  # requests joined in one run: their memory adds up, so no more than most grids can afford
TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "int64": "TYPE_INT64"}


def write_server_repo(model: Path, repository: Path, name: str, *, force: bool = False) -> Path:
    """Add an exported model to a model repository, as the next version of `name`.

    A version appears whole or not at all, and none is ever replaced. The server's settings are
    written with the first version and kept as they are afterwards.

    Args:
        model: an `.onnx` file that `export_onnx` wrote.
        repository: the folder that `tritonserver --model-repository` is given; made if need be.
        name: what clients ask for.
        force: replace settings that are for other inputs and outputs than this model's.

    Returns:
        The `model.onnx` that was written.

    Raises:
        InputError: not a name or a model that the server takes, or the settings do not fit.
        MDLSTMError: the repository cannot be written.
    """
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise InputError(f"a served model's name has letters, digits, '_', '-' and '.' only, got '{name}'")
    data = model.read_bytes()
    text = server_config(name, *ports(read_model(data)))
    folder = repository / name
    config = folder / "config.pbtxt"
    fits = config.exists() and _tensors(config.read_text("utf-8", "replace")) == _tensors(text)
    if config.exists() and not fits and not force:
        raise InputError(
            f"{config} is for other inputs or outputs than {model.name} has; "
            "give another folder, or --force to replace it"
        )
    new = not folder.exists()
    with staging(repository if new else folder) as stage:
        known = [] if new else [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]
        version = str(max(known, default=0) + 1)
        (stage / name / version).mkdir(parents=True)
        (stage / name / version / "model.onnx").write_bytes(data)
        if new:
            (stage / name / "config.pbtxt").write_text(text, encoding="utf-8")
            os.rename(stage / name, folder)
        else:
            if not fits:
                with atomic_write(config) as temporary:
                    temporary.write_text(text, encoding="utf-8")
            os.rename(stage / name / version, folder / version)
    return folder / version / "model.onnx"


def server_config(name: str, inputs: list[Port], outputs: list[Port]) -> str:
    """The text of `config.pbtxt`. Shapes there leave the batch out.

    Raises:
        InputError: the server cannot batch such a model.
    """
    return f"""\
# Written by mdlstm-tk {__version__}. Yours to edit: another export adds a version, and leaves this be.
name: {json.dumps(name)}
backend: "onnxruntime"
max_batch_size: {MAX_BATCH}
input [{",".join(map(_entry, inputs))}
]
output [{",".join(map(_entry, outputs))}
]

# Requests that queue up while the model runs go in one batch; none is held back to wait for others.
dynamic_batching {{ }}

# Float32 as it was verified: TF32 would round what goes into each product to 10 bits. No effect on a CPU.
optimization {{
  execution_accelerators {{
    gpu_execution_accelerator [
      {{
        name: "cuda"
        parameters {{ key: "use_tf32" value: "0" }}
      }}
    ]
  }}
}}
"""


def _entry(port: Port) -> str:
    if port.dtype not in TYPES:
        raise InputError(f"the model's '{port.name}' is {port.dtype}, expected one of {', '.join(TYPES)}")
    if len(port.shape) < 2 or port.shape[0] is not None:
        raise InputError(
            f"the model's '{port.name}' has shape {port.shape}; a server needs a free batch (None) first "
            "and something behind it; make such a model with: mdlstm export"
        )
    dims = ", ".join(str(-1 if extent is None else extent) for extent in port.shape[1:])
    return f"""
  {{
    name: {json.dumps(port.name)}
    data_type: {TYPES[port.dtype]}
    dims: [ {dims} ]
  }}"""


def _tensors(config: str) -> str:
    """The inputs and outputs in a `config.pbtxt`, without white space."""
    found = re.search(r"^input \[.*?^\]\s*^output \[.*?^\]", config, re.DOTALL | re.MULTILINE)
    return "".join(found[0].split()) if found else ""
