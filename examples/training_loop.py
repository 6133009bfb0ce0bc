"""A training loop of your own: samples of different sizes, weight decay groups, the best weights.

    python examples/training_loop.py

A sample is an image of noise, and its target the largest value of the image. The images of a batch have
different sizes; they are padded, and `sizes` tells the layer which positions are valid.
"""

import torch
from torch import nn

from mdlstm_tk import MDLSTM


class Largest(nn.Module):
    def __init__(self, hidden=8):
        super().__init__()
        self.layer = MDLSTM(1, hidden, cell="stable")
        self.head = nn.Linear(hidden, 1)

    def forward(self, x, sizes):  # (N, H, W, 1), (N, 2)
        y = self.layer(x, sizes)
        last = y[torch.arange(len(y)), sizes[:, 0] - 1, sizes[:, 1] - 1]  # it has seen the whole image
        return self.head(last)[:, 0]  # (N,)


def batch(count, generator):
    """Padded images (N, 8, 8, 1), their sizes (N, 2), and targets (N,)."""
    sizes = torch.randint(2, 9, (count, 2), generator=generator)
    x = torch.rand(count, 8, 8, 1, generator=generator)
    rows, columns = torch.arange(8)[:, None], torch.arange(8)
    valid = (rows < sizes[:, 0, None, None]) & (columns < sizes[:, 1, None, None])
    return x, sizes, (x[..., 0] * valid).flatten(1).amax(1)


def parameter_groups(network, weight_decay):
    """Weight decay for the recurrent weights of MDLSTM layers, none for the rest."""
    layers = [module for module in network.modules() if isinstance(module, MDLSTM)]
    recurrent = {p for layer in layers for name, p in layer.named_parameters() if "weight_hh" in name}
    others = [p for p in network.parameters() if p not in recurrent]
    decayed = {"params": list(recurrent), "weight_decay": weight_decay}
    return [{"params": others, "weight_decay": 0.0}, decayed]


def main(steps=200, path="largest.pt"):
    """Train the network, keep the best weights, and return their validation error."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    net = Largest()
    optimizer = torch.optim.AdamW(parameter_groups(net, weight_decay=0.01), lr=0.02)
    validation = batch(256, generator)
    best = float("inf")
    for step in range(1, steps + 1):
        x, sizes, target = batch(32, generator)
        loss = (net(x, sizes) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0 or step == steps:
            x, sizes, target = validation
            with torch.no_grad():
                error = (net(x, sizes) - target).abs().mean().item()
            print(f"step {step}: loss {loss.item():.5f}, validation error {error:.4f}")
            if error < best:
                best = error
                torch.save(net.state_dict(), path)
    net.load_state_dict(torch.load(path, weights_only=True))
    return best


if __name__ == "__main__":
    main()
