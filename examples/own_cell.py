"""Two cells of our own: one with a single state, and one with two and without a recurrent product.

mdlstm --import examples/own_cell.py train --cell coupled --steps 200 -o runs/own
mdlstm --import examples/own_cell.py export runs/own
python examples/own_cell.py
"""

from mdlstm_tk import Gate, register_cell


def mean(values):
    """The mean over the axes, of the states one step back along each."""
    return sum(values) * (1 / len(values))


@register_cell("coupled", gates=[Gate("f", start=1.0), Gate("g", "tanh"), Gate("o")])
def coupled(gates, states, output_activation):
    """c = f⊙c̄ + (1 − f)⊙g, c̄ the mean of the c_d ; h = o⊙tanh(c)."""
    f, g, o = gates
    before = mean(states["c"])
    c = g + f * (before - g)
    return o * output_activation(c), {"c": c}


@register_cell(
    "input-gated",
    gates=[Gate("i"), Gate("f", start=1.0), Gate("g", "tanh"), Gate("o")],
    states=("c", "n"),
    recurrent=False,
)
def input_gated(gates, states):
    """c = f⊙c̄ + i⊙g ; n = f⊙n̄ + i ; h = o⊙c/n, so c/n is a weighted mean of the g so far.

    The gates see x alone, as in SRU and QRNN (Lei et al. 2018, arXiv:1709.02755; Bradbury et al. 2017,
    arXiv:1611.01576): a sweep is elementwise after one product with x, and there is no `weight_hh`.
    """
    i, f, g, o = gates
    c = f * mean(states["c"]) + i * g
    n = f * mean(states["n"]) + i
    return o * (c / n), {"c": c, "n": n}


if __name__ == "__main__":
    import torch

    from mdlstm_tk import MDLSTM

    for cell in ("coupled", "input-gated"):
        layer = MDLSTM(3, 8, directions="all", cell=cell)
        y = layer(torch.rand(2, 12, 16, 3))  # (N, H, W, C)
        print(cell, tuple(y.shape), *(name for name, _ in layer.named_parameters()))
