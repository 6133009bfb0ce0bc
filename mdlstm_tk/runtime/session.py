"""`Session`: run an exported model with ONNX Runtime."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from mdlstm_tk._util.checks import checked
from mdlstm_tk._util.text import counted
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.kinds.rooms import load
from mdlstm_tk.runtime.io import is_tiled
from mdlstm_tk.runtime.io.npy import Array, byte_limit, read_model_file
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.runner import MODEL, GraphInfo, OpenModel
from mdlstm_tk.runtime.shapes import Shapes

if TYPE_CHECKING:
    from mdlstm_tk.text import CharacterModel, Transcription

Outputs: TypeAlias = Array | dict[str, Array]
"""y, or several outputs by name."""


class Session(OpenModel):
    """An exported model, loaded and ready to run.

        >>> session = Session("model-8x8.onnx", device="cpu")
        >>> y = session(x)                      # x (N, 8, 8, C) → y (N, 8, 8, outputs)
        >>> y = session(x[0])                   # without the batch axis: (8, 8, C) → (8, 8, outputs)
        >>> y = session(x[0, ..., 0])           # C = 1 and one output: (8, 8) → (8, 8)
        >>> session = Session("padded.onnx")    # exported with valid extents as an input
        >>> y = session(x, sizes=sizes)         # sizes (N, 2), integers
        >>> session = Session("two.onnx")       # a network with several outputs
        >>> y, aux = session(x).values()        # a dict of arrays, by the names in metadata.output_names

    Inputs and outputs are NumPy arrays; outputs are float32, or integers where the network returns
    integers. Calls from several threads are safe: they run concurrently, except with CUDA graphs or in
    isolation, where they take turns. A session can be pickled, so that joblib, multiprocessing, Ray and
    Spark take it: the copy loads the model again.

    A file passes the model check before ONNX Runtime sees it (`mdlstm_tk.runtime.model_check`), so it can
    neither read nor write files. It can take any time and memory, as in every program that runs ONNX
    Runtime. `isolated` limits both.

    Args:
        model: path of an `.onnx` file that `mdlstm export` wrote, or its content.
        device: "auto" (CUDA if it works, else CPU), "cpu", "cuda" or "cuda:N".
        threads: CPU threads of one run. One is as fast as several for small batches and hidden sizes;
            0 means one per core.
        timeout: maximum duration of one run in seconds; None: no limit, or 120 s in isolation. It is
            checked between operators; in isolation it also holds inside them.
        max_bytes: maximum size in bytes of the file, and of x as float32; None: 1 GiB. In isolation also
            the memory that the child process may take; None: 4 GiB.
        tf32: let matrix products on CUDA round their inputs to 10 bits of mantissa, which is faster.
        isolated: load and run the model in a child process with limits on memory and time, for a file that
            you did not make (Linux and macOS). Results are the same. A call whose process ends raises, and
            the next one starts another process.
        trusted: allow operators outside the list of the model check, for a file of yours.

    Attributes:
        metadata: what the file says about the model: grid, channels, outputs, task.
        device: "cpu" or "cuda:N", where the model runs.
        provider: ONNX Runtime's name for the device.
        reason: why "auto" did not take the CUDA that this ONNX Runtime supports; else None.
        isolated: True if the model runs in a process of its own.

    Raises:
        InputError: the file does not exist, is not a model that mdlstm-tk exported, or is refused; or an
            argument is invalid.
        DeviceError: CUDA was asked for and cannot be used. It never falls back to the CPU silently.
        MissingExtraError: ONNX Runtime is not installed.
        StoppedError: the model exceeds a limit while it is loaded.
        MDLSTMError: `isolated` is true, and the system is neither Linux nor macOS.
    """

    @checked
    def __init__(
        self,
        model: str | Path | bytes,
        device: str = "auto",
        *,
        threads: int = 1,
        timeout: float | None = None,
        max_bytes: int | None = None,
        tf32: bool = False,
        isolated: bool = False,
        trusted: bool = False,
    ) -> None:
        label = "the model" if isinstance(model, bytes) else str(model)
        if is_tiled(label):
            raise InputError(f"{label} is a tiled export; open it with mdlstm_tk.runtime.TiledSession")
        limit = byte_limit(max_bytes)
        data = model if isinstance(model, bytes) else read_model_file(Path(model), limit, "mdlstm export")
        options: dict[str, Any] = {"threads": threads, "timeout": timeout, "max_bytes": max_bytes}
        options |= {"device": device, "tf32": tf32, "isolated": isolated, "trusted": trusted}
        self._arguments = data, options
        graph = self._open({MODEL: data}, label, **options).graphs[MODEL]
        try:
            self.metadata = Metadata.from_props(graph.props, label)
            _check_agreement(self.metadata, graph, label)
        except BaseException:
            self.close()
            raise
        self._shapes = Shapes(self.metadata, graph.inputs, limit)

    def __call__(self, x: Array, sizes: Array | None = None, **extra_inputs: Array) -> Outputs:
        """Run the model.

        Args:
            x: real numbers of shape (N, *grid, C), (*grid, C) or, if C is 1, (*grid). For a channels-first
                model the channels come before the grid. A model that takes integers gets integers.
            sizes: valid extents of each sample, integers of shape (N, D), for a model that was exported
                with them. Values of x outside them are ignored; values of y outside them mean nothing.
            **extra_inputs: the model's further inputs by name, with a batch axis if x has one.

        Returns:
            y as float32, (N, *⌈grid/window⌉, outputs), or (N, outputs) if the model's output has no grid.
            It has a batch axis if x has one, and no channel axis if x has none and there is one output.
            A model that was exported with `sizes` takes smaller grids than its own, too; y is then what
            a model of that grid returns. In a channels-first model the outputs come before the grid. If the
            model has several outputs, a dict of them by name.

        Raises:
            InputError: x, sizes or an extra input has the wrong shape, is empty or is not finite. If the
                grid is wrong, the message names the one that fits.
            StoppedError: the run exceeds a limit on time or memory, or the isolated model crashed.
            MDLSTMError: ONNX Runtime fails, or the session is closed.
        """
        batch = self._shapes.prepare(x, sizes=sizes)
        extra = self._shapes.prepare_extra_inputs(extra_inputs, batch)
        if batch.sizes is None:
            (outputs,) = self._run_together([batch.samples], extra)
        else:
            outputs = self._run(batch.samples, {"sizes": batch.sizes, **extra})
        return self._shapes.restore_axes(outputs, batch)

    @checked
    def run_many(self, arrays: Sequence[Array]) -> list[Outputs]:
        """Run the model on arrays of different shapes in as few batches as possible.

        If the model takes `sizes`, all arrays are padded into one batch; else arrays of equal grids share
        a batch. The caller bounds the memory that this takes.

        Args:
            arrays: each as for a single call.

        Returns:
            For each array what a single call returns.

        Raises:
            InputError: as for a single call; "x[3]" is the fourth array.
            MDLSTMError: as for a single call.
        """
        batches = [self._shapes.prepare(x, f"x[{k}]") for k, x in enumerate(arrays)]
        for batch in batches:
            self._shapes.prepare_extra_inputs({}, batch)
        groups: dict[tuple[int, ...] | None, list[int]] = {}
        for k, batch in enumerate(batches):
            key = None if self._shapes.takes_sizes else batch.samples.shape[1:]
            groups.setdefault(key, []).append(k)
        results: dict[int, Outputs] = {}
        for members in groups.values():
            parts = self._run_together([batches[k].samples for k in members], {})
            for k, outputs in zip(members, parts, strict=True):
                results[k] = self._shapes.restore_axes(outputs, batches[k])
        return [results[k] for k in range(len(batches))]

    def transcribe(
        self, images: Sequence[Array], beam: int | None = None, lm: CharacterModel | None = None
    ) -> list[Transcription]:
        """Read the text of lines with a recogniser.

        Images of equal extents share batches; all do, sorted by width, if the model takes `sizes`.

        Args:
            images: a list with one for each line, as `decode_image` returns them: (H, W), (H, W, 1) or
                (H, W, 3). They are prepared as the model's images were in training.
            beam, lm: how many texts a search keeps, and a language model that it follows; see
                `mdlstm_tk.text.ctc.transcribe_logits`. By default the best path is read.

        Returns:
            A text for each image, with confidences, and with places in pixels of the image.

        Raises:
            InputError: the model does not read texts, an image has another shape or extents that the model
                does not take, beam is below 1, or lm is no `CharacterModel` of its characters.
            StoppedError, MDLSTMError: as for a call.
        """
        lines: list[Transcription] = load("text.transcription:transcribe")(self, images, beam, lm)
        return lines

    @checked
    def warm_up(self, batch: int = 1, grid: tuple[int, ...] | None = None) -> None:
        """Run the model on zeros, so that later runs of this batch and grid reach their full speed.

        Args:
            batch: number of samples N.
            grid: extents of the grid. None: the model's own.

        Raises:
            InputError: the model takes any grid and none is given, or it does not take this one, or it is
                too large; or the model has further inputs.
        """
        if further := [name for name in self.metadata.inputs[1:] if name != "sizes"]:
            names = ", ".join(further)
            raise InputError(f"this model takes {names}, too; to warm it up, call it on such arrays")
        if grid is None:
            fixed = [extent for extent in self.metadata.extents if extent is not None]
            if len(fixed) < self.metadata.ndim:
                raise InputError("this model has free extents; name those to warm up for with grid=...")
            grid = tuple(fixed)
        if batch < 1 or len(grid) != self.metadata.ndim or min(grid) < 1:
            extents = counted(self.metadata.ndim, "positive extent")
            raise InputError(f"batch must be at least 1 and grid {extents}, got {batch} and {grid}")
        x = np.broadcast_to(np.float32(0), (batch, *self._shapes.sample_shape(grid)))  # takes no memory
        # On CUDA the second run may capture a graph, and the third replays it.
        for _ in range(1 if self.device == "cpu" else 3):
            self(x)

    def _run_together(self, parts: Sequence[Array], extra: Mapping[str, Array]) -> list[dict[str, Array]]:
        """Compute the outputs for each part (N, *grid, C) in one run. Grids may differ if the model takes
        `sizes`."""
        shapes = self._shapes
        if len(parts) == 1 and not shapes.takes_sizes:
            return [self._run(parts[0], extra)]
        if shapes.takes_sizes:
            samples, sizes = shapes.pad(parts)
            extra = {"sizes": sizes, **extra}
        else:
            samples = np.concatenate(parts)
        outputs = self._run(samples, extra)
        ends = np.cumsum([len(part) for part in parts])[:-1]
        pieces = {name: np.split(y, ends) for name, y in outputs.items()}
        results = [{name: split[k] for name, split in pieces.items()} for k in range(len(parts))]
        if not shapes.takes_sizes:
            return results
        grids, padded_grid = map(shapes.grid, parts), shapes.grid(samples)
        return [shapes.crop(y, grid, padded_grid) for y, grid in zip(results, grids, strict=True)]

    def _run(self, samples: Array, extra: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model on all its inputs, in the shapes that its file declares.

        Returns:
            The outputs by name, in the order of the metadata.
        """
        metadata = self.metadata
        by_name = self.graphs.run({metadata.inputs[0]: samples, **extra})
        outputs = {name: by_name[name] for name in metadata.output_names}
        for name, y in outputs.items():
            fits = self._shapes.is_output_of(name, y, samples)
            if y.dtype.kind not in "buif" or not fits or not y.size:
                raise MDLSTMError(
                    f"the model returned '{name}' of {y.dtype} and shape {y.shape} for x of shape "
                    f"{samples.shape}, which contradicts its metadata; export it again"
                )
        return outputs


def _check_agreement(metadata: Metadata, graph: GraphInfo, label: str) -> None:
    """Check that the metadata describe the graph that they came with, and that it computes with numbers."""
    for side, names, tensors in (
        ("inputs", metadata.inputs, graph.inputs),
        ("outputs", metadata.output_names, graph.outputs),
    ):
        if set(names) != set(tensors):
            raise InputError(
                f"{label} has the {side} {', '.join(tensors)}, but its metadata name {', '.join(names)}; "
                "export the model again"
            )
        for name, (dtype, _) in tensors.items():
            if not re.fullmatch(r"bool|u?int(8|16|32|64)|float(16|32|64)", dtype):
                raise InputError(f"'{name}' of {label} holds {dtype}, expected real numbers of NumPy")
    shape = graph.inputs["x"].shape
    extents = metadata.extents
    expected = (*extents, metadata.channels) if metadata.channels_last else (metadata.channels, *extents)
    fits = len(shape) == len(expected) + 1 and all(
        extent in (None, other) for extent, other in zip(shape[1:], expected, strict=True)
    )
    if not fits:
        raise InputError(
            f"x in the graph of {label} has the shape {shape}, but its metadata say {(None, *expected)}; "
            "export the model again"
        )
