"""Export a network that draws images: the graph of `lowering/row.py`, verified, as a file or a web page."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from mdlstm_tk._util.text import printable
from mdlstm_tk._version import __version__
from mdlstm_tk.errors import InputError, ParityError, require
from mdlstm_tk.export.interface import Interface, eval_copy
from mdlstm_tk.export.lowering.row import INPUTS, OUTPUTS, row_graph, state_size
from mdlstm_tk.export.model_file import check_destination, check_onnx
from mdlstm_tk.export.run_export import find_checkpoint, read_checkpoint
from mdlstm_tk.export.targets import ExportTarget
from mdlstm_tk.export.verification.parity import ATOL, RTOL, compare
from mdlstm_tk.models import PixelNet
from mdlstm_tk.runtime import Metadata, Session
from mdlstm_tk.runtime.io.files import atomic_write
from mdlstm_tk.runtime.metadata import layout_of
from mdlstm_tk.runtime.samples import run_rows, uniform_numbers
from mdlstm_tk.training import Run

DEFAULT_NAME = "model-drawing.onnx"
DEFAULT_SIZE = (28, 28)  # of the images that a file of a network without a run draws if told no other
VERIFIED = ((6, (5, 7)), (2, (1, 1)), (3, (6, 2)))  # images and their sizes


def export_drawing(
    source: nn.Module | Run | str | Path,
    destination: str | Path | ExportTarget | None = None,
    *,
    size: tuple[int, int] | None = None,
    force: bool = False,
) -> Path:
    """Export a network as a graph that draws images of any size; see `Session.sample`.

    The file appears only after ONNX Runtime has drawn images of several sizes with it, whose logits and
    values agree with the network in float64.

    Args:
        source: a network `pixel` with the kind "density"; or a run with such a network, its folder, or one
            of its checkpoint files.
        destination: a file name that ends in `.onnx`; a folder for model-drawing.onnx, that of the run if
            None; or a web page, which then draws images. Only a run can become a page.
        size: (H, W) of an image where `Session.sample` is told none. None: that of the training images, or
            28×28 for a network.
        force: replace an existing file.

    Returns:
        The path of the file.

    Raises:
        InputError: there is no such run or folder, its network is another, the file exists and `force` is
            false, or an extent of `size` is below 1.
        ParityError: ONNX Runtime disagrees with the network. Nothing is written.
        MissingExtraError: ONNX Runtime is not installed.
    """
    require("onnxruntime", "cpu")
    run: Run | None = None
    fields: dict[str, Any] = {}
    if isinstance(source, nn.Module):
        network, label = eval_copy(source), "the given module"
        if isinstance(destination, ExportTarget):
            raise InputError("a page is made of a run; give a run, or a file name as destination=...")
        if destination is None:
            raise InputError("export_drawing needs a file name for a network; give destination=...")
    else:
        run, checkpoint_path = find_checkpoint(source)
        checkpoint, sha256 = read_checkpoint(checkpoint_path)
        network, label = checkpoint.network(), f"the network of {run.folder}"
        height, width = checkpoint.spec.size
        size = size or (height, width)
        fields = {
            "model": printable(checkpoint.config.model),
            "task": printable(checkpoint.spec.name),
            "checkpoint_sha256": sha256,
        }
    if not isinstance(network, PixelNet):
        raise InputError(
            f"{label} is of type {type(network).__name__}; only a PixelNet, the network pixel, is exported "
            "to draw images"
        )
    target = destination if isinstance(destination, ExportTarget) else None
    with tempfile.TemporaryDirectory() as scratch:
        if target:
            target.prepare(1)
            path = Path(scratch) / DEFAULT_NAME
        else:
            path = run.folder if destination is None and run else Path(str(destination))
            path = path if path.suffix == ".onnx" else path / DEFAULT_NAME
            check_destination(path, force)
        parity = {"atol": ATOL, "rtol": RTOL, "max_abs": _verify(network, path)}
        model = drawing_model(network, size or DEFAULT_SIZE, **fields, parity=parity)
        with atomic_write(path, replace=force or target is not None) as temporary:
            temporary.write_bytes(model.SerializeToString())
        return target.add(path, run, None) if target and run else path


def drawing_model(network: PixelNet, size: tuple[int, int], **fields: Any) -> onnx.ModelProto:
    """The graph that draws images with a network, with its metadata.

    Args:
        network: the network.
        size: (H, W) of the training images.
        **fields: more fields of `mdlstm_tk.runtime.Metadata`.

    Raises:
        InputError: an extent or a field could not be read again.
    """
    model = row_graph(network)
    check_onnx(model, "the exported model")
    metadata = Metadata(
        version=__version__,
        grid=None,
        form="scan",
        layout=layout_of(1, channels_last=True),
        channels=network.channels,
        outputs=network.channels,
        inputs=INPUTS,
        window=(1,),
        output_names=OUTPUTS,
        further_windows=(None, None),
        kind="density",
        drawing={"size": list(size), "levels": network.levels, "state": state_size(network)},
        **fields,
    )
    metadata.check()
    onnx.helper.set_model_props(model, metadata.to_props())
    return model


@torch.no_grad()
def _verify(network: PixelNet, path: Path) -> float:
    """Let ONNX Runtime draw images, and compare their logits and their values with the network in float64.

    A value may differ where its uniform number lies within the tolerance of a cumulative probability.

    Returns the largest error of a logit; raises a ParityError if they do not agree.
    """
    exact = Interface(network).in_float64().module
    assert isinstance(exact, PixelNet)
    errors = []
    with Session(drawing_model(network, (1, 1)).SerializeToString(), "cpu") as session:
        for n, size in VERIFIED:
            uniform = uniform_numbers(0, n, size, network.channels)
            rows = list(run_rows(session, uniform))
            images, logits = (np.stack([row[name] for row in rows], axis=1) for name in ("y", "logits"))
            expected = exact.logits(torch.from_numpy(images).double())
            scale = max(1.0, float(expected.abs().max()))
            parity = compare(logits, expected.numpy(), scale=scale)
            below = expected.softmax(-1).cumsum(-1)[..., :-1].numpy()
            distance = uniform[..., None] - below
            is_certain = np.abs(distance).min(-1) > ATOL * scale
            drawn = (distance >= 0).sum(-1).astype(np.float32) / np.float32(network.levels - 1)
            differing = int((images != drawn)[is_certain].sum())
            if not parity.passed or differing:
                raise ParityError(
                    f"{path} was not written: of images of {size[0]}x{size[1]}, the logits of ONNX "
                    f"Runtime differ by up to {parity.max_abs:.1e} from those in float64, and "
                    f"{differing} of {images.size} values do not follow from them"
                )
            errors.append(parity.max_abs)
    return max(errors)
