"""Density models: exact probabilities, strict causality, and drawing with cached states."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.checkout import ROOT
from torch import Tensor

from mdlstm_tk import MDLSTM
from mdlstm_tk._util.user_code import import_file
from mdlstm_tk.density import DensityNet, Ising
from mdlstm_tk.density.pixel import PixelNet
from mdlstm_tk.errors import InputError
from mdlstm_tk.models import create

SIZE = (4, 5)


def network(channels: int = 1, outputs: int = 1, name: str = "pixel", **options: object) -> DensityNet:
    """A small network in float64 whose weights are far from where training starts."""
    torch.manual_seed(0)
    net = create(name, channels, outputs, kind="density", **({"hidden": 5} | options)).double()
    assert isinstance(net, DensityNet)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return net


def all_images(height: int, width: int, levels: int = 2, channels: int = 1) -> Tensor:
    """Each image of this size once, (levels^(H·W·C), H, W, C)."""
    values = torch.linspace(0, 1, levels, dtype=torch.float64)
    count = height * width * channels
    return torch.cartesian_prod(*[values] * count).reshape(-1, height, width, channels)


@torch.no_grad()
def total_probability(net: DensityNet, images: Tensor) -> float:
    return net.log_prob(images).exp().sum().item()


@pytest.mark.parametrize(("channels", "outputs"), [(1, 3), (3, 1), (2, 3), (3, 2)])
def test_the_probabilities_of_images_with_channels_and_levels_sum_to_1(channels: int, outputs: int) -> None:
    images = all_images(1, 2, max(outputs, 2), channels)
    assert abs(total_probability(network(channels, outputs, layers=2), images) - 1) < 1e-9


NETWORKS: dict[str, dict[str, object]] = {  # wide enough that no head has only dead units
    "pixel": {"hidden": 8},
    "pixel with layer norm": {"hidden": 8, "layer_norm": True},
    "pixel, leaky": {"hidden": 8, "cell": "leaky", "layer_norm": True},
    "conv": {"hidden": 16},
    "row": {"hidden": 16},
    "snake": {"hidden": 16},
}
each_network = pytest.mark.parametrize("kind", NETWORKS)


def two_layers(kind: str, channels: int = 1, outputs: int = 1) -> DensityNet:
    return network(channels, outputs, kind.split()[0].strip(","), layers=2, **NETWORKS[kind])


@pytest.fixture(autouse=True)
def rival_networks(fresh_registries: None) -> None:
    """Register the networks that the page on density models compares with."""
    import_file(ROOT / "benchmarks/rival_networks.py")


@each_network
def test_the_probabilities_sum_to_1_after_training(kind: str) -> None:
    net, images = two_layers(kind), all_images(3, 3)
    assert abs(total_probability(net, images) - 1) < 1e-9
    seen = images[[0, 7, 73, 511]]
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    before = net.log_prob(seen).mean().item()
    for _ in range(30):
        optimizer.zero_grad()
        (-net.log_prob(seen).mean()).backward()
        optimizer.step()
    assert net.log_prob(seen).mean().item() > before + 1
    assert abs(total_probability(net, images) - 1) < 1e-9


@each_network
@pytest.mark.parametrize("size", [(2, 4), (4, 2), (1, 5), (5, 1)])
def test_with_sizes_the_probabilities_of_the_valid_part_sum_to_1(kind: str, size: tuple[int, int]) -> None:
    net, images = two_layers(kind), all_images(*size)
    height, width = size
    padded = torch.full((len(images), height + 2, width + 3, 1), torch.nan, dtype=torch.float64)
    padded[:, :height, :width] = images
    with torch.no_grad():
        log_p = net.log_prob(padded, sizes=[size] * len(images))
        torch.testing.assert_close(log_p, net.log_prob(images), atol=1e-12, rtol=0)
    assert abs(log_p.exp().sum().item() - 1) < 1e-9


each_option = pytest.mark.parametrize(
    "options", [{}, {"layers": 3}, {"cell": "leaky", "layer_norm": True, "layers": 2}]
)


@each_option
@pytest.mark.parametrize("channels", [1, 3])
def test_a_value_depends_on_all_values_before_it_alone(options: dict[str, object], channels: int) -> None:
    net = network(channels, 2, **options)
    x = torch.rand(1, *SIZE, channels, dtype=torch.float64, requires_grad=True)
    logits = net.logits(x).flatten(0, -2)  # (H·W·C, K)
    for index, row in enumerate(logits):
        (gradient,) = torch.autograd.grad(row[1], x, retain_graph=True)
        dependence = gradient.flatten() != 0
        assert dependence[:index].all()
        assert not dependence[index:].any()


@each_option
@pytest.mark.parametrize("size", [SIZE, (1, 4), (4, 1)])
def test_kept_states_give_the_same_features_as_the_whole_grid(
    options: dict[str, object], size: tuple[int, int]
) -> None:
    net = network(2, 3, **options)
    x = torch.randint(0, 3, (3, *size, 2)).double() / 2
    drawn = torch.zeros_like(x)
    with torch.no_grad():
        whole = net.body(2 * x - 1, None)
        for row, column, features in net.contexts(drawn):
            torch.testing.assert_close(features, whole[:, row, column], atol=1e-12, rtol=0)
            drawn[:, row, column] = x[:, row, column]
    assert (drawn == x).all()


def test_log_probabilities_in_16_bits_are_sums_in_float32() -> None:
    log_p = PixelNet(1, 1, hidden=1).half().log_prob(torch.zeros(1, 400, 400, 1).half())
    assert log_p.dtype == torch.float32 and log_p.isfinite().all() and log_p < -65504


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_kept_states_of_a_16_bit_network(dtype: torch.dtype) -> None:
    net, x = network(2, 3, layers=2), torch.randint(0, 3, (3, *SIZE, 2)).double() / 2
    with torch.no_grad():
        whole = net.body(2 * x - 1, None)
        for row, column, features in net.to(dtype).contexts(x.to(dtype)):
            assert features.dtype == dtype
            torch.testing.assert_close(features.double(), whole[:, row, column], atol=0.1, rtol=0)


def test_drawn_images_have_the_probabilities_of_the_model() -> None:
    net, images, count = network(layers=2), all_images(2, 2), 20_000
    drawn, again = (net.sample(count, (2, 2), generator=torch.Generator().manual_seed(0)) for _ in range(2))
    assert (drawn == again).all()
    numbers = (drawn.flatten(1) @ torch.tensor([8.0, 4, 2, 1], dtype=torch.float64)).long()
    frequency = torch.bincount(numbers, minlength=16) / count
    with torch.no_grad():
        p = net.log_prob(images).exp()
    assert ((frequency - p).abs() < 4 * (p * (1 - p) / count).sqrt() + 1e-9).all()
    cold = net.sample(200, (2, 2), temperature=0.01)
    assert len(cold.unique(dim=0)) == 1


def test_given_values_are_kept_and_the_rest_is_drawn_from_the_conditional() -> None:
    net, count = network(layers=2), 20_000
    upper = torch.tensor([[[1.0], [0.0]]])
    drawn = net.sample(count, (2, 2), given=upper, generator=torch.Generator().manual_seed(0))
    assert (drawn[:, 0, :, 0] == torch.tensor([1.0, 0.0])).all()
    images = all_images(2, 2)
    images = images[(images[:, 0] == upper[0].double()).all((1, 2))]
    with torch.no_grad():
        p = net.log_prob(images).softmax(0)  # given the upper row
    for image, probability in zip(images, p, strict=True):
        frequency = (drawn == image).all((1, 2, 3)).double().mean()
        assert abs(frequency - probability) < 4 * (probability * (1 - probability) / count) ** 0.5
    mask = torch.tensor([[False, True], [True, False]])
    masked = net.sample(50, (2, 2), given=torch.ones(2, 2, 1), mask=mask)
    assert (masked[:, mask] == 1).all()
    assert (masked[:, ~mask] == 0).any()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"n": 0}, "at least 1"),
        ({"temperature": 0.0}, "temperature.*0"),
        ({"given": torch.zeros(2, 3, 1)}, r"given must be .*4, 4, 1\).*fewer rows.*got shape \(2, 3, 1\)"),
        ({"given": torch.zeros(4, 4, 1), "mask": torch.ones(4, 4)}, "mask.*float32"),
        ({"mask": torch.ones(4, 4) > 0}, "given is None"),
        ({"uniform": torch.zeros(2, 4, 4)}, r"uniform.*\(2, 4, 4\)"),
        ({"uniform": torch.ones(2, 4, 4, 1)}, r"uniform must lie in \[0, 1\)"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, object], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        network().sample(**{"n": 2, "size": (4, 4), **arguments})  # type: ignore[arg-type]


def test_values_that_have_no_probability_are_refused() -> None:
    net, padded = network().float(), torch.zeros(1, 4, 4, 1)
    outside = torch.tensor([[0.5, 1.5], [-0.25, 0.5]])[..., None]
    padded[0, :2, :2], padded[0, 2:] = outside.clamp(0, 1), torch.nan
    with pytest.raises(InputError, match=r"x must lie in \[0, 1\], got values from -0.25 to 1.5"):
        net.log_prob(outside[None])
    with pytest.raises(InputError, match="x holds NaN"):
        net.log_prob(padded)
    with torch.no_grad():
        assert net.log_prob(padded, sizes=[[2, 2]]).isfinite().all()
    with pytest.raises(InputError, match=r"x has shape \(2, 2, 1\)"):
        net.log_prob(outside)
    with pytest.raises(InputError, match=r"given must lie in \[0, 1\]"):
        net.sample(2, (2, 2), given=outside)


def test_a_network_that_diverged_draws_nothing() -> None:
    net = network()
    with torch.no_grad():
        net.heads[0][-1].bias[0] = torch.nan  # type: ignore[index, union-attr]
    with pytest.raises(InputError, match="hold NaN"):
        net.sample(2, SIZE)


def test_given_values_that_are_nan_are_drawn() -> None:
    net, uniform = network(2, 3, layers=2), torch.rand(6, 4, 4, 2)
    mask = torch.tensor([[True, False, True, True], [False] * 4])
    values = torch.full((2, 4, 2), 0.5)
    marked = values.masked_fill(~mask[..., None], torch.nan)
    drawn = net.sample(6, (4, 4), uniform=uniform, given=marked)  # the upper rows, without a mask
    whole, whole_mask = torch.zeros(4, 4, 2), torch.zeros(4, 4, dtype=torch.bool)
    whole[:2], whole_mask[:2] = values, mask
    assert (drawn == net.sample(6, (4, 4), uniform=uniform, given=whole, mask=whole_mask)).all()
    assert drawn.isfinite().all() and (drawn[:, :2][:, mask] == 0.5).all()


def test_half_precision_draws_no_level_without_probability() -> None:
    net = network(1, 3, "conv")
    with torch.no_grad():
        net.heads[0][-1].bias[-1] = -1000  # type: ignore[index, union-attr]
    drawn = net.bfloat16().sample(2, SIZE, uniform=torch.full((2, *SIZE, 1), 0.999))  # 1 in bfloat16
    assert (drawn == 0.5).all()


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
    images = all_images(4, 4).numpy().astype(np.float32)
    p = np.exp(task.log_prob(images))
    with torch.no_grad():
        log_q = torch.cat([network.log_prob(part) for part in torch.from_numpy(images).split(8192)]).numpy()
    nats = -(p * log_q).sum()  # exact: over all images
    assert task.entropy <= nats <= 1.01 * task.entropy
    assert np.exp(log_q.astype(np.float64)).sum() == pytest.approx(1, abs=1e-4)


def test_a_cold_network_in_half_precision_draws_the_likeliest_level() -> None:
    net = network(1, 3)
    with torch.no_grad():
        net.heads[0][-1].bias[1] = 100  # type: ignore[index, union-attr]
    for temperature in (1e-4, 1e-40, 1e-300):  # by which logits overflow; the last is 0 in float32
        assert (net.half().sample(2, SIZE, temperature=temperature) == 0.5).all()


def test_drawing_runs_hooks_of_layers_and_their_own_forward() -> None:
    """As old `torch.nn.utils.weight_norm`, whose hook makes the weight that a layer uses."""

    class Doubling(MDLSTM):
        def forward(self, x: Tensor, *arguments: Any, **options: Any) -> Any:
            return super().forward(2 * x, *arguments, **options)

    plain, hooked, own = (network(layers=1) for _ in range(3))
    (layer,) = hooked.body.layers  # type: ignore[union-attr]
    layer.register_forward_pre_hook(lambda layer, arguments: (2 * arguments[0], *arguments[1:]))
    own.body.layers[0].__class__ = Doubling  # type: ignore[index]
    uniform = torch.rand(3, 4, 5, 1)
    drawn = [net.sample(3, (4, 5), uniform=uniform) for net in (plain, hooked, own)]
    assert torch.equal(drawn[1], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])
