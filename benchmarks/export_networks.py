"""Some 130 networks as users bring them: exported, and what the files compute compared with PyTorch.

python benchmarks/export_networks.py                 # all, in both forms; some 20 minutes on one core
python benchmarks/export_networks.py unet /scan      # those whose module/name/form has one of the words

The comparison is independent of the verification of exports: the module itself, in float64 or, if that does
not run, as it is, on more grids and batch sizes. Each network runs in a process of its own. A line is an
export with its largest error, in units of the largest output, at least 1, or the message of its refusal.
"""

from __future__ import annotations

import copy
import multiprocessing
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import argument_parser
from networks import earlier, sequences, vision
from torch import Tensor, nn

from mdlstm_tk import MDLSTM
from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.export import export_onnx
from mdlstm_tk.export.network import without_autocast
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.runtime import Session

CONTEXT = multiprocessing.get_context("fork")
LIMIT = 300  # seconds for a network
BATCHES = (1, 2, 5)


def tensors(result: Any) -> list[np.ndarray]:
    """The outputs of a network in order."""
    if isinstance(result, Mapping):
        values = list(result.values())
    elif is_dataclass(result):
        values = [getattr(result, field.name) for field in fields(result)]
    else:
        values = list(result) if isinstance(result, tuple | list) else [result]
    return [value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value) for value in values]


def truth(module: nn.Module, inputs: list[Tensor]) -> tuple[str, list[np.ndarray]]:
    """What the module returns, and in which precision."""
    exact = copy.deepcopy(module).double()
    try:
        doubles = [t.double() if t.is_floating_point() else t for t in inputs]
        return "float64", tensors(exact(*doubles))
    except Exception:
        with without_autocast():
            return "own", tensors(module(*inputs))


def inputs_of(
    examples: Any, metadata: Metadata, options: dict[str, Any], shapes: list[tuple[int, ...]]
) -> Iterator[list[Tensor]]:
    """Inputs of several batch sizes on the grid of the example and, of a scan, on those of `shapes`."""
    x, *others = examples if isinstance(examples, tuple) else (examples,)
    generator = torch.Generator().manual_seed(1)
    low, high = options.get("example_range") or ((0, 8) if metadata.integer else (0, 1))
    own = [] if x is None else [tuple(x.shape[1:])]
    for shape in [*own, *(shapes if metadata.form == "scan" else [])]:
        for batch in BATCHES:
            values = low + (high - low) * torch.rand((batch, *shape), generator=generator)
            further = []
            for other in others:
                of_sample = tuple(other.shape[1:])
                if "z" in options.get("grid_inputs", ()):
                    axis = -1 if metadata.channels_last else 0
                    grid = list(shape)
                    grid[axis] = of_sample[axis]
                    of_sample = tuple(grid)
                more = torch.rand((batch, *of_sample), generator=generator)
                further.append(more if other.is_floating_point() else (7 * more).long())
            is_whole = metadata.integer or "tokens" in str(options.get("example_range"))
            yield [values.floor().long() if is_whole else values, *further]


def measure(make: Any, examples: Any, options: dict[str, Any], shapes: list[Any], path: Path) -> str:
    """The outcome of one network in one form."""
    torch.manual_seed(0)
    net, start = make().eval(), time.perf_counter()
    try:
        report = export_onnx(net, path, examples, **options)
    except MDLSTMError as refusal:
        seconds, text = time.perf_counter() - start, str(refusal)
        broken = " !!! several lines" if "\n" in text else ""
        return f"{seconds:5.1f} s  refused: {text}{broken}"
    seconds, worst, precision, runs = time.perf_counter() - start, 0.0, "", 0
    metadata, session = report.metadata, Session(report.path, "cpu", trusted=True)
    extra = [name for name in metadata.inputs[1:] if name != "sizes"]
    for inputs in inputs_of(examples, metadata, options, shapes):
        arrays = [t.numpy() for t in inputs]
        if "sizes" in metadata.inputs:
            grid = inputs[0].shape[1:-1] if metadata.channels_last else inputs[0].shape[2:]
            inputs.insert(1, torch.tensor([tuple(grid)] * len(inputs[0])))
        precision, expected = truth(net, inputs)
        results = [session(arrays[0], **dict(zip(extra, arrays[1:], strict=True)))]
        if len(arrays) == 1:
            alone = session(arrays[0][0])
            results.append(
                {k: v[None] for k, v in alone.items()} if isinstance(alone, dict) else alone[None]
            )
        for found, exact in zip(results, (expected, [y[:1] for y in expected]), strict=False):
            for y, e in zip(tensors(found), exact, strict=True):
                if y.shape != e.shape:
                    return f"!!! shape {y.shape}, expected {e.shape}"
                if e.size and not (e == y).all():
                    worst = max(worst, float(np.abs(y - e).max() / max(1, np.abs(e).max())))
        runs += 1
    size = "x".join(str(e or "*") for e in metadata.grid) if metadata.grid else "any"
    allowed = 5e-3 if "float16" in (metadata.dtype, str(metadata.reference)) else 5e-5
    allowed = max(allowed, 3 * metadata.parity["atol"])
    wrong = "" if worst <= allowed else "  !!! wrong"
    trust = f"  needs trust: {', '.join(report.needs_trust)}" if report.needs_trust else ""
    return (
        f"{seconds:5.1f} s  {size:8} {worst:.1e} against {precision}, verified against "
        f"{metadata.reference}, {runs} runs{wrong}{trust}"
    )


def in_child(pipe: Any, *arguments: Any) -> None:
    """`measure` in a process of its own."""
    warnings.simplefilter("ignore")
    try:
        pipe.send(measure(*arguments))
    except BaseException as error:
        pipe.send(f"!!! {type(error).__name__}: {error} {traceback.format_exc().splitlines()[-3]}")


def line_of(*arguments: Any) -> str:
    """The outcome of one network, measured in a process of its own."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    child = CONTEXT.Process(target=in_child, args=(sender, *arguments))
    child.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(LIMIT) else f"!!! more than {LIMIT} s"
    except EOFError:
        return "!!! the process ended"
    finally:
        child.kill()
        child.join()


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("words", nargs="*", help="parts of module/name/form; without any, all networks")
    words = parser.parse_args().words
    count = 0
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        export_onnx(MDLSTM(1, 2), path, form="scan")  # what is imported here is there in each process
        for form, module in product(("scan", "unrolled"), (earlier, vision, sequences)):
            group = module.__name__.rpartition(".")[2]
            if module is earlier and form == "unrolled":
                continue  # these networks name their forms themselves
            for name, (make, examples, options, shapes) in module.NETWORKS.items():
                used = options if module is earlier else {**options, "form": form}
                if not words or any(word in f"{group}/{name}/{form}" for word in words):
                    count += 1
                    line = line_of(make, examples, used, shapes, path)
                    print(
                        f"{group}/{name}".ljust(34), f"{used.get('form', 'unrolled'):8} {line}", flush=True
                    )
    if not count:
        parser.error(f"no network has one of {', '.join(words)} in its module/name/form")


if __name__ == "__main__":
    main()
