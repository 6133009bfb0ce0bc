"""Checks of the installation: `mdlstm doctor` prints `check_installation`.

>>> from mdlstm_tk.installation import check_installation
>>> [check.name for check in check_installation() if check.state == "broken"]
[]
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from mdlstm_tk._version import __version__
from mdlstm_tk.errors import DeviceError

RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
IGNORED_EXTRAS = ("dev", "docs", "test", "gpu")  # that no job needs; gpu replaces cpu
OPTIONAL = ("torch", "numba", "triton")  # modules that may be absent; their dependencies may not
# An ONNX model that computes y (2) = x (2) + x: opset 13, IR version 7.
TINY_MODEL = bytes.fromhex(
    "08073a350a0e0a01780a017812017922034164641201675a0f0a0178120a0a08080112040a020802"
    "620f0a0179120a0a08080112040a02080242040a00100d"
)


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: the package or ability checked.
        state: "ok"; "absent" if an optional part is not installed; "broken".
        found: the version or the ability; if the state is not "ok", the reason and how to fix it.
    """

    name: str
    state: Literal["ok", "absent", "broken"]
    found: str


def check_installation() -> list[Check]:
    """Check the packages that mdlstm-tk uses, ONNX Runtime, CUDA, and the compilers of kernels.

    Returns:
        The checks in the order in which they are best read. It does not raise: a failure is a check whose
        state is "broken". Versions are not compared, as pip does that.
    """
    checks = [
        Check("mdlstm-tk", "ok", f"{__version__} in {Path(__file__).parent}"),
        Check("Python", "ok", f"{platform.python_version()}, {platform.platform()}"),
        *_packages(),
    ]
    runtimes = [name for name in RUNTIMES if _version(name)]
    if len(runtimes) > 1:
        fix = f"pip uninstall -y {' '.join(runtimes)}, then pip install 'mdlstm-tk[cpu]' (or [gpu])"
        checks.append(Check("one onnxruntime", "broken", f"they overwrite each other's files; {fix}"))
    if runtimes:
        checks.append(_attempt("onnxruntime on CPU", lambda: _run_tiny_model("cpu")))
        checks.append(_attempt("onnxruntime on CUDA", lambda: _run_tiny_model("auto")))
    if _version("torch"):
        checks.append(_attempt("kernels for the CPU", lambda: _compile("cpu")))
        checks.append(_attempt("kernels for the GPU", lambda: _compile("cuda")))
    return checks


def _packages() -> list[Check]:
    """The version of each package that the metadata of mdlstm-tk name; a bare clone has none."""
    checks = {}
    for line in (metadata.requires("mdlstm-tk") or []) if _version("mdlstm-tk") else []:
        extra, package = re.search(r"extra == ['\"](\w+)", line), re.split(r"[^\w.-]", line)[0]
        if package in checks or (extra and extra[1] in IGNORED_EXTRAS):
            continue
        if version := _version(package):
            checks[package] = Check(package, "ok", version)
        elif not extra:
            checks[package] = Check(package, "broken", "not installed; pip install mdlstm-tk")
        elif package != "onnxruntime" or not any(map(_version, RUNTIMES)):
            fix = f"not installed; pip install 'mdlstm-tk[{extra[1]}]'"
            checks[package] = Check(package, "absent", fix)
    return list(checks.values())


def _attempt(name: str, action: Callable[[], str]) -> Check:
    """Check that an action works; the state is "absent" if a device or an optional package is missing."""
    try:
        return Check(name, "ok", action())
    except Exception as error:  # whatever it is, the user asks for it
        is_absent = isinstance(error, DeviceError) or getattr(error, "name", None) in OPTIONAL
        reason = " ".join((str(error) or type(error).__name__).split())[:500]
        return Check(name, "absent" if is_absent else "broken", reason)


def _run_tiny_model(device: str) -> str:
    """Run a model of one addition, and name the provider that it ran on."""
    import numpy as np

    from mdlstm_tk.runtime.ort import Graph, cuda_problem

    graph = Graph(TINY_MODEL, "a model of one node", device)
    if device != "cpu" and graph.device == "cpu":
        raise DeviceError(graph.reason or cuda_problem())
    graph({"x": np.ones(2, np.float32)})
    return f"ran on {graph.session.get_providers()[0]}"


def _compile(device: str) -> str:
    """Compile kernels, and run them forward and backward."""
    import torch

    from mdlstm_tk.layer import MDLSTM

    if device == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError("no device, or a torch without CUDA; see https://pytorch.org/get-started")
        kept = f"ran on {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    else:
        from mdlstm_tk.backends.cpu.compile import cache_folder  # fails without Numba

        kept = f"kept in {cache_folder() or 'no folder, as none is private: each process compiles them'}"
    layer = MDLSTM(1, 2, backend="fused").to(device)
    layer(torch.ones(1, 2, 3, 1, device=device)).sum().backward()
    return kept


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
