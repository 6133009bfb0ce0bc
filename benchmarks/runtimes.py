"""Run every form of an exported file in every runtime that is installed, and print the largest differences.

    python benchmarks/runtimes.py                          # the table "Runs in" of docs/runtimes.md
    python benchmarks/runtimes.py --write docs/runtimes.md # write it into the page
    python benchmarks/runtimes.py --save FOLDER            # the files, with inputs and float64 results
    python benchmarks/runtimes.py --check FOLDER           # run them with NumPy and ONNX Runtime alone

Differences are absolute, and the outputs lie between −1 and 1. The lowest supported ONNX Runtime, in an
environment without torch, is tested with `--check` (see .ci/lowest-onnxruntime).
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from itertools import cycle, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from measuring import argument_parser, markdown, ort_session, write_between_markers

Array = np.ndarray
Runtime = Callable[[bytes, Mapping[str, Array]], Array]

TOLERANCES = {"float32": 1e-5, "float16": 5e-3}
FORMS: dict[str, dict[str, Any]] = {  # arguments of `export_onnx`
    "unrolled": {},
    "unrolled, `sizes`": {"padded": True},
    "unrolled, float16": {"dtype": "float16"},
    "scan": {"form": "scan"},
    "scan, `sizes`": {"form": "scan", "padded": True},
    "scan, float16": {"form": "scan", "dtype": "float16"},
}
NETWORKS: dict[str, dict[str, Any]] = {
    "2-D, two layers": {
        "ndim": 2,
        "directions": [(1, 1), (-1, 1)],
        "num_layers": 2,
        "window": (2, 1),
        "layer_norm": True,
        "peephole": True,
    },
    "3-D": {"ndim": 3, "directions": [(1, 1, 1), (-1, 1, -1)], "cell": "stable"},
}
GRIDS = {2: (4, 3), 3: (2, 2, 3)}


class Case(NamedTuple):
    """An exported file with inputs and the output that is right.

    Attributes:
        form: a key of `FORMS`.
        network: a key of `NETWORKS`.
        model: content of the file.
        feeds: inputs by name.
        expected: y in float64.
    """

    form: str
    network: str
    model: bytes
    feeds: dict[str, Array]
    expected: Array


def cases(pairs: Iterable[tuple[str, str]]) -> Iterator[Case]:
    """Export for each pair of a form and a network."""
    import onnx
    import torch

    from mdlstm_tk import MDLSTM
    from mdlstm_tk.export import export_onnx, float64_reference

    torch.manual_seed(0)
    layers = {name: MDLSTM(2, 4, **options).eval() for name, options in NETWORKS.items()}
    for form, network in pairs:
        layer, settings = layers[network], FORMS[form]
        grid = GRIDS[layer.ndim]
        x = np.random.default_rng(0).standard_normal((3, *grid, 2)).astype(np.float32)
        sizes = np.asarray([grid, (1,) * layer.ndim, (2,) * layer.ndim])
        feeds = {"x": x, "sizes": sizes} if settings.get("padded") else {"x": x}
        with tempfile.TemporaryDirectory() as folder:
            path = export_onnx(layer, Path(folder) / "model.onnx", **{"grid": grid, **settings}).path
            model = onnx.load(path)
        yield Case(form, network, model.SerializeToString(), feeds, float64_reference(layer)(**feeds))


def run_onnxruntime(model: bytes, feeds: Mapping[str, Array]) -> Array:
    """y of ONNX Runtime on the CPU."""
    y: Array = ort_session(model).run(None, dict(feeds))[0]
    return y


def run_openvino(model: bytes, feeds: Mapping[str, Array]) -> Array:
    """y of OpenVINO on the CPU; without the hint it may round to bfloat16."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # it forks, and calls its makers
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    y: Array = compiled(dict(feeds))[0]
    return y


def run_tract(model: bytes, feeds: Mapping[str, Array]) -> Array:
    """y of tract, which wants the shapes of the inputs."""
    import tract

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model)
        loaded = tract.onnx().load(str(path))
    for k, array in enumerate(feeds.values()):
        kind = "f32" if array.dtype == np.float32 else "i64"
        loaded.set_input_fact(k, ",".join([*map(str, array.shape), kind]))
    y: Array = loaded.into_model().into_runnable().run(list(feeds.values()))[0].to_numpy()
    return y


def run_evaluator(model: bytes, feeds: Mapping[str, Array]) -> Array:
    """y of onnx's reference evaluator."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    y: Array = ReferenceEvaluator(onnx.load_model_from_string(model)).run(None, dict(feeds))[0]
    return y


RUNTIMES: dict[str, tuple[str, Runtime]] = {  # by name: the package and the function
    "ONNX Runtime": ("onnxruntime", run_onnxruntime),
    "OpenVINO": ("openvino", run_openvino),
    "tract": ("tract", run_tract),
    "onnx evaluator": ("onnx", run_evaluator),
}


def difference(run: Runtime, case: Case) -> float | str:
    """The largest difference of a runtime from float64, or the reason why it does not run the file."""
    try:
        y = run(case.model, case.feeds)
    except Exception as error:  # each runtime has exceptions of its own, some with paths and traces
        lines = [line.strip(" -") for line in str(error).split("Stack backtrace")[0].splitlines()]
        said = [line for line in lines if len(line) > 3 and "openvino_docs" not in line]
        return (said or [type(error).__name__])[-1][:120]
    if y.shape != case.expected.shape:
        return f"y has the shape {y.shape}, expected {case.expected.shape}"
    return float(np.abs(y - case.expected).max())


def runs_in(forms: Iterable[str] = FORMS) -> str:
    """The table: for each form and installed runtime the largest difference over all networks."""
    runtimes = {
        f"{name} {version(package)}": run
        for name, (package, run) in RUNTIMES.items()
        if find_spec(package) is not None
    }
    results: dict[tuple[str, str], list[float | str]] = defaultdict(list)
    for case in cases(product(forms, NETWORKS)):
        for name, run in runtimes.items():
            results[case.form, name].append(difference(run, case))
        print(f"{case.form}: {case.network}", file=sys.stderr)
    reasons: dict[str, list[str]] = defaultdict(list)
    rows = []
    for form in forms:
        row = [form]
        for name in runtimes:
            values = results[form, name]
            failures = [value for value in values if isinstance(value, str)]
            for reason in failures[:1]:
                reasons[f"{name}: {reason}"].append(form)
            row.append("no" if failures else f"{np.max(values):.0e}")
        rows.append(row)
    notes = [f"- {reason} ({'; '.join(forms)})" for reason, forms in reasons.items()]
    title = "Messages of the runtimes that do not run a form:"
    return "\n".join([markdown(["form", *runtimes], rows), *(["", title, "", *notes] if notes else [])])


def save(folder: Path) -> None:
    """Write one case for each form into a folder, for `check`."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, case in enumerate(cases(zip(FORMS, cycle(NETWORKS), strict=False))):
        (folder / f"{k:02}.onnx").write_bytes(case.model)
        names = {"form": case.form, "network": case.network}
        np.savez(folder / f"{k:02}.npz", expected=case.expected, **names, **case.feeds)


def check(folder: Path) -> None:
    """Run the cases that `save` wrote through `mdlstm_tk.runtime`, and fail if one is out of tolerance."""
    import onnxruntime

    from mdlstm_tk.runtime import Session

    failed, files = 0, sorted(folder.glob("*.npz"))
    for file in files:
        arrays = dict(np.load(file))
        form, network = (str(arrays.pop(name)) for name in ("form", "network"))
        expected = arrays.pop("expected")
        case = Case(form, network, file.with_suffix(".onnx").read_bytes(), arrays, expected)
        result = difference(lambda model, feeds: Session(model, "cpu")(**feeds), case)
        tolerance = TOLERANCES[FORMS[form].get("dtype", "float32")]  # that `export_onnx` allows
        if isinstance(result, str) or not result <= tolerance:
            failed += 1
            print(f"{form}: {network}: {result}")
    assert "torch" not in sys.modules
    versions = f"ONNX Runtime {onnxruntime.__version__}, NumPy {np.__version__}"
    print(f"{versions}: {len(files) - failed} of {len(files)} files run within tolerance")
    sys.exit(bool(failed or not files))


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--form", action="append", choices=FORMS, help="rows of the table; default: all")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="page to write the table into")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="folder to write the files into")
    parser.add_argument("--check", type=Path, metavar="FOLDER", help="folder with the files to run")
    options = parser.parse_args(words)
    os.environ["RUST_BACKTRACE"] = "0"  # tract adds the trace to its messages
    if options.save:
        save(options.save)
    elif options.check:
        check(options.check)
    elif options.write:
        write_between_markers(options.write, "runs in", runs_in())
    else:
        print(runs_in(options.form or FORMS))


if __name__ == "__main__":
    main()
