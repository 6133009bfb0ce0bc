"""Find out why ONNX Runtime cannot use CUDA, and how to fix it."""

from __future__ import annotations

import ctypes
import re
import sys
from contextlib import redirect_stdout, suppress
from typing import Any

from mdlstm_tk.errors import install_command

DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
INSTALL_LIBRARIES = "pip install 'onnxruntime-gpu[cuda,cudnn]'"


def preload_libraries(onnxruntime: Any) -> None:
    """Load the CUDA libraries that pip installed, which the system's loader does not find."""
    if hasattr(onnxruntime, "preload_dlls"):
        # preload_dlls prints failures to stdout, which is for data; `missing_libraries` reports them.
        with redirect_stdout(None), suppress(Exception):
            onnxruntime.preload_dlls()


def required_libraries(onnxruntime: Any) -> list[str]:
    """File names of the CUDA and cuDNN libraries that this onnxruntime-gpu was built for."""
    # This function is private, but nothing else names the version of cuDNN.
    paths = getattr(onnxruntime, "_get_nvidia_dll_paths", None)
    with suppress(Exception):
        return [path[-1] for path in paths(sys.platform == "win32")] if paths else []
    return []


def required_versions(onnxruntime: Any) -> str:
    """The versions that this onnxruntime-gpu was built for, such as "CUDA 13 and cuDNN 9"."""
    cuda = str(getattr(onnxruntime, "cuda_version", "") or "").split(".")[0]
    names = required_libraries(onnxruntime)
    matches = (re.fullmatch(r"(?:lib)?cudnn(?:\.so\.|64_)(\d+).*", name) for name in names)
    cudnn = next((match[1] for match in matches if match), "")
    return f"CUDA {cuda} and cuDNN {cudnn}".replace("  ", " ").strip()


def missing_libraries(names: list[str]) -> list[str]:
    """The libraries among `names` that cannot be loaded."""
    missing = []
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError:
            missing.append(name)
    return missing


def cuda_problem(onnxruntime: Any, index: int = 0) -> str:
    """Why ONNX Runtime cannot use CUDA device `index`, and how to fix it."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        fix = f"pip uninstall onnxruntime, then {install_command('gpu')}"
        return f"this onnxruntime was built without CUDA; {fix}"
    versions = required_versions(onnxruntime)
    if missing_libraries([DRIVER]):
        return (
            f"no NVIDIA driver was found ({DRIVER} cannot be loaded); install one, and {versions}, "
            f"for example with: {INSTALL_LIBRARIES}"
        )
    missing = missing_libraries(required_libraries(onnxruntime))
    if missing:
        return (
            f"this onnxruntime-gpu needs {versions}, but {', '.join(missing)} cannot be loaded; "
            f"{INSTALL_LIBRARIES}"
        )
    return (
        f"CUDA did not start on device {index}, although its libraries are installed; check with "
        f"nvidia-smi that the device exists and that the driver is new enough for {versions}"
    )
