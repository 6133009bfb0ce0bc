"""Segmentation of volumes with a three-dimensional MDLSTM.

    python examples/volume.py

A volume is so noisy that a single value says little about whether it lies inside the box to be found. In
all eight directions a layer sees the whole volume from every position.
"""

import torch
from torch import nn

from mdlstm_tk import MDLSTM


def volumes(count, size, generator):
    """Noisy volumes (N, D, H, W, 1) with a box that is brighter, and masks (N, D, H, W) of the box."""
    mask = torch.zeros(count, size, size, size)
    for k in range(count):
        d, h, w = torch.randint(size // 2, (3,), generator=generator).tolist()
        mask[k, d : d + size // 2, h : h + size // 2, w : w + size // 2] = 1
    x = mask + torch.randn(mask.shape, generator=generator) * 0.7
    return x[..., None], mask


def main(steps=80):
    """Train the network, and return the share of wrong positions in larger volumes."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(MDLSTM(1, 8, ndim=3, directions="all", merge="sum", cell="stable"), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.03)
    for step in range(steps):
        x, mask = volumes(8, 8, generator)
        loss = nn.functional.binary_cross_entropy_with_logits(net(x)[..., 0], mask)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 19:
            print(f"step {step + 1}: loss {loss.item():.4f}")

    x, mask = volumes(8, 12, generator)
    with torch.no_grad():
        wrong = ((net(x)[..., 0] > 0) != (mask > 0)).float().mean().item()
    threshold = ((x[..., 0] > 0.5) != (mask > 0)).float().mean().item()
    print(f"wrong positions of 12×12×12: {100 * wrong:.1f} %, with a threshold {100 * threshold:.1f} %")
    return wrong


if __name__ == "__main__":
    main()
