"""Checks of an installation, and how to fix what fails: `mdlstm doctor` prints `check_installation`."""

from __future__ import annotations

import importlib
import os
import platform
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mdlstm_tk._util.installation import CLONE, PACKAGE, install_command
from mdlstm_tk._version import __version__
from mdlstm_tk.backends.cpu.cache_folder import VARIABLE, cache_folder
from mdlstm_tk.errors import PACKAGES, MDLSTMError

MODULES = {package: module for module, package in PACKAGES.items()}
State = Literal["ok", "absent", "broken"]
JOBS = {
    "cpu": "run exported models",
    "train": "train, export, verify and report",
    "image": "read and write image files",
    "data": "train on the built-in tasks with real data",
    "large": "read and write large arrays in chunks",
    "tensorboard": "write TensorBoard events",
    "hub": "save networks to the Hugging Face Hub and load them",
    "ray": "distribute files with Ray",
}
"""The purpose of each extra. The others are not checked, see `UNCHECKED`."""

UNCHECKED = ("test", "dev", "docs", "gpu")
"""Extras for development, and the one that replaces cpu."""

RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")

# An ONNX model that computes y (2) = x (2) + x: opset 13, IR version 7.
TINY_MODEL = bytes.fromhex(
    "08073a350a0e0a01780a017812017922034164641201675a0f0a0178120a0a08080112040a020802"
    "620f0a0179120a0a08080112040a02080242040a00100d"
)


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: of the package or ability.
        state: "ok"; "absent" if an optional part is not installed; "broken".
        found: the version or the reason.
        fix: how to fix it, if the state is not "ok".
        jobs: the jobs (see `JOBS`) that need the package; () for other checks and for required packages.
    """

    name: str
    state: State
    found: str
    fix: str | None = None
    jobs: tuple[str, ...] = ()


def check_installation() -> list[Check]:
    """Check every package that mdlstm-tk can use, the devices, and the caches of compiled kernels.

    Returns:
        The checks in the order in which they are best read. It does not raise: whatever fails is a check
        whose state is "broken".
    """
    checks = [
        Check(PACKAGE, "ok", f"{__version__} in {Path(__file__).parents[1]}"),
        Check("Python", "ok", f"{platform.python_version()}, {platform.platform()}"),
    ]
    checks += [_package(requirement, extras) for requirement, extras in _requirements()]
    return [*checks, *_onnxruntime(), *_torch(), *_caches()]


def missing_jobs(checks: list[Check]) -> dict[str, str]:
    """The jobs that this installation cannot do because a package is absent, and how to install it."""
    missing = {job for check in checks if check.state == "absent" for job in check.jobs}
    return {job: install_command([extra]) for extra, job in JOBS.items() if job in missing}


def _requirements() -> list[tuple[Requirement, tuple[str, ...]]]:
    """The packages that mdlstm-tk can use, from its own metadata, with the extras that name them."""
    try:
        lines = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:  # run from a clone that is not installed
        lines = _clone_requirements()
    found: dict[str, tuple[Requirement, tuple[str, ...]]] = {}
    for requirement in map(Requirement, lines):
        marker = requirement.marker
        required = marker is None or marker.evaluate({"extra": ""})
        extras = tuple(extra for extra in JOBS if marker and marker.evaluate({"extra": extra}))
        if required or extras:
            name = canonicalize_name(requirement.name)
            first, others = found.get(name, (requirement, ()))
            found[name] = first, () if required else (*others, *extras)
    return list(found.values())


def _clone_requirements() -> list[str]:
    """The requirements in `pyproject.toml`, in the form that they have in the metadata of a package."""
    if not (CLONE / "pyproject.toml").is_file():
        return []
    project = tomllib.loads((CLONE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra, requirements in project["optional-dependencies"].items():
        for line in requirements:
            requirement, _, marker = line.partition(";")
            condition = f"({marker.strip()}) and " if marker else ""
            lines.append(f"{requirement}; {condition}extra == '{extra}'")
    return lines


def _package(requirement: Requirement, extras: tuple[str, ...]) -> Check:
    """Check that a package is installed, new enough, and can be imported."""
    name = canonicalize_name(requirement.name)
    jobs = tuple(JOBS[extra] for extra in extras)
    install = install_command(extras[:1], "--upgrade")
    module_name = MODULES.get(name, name.replace("-", "_"))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a broken binary raises whatever its loader does
        if isinstance(error, ModuleNotFoundError) and error.name == module_name:
            need = f", needed to {' and to '.join(jobs)}" if jobs else ""
            return Check(name, "absent" if extras else "broken", f"not installed{need}", install, jobs)
        return Check(name, "broken", f"cannot be imported: {_one_line(error)}", install, jobs)
    version = str(getattr(module, "__version__", None) or _version(name))
    if not requirement.specifier.contains(version, prereleases=True):
        return Check(name, "broken", f"{version}, expected {requirement.specifier}", install, jobs)
    return Check(name, "ok", version, None, jobs)


def _onnxruntime() -> Iterator[Check]:
    """Check that there is only one ONNX Runtime, and which of its providers run a model."""
    installed = [name for name in RUNTIMES if _version(name)]
    if len(installed) > 1:
        fix = f"pip uninstall -y {' '.join(installed)}, then {install_command(['cpu'])}"
        found = f"{' and '.join(installed)} overwrite each other's files"
        yield Check("one onnxruntime", "broken", found, f"{fix} or {install_command(['gpu'])}")
    try:
        onnxruntime = importlib.import_module("onnxruntime")
        available = onnxruntime.get_available_providers()
    except Exception:  # the check of the package reports it
        return
    from mdlstm_tk.runtime import cuda, providers

    yield _attempt("onnxruntime on CPU", "onnxruntime", lambda: _run_tiny_model("cpu"))
    if providers.CUDA not in available:
        yield Check("onnxruntime on CUDA", "absent", "not in this package", cuda.install_gpu())
        return
    try:
        yield Check("onnxruntime on CUDA", "ok", _run_tiny_model("cuda"))
    except MDLSTMError:
        has_driver = not cuda.missing_libraries([cuda.DRIVER])
        state: State = "broken" if has_driver else "absent"  # without a driver, there is no GPU
        yield Check("onnxruntime on CUDA", state, "does not start", cuda.cuda_problem(onnxruntime))
    missing = cuda.missing_libraries(cuda.required_libraries(onnxruntime))
    libraries = f"{cuda.required_versions(onnxruntime)} libraries"
    if missing:
        yield Check(libraries, "absent", f"not found: {', '.join(missing)}", cuda.INSTALL_LIBRARIES)
    else:
        yield Check(libraries, "ok", "found")


def _torch() -> Iterator[Check]:
    """Check torch's GPU and that the layer's own kernels compile, without which it takes several times as
    long."""
    try:
        torch = importlib.import_module("torch")
    except Exception:  # the check of the package reports it
        return
    if torch.cuda.is_available():
        yield _attempt("torch on CUDA", "torch", lambda: _multiply_on_cuda(torch))
    else:
        fix = "to train on a GPU, install a torch with CUDA: https://pytorch.org/get-started"
        yield Check("torch on CUDA", "absent", "no device, or a torch without CUDA", fix)
    yield _attempt("kernels for the CPU", "numba", lambda: _run_layer("cpu", "numba"))
    if torch.cuda.is_available():
        yield _attempt("kernels for the GPU", "triton", lambda: _run_layer("cuda", "triton"))


def _caches() -> Iterator[Check]:
    """Check that compiled kernels can be kept on disk; otherwise every process compiles them again."""
    triton = Path(os.environ.get("TRITON_CACHE_DIR") or os.path.expanduser("~/.triton"))
    folders = (
        ("Numba's cache", VARIABLE, cache_folder()),
        ("Triton's cache", "TRITON_CACHE_DIR", triton if _writable(triton) else None),
    )
    for name, variable, folder in folders:
        if folder is not None:
            yield Check(name, "ok", str(folder))
            continue
        place = f"{variable}={os.environ[variable]}" if variable in os.environ else "its folder"
        found = f"every process compiles kernels again: {place} is missing, or others may write to it"
        fix = f"set {variable} to the absolute path of a folder that only you may write to"
        yield Check(name, "absent", found, fix)


def _attempt(name: str, module: str, action: Callable[[], str]) -> Check:
    """The check that an action works; "absent" if it fails because `module` is not installed."""
    try:
        return Check(name, "ok", action())
    except Exception as error:  # every failure is what the user asks about
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            return Check(name, "absent", f"{module} is not installed", f"pip install {module}")
        reason = _one_line(error)
        is_ours = isinstance(error, MDLSTMError)  # the message says how to fix it
        return Check(
            name, "broken", reason, reason if is_ours else f"pip install --force-reinstall {module}"
        )


def _run_tiny_model(device: str) -> str:
    """Run a model of one addition, and name the provider that it ran on."""
    from mdlstm_tk.runtime.providers import create_session

    session = create_session(TINY_MODEL, "a model of one node", device, threads=1, tf32=False).session
    y = session.run(None, {"x": np.asarray([1, 2], np.float32)})[0]
    if y.tolist() != [2, 4]:
        raise MDLSTMError(f"ONNX Runtime computed 1 + 1 and 2 + 2 as {y.tolist()}")
    return f"ran on {session.get_providers()[0]}"


def _run_layer(device: str, compiler: str) -> str:
    """Run a tiny layer and its gradient in compiled kernels, and name what compiled them."""
    importlib.import_module(compiler)
    import torch

    from mdlstm_tk.layer import MDLSTM

    results = []
    for backend in ("fused", "torch"):
        torch.manual_seed(0)
        layer = MDLSTM(1, 2, backend=backend).to(device)
        y = layer(torch.ones(1, 2, 3, 1, device=device))
        results.append([y, *torch.autograd.grad(y.sum(), list(layer.parameters()))])
    for one, other in zip(*results, strict=True):
        if not torch.allclose(one, other, rtol=1e-3, atol=1e-4):
            raise MDLSTMError("the kernels compute another result than plain torch operations")
    return f"{compiler} {_version(compiler)}, {torch.get_num_threads()} threads"


def _multiply_on_cuda(torch: Any) -> str:
    ones = torch.ones(2, 2, device="cuda")
    if (ones @ ones).sum().item() != 8:
        raise MDLSTMError("a matrix product gave a wrong result")
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"


def _writable(folder: Path) -> bool:
    """Tell whether files can be created in a folder, which may have to be created, too."""
    existing = next((path for path in (folder, *folder.parents) if path.exists()), None)
    return existing is not None and existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _one_line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:300]
