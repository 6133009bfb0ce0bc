"""Draw the figures of docs/architecture.md: python docs/figures/architecture.py"""

from __future__ import annotations

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from style import ACCENT, FAINT, arrow, blank, box, draw

CODE = "#fde8d7"  # what is derived from the equations of a cell


def call() -> Figure:
    """The path of `layer(x)`: from the layer through one sweep to a backend."""
    figure, axes = plt.subplots(figsize=(9.6, 5.2))
    blank(axes)
    box(axes, 0, 0, 8.6, "layer.py\nshapes, windows, stacked layers, sum of directions")
    box(
        *(axes, 0, 2, 8.6),
        "sweep.py\nan autograd function; for compile and export\none node, torch.ops.mdlstm.wavefront",
        height=1.4,
    )
    box(axes, 0, 4.1, 8.6, "backends/__init__.py\nthe device chooses the backend")
    arrow(axes, (4.3, 1.2), (4.3, 1.95))
    arrow(axes, (4.3, 3.4), (4.3, 4.05))
    backends = ("cpu/\nNumba", "cuda/\nTriton", "torch.py\nany device")
    axes.add_patch(Rectangle((-0.3, 5.8), 9.3, 1.8, facecolor="none", edgecolor=FAINT, linestyle=":"))
    for k, text in enumerate(backends):
        x = 3.0 * k
        box(axes, x, 6.1, 2.05, text, CODE)
        arrow(axes, (x + 1, 5.3), (x + 1, 6.05))
    box(axes, 11, 2, 5.6, "wavefront.py\norder and neighbours of a grid")
    box(axes, 11, 4.1, 5.6, "cells/definitions.py\nforward equations of a cell", CODE)
    box(axes, 11, 6.1, 5.6, "cells/step.py, graph.py\nthe recorded step and its gradient", CODE)
    arrow(axes, (13.8, 5.3), (13.8, 6.05), ACCENT)
    arrow(axes, (11, 6.7), (9.05, 6.7), ACCENT)
    arrow(axes, (11, 2.9), (9.05, 5.9), FAINT)
    axes.set_xlim(-0.5, 16.8)
    axes.set_ylim(7.8, -0.2)
    return figure


def export() -> Figure:
    """From a network to a verified file; modules of `export/`."""
    figure, axes = plt.subplots(figsize=(11.5, 2.2))
    blank(axes)
    chain(
        axes,
        [
            "api.py\nexport_onnx:\ngrid and options",
            "capture.py\ntorch.onnx.export:\none node for a sweep",
            "lowering/\nunrolled or scan:\nstandard operators",
            "verification/\nONNX Runtime\nagainst float64",
            "model_file.py\nweights, metadata,\nreport",
        ],
    )
    box(axes, 10, 2.3, 4.3, "cells/step.py\nequations of the cell", CODE)
    arrow(axes, (12.15, 2.3), (12.15, 1.75), ACCENT)
    axes.set_ylim(3.6, -0.2)
    return figure


def inference() -> Figure:
    """From files to results, without torch and onnx; modules of `mdlstm_tk/runtime/` and `io/`."""
    figure, axes = plt.subplots(figsize=(11.5, 3))
    blank(axes)
    chain(
        axes,
        [
            "infer.py\nplans what is read\nand written",
            "inputs.py, io/\narrays and images\nas models take them",
            "session.py\nequal shapes\nin one run",
            "answers.py\nrows, masks\nor numbers",
            "io/files.py\na file appears whole\nor not at all",
        ],
    )
    box(axes, 5, 3, 4.3, "model_check.py\nchecks the bytes\nof the model", height=1.7)
    box(axes, 10, 3, 4.3, "ort.py\nONNX Runtime\non CPU or CUDA", height=1.7)
    arrow(axes, (9.3, 3.85), (9.95, 3.85))
    arrow(axes, (11.7, 1.75), (11.7, 2.95), ACCENT)
    arrow(axes, (12.6, 2.95), (12.6, 1.75), ACCENT)
    axes.set_ylim(4.9, -0.2)
    return figure


def chain(axes: Axes, texts: list[str]) -> None:
    """Boxes in a row, each with an arrow to the next one."""
    for k, text in enumerate(texts):
        x = 5 * k
        box(axes, x, 0, 4.3, text, height=1.7)
        if k:
            arrow(axes, (x - 0.7, 0.85), (x - 0.05, 0.85))
    axes.set_xlim(-0.2, 5 * len(texts) - 0.5)


if __name__ == "__main__":
    draw({"call.svg": call, "export.svg": export, "inference.svg": inference})
