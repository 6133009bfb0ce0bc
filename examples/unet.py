"""An MDLSTM in the bottleneck of a U-Net: train it, export it for images of any size, run it without torch.

    python examples/unet.py

The convolutions see a neighbourhood, the MDLSTM in the middle sees the whole image. Here that is needed: of
two equal squares, the network marks the one that is nearer to the top of the image.
"""

import numpy as np
import torch
from torch import nn

from mdlstm_tk import MDLSTM
from mdlstm_tk.export import export_onnx
from mdlstm_tk.runtime import Session


class UNet(nn.Module):
    def __init__(self, channels=1, outputs=2, width=8):
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU())
        self.down2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU())
        self.bottleneck = MDLSTM(2 * width, width, directions="all", cell="stable", channels_last=False)
        self.up = nn.ConvTranspose2d(4 * width, width, 2, stride=2)
        self.head = nn.Conv2d(2 * width, outputs, 3, padding=1)

    def forward(self, x):  # (N, C, H, W), H and W even
        skip = self.down1(x)
        y = self.up(self.bottleneck(self.down2(skip)))
        return self.head(torch.cat([skip, y], dim=1))  # (N, outputs, H, W)


def squares(count, size, generator):
    """Images (N, 1, size, size) with two squares of 3×3, and masks (N, size, size) of the upper one."""
    x = torch.rand(count, 1, size, size, generator=generator) * 0.2
    mask = torch.zeros(count, size, size, dtype=torch.long)
    half = size // 2
    for k in range(count):
        for top in (0, half):
            row = top + int(torch.randint(half - 3, (), generator=generator))
            column = int(torch.randint(size - 3, (), generator=generator))
            x[k, 0, row : row + 3, column : column + 3] += 0.8
            if top == 0:
                mask[k, row : row + 3, column : column + 3] = 1
    return x, mask


def main(steps=150, path="unet.onnx"):
    """Train and export the network, and return the share of wrong pixels on larger images."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    net = UNet()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    weight = torch.tensor([1.0, 8.0])  # few pixels are marked
    for _ in range(steps):
        x, mask = squares(16, 16, generator)
        loss = nn.functional.cross_entropy(net(x), mask, weight)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    print(export_onnx(net, path, torch.zeros(1, 1, 16, 16), form="scan", multiple_of=2))
    x, mask = squares(32, 24, generator)
    scores = Session(path, device="cpu")(x.numpy())  # (N, 2, 24, 24), by ONNX Runtime
    return float(np.mean(scores.argmax(1) != mask.numpy()))


if __name__ == "__main__":
    print(f"wrong pixels on 24×24 images: {100 * main():.2f} %")
