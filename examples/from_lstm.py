"""Turn a trained torch.nn.LSTM into a one-dimensional MDLSTM, and export it for sequences of every length.

python examples/from_lstm.py
"""

import numpy as np
import torch
from torch import nn

from mdlstm_tk import MDLSTM
from mdlstm_tk.export import export_onnx
from mdlstm_tk.runtime import Session


def from_lstm(lstm):
    """An MDLSTM that computes what a batch_first nn.LSTM without projections computes."""
    layer = MDLSTM(
        lstm.input_size,
        lstm.hidden_size,
        ndim=1,
        num_layers=lstm.num_layers,
        directions="all" if lstm.bidirectional else 1,
        bias=lstm.bias,
        dropout=lstm.dropout,
        dtype=lstm.weight_ih_l0.dtype,
    )
    state = lstm.state_dict()
    with torch.no_grad():
        for k in range(lstm.num_layers):
            for d, end in enumerate(["", "_reverse"][: len(layer.directions)]):
                getattr(layer, f"weight_ih_l{k}")[d] = state[f"weight_ih_l{k}{end}"]
                getattr(layer, f"weight_hh_l{k}")[d, 0] = state[f"weight_hh_l{k}{end}"]
                if lstm.bias:
                    biases = (state[f"bias_{part}_l{k}{end}"] for part in ("ih", "hh"))
                    getattr(layer, f"bias_l{k}")[d] = sum(biases)
    return layer


def main(path="sequences.onnx"):
    """Convert, export and compare, and return the largest difference from nn.LSTM."""
    torch.manual_seed(0)
    lstm = nn.LSTM(3, 8, num_layers=2, bidirectional=True, batch_first=True).eval()
    layer = from_lstm(lstm).eval()
    print(export_onnx(layer, path, form="scan"))
    session = Session(path, device="cpu")
    largest = 0.0
    for length in (1, 5, 40):
        x = torch.rand(2, length, 3)  # (N, T, C)
        with torch.no_grad():
            expected = lstm(x)[0].numpy()
        largest = max(largest, float(np.abs(session(x.numpy()) - expected).max()))
    print(f"largest difference from nn.LSTM: {largest:.1e}")
    return largest


if __name__ == "__main__":
    main()
