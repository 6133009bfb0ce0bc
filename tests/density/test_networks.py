"""Density models: exact probabilities, strict causality, and drawing with cached states."""

from __future__ import annotations

import pytest
import torch
from helpers.checkout import ROOT
from torch import Tensor

from mdlstm_tk._util.user_code import import_file
from mdlstm_tk.density import DensityNet, PixelNet
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


@pytest.mark.parametrize(("channels", "outputs"), [(1, 3), (3, 1), (2, 3), (3, 2)])
def test_the_probabilities_of_images_with_channels_and_levels_sum_to_1(channels: int, outputs: int) -> None:
    log_p = network(channels, outputs, layers=2).log_prob(all_images(1, 2, max(outputs, 2), channels))
    assert abs(log_p.exp().sum() - 1) < 1e-9


LEAKY = {"cell": "leaky", "layer_norm": True, "layers": 2}
NETWORKS = [("pixel", options) for options in ({}, {"layer_norm": True}, LEAKY)]
NETWORKS += [("conv", {}), ("row", {}), ("snake", {})]  # wide enough that no head has only dead units
each_network = pytest.mark.parametrize(("name", "options"), NETWORKS)


@pytest.fixture(autouse=True)
def rival_networks(fresh_registries: None) -> None:
    """Register the networks that the page on density models compares with."""
    import_file(ROOT / "benchmarks/rival_networks.py")


@each_network
def test_the_probabilities_sum_to_1_after_training(name: str, options: dict[str, object]) -> None:
    net, images = network(1, 1, name, **{"layers": 2, "hidden": 16} | options), all_images(3, 3)
    assert abs(net.log_prob(images).exp().sum() - 1) < 1e-9
    seen = images[[0, 7, 73, 511]]
    optimizer = torch.optim.Adam(net.parameters(), 0.04)
    before = net.log_prob(seen).mean().item()
    for _ in range(15):
        optimizer.zero_grad()
        (-net.log_prob(seen).mean()).backward()
        optimizer.step()
    assert net.log_prob(seen).mean().item() > before + 1
    assert abs(net.log_prob(images).exp().sum() - 1) < 1e-9


@each_network
@pytest.mark.parametrize("size", [(2, 4), (4, 2), (1, 5), (5, 1)])
def test_with_sizes_the_probabilities_of_the_valid_part_sum_to_1(
    name: str, options: dict[str, object], size: tuple[int, int]
) -> None:
    net, images = network(1, 1, name, **{"layers": 2, "hidden": 16} | options), all_images(*size)
    height, width = size
    padded = torch.full((len(images), height + 2, width + 3, 1), torch.nan, dtype=torch.float64)
    padded[:, :height, :width] = images
    with torch.no_grad():
        log_p = net.log_prob(padded, sizes=[size] * len(images))
        torch.testing.assert_close(log_p, net.log_prob(images), atol=1e-12, rtol=0)
    assert abs(log_p.exp().sum().item() - 1) < 1e-9


each_option = pytest.mark.parametrize("options", [{}, {"layers": 3}, LEAKY])


@each_option
@pytest.mark.parametrize("channels", [1, 3])
def test_a_value_depends_on_all_values_before_it_alone(options: dict[str, object], channels: int) -> None:
    net = network(channels, 2, **options)
    x = torch.rand(1, *SIZE, channels, dtype=torch.float64, requires_grad=True)
    logits = net.logits(x).flatten(0, -2)  # (H·W·C, K)
    for index, row in enumerate(logits):
        (gradient,) = torch.autograd.grad(row[1], x, retain_graph=True)
        dependence = gradient.flatten() != 0
        assert dependence[:index].all() and not dependence[index:].any()


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bits_are_drawn_and_summed_in_float32(dtype: torch.dtype) -> None:
    net, x = network(2, 3, layers=2), torch.randint(0, 3, (3, *SIZE, 2)).double() / 2
    with torch.no_grad():
        whole = net.body(2 * x - 1, None)
        for row, column, features in net.to(dtype).contexts(x.to(dtype)):
            assert features.dtype == dtype
            torch.testing.assert_close(features.double(), whole[:, row, column], atol=0.1, rtol=0)
        net.heads[0][-1].bias[-1] = -1000  # type: ignore[index, union-attr]
        drawn = net.sample(2, SIZE, uniform=torch.full((2, *SIZE, 2), 0.999))  # 1 in bfloat16
        assert (drawn[..., 0] < 1).all()  # no level without probability
        net.heads[0][-1].bias[1] = 100  # type: ignore[index, union-attr]
        assert (net.sample(2, SIZE, temperature=1e-4)[..., 0] == 0.5).all()  # by which logits overflow
    log_p = PixelNet(1, 1, hidden=1).to(dtype).log_prob(torch.zeros(1, 400, 400, 1).to(dtype))
    assert log_p.dtype == torch.float32 and log_p.isfinite().all() and log_p < -65504


@pytest.mark.parametrize("given", [None, torch.tensor([[[1.0], [0]]]), torch.tensor([[[1], [torch.nan]]])])
def test_drawn_images_have_the_probabilities_of_the_model(given: Tensor | None) -> None:
    """Those that agree with what is given have their conditional ones."""
    net, images, count = network(layers=2), all_images(2, 2), 20_000
    uniform = torch.rand(count, 2, 2, 1, generator=torch.Generator().manual_seed(0))
    drawn = net.sample(count, (2, 2), uniform=uniform, given=given)
    if given is not None:
        images = images[(given.isnan() | (images[:, :1] == given)).all((1, 2, 3))]
    with torch.no_grad():
        p = net.log_prob(images).softmax(0)
    weights = torch.tensor([8.0, 4, 2, 1], dtype=torch.float64)
    numbers, expected = (each.flatten(1).double() @ weights for each in (drawn, images))
    frequency = (numbers[:, None] == expected).double().mean(0)
    assert frequency.sum() == 1
    assert ((frequency - p).abs() < 4 * (p * (1 - p) / count).sqrt() + 1e-9).all()
    cold = net.sample(200, (2, 2), given=given, temperature=0.01)
    assert len(cold.unique(dim=0)) == 1


def test_values_that_have_no_probability_are_refused() -> None:
    net, padded = network().float(), torch.zeros(1, 4, 4, 1)
    padded[0, 2:] = torch.nan
    assert net.log_prob(padded, sizes=[[2, 4]]).isfinite().all()
    for x in (padded, padded.nan_to_num(1.5), padded.nan_to_num(-0.25)):
        with pytest.raises(InputError):
            net.log_prob(x)
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError):
            net.sample(2, SIZE, temperature=temperature)
    # One column, which would be repeated; too many rows; all of the image; bytes; negative numbers.
    for rows, columns, value in ((4, 1, 0.0), (5, 4, 0.0), (4, 4, 0.0), (2, 4, 255.0), (2, 4, -0.1)):
        with pytest.raises(InputError, match="given"):
            net.sample(2, (4, 4), given=torch.full((rows, columns, 1), value))
    with torch.no_grad():
        net.heads[0][-1].bias[0] = torch.nan  # type: ignore[index, union-attr]
    with pytest.raises(InputError, match="diverged"):
        net.sample(2, SIZE)
