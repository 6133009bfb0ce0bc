"""The Ising model, whose probabilities are known, and a network that learns it."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from mdlstm_tk.data import Ising
from mdlstm_tk.errors import InputError
from mdlstm_tk.models import DensityNet, create


def all_images(height: int, width: int) -> np.ndarray:
    return np.array(list(product((0.0, 1.0), repeat=height * width))).reshape(-1, height, width, 1)


@pytest.mark.parametrize("size", [(3, 3), (2, 5), (5, 2), (1, 4), (4, 1)])
def test_probabilities_and_entropy_are_those_of_an_enumeration(size: tuple[int, int]) -> None:
    task = Ising(size, beta=0.7)
    log_p = task.log_prob(all_images(*size))
    assert np.exp(log_p).sum() == pytest.approx(1, abs=1e-12)
    assert task.entropy == pytest.approx(-(np.exp(log_p) * log_p).sum(), abs=1e-6)


def test_a_long_chain_has_the_entropy_of_the_textbook() -> None:
    beta = 0.5  # a chain: each of the n − 1 bonds is a coin by itself, and the first spin another
    p = 1 / (1 + np.exp(-2 * beta))
    bond = -p * np.log(p) - (1 - p) * np.log(1 - p)
    assert Ising((1, 16), beta).entropy == pytest.approx(np.log(2) + 15 * bond, abs=1e-6)
    assert Ising((200, 1), beta).entropy == pytest.approx(np.log(2) + 199 * bond, abs=1e-5)


def test_images_are_drawn_with_their_probabilities() -> None:
    task = Ising((2, 3), beta=0.6)
    x = task.batch(0, 0, 20_000).x
    numbers = (x.reshape(-1, 6) @ 2 ** np.arange(6)[::-1]).astype(int)
    frequency = np.bincount(numbers, minlength=64) / len(x)
    p = np.exp(task.log_prob(all_images(2, 3)))
    assert (np.abs(frequency - p) < 4.5 * np.sqrt(p * (1 - p) / len(x)) + 1e-9).all()


def test_baselines_are_the_exact_probabilities_and_mixtures() -> None:
    task = Ising((3, 4), beta=0.9)
    errors = task.baselines(0, 4000)
    assert list(errors) == ["exact", "independent", "mixture"]
    exact, independent, mixture = (entry["nats"] for entry in errors.values())
    assert exact == pytest.approx(task.entropy, rel=0.05)
    assert independent == pytest.approx(12 * np.log(2), rel=0.01)  # each spin by itself is a fair coin
    assert exact < mixture < independent - 1
    assert errors["exact"]["bits_per_dim"] == pytest.approx(exact / 12 / np.log(2))


def test_a_network_learns_the_distribution() -> None:
    task = Ising((4, 4))
    torch.manual_seed(0)
    network = create("pixel", 1, 1, kind="density", hidden=8)
    assert isinstance(network, DensityNet)
    optimizer = torch.optim.Adam(network.parameters())
    steps = 300
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 + np.cos(np.pi * step / steps)) / 2
        optimizer.zero_grad()
        (-network.log_prob(torch.from_numpy(task.batch(0, step, 128).x)).mean()).backward()
        optimizer.step()
    images = all_images(4, 4).astype(np.float32)
    p = np.exp(task.log_prob(images))
    with torch.no_grad():
        log_q = torch.cat([network.log_prob(part) for part in torch.from_numpy(images).split(8192)]).numpy()
    nats = -(p * log_q).sum()  # exact: over all images
    assert task.entropy <= nats <= 1.01 * task.entropy
    assert np.exp(log_q.astype(np.float64)).sum() == pytest.approx(1, abs=1e-4)
    drawn = network.sample(4000, (4, 4), generator=torch.Generator().manual_seed(0)).flatten(1) * 2 - 1
    spins = images.reshape(len(images), -1) * 2 - 1
    exact = (spins * p[:, None]).T @ spins
    correlation = (drawn.T @ drawn / len(drawn)).numpy()
    error_bar = np.sqrt((1 - exact**2).clip(0) / len(drawn))
    assert (np.abs(correlation - exact) < 5 * error_bar + 1e-6).all()


@pytest.mark.parametrize("size", [(3, 24), (1000, 16), (3, 10**9), (3,), (3, 3, 3)])
def test_sizes_with_too_many_states_are_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="such as 16x16"):
        Ising(size)
