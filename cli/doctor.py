"""`mdlstm doctor`."""

from __future__ import annotations

import importlib
import os
import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from mdlstm_tk._version import __version__
from mdlstm_tk.cli.console import next_command, note, print_json, table
from mdlstm_tk.errors import MDLSTMError

State = Literal["ok", "absent", "broken"]
MODULES = {"pillow": "PIL", "tomli-w": "tomli_w"}  # where they have another name than the package
UNCHECKED = ("dev", "gpu")  # `gpu` is onnxruntime in other clothes
RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")

# y (2) = x (2) + x in ONNX: opset 13, IR version 7.
TINY = bytes.fromhex(
    "08073a350a0e0a01780a017812017922034164641201675a0f0a0178120a0a08080112040a020802"
    "620f0a0179120a0a08080112040a02080242040a00100d"
)


@dataclass(frozen=True)
class Check:
    """What was looked at.

    Attributes:
        name: of it.
        state: "ok"; "absent": not there, which only matters to who wants it; "broken".
        found: what is there, in words.
        fix: what to do about it, if it is not ok.
    """

    name: str
    state: State
    found: str
    fix: str | None = None


def doctor(json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """Check that all that is installed works, and say how to mend what does not.

    What is optional and absent is not broken. Ends with exit code 1 if something is.
    """
    checks = list(_checks())
    if json:
        print_json([asdict(check) for check in checks])
    else:
        table(["", "", ""], [[check.name, check.state, check.found] for check in checks], texts=3)
    for check in checks:
        if check.fix and (check.state == "broken" or not json):
            note(f"{check.name} ({check.state}): {check.fix}")
    broken = [check.name for check in checks if check.state == "broken"]
    if broken:
        raise MDLSTMError(f"broken: {', '.join(broken)}; see above for how to mend it")
    note("nothing is broken")
    next_command("mdlstm demo")


def _checks() -> Iterator[Check]:
    yield Check("mdlstm-tk", "ok", f"{__version__} in {Path(__file__).parents[1]}")
    yield Check("Python", "ok", f"{platform.python_version()}, {platform.platform()}")
    for package, least, extra in _requirements():
        yield _package(package, least, extra)
    yield from _onnxruntime()
    yield from _torch_devices()
    yield _tried("Numba compiles", "numba", _compile)
    yield from _caches()


def _requirements() -> list[tuple[str, str, str | None]]:
    """Name, least version and extra of each package that mdlstm-tk can use, from its own metadata."""
    found: dict[str, tuple[str, str, str | None]] = {}  # that two extras name is told once
    try:
        requirements = metadata.requires("mdlstm-tk") or []
    except metadata.PackageNotFoundError:  # run from a clone that is not installed
        return []
    for line in requirements:
        match = re.match(r"([\w-]+)>=([\d.]+)", line)
        extra = re.search(r"extra == ['\"](\w+)['\"]", line)
        if match and (extra is None or extra[1] not in UNCHECKED):
            name = match[1].lower()
            found.setdefault(name, (name, match[2], extra and extra[1]))
    return list(found.values())


def _package(package: str, least: str, extra: str | None) -> Check:
    """Is it there, new enough, and can it be imported?"""
    install = f"pip install --upgrade 'mdlstm-tk{f'[{extra}]' if extra else ''}'"
    name = MODULES.get(package, package.replace("-", "_"))
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            state: State = "absent" if extra else "broken"
            return Check(package, state, f"not installed{f', part of [{extra}]' if extra else ''}", install)
        return Check(package, "broken", f"cannot be imported: {_line(error)}", install)
    except Exception as error:  # a broken binary ends in whatever its loader raises
        return Check(package, "broken", f"cannot be imported: {_line(error)}", install)
    version = str(getattr(module, "__version__", None) or _version(package))
    if _numbers(version) < _numbers(least):
        return Check(package, "broken", f"{version}, older than {least}", install)
    return Check(package, "ok", version)


def _onnxruntime() -> Iterator[Check]:
    """One runtime and no more, and which of its providers really run something."""
    installed = [name for name in RUNTIMES if _version(name)]
    if len(installed) > 1:
        yield Check(
            "one onnxruntime",
            "broken",
            f"{' and '.join(installed)} overwrite each other's files",
            f"pip uninstall -y {' '.join(installed)}, then pip install 'mdlstm-tk[cpu]' or [gpu]",
        )
    try:
        onnxruntime = importlib.import_module("onnxruntime")
        available = onnxruntime.get_available_providers()
    except Exception:  # told by its own line above
        return
    from mdlstm_tk.runtime import cuda
    from mdlstm_tk.runtime.providers import CUDA

    yield _tried("onnxruntime on CPU", "onnxruntime", lambda: _run_tiny("cpu"))
    if CUDA not in available:
        yield Check("onnxruntime on CUDA", "absent", "not in this package", cuda.INSTALL_GPU)
        return
    try:
        yield Check("onnxruntime on CUDA", "ok", _run_tiny("cuda"))
    except MDLSTMError:
        state: State = (
            "absent" if cuda.missing_libraries([cuda.DRIVER]) else "broken"
        )  # there may be no GPU
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
    except Exception:  # told by its own line above
        return
    if not torch.cuda.is_available():
        fix = "for training on a GPU install a torch with CUDA: https://pytorch.org/get-started"
        yield Check("torch on CUDA", "absent", "no device, or a torch without CUDA", fix)
        return
    yield _tried("torch on CUDA", "torch", lambda: _multiply_on_cuda(torch))
    yield _tried("Triton", "triton", lambda: f"{_version('triton')}")


def _caches() -> Iterator[Check]:
    """Can compiled kernels be kept? Without that they are compiled in each process again."""
    here, home = Path(__file__).parents[1], Path.home()
    numba = os.environ.get("NUMBA_CACHE_DIR")
    triton = os.environ.get("TRITON_CACHE_DIR")
    places = {
        "NUMBA_CACHE_DIR": [Path(numba)] if numba else [here / "backends", home / ".cache/numba"],
        "TRITON_CACHE_DIR": [Path(triton) if triton else home / ".triton"],
    }
    for variable, folders in places.items():
        name = f"{variable.split('_')[0].capitalize()}'s cache"
        kept = [folder for folder in folders if _writable(folder)]
        if kept:
            yield Check(name, "ok", str(kept[0]))
        else:
            found = f"cannot write to {' nor '.join(map(str, folders))}"
            yield Check(name, "absent", found, f"set {variable} to a folder that can be written")


def _tried(name: str, module: str, action: Callable[[], str]) -> Check:
    """What comes of trying; "absent" if `module` is."""
    try:
        return Check(name, "ok", action())
    except ModuleNotFoundError as error:
        if error.name == module:
            return Check(name, "absent", f"{module} is not installed", f"pip install {module}")
        return Check(name, "broken", _line(error), f"pip install --force-reinstall {module}")
    except MDLSTMError as error:
        return Check(name, "broken", _line(error), _line(error))
    except Exception as error:  # whatever it is, it is what the user asks about
        return Check(name, "broken", _line(error), f"pip install --force-reinstall {module}")


def _run_tiny(device: str) -> str:
    """Run a model of one addition; returns the provider it ran on."""
    from mdlstm_tk.runtime.providers import create_session

    session = create_session(TINY, "a model of one node", device, threads=1, tf32=False).session
    y = session.run(None, {"x": np.asarray([1, 2], np.float32)})[0]
    if y.tolist() != [2, 4]:
        raise MDLSTMError(f"1 + 1, 2 + 2 gave {y.tolist()}")
    return f"ran on {session.get_providers()[0]}"


def _compile() -> str:
    numba = importlib.import_module("numba")
    if numba.njit(_twice)(21) != 42:
        raise MDLSTMError("compiled code computes something else")
    return f"{numba.get_num_threads()} threads"


def _twice(number: int) -> int:
    return number + number


def _multiply_on_cuda(torch: Any) -> str:
    ones = torch.ones(2, 2, device="cuda")
    if (ones @ ones).sum().item() != 8:
        raise MDLSTMError("a matrix product came out wrong")
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"


def _writable(folder: Path) -> bool:
    """Could a file be made there? The folder may have to be made, too."""
    there = next((path for path in (folder, *folder.parents) if path.exists()), None)
    return there is not None and there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """2.13.0+cpu → (2, 13, 0)"""
    match = re.match(r"[\d.]+", version)
    return tuple(int(part) for part in match[0].strip(".").split(".")) if match else ()


def _line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:300]
