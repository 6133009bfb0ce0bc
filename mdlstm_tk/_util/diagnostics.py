"""`check_installation`: what is installed, what works, how to fix the rest; `mdlstm doctor` prints it."""

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

from mdlstm_tk._util.installation import PACKAGE, install_command
from mdlstm_tk._version import __version__
from mdlstm_tk.backends.cpu.cache_folder import VARIABLE, cache_folder
from mdlstm_tk.errors import MDLSTMError

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
"""What each extra is for. The others are not checked, see `UNCHECKED`."""

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
        name: what was checked.
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
    import_names = _import_names()
    for requirement, extras in _requirements():
        checks.append(_package(requirement, extras, import_names))
    checks += _onnxruntime()
    checks += _torch_devices()
    if any(check.name == "numba" and check.state == "ok" for check in checks):
        checks.append(_attempt("Numba compiles", "numba", _compile))
    checks += _kernels()
    checks += _caches()
    return checks


def missing_jobs(checks: list[Check]) -> dict[str, str]:
    """The jobs that this installation cannot do because a package is absent, and how to install it."""
    missing = {job for check in checks if check.state == "absent" for job in check.jobs}
    return {job: install_command([extra]) for extra, job in JOBS.items() if job in missing}


def _requirements() -> list[tuple[Requirement, tuple[str, ...]]]:
    """The packages that mdlstm-tk can use, from its own metadata, with the extras that name them."""
    try:
        lines = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:  # run from a clone that is not installed
        lines = _clone_requirements(Path(__file__).resolve().parents[2] / "pyproject.toml")
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


def _clone_requirements(pyproject: Path) -> list[str]:
    """The requirements in a `pyproject.toml`, in the form that they have in the metadata of a package."""
    if not pyproject.is_file():
        return []
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra, requirements in project["optional-dependencies"].items():
        for line in requirements:
            requirement, _, marker = line.partition(";")
            condition = f"({marker.strip()}) and " if marker else ""
            lines.append(f"{requirement}; {condition}extra == '{extra}'")
    return lines


def _import_names() -> dict[str, str]:
    """The module to import for each installed distribution: "scikit-learn" → "sklearn"."""
    modules: dict[str, list[str]] = {}
    for module, distributions in metadata.packages_distributions().items():
        for distribution in distributions:
            modules.setdefault(canonicalize_name(distribution), []).append(module)
    names = {}
    for distribution, candidates in modules.items():
        same = distribution.replace("-", "_")
        public = [name for name in candidates if not name.startswith("_")]
        names[distribution] = same if same in candidates else (public or candidates)[0]
    return names


def _package(requirement: Requirement, extras: tuple[str, ...], import_names: dict[str, str]) -> Check:
    """Check that a package is installed, new enough, and can be imported."""
    name = canonicalize_name(requirement.name)
    jobs = tuple(JOBS[extra] for extra in extras)
    install = install_command(extras[:1], "--upgrade")
    module_name = import_names.get(name, name.replace("-", "_"))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a broken binary raises whatever its loader does
        if isinstance(error, ModuleNotFoundError) and error.name == module_name:
            state: State = "absent" if extras else "broken"
            need = f", needed to {' and to '.join(jobs)}" if jobs else ""
            return Check(name, state, f"not installed{need}", install, jobs)
        return Check(name, "broken", f"cannot be imported: {_one_line(error)}", install, jobs)
    version = str(getattr(module, "__version__", None) or _version(name))
    if not requirement.specifier.contains(version, prereleases=True):
        return Check(name, "broken", f"{version}, expected {requirement.specifier}", install, jobs)
    return Check(name, "ok", version, None, jobs)


def _onnxruntime() -> Iterator[Check]:
    """Check that there is only one ONNX Runtime, and which of its providers run a model."""
    installed = [name for name in RUNTIMES if _version(name)]
    if len(installed) > 1:
        yield Check(
            "one onnxruntime",
            "broken",
            f"{' and '.join(installed)} overwrite each other's files",
            f"pip uninstall -y {' '.join(installed)}, then {install_command(['cpu'])} or "
            f"{install_command(['gpu'])}",
        )
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


def _torch_devices() -> Iterator[Check]:
    try:
        torch = importlib.import_module("torch")
    except Exception:  # the check of the package reports it
        return
    if not torch.cuda.is_available():
        fix = "to train on a GPU, install a torch with CUDA: https://pytorch.org/get-started"
        yield Check("torch on CUDA", "absent", "no device, or a torch without CUDA", fix)
        return
    yield _attempt("torch on CUDA", "torch", lambda: _multiply_on_cuda(torch))


def _kernels() -> Iterator[Check]:
    """Check that the layer's own kernels are compiled; without them it takes several times as long."""
    try:
        torch = importlib.import_module("torch")
    except Exception:  # the check of the package reports it
        return
    yield _attempt("kernels for the CPU", "numba", lambda: _run_layer("cpu", "numba"))
    if torch.cuda.is_available():
        yield _attempt("kernels for the GPU", "triton", lambda: _run_layer("cuda", "triton"))


def _caches() -> Iterator[Check]:
    """Check that compiled kernels can be kept on disk; otherwise every process compiles them again."""
    folder = cache_folder()
    if folder is not None:
        yield Check("Numba's cache", "ok", str(folder))
    else:
        named = os.environ.get(VARIABLE)
        place = f"{VARIABLE}={named}" if named else "the cache folder of your account"
        yield Check(
            "Numba's cache",
            "absent",
            f"every process compiles them again: {place} is missing, or others may write to it",
            f"set {VARIABLE} to the absolute path of a folder that only you may write to",
        )
    triton = os.environ.get("TRITON_CACHE_DIR")
    try:
        kept = Path(triton) if triton else Path.home() / ".triton"
    except RuntimeError:  # no home folder
        kept = Path("~/.triton")
    if _writable(kept):
        yield Check("Triton's cache", "ok", str(kept))
    else:
        fix = "set TRITON_CACHE_DIR to a writable folder"
        yield Check("Triton's cache", "absent", f"cannot write to {kept}", fix)


def _attempt(name: str, module: str, action: Callable[[], str]) -> Check:
    """The check that an action works; "absent" if it fails because `module` is not installed."""
    try:
        return Check(name, "ok", action())
    except ModuleNotFoundError as error:
        if error.name == module:
            return Check(name, "absent", f"{module} is not installed", f"pip install {module}")
        return Check(name, "broken", _one_line(error), f"pip install --force-reinstall {module}")
    except MDLSTMError as error:
        return Check(name, "broken", _one_line(error), _one_line(error))
    except Exception as error:  # every failure is what the user asks about
        return Check(name, "broken", _one_line(error), f"pip install --force-reinstall {module}")


def _run_tiny_model(device: str) -> str:
    """Run a model of one addition, and name the provider that it ran on."""
    from mdlstm_tk.runtime.providers import create_session

    session = create_session(TINY_MODEL, "a model of one node", device, threads=1, tf32=False).session
    y = session.run(None, {"x": np.asarray([1, 2], np.float32)})[0]
    if y.tolist() != [2, 4]:
        raise MDLSTMError(f"ONNX Runtime computed 1 + 1 and 2 + 2 as {y.tolist()}")
    return f"ran on {session.get_providers()[0]}"


def _compile() -> str:
    numba = importlib.import_module("numba")
    if numba.config.DISABLE_JIT:
        raise MDLSTMError("NUMBA_DISABLE_JIT is set; unset it")
    if numba.njit(_double)(21) != 42:
        raise MDLSTMError("the compiled code computes a wrong result")
    return f"{numba.get_num_threads()} threads"


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
    return f"{compiler} {_version(compiler)}"


def _double(number: int) -> int:
    return number + number


def _multiply_on_cuda(torch: Any) -> str:
    ones = torch.ones(2, 2, device="cuda")
    if (ones @ ones).sum().item() != 8:
        raise MDLSTMError("a matrix product gave a wrong result")
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"


def _writable(folder: Path) -> bool:
    """Whether a file can be created in the folder, which may have to be created, too."""
    existing = next((path for path in (folder, *folder.parents) if path.exists()), None)
    return existing is not None and existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _one_line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:300]
