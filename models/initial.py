"""Initial weights of the networks in `grids`, other than those that layers start with."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from mdlstm_tk.backends.inputs import state_dtype
from mdlstm_tk.cells import get_cell
from mdlstm_tk.layer import MDLSTM

# "default" trains best. "original" is the initialisation of philipperemy/tensorflow-multi-dimensional-lstm.
Init = Literal["default", "original"]


@torch.no_grad()
def init_short_memory_(layer: MDLSTM) -> None:
    """Let the state of a layer depend on few positions at first.

    Gates with the role "forget" start at bias −2, those with "leak" at 2, recurrent weights at a quarter
    of their default.
    """
    n, gates = layer.hidden_size, get_cell(layer.cell).gates(layer.ndim)
    for k in range(layer.num_layers):
        if get_cell(layer.cell).recurrent:
            getattr(layer, f"weight_hh_l{k}").div_(4)
        bias = getattr(layer, f"norm_bias_l{k}") if layer.layer_norm else getattr(layer, f"bias_l{k}")
        for row, gate in enumerate(gates):
            gate_bias = bias[:, row] if layer.layer_norm else bias[:, row * n : (row + 1) * n]
            if gate.role == "forget":
                gate_bias.fill_(-2)
            elif gate.role == "leak":
                gate_bias.fill_(2)


@torch.no_grad()
def init_original_(layer: MDLSTM) -> None:
    """Start a layer as the original code does: Glorot uniform over inputs and states, biases 0."""
    for k in range(layer.num_layers):
        weight_ih = getattr(layer, f"weight_ih_l{k}")
        fan_in = weight_ih.shape[-1] + layer.ndim * layer.hidden_size
        bound = (6 / (fan_in + weight_ih.shape[1])) ** 0.5
        nn.init.uniform_(weight_ih, -bound, bound)
        if get_cell(layer.cell).recurrent:
            nn.init.uniform_(getattr(layer, f"weight_hh_l{k}"), -bound, bound)
        nn.init.zeros_(getattr(layer, f"norm_bias_l{k}" if layer.layer_norm else f"bias_l{k}"))


@torch.no_grad()
def init_torch_lstm_(lstm: nn.LSTM, init: Init) -> None:
    """Start a `torch.nn.LSTM` like an `MDLSTM`, so that the two are compared on equal terms."""
    n = lstm.hidden_size
    for name, parameter in lstm.named_parameters():
        if name.startswith("bias"):
            nn.init.zeros_(parameter)
            if name.startswith("bias_ih"):  # nn.LSTM adds its two biases: one of them is enough
                nn.init.ones_(parameter[n : 2 * n])
                if init == "default":
                    nn.init.uniform_(parameter[2 * n : 3 * n], -(n**-0.5), n**-0.5)
        elif init == "original":
            fan_in = (lstm.input_size if name.endswith("l0") else n) + n
            bound = (6 / (fan_in + 4 * n)) ** 0.5
            nn.init.uniform_(parameter, -bound, bound)
        elif name.startswith("weight_ih"):
            bound = (3 / parameter.shape[1]) ** 0.5
            nn.init.uniform_(parameter, -bound, bound)
        else:
            for gate in parameter.unflatten(0, (4, n)):
                # float32 for 16-bit parameters, which the decomposition does not support
                gate.copy_(nn.init.orthogonal_(torch.empty_like(gate, dtype=state_dtype(gate))))
