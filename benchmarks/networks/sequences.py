"""Networks for matrices, tokens and sequences: attention, states, several outputs, dtypes, cells."""

from __future__ import annotations

import math
from collections import namedtuple
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdlstm_tk import MDLSTM, BoundaryState
from networks.earlier import Around, Pair

MATRIX, WIDE, SIGNAL = torch.rand(2, 5, 6, 1), torch.rand(2, 5, 6, 3), torch.rand(2, 9, 3)
TOKENS, SEQUENCE = torch.randint(9, (2, 5, 6)), torch.randint(9, (2, 9))
ANY, ANY_WIDE, ANY_TOKENS = [(7, 4, 1), (1, 9, 1)], [(7, 4, 3), (1, 9, 3)], [(7, 4), (1, 9)]
ANY_SIGNAL = [(14, 3), (1, 3)]


def body(inputs: int = 1, units: int = 4, **options: Any) -> MDLSTM:
    return MDLSTM(inputs, units, **options)


def net(function: Any, **layers: nn.Module) -> Any:
    """A factory of a network that has a layer `b`."""
    return lambda: Around(function, **{"b": body(), **layers})


class Block(nn.Module):
    """A transformer block with the norms in front."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads, self.ln1, self.ln2 = heads, nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.proj = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d)
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU("tanh"), nn.Dropout(0.1), nn.Linear(2 * d, d))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(self.ln1(x)).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.proj(y.transpose(1, 2).reshape(n, t, d))
        return x + self.mlp(self.ln2(x))


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.blocks = body(directions="all"), nn.ModuleList([Block(16, 4) for _ in range(2)])
        self.cls, self.head = nn.Parameter(torch.randn(1, 1, 16)), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        t = self.body(x).flatten(1, 2)
        t = torch.cat([self.cls.expand(t.shape[0], -1, -1), t], dim=1)
        for block in self.blocks:
            t = block(t)
        return self.head(t[:, 0])


class Causal(nn.Module):
    """A causal mask and sinusoids, both made in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.b, self.block, self.head = (
            nn.Embedding(9, 8),
            body(8, 8, ndim=1),
            Block(8, 2),
            nn.Linear(8, 9, bias=False),
        )
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        t = x.shape[1]
        h = self.b(self.table(x))
        div = torch.exp(torch.arange(0, 8, 2) * (-math.log(1e4) / 8))
        angles = torch.arange(t)[:, None] * div
        h = h + torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
        return self.head(self.block(h, torch.ones(t, t, dtype=torch.bool).tril()))


class Rotary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.b = body(3, 8, ndim=1)
        self.register_buffer("freq", 1 / (100 ** (torch.arange(0, 8, 2).float() / 8)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.b(x)
        angle = torch.einsum("t,f->tf", torch.arange(h.shape[1]).to(self.freq), self.freq)
        a, b = h[..., 0::2], h[..., 1::2]
        return torch.stack(
            [a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1
        ).flatten(-2)


class Seq2Seq(nn.Module):
    """A decoder that attends for a fixed number of steps."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.cell, self.out = body(), nn.GRUCell(4, 4), nn.Linear(4, 7)

    def forward(self, x: Tensor) -> Tensor:
        memory = self.b(x).flatten(1, 2)
        h, outputs = memory.mean(1), []
        for _ in range(3):
            weights = torch.bmm(memory, h[:, :, None]).softmax(1)
            h = self.cell((weights * memory).sum(1), h)
            outputs.append(self.out(h))
        return torch.stack(outputs, 1)


class ConvLSTM(nn.Module):
    """A convolutional LSTM of two steps after a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.gates = body(1, 4, channels_last=False), nn.Conv2d(7, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(x)
        h = c = y.new_zeros(y.shape[0], 3, *y.shape[2:])
        for _ in range(2):
            i, f, o, g = self.gates(torch.cat([y, h], 1)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return h


class States(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.b = body()

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> dict[str, Tensor]:
        y, (state,) = self.b(x, initial_state=(BoundaryState((h, None), (c, None)),), return_state=True)
        return {"y": y, "h_n": state.h[0], "c_n": state.c[0]}


class Sized(nn.Module):
    def __init__(self, convolution: bool) -> None:
        super().__init__()
        self.b, self.c = body(1, 2), nn.Conv2d(2, 2, 2, stride=2, padding=1) if convolution else None

    def forward(self, x: Tensor, sizes: Tensor) -> Tensor:
        y = self.b(x, sizes)
        return y if self.c is None else self.c(y.movedim(-1, 1))


Detection = namedtuple("Detection", ["scores", "offsets"])


class Result(NamedTuple):
    logits: Tensor
    features: Tensor


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor


@dataclass
class Partial:
    logits: Tensor
    loss: Tensor | None = None


def packed(n: Any, x: Tensor) -> Tensor:
    y = n["b"](x).mean(1)
    lengths = torch.full((y.shape[0],), y.shape[1])
    y, _ = n["g"](nn.utils.rnn.pack_padded_sequence(y, lengths, batch_first=True))
    return nn.utils.rnn.pad_packed_sequence(y, batch_first=True)[0]


def frames(n: Any, x: Tensor) -> Tensor:
    """A recurrence over the rows with an LSTM cell of torch, in a Python loop."""
    y, h, c = n["b"](x), None, None
    for row in y.unbind(1):
        h, c = n["cell"](row.mean(1), None if h is None else (h, c))
    return h


def attributes() -> nn.Module:
    network = Around(lambda n, x: (n["b"](x) - network.mean) / network.std, b=body(3, 4))
    network.mean, network.std = torch.tensor([0.4, 0.5, 0.6, 0.7]), torch.full((4,), 0.2)
    return network


def scripted() -> nn.Module:
    return nn.Sequential(body(), torch.jit.script(nn.Sequential(nn.Linear(4, 3), nn.ReLU())))


def mixture(n: Any, x: Tensor) -> Tensor:
    """Experts by top-2 gates."""
    y = n["b"](x)
    weight, index = n["gate"](y).softmax(-1).topk(2, -1)
    experts = torch.stack([n["one"](y), n["two"](y), n["three"](y)], -2)
    return (experts.gather(-2, index[..., None].expand(*index.shape, 4)) * weight[..., None]).sum(-2)


def scattered(n: Any, x: Tensor) -> Tensor:
    y = n["b"](x)
    index = y.argmax(-1, keepdim=True)
    return torch.zeros_like(y).scatter(-1, index, 1.0) * y.masked_fill(y < 0, -1.0)


def masked_softmax(n: Any, x: Tensor) -> Tensor:
    y = n["b"](x).flatten(1, 2)
    scores = torch.einsum("nic,njc->nij", y, y).masked_fill(y.sum(-1)[:, None] < 0, float("-inf"))
    return torch.nan_to_num(scores.softmax(-1)) @ y


def recur(kind: Any, **options: Any) -> Any:
    after = kind(4, 3, batch_first=True, **options)
    return net(lambda n, x: n["g"](n["b"](x).flatten(1, 2))[0], g=after)


lin = nn.Linear
GRU, LSTM = nn.GRU, nn.LSTM
NETWORKS: dict[str, tuple[Any, Any, dict[str, Any], list[tuple[int, ...]]]] = {
    "vit": (ViT, MATRIX, {}, ANY),
    "causal language model": (Causal, SEQUENCE, {}, [(14,), (3,)]),
    "rotary": (Rotary, SIGNAL, {}, ANY_SIGNAL),
    "seq2seq": (Seq2Seq, MATRIX, {}, ANY),
    "convlstm": (ConvLSTM, MATRIX.movedim(-1, 1), {}, [(1, 7, 4)]),
    "states": (States, (torch.zeros(1, 1, 6, 1), *torch.zeros(2, 1, 6, 1, 4).unbind()), {}, []),
    "sizes": (lambda: Sized(False), MATRIX, {"padded": True}, ANY),
    "sizes, convolution": (lambda: Sized(True), MATRIX, {"padded": True}, ANY),
    "named tuple": (net(lambda n, x: Detection(n["b"](x), n["b"](x).mean((1, 2)))), MATRIX, {}, ANY),
    "typed named tuple": (
        net(lambda n, x: Result(n["h"](n["b"](x)), n["b"](x)), h=lin(4, 2)),
        MATRIX,
        {},
        ANY,
    ),
    "dataclass": (net(lambda n, x: Output(n["h"](n["b"](x)), n["b"](x)), h=lin(4, 2)), MATRIX, {}, ANY),
    "dataclass with None": (net(lambda n, x: Partial(n["b"](x))), MATRIX, {}, ANY),
    "dictionary": (net(lambda n, x: {"a": n["b"](x), "i": n["b"](x).argmax(-1)}), MATRIX, {}, ANY),
    "nested": (net(lambda n, x: {"a": [n["b"](x), n["b"](x)], "b": n["b"](x)}), MATRIX, {}, ANY),
    "list": (net(lambda n, x: list(n["b"](x).split(2, -1))), MATRIX, {}, ANY),
    "scalar": (net(lambda n, x: n["b"](x).mean()), MATRIX, {}, ANY),
    "nothing": (net(lambda n, x: print(end="", file=None)), MATRIX, {}, ANY),
    "eye": (net(lambda n, x: n["b"](x) @ torch.eye(4)), MATRIX, {}, ANY),
    "zeros as state": (
        net(
            lambda n, x: n["g"](n["b"](x).mean(1), torch.zeros(1, x.shape[0], 3))[0],
            g=GRU(4, 3, batch_first=True),
        ),
        MATRIX,
        {},
        ANY,
    ),
    "bytes": (net(lambda n, x: n["b"](x.float() / 255)), 255 * MATRIX, {"example_range": (0, 255)}, ANY),
    "one hot": (
        net(lambda n, x: n["b"](functional.one_hot(x, 9).float()), b=body(9)),
        TOKENS,
        {},
        ANY_TOKENS,
    ),
    "attributes": (attributes, WIDE, {}, ANY_WIDE),
    "softmax in float32": (
        net(lambda n, x: n["h"](n["b"](x).softmax(-1, dtype=torch.float32)), h=lin(4, 2)),
        MATRIX,
        {},
        ANY,
    ),
    "float16 layer": (net(lambda n, x: n["b"](x.half()).float(), b=body().half()), MATRIX, {}, ANY),
    "bfloat16 layer": (
        net(lambda n, x: n["b"](x.bfloat16()).float(), b=body().bfloat16()),
        MATRIX,
        {},
        ANY,
    ),
    "float64 layer": (net(lambda n, x: n["b"](x.double()).float(), b=body().double()), MATRIX, {}, ANY),
    "linspace": (
        net(lambda n, x: n["b"](x + torch.linspace(-1, 1, x.shape[1])[:, None, None])),
        MATRIX,
        {},
        ANY,
    ),
    "arange": (
        net(lambda n, x: n["b"](x + torch.arange(x.shape[2])[:, None] / x.shape[2])),
        MATRIX,
        {},
        ANY,
    ),
    "python extent": (net(lambda n, x: n["b"](x * math.sqrt(x.shape[1]))), MATRIX, {}, ANY),
    "loop over rows": (net(frames, cell=nn.LSTMCell(4, 3)), MATRIX, {}, ANY),
    "gru, flattened": (recur(GRU), MATRIX, {}, ANY),
    "gru, two layers": (recur(GRU, num_layers=2, bidirectional=True, bias=False), MATRIX, {}, ANY),
    "lstm, flattened": (recur(LSTM, bidirectional=True), MATRIX, {}, ANY),
    "lstm, projected": (recur(LSTM, proj_size=2), MATRIX, {}, ANY),
    "rnn, relu": (recur(nn.RNN, nonlinearity="relu"), MATRIX, {}, ANY),
    "packed": (net(packed, g=GRU(4, 3, batch_first=True)), MATRIX, {}, ANY),
    "jit": (scripted, MATRIX, {}, ANY),
    "mixture of experts": (
        net(mixture, gate=lin(4, 3), one=lin(4, 4), two=lin(4, 4), three=lin(4, 4)),
        MATRIX,
        {},
        ANY,
    ),
    "scatter": (net(scattered), MATRIX, {}, ANY),
    "masked softmax": (net(masked_softmax), MATRIX, {}, ANY),
    "cumulative": (net(lambda n, x: n["b"](x).cumsum(1).flip(2).roll(1, 2)), MATRIX, {}, ANY),
    "statistics": (
        net(lambda n, x: torch.cat([n["b"](x).std((1, 2)), n["b"](x).amax((1, 2))], -1)),
        MATRIX,
        {},
        ANY,
    ),
    "sorted": (net(lambda n, x: n["b"](x).sort(-1).values.tril()), MATRIX, {}, ANY),
    "shared layer": (net(lambda n, x: n["b"](n["b"](n["h"](x))), b=body(4), h=lin(1, 4)), MATRIX, {}, ANY),
    "film": (
        lambda: Pair(lambda n, x, z: n["b"](x) * n["f"](z)[:, None, None], b=body(), f=lin(5, 4)),
        (MATRIX, torch.rand(2, 5)),
        {},
        ANY,
    ),
    "class condition": (
        lambda: Pair(lambda n, x, z: n["b"](x) + n["e"](z)[:, None, None], b=body(), e=nn.Embedding(7, 4)),
        (MATRIX, torch.randint(7, (2,))),
        {},
        ANY,
    ),
    "no batch axis": (lambda: body(3, 4), WIDE[0], {}, ANY_WIDE),
    "first column": (net(lambda n, x: n["b"](x)[:, :, 0]), MATRIX, {}, ANY),
    "every cell": (
        lambda: nn.Sequential(
            body(3, 4, cell="mean"),
            body(4, 4, cell="stable"),
            body(4, 4, cell="leaky"),
            body(4, 4, cell="slstm"),
            body(4, 4, peephole=True, layer_norm=True),
        ),
        WIDE,
        {},
        ANY_WIDE,
    ),
    "windows": (lambda: nn.Sequential(body(3, 4, window=(2, 3)), body(4, 2, window=2)), WIDE, {}, ANY_WIDE),
    "four axes": (lambda: body(1, 2, ndim=4), torch.rand(1, 2, 3, 2, 3, 1), {}, [(3, 2, 4, 2, 1)]),
}
