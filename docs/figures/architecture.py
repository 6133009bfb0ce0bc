"""Draw the figures of docs/architecture.md: python docs/figures/architecture.py"""

from __future__ import annotations

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from style import ACCENT, FAINT, INK, PALE, arrow, blank, box, draw

CODE = "#fde8d7"  # what is derived from the equations of a cell


def call() -> Figure:
    """The path of `layer(x)`: from the layer through the operator to a backend."""
    figure, axes = plt.subplots(figsize=(9.6, 5.2))
    blank(axes)
    box(axes, 0, 0, 8.2, "layer.py: MDLSTM.forward\nchecks x, windows, stacks layers, merges directions")
    box(
        axes,
        0,
        2,
        8.2,
        "sweep.py: a plain autograd function;\ncompile and export see one node, torch.ops.mdlstm.wavefront",
    )
    box(axes, 0, 4, 6, "backends/dispatch.py\ndevice and dtype choose the backend")
    arrow(axes, (3, 1.2), (3, 1.95))
    arrow(axes, (3, 3.2), (3, 3.95))
    backends = ("cpu/\nNumba", "cuda/\nTriton", "torch/\nany device", "reference.py\nautograd")
    axes.add_patch(Rectangle((-0.3, 5.8), 9.3, 1.8, facecolor="none", edgecolor=FAINT, linestyle=":"))
    for k, text in enumerate(backends):
        x = 2.2 * k
        box(axes, x, 6.1, 2.05, text, CODE)
        if k < 3:
            arrow(axes, (1 + 2 * k, 5.2), (x + 1, 6.05))
    arrow(axes, (7.6, 3.2), (7.6, 6.05), FAINT)
    axes.text(7.75, 4.6, 'backend="reference"', fontsize=8, color=FAINT)
    box(axes, 11, 2, 5.4, "wavefront.py\norder and neighbours of a grid")
    box(axes, 11, 4, 5.4, "cells/definitions.py\nforward equations of a cell", CODE)
    box(axes, 11, 6.1, 5.4, "cells/: ir, autodiff, lowering\nrecorded graph, its gradient", CODE)
    arrow(axes, (13.7, 5.2), (13.7, 6.05), ACCENT)
    arrow(axes, (11, 6.7), (9.05, 6.7), ACCENT)
    arrow(axes, (11, 2.9), (9.05, 5.9), FAINT)
    axes.set_xlim(-0.5, 16.6)
    axes.set_ylim(7.8, -0.2)
    return figure


def export() -> Figure:
    """From a network to a file, and from the file to an answer."""
    figure, axes = plt.subplots(figsize=(9.6, 3.4))
    blank(axes)
    steps = (
        (0, 0, "export/capture.py\ntorch.onnx.export:\none node for a sweep"),
        (4.6, 0, "export/lowering/\nunrolled or scan:\nstandard operators"),
        (9.2, 0, "export/verification/\nONNX Runtime\nagainst float64"),
        (13.8, 0, "model.onnx\nweights, metadata,\npreprocessing"),
        (0, 3, "runtime/io/\nreads arrays\nand images"),
        (4.6, 3, "runtime/security/\nchecks the bytes\nof the model"),
        (9.2, 3, "runtime/session.py\nONNX Runtime"),
        (13.8, 3, "runtime/answers.py\nlabels, texts, masks"),
    )
    for x, y, text in steps:
        box(axes, x, y, 3.8, text, CODE if "lowering" in text else PALE, height=1.7)
    for x in (3.8, 8.4, 13.0):
        arrow(axes, (x, 0.85), (x + 0.75, 0.85))
    for x in (8.4, 13.0):
        arrow(axes, (x, 3.85), (x + 0.75, 3.85))
    arrow(axes, (15.7, 1.7), (6.5, 2.95), ACCENT)
    axes.annotate(
        "",
        xy=(11.1, 4.75),
        xytext=(1.9, 4.75),
        arrowprops={"arrowstyle": "-|>", "color": INK, "connectionstyle": "bar,fraction=0.05"},
    )
    axes.set_xlim(-0.2, 17.8)
    axes.set_ylim(5.6, -0.3)
    return figure


if __name__ == "__main__":
    draw({"call.svg": call, "export.svg": export})
