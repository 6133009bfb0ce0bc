"""Two cells of our own: one whose forget gates are tied to its input gate, and one without a recurrent
product.

    mdlstm train --cell examples/own_cell.py:coupled --steps 200 -o runs/own
    mdlstm export runs/own --cell examples/own_cell.py:coupled
    python examples/own_cell.py

A cell is its gates, the start values of their biases, and its forward equations. The float64 reference, the
compiled kernels, the gradients and the nodes of an ONNX export are derived from them.
"""

from mdlstm_tk import register_cell


@register_cell("coupled", gates=("f", "g", "o"), start={"f": 1.0})
def coupled(gates, c, output_activation):
    """c = f⊙c̄ + (1 − f)⊙g, c̄ the mean of the c_d ; h = o⊙tanh(c)."""
    f, g, o = gates
    c_mean = sum(c) * (1 / len(c))
    c_new = g + f * (c_mean - g)
    return o * output_activation(c_new), c_new


@register_cell("input-gated", gates=("f", "g", "o"), start={"f": 1.0}, recurrent=False)
def input_gated(gates, c, output_activation):
    """The equations of `coupled`, but its gates see x alone, as in SRU and QRNN.

    There is no product with h, so a sweep is elementwise after one product with x, and the layer has no
    `weight_hh`. (Lei et al. 2018, arXiv:1709.02755; Bradbury et al. 2017, arXiv:1611.01576.)
    """
    return coupled(gates, c, output_activation)


if __name__ == "__main__":
    import torch

    from mdlstm_tk import MDLSTM

    x = torch.rand(2, 12, 16, 3)  # (N, H, W, C)
    for cell in ("coupled", "input-gated"):
        layer = MDLSTM(3, 8, directions="all", cell=cell)
        y = layer(x)  # (2, 12, 16, 32)
        y.sum().backward()
        parameters = ", ".join(f"{name} {tuple(p.shape)}" for name, p in layer.named_parameters())
        print(f"{cell}: y {tuple(y.shape)}, {layer.backend_for(x).name}; {parameters}")
