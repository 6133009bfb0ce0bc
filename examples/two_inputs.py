"""A network with two inputs and two outputs, exported to one file.

    python examples/two_inputs.py

It reads an image and the number of a question. Its outputs are a map over the image and an answer.
"""

import numpy as np
import torch
from torch import nn

from mdlstm_tk import MDLSTM
from mdlstm_tk.export import export_onnx, verify_model
from mdlstm_tk.runtime import Session


class Question(nn.Module):
    def __init__(self, questions=10, answers=3, hidden=8):
        super().__init__()
        self.layer = MDLSTM(1, hidden, directions="all", merge="sum")
        self.embedding = nn.Embedding(questions, hidden)
        self.map, self.answer = nn.Linear(hidden, 1), nn.Linear(hidden, answers)

    def forward(self, x, question):  # (N, H, W, 1), (N,)
        h = self.layer(x) + self.embedding(question)[:, None, None]
        return {"map": self.map(h), "answer": self.answer(h.mean(dim=(1, 2)))}


def main(path="question.onnx"):
    """Export the network, verify the file, run it, and return its outputs."""
    torch.manual_seed(0)
    net = Question()
    # The inputs follow from an example, as for torch.onnx.export; form="scan" takes images of any size.
    example = (torch.zeros(1, 4, 6, 1), torch.zeros(1, dtype=torch.long))
    print(export_onnx(net, path, example, form="scan"))
    verify_model(path, net, device="cpu").raise_if_failed()

    session = Session(path, device="cpu")
    outputs = session(np.ones((2, 9, 5, 1)), question=np.asarray([3, 7]))
    print({name: y.shape for name, y in outputs.items()})
    return outputs


if __name__ == "__main__":
    main()
