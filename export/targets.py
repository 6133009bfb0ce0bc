"""Destinations of an export other than a file: a web page, or a repository of Triton Inference Server.

DIR/md-8x8/config.pbtxt   the server's settings for the model, which users may edit
DIR/md-8x8/1/model.onnx   version 1; each export adds a version, and the server loads the highest
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import onnx
from google.protobuf import text_encoding

from mdlstm_tk._util.text import shell_quoted
from mdlstm_tk._version import __version__
from mdlstm_tk.errors import Argument, InputError
from mdlstm_tk.export.browser.build import check_page, load_runtime, write_page
from mdlstm_tk.export.browser.examples import page_examples
from mdlstm_tk.export.model_file import TensorSpec, read_metadata, read_model, tensor_specs
from mdlstm_tk.runtime.choices import Form
from mdlstm_tk.runtime.io.files import atomic_write, staging
from mdlstm_tk.training import Run

MAX_BATCH = 64  # requests per run; memory grows with the batch, and most grids fit this many times
PREPROCESSING = "mdlstm.preprocessing"  # key of the metadata in the model, and of the parameter
TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "int64": "TYPE_INT64"}


class ExportTarget:
    """A destination that takes exported models.

    Attributes:
        preferred_form: the form to export in unless another one is asked for; None: that of a file.
        next_command: the shell command that makes use of the models.
    """

    preferred_form: ClassVar[Form | None] = None
    next_command: str

    def prepare(self, count: int) -> None:
        """Check that `count` models can be added, before they are exported; raise an InputError if not."""

    def add(self, model: Path, run: Run, size: str | None) -> Path:
        """Add an exported file of a run, and return the path where the target keeps it.

        `size` is its grid as text, if that is not the run's own grid.
        """
        raise NotImplementedError


@dataclass
class ServerRepository(ExportTarget):
    """A model repository for NVIDIA Triton Inference Server; see `write_server_repo`.

    Attributes:
        folder: the repository.
        force: replace settings that are for other inputs and outputs.
    """

    folder: Path
    force: bool = False

    def __post_init__(self) -> None:
        self.next_command = f"tritonserver --model-repository={shell_quoted(self.folder.resolve())}"

    def add(self, model: Path, run: Run, size: str | None) -> Path:
        name = run.folder.resolve().name + (f"-{size}" if size else "")
        name = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.") or "model"
        return write_server_repo(model, self.folder, name, force=self.force)


@dataclass
class WebPage(ExportTarget):
    """A web page that runs one model in the browser; see `write_page`.

    Attributes:
        folder: for the page.
        web_runtime: a file or folder with onnxruntime-web; npm fetches it if None.
        force: write into a folder that is not empty.
        data: the path of the user's data, if the run was trained on such; see `page_examples`.
        on_message: called with one line if the page has no examples.
    """

    preferred_form: ClassVar[Form | None] = "scan"

    folder: Path
    web_runtime: Path | None = None
    force: bool = False
    data: str = ""
    on_message: Callable[[str], None] = field(default=lambda message: None, repr=False)

    def __post_init__(self) -> None:
        server = f"python -m http.server --bind 127.0.0.1 -d {shell_quoted(self.folder)}"
        self.next_command = f"{server}  # and open http://localhost:8000"

    def prepare(self, count: int) -> None:
        """Check the folder and load onnxruntime-web, as `check_page` and `load_runtime` do."""
        if count > 1:
            raise InputError(f"a page holds one model, got {count} sizes; give one size, or none for any")
        check_page(self.folder, self.force)
        self._runtime_files = load_runtime(self.web_runtime)

    def add(self, model: Path, run: Run, size: str | None) -> Path:
        metadata = read_metadata(model.read_bytes(), model.name)
        examples = page_examples(run, metadata, self.data, self.on_message)
        return write_page(model, self.folder, run.folder.resolve().name, self._runtime_files, examples)


def write_server_repo(model: Path, repository: Path, name: str, *, force: bool = False) -> Path:
    """Add an exported model to a model repository, as the next version of `name`.

    A version appears completely or not at all, and existing versions are never replaced. The settings are
    written together with the first version and are left unchanged by later ones.

    Args:
        model: an `.onnx` file that `export_onnx` wrote.
        repository: the folder for `tritonserver --model-repository`; it is created if it does not exist.
        name: the name that clients ask for.
        force: replace existing settings that were written for other inputs and outputs.

    Returns:
        The `model.onnx` that was written.

    Raises:
        InputError: the server does not accept the name or the model, or the existing settings do not fit.
        MDLSTMError: the repository cannot be written.
    """
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise InputError(
            f"the name of a served model may hold letters, digits, '_', '-' and '.', got '{name}'"
        )
    data = model.read_bytes()
    config_text = _config(name, read_model(data))
    folder = repository / name
    config = folder / "config.pbtxt"
    config_fits = config.exists() and (
        _described_model(config.read_text("utf-8", "replace")) == _described_model(config_text)
    )
    if config.exists() and not config_fits and not force:
        raise InputError(
            f"{config} is for a model with other inputs, outputs or preprocessing than {model.name}; "
            "give another folder, or allow it to replace the settings with ",
            Argument("force", True),
        )
    is_new = not folder.exists()
    with staging(repository if is_new else folder) as stage:
        versions = [] if is_new else [int(p.name) for p in folder.iterdir() if p.name.isdecimal()]
        version = str(max(versions, default=0) + 1)
        (stage / name / version).mkdir(parents=True)
        (stage / name / version / "model.onnx").write_bytes(data)
        if is_new:
            (stage / name / "config.pbtxt").write_text(config_text, encoding="utf-8")
            os.rename(stage / name, folder)
        else:
            if not config_fits:
                with atomic_write(config) as temporary:
                    temporary.write_text(config_text, encoding="utf-8")
            os.rename(stage / name / version, folder / version)
    return folder / version / "model.onnx"


def _config(name: str, model: onnx.ModelProto) -> str:
    """The text of `config.pbtxt`, where shapes are given without the batch axis.

    Raises:
        InputError: the server cannot batch requests to such a model.
    """
    inputs, outputs = (
        ",".join(map(_config_entry, tensor_specs(values)))
        for values in (model.graph.input, model.graph.output)
    )
    parameters = ""
    preprocessing = next((prop.value for prop in model.metadata_props if prop.key == PREPROCESSING), "null")
    if json.loads(preprocessing) is not None:
        parameters = f"""
# The server takes numbers, so clients decode images and prepare them as in training:
#   Preprocessing.from_json(json.loads(string_value))(decode_image(data, "the image"))
# Both are in mdlstm_tk.runtime.preprocessing, which needs NumPy and Pillow. Clients read this value with
# get_model_config.
parameters {{
  key: {protobuf_text(PREPROCESSING)}
  value: {{ string_value: {protobuf_text(preprocessing)} }}
}}
"""
    return f"""\
# Written by mdlstm-tk {__version__}. You may edit this file: further exports only add versions.
name: {protobuf_text(name)}
backend: "onnxruntime"
max_batch_size: {MAX_BATCH}
input [{inputs}
]
output [{outputs}
]
{parameters}
# Requests that arrive while the model runs are batched together; no request waits for others.
dynamic_batching {{ }}

# Compute in full float32, as verified: TF32 rounds the operands of products to 10 bits. No effect on a CPU.
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


def protobuf_text(text: str) -> str:
    """A string as protobuf's text format takes it; other characters than ASCII are escaped byte by byte."""
    return f'"{text_encoding.CEscape(text.encode(), False)}"'


def _config_entry(tensor: TensorSpec) -> str:
    if tensor.dtype not in TYPES:
        raise InputError(
            f"the model's '{tensor.name}' is {tensor.dtype}, expected one of {', '.join(TYPES)}"
        )
    if len(tensor.shape) < 2 or isinstance(tensor.shape[0], int):
        raise InputError(
            f"the model's '{tensor.name}' has shape {tensor.shape}, expected a free batch axis and "
            "at least one more axis; make such a model with: mdlstm export"
        )
    dims = ", ".join(str(extent if isinstance(extent, int) else -1) for extent in tensor.shape[1:])
    return f"""
  {{
    name: {protobuf_text(tensor.name)}
    data_type: {TYPES[tensor.dtype]}
    dims: [ {dims} ]
  }}"""


def _described_model(config: str) -> str:
    """The sections of inputs, outputs and preprocessing of a `config.pbtxt`, without white space."""
    tensors = re.search(r"^input \[.*?^\]\s*^output \[.*?^\]", config, re.DOTALL | re.MULTILINE)
    preprocessing = re.search(rf'"{re.escape(PREPROCESSING)}"\s*value:\s*\{{.*', config)
    return "".join("".join(match[0].split()) for match in (tensors, preprocessing) if match)
