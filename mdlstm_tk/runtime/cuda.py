"""What ONNX Runtime needs to run on CUDA, what of that is missing, and where to get it."""

from __future__ import annotations

import ctypes
import re
import sys
from contextlib import redirect_stdout, suppress
from typing import Any

DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
INSTALL_LIBRARIES = "pip install 'onnxruntime-gpu[cuda,cudnn]'"


def install_gpu() -> str:
    """The commands that replace ONNX Runtime by its build for CUDA."""
    from mdlstm_tk.installation import install_command  # imports importlib.metadata, which takes long

    return f"pip uninstall onnxruntime, then {install_command(['gpu'])}"


def preload(onnxruntime: Any) -> None:
    """Load the CUDA libraries that pip installed, which the system's loader does not find."""
    if hasattr(onnxruntime, "preload_dlls"):
        # It prints what it misses to stdout, which is for data; `missing` tells that better.
        with redirect_stdout(None), suppress(Exception):
            onnxruntime.preload_dlls()


def wanted(onnxruntime: Any) -> list[str]:
    """File names of the CUDA and cuDNN libraries that this onnxruntime-gpu was built for."""
    # A private function, and the one place where a version of cuDNN is named.
    paths = getattr(onnxruntime, "_get_nvidia_dll_paths", None)
    with suppress(Exception):
        return [path[-1] for path in paths(sys.platform == "win32")] if paths else []
    return []


def versions(onnxruntime: Any) -> str:
    """The CUDA and cuDNN that this onnxruntime-gpu was built for: "CUDA 13 and cuDNN 9"."""
    cuda = str(getattr(onnxruntime, "cuda_version", "") or "").split(".")[0]
    found = (re.fullmatch(r"(?:lib)?cudnn(?:\.so\.|64_)(\d+).*", name) for name in wanted(onnxruntime))
    cudnn = next((match[1] for match in found if match), "")
    return f"CUDA {cuda} and cuDNN {cudnn}".replace("  ", " ").strip()


def missing(names: list[str]) -> list[str]:
    """Those of these libraries that cannot be loaded."""
    absent = []
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError:
            absent.append(name)
    return absent


def why_not(onnxruntime: Any, index: int = 0) -> str:
    """Why CUDA did not start, and what to do about it."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return f"this onnxruntime has no CUDA; {install_gpu()}"
    if missing([DRIVER]):
        return (
            f"there is no NVIDIA driver ({DRIVER} is not found); install one, and with it "
            f"{versions(onnxruntime)}, for example: {INSTALL_LIBRARIES}"
        )
    absent = missing(wanted(onnxruntime))
    if absent:
        return (
            f"this onnxruntime-gpu needs {versions(onnxruntime)}, of which {', '.join(absent)} cannot be "
            f"loaded; {INSTALL_LIBRARIES}"
        )
    return (
        f"CUDA did not start on device {index}, though its libraries are there; look with nvidia-smi "
        "whether there is such a device, and whether the driver is new enough for "
        f"{versions(onnxruntime)}"
    )
