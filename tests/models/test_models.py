"""The networks, with options that are drawn at random, and the registry that users extend."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds import kind_named, kind_names
from mdlstm_tk.layer import MDLSTM
from mdlstm_tk.models import Normalized, create, model_names, model_options, register
from mdlstm_tk.models.blocks import depth_to_space, fill_padding
from mdlstm_tk.tiling.stages import TileStages, stages_of

KINDS = [kind for kind in kind_names() if not kind_named(kind).networks]  # those with networks of their own
NETWORKS = [(kind, model) for kind in KINDS for model in model_names(kind)]
# of options, from which cases are drawn
VALUES: dict[str, list[Any]] = {"layers": [1, 2], "directions": [1, "all"], "ndim": [1, 2, 3]}
VALUES |= {"layer_norm": [False, True], "linear": [False, True], "dropout": [0.0, 0.5]}
VALUES |= {"cell": ["graves", "mean", "stable", "leaky", "slstm"]}
VALUES |= {"windows": [(), (2,), ((2, 3), (2, 1)), ((1, 2), 1, (2, 2))]}
SIZES = torch.tensor([[9, 13, 3], [5, 7, 2], [1, 1, 1], [1, 8, 3], [9, 1, 1]])


def drawn(kind: str, model: str, seed: int) -> dict[str, Any]:
    """Options of a network."""
    random, known = Random(f"{kind} {model} {seed}"), model_options(model, kind)
    options = {name: random.choice(values) for name, values in VALUES.items() if name in known}
    if kind == "transcribe":
        options.pop("ndim", None)
    if "windows" in options and options.get("ndim", 2) != 2:
        options["windows"] = random.choice([(), (2,), (2, 1)])
    return {"hidden": random.choice([1, 3, 4]), **options}


CASES = [(*names, drawn(*names, seed)) for names in NETWORKS for seed in range(2)]
every_case = pytest.mark.parametrize(("kind", "model", "options"), CASES)


def made(kind: str, model: str, options: dict[str, Any], **more: Any) -> Any:
    torch.manual_seed(0)
    return create(model, 2, 3, kind=kind, **options, **more)


def batch(ndim: int) -> tuple[torch.Tensor, torch.Tensor]:
    sizes = SIZES[:, :ndim]
    return torch.randn(len(sizes), *sizes.amax(0).tolist(), 2), sizes


def extents_of(kind: str, network: Any, extents: list[int]) -> list[int]:
    """The extents of the output for a sample."""
    if kind == "transcribe":
        return [-(-extents[1] // network.columns_per_step)]
    return [] if kind == "classify" else [-(-n // (2 if kind == "baselines" else 1)) for n in extents]


@every_case
def test_padding_changes_nothing(kind: str, model: str, options: dict[str, Any]) -> None:
    """A padded batch gives what its samples give alone, and with more padding the gradients and running
    statistics are the same, whatever the padding holds."""
    network = made(kind, model, options).eval()
    x, sizes = batch(options.get("ndim", 2))
    full = network(fill_padding(x, sizes, torch.nan), sizes)
    assert torch.equal(network(x, np.int32(sizes)), network(x, sizes))
    for k, extents in enumerate(sizes.tolist()):
        alone = network(x[k][tuple(map(slice, extents))][None])[0]
        features = 2 if kind == "density" else 3
        assert [*alone.shape] == [*extents_of(kind, network, extents), features]
        inner = full[k][tuple(map(slice, alone.shape))]
        torch.testing.assert_close(inner, alone, atol=1e-5, rtol=1e-4)
        if kind == "transcribe":  # after the text the blank is certain
            assert (full[k, len(alone) :].log_softmax(-1)[..., 0].abs() < 1e-6).all()

    if "dropout" in options:  # whose mask depends on the shape
        options = {**options, "dropout": 0.0}
    results = []
    for more in (0, 11):
        twin = made(kind, model, options).train()
        padded = torch.nn.functional.pad(x, (0, 0) + (0, more) * sizes.shape[1])
        y = twin(fill_padding(padded, sizes, torch.nan), sizes)
        inner = [
            each[k][tuple(map(slice, extents_of(kind, twin, extents)))].square().mean()
            for each in (y if isinstance(y, tuple) else (y,))
            for k, extents in enumerate(sizes.tolist())
        ]
        loss = torch.stack(inner).sum()
        loss.backward()
        results.append([loss, *(p.grad for p in twin.parameters() if p.grad is not None), *twin.buffers()])
    assert all(each.isfinite().all() for each in results[0])
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("kind", "model", "options"), CASES[::2])
def test_a_captured_network_computes_the_same(kind: str, model: str, options: dict[str, Any]) -> None:
    network, given = made(kind, model, options).eval(), batch(options.get("ndim", 2))
    captured = torch.export.export(network, given).module()
    torch.testing.assert_close(captured(*given), network(*given))


@every_case
def test_a_network_has_its_device_and_type(kind: str, model: str, options: dict[str, Any]) -> None:
    """Equal seeds give equal weights, and weights fit a network of another device or type."""
    network = made(kind, model, options).eval()
    again = made(kind, model, options)
    with torch.device("meta"):
        empty = made(kind, model, options)
    assert all(map(torch.equal, again.state_dict().values(), network.state_dict().values()))
    assert all(parameter.is_meta for parameter in empty.parameters())
    empty.to_empty(device="cpu").load_state_dict(network.state_dict())
    x, _ = batch(options.get("ndim", 2))
    assert torch.equal(empty.eval()(x), network(x))
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        other = Normalized(made(kind, model, options), (0.5, 0.5), (2.0, 1.0)).to(dtype)
        assert {p.dtype for p in other.state_dict().values() if p.is_floating_point()} == {dtype}
        assert other.eval()(x.to(dtype)).dtype == dtype
    with pytest.raises(InputError):
        network(x[0])  # as N samples with an axis less


NUMBERS = (1.0, 2.0), (0.5, 4.0), (1.0, 2.0, 3.0), (3.0, 4.0, 5.0)  # means and deviations


def composed(stages: TileStages, x: torch.Tensor) -> torch.Tensor:
    """The result of stages, computed without tiles."""
    grid = x.shape[1:-1]
    for stage in stages.stages:
        x = stage.layer(x if stage.before is None else stage.before(x))
        x = x if stage.after is None else stage.after(x)
    if stages.pool:
        x = x.mean([1 + axis for axis in stages.pool])
    x = x if stages.head is None else stages.head(x)
    return depth_to_space(x, tuple(stages.upsample), grid) if stages.upsample else x


@every_case
def test_stages_of_tiles_are_the_network(kind: str, model: str, options: dict[str, Any]) -> None:
    network = made(kind, model, options).eval()
    x, _ = batch(options.get("ndim", 2))
    if model != "md":
        with pytest.raises(InputError):
            stages_of(network)
        return
    torch.testing.assert_close(composed(stages_of(network), x), network(x))
    mean, std, low, scale = map(torch.tensor, NUMBERS)
    expected = network((x - mean) / std) * scale + low
    scaled = Normalized(network, *NUMBERS).eval()
    torch.testing.assert_close(scaled(x), expected)
    torch.testing.assert_close(composed(scaled.tile_stages(), x), expected)


ROWS, COLUMNS = torch.arange(4)[:, None], torch.arange(6)[None]
READ_BEFORE = (ROWS < 2) | ((ROWS == 2) & (COLUMNS <= 3))  # up to (2, 3) in reading order
FIELDS = {"md": (ROWS <= 2) & (COLUMNS <= 3), "horizontal": (ROWS == 2) & (COLUMNS <= 3)}
FIELDS |= {"snake": READ_BEFORE, "raster": READ_BEFORE}


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("model", FIELDS)
def test_networks_of_grids_see_their_field_and_predict_the_mean_at_first(model: str, linear: bool) -> None:
    torch.manual_seed(0)
    network: Any = create(model, 1, 2, hidden=4, layers=2, linear=linear)
    x = torch.randn(1, 4, 6, 1, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(x)[0, 2, 3, 0], x)
    assert torch.equal(gradient[0, ..., 0] != 0, FIELDS[model])
    mean = torch.tensor([20.0, -3.0] if linear else [0.08, 0.9])
    network.set_initial_prediction(mean.tolist())
    predicted = network(torch.rand(4, 8, 8, 1) * 0.1).mean((0, 1, 2))
    torch.testing.assert_close(predicted, mean, atol=1.0 if linear else 0.08, rtol=0)


LAYER, HEAD = ["weight_ih_l0", "weight_hh_l0", "bias_l0"], ["head.weight", "head.bias"]
LEVELS = [f"encoder.levels.{k}.{name}" for k in (0, 1) for name in LAYER]
OF_1_0 = {  # as files of 1.0 have them
    ("grid", "md"): [f"body.{name}" for name in LAYER] + HEAD,
    ("grid", "snake"): [f"body.lstm.{name}" for name in (*LAYER[:2], "bias_ih_l0", "bias_hh_l0")] + HEAD,
    ("grid", "raster"): [f"body.layers.0.{name}" for name in LAYER] + HEAD,
    ("classify", "md"): LEVELS[:3] + HEAD,
    ("transcribe", "md"): [*LEVELS, "encoder.merges.0.weight", "encoder.merges.0.bias", *HEAD],
}


def test_weights_have_the_names_of_1_0_and_levels_their_units() -> None:
    for (kind, model), names in OF_1_0.items():
        assert [*create(model, 1, 3, kind=kind).state_dict()] == names
    for hidden, of_first in ((1, 1), (3, 2), (8, 4)):
        network: Any = create("md", 1, 2, kind="transcribe", hidden=hidden)
        assert [level.hidden_size for level in network.encoder.levels] == [of_first, hidden]


def test_memory_is_short_at_first() -> None:
    for cell, role, value in (("graves", "forget", -2.0), ("leaky", "leak", 2.0)):
        torch.manual_seed(0)
        body: Any = create("md", 1, 1, hidden=3, cell=cell).body
        torch.manual_seed(0)
        plain = MDLSTM(1, 3, cell=cell, directions=1).bias_l0.unflatten(1, (-1, 3))
        for row, gate in enumerate(body.definition.gates(2)):
            expected = torch.full((1, 3), value) if gate.role == role else plain[:, row]
            assert torch.equal(body.bias_l0.unflatten(1, (-1, 3))[:, row], expected), gate


def test_heads_join_many_positions_and_spread_windows() -> None:
    network: Any = create("md", 1, 3, kind="classify", hidden=1, directions=1).half()
    features = torch.ones(1, 300, 300, 1, dtype=torch.float16)  # more than float16 can count
    network.encoder.forward = lambda x, sizes: (features, sizes)
    torch.testing.assert_close(network(features, torch.tensor([[300, 300]])), network(features))
    network = create("md", 1, 2, kind="segment", hidden=4, windows=((2, 3),))
    network.head.weight.data.zero_()
    network.head.bias.data = torch.arange(12.0)  # (2, 3) positions of a window × 2 classes
    window = torch.arange(0, 12.0, 2).view(2, 3)
    assert torch.equal(network(torch.zeros(1, 3, 7, 1))[0, ..., 0], window.repeat(2, 3)[:3, :7])


def test_numbers_that_would_broadcast_are_refused() -> None:
    network = Normalized(create("md", 2, 1, linear=True), (1.0,), (0.5,), (1.0, 2.0), (3.0, 3.0))
    for x in (torch.zeros(1, 3, 4, 2), torch.zeros(1, 3, 4, 1)):
        with pytest.raises(InputError):
            network(x)

    class WithAuxiliary(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, -x

    scaled = Normalized(WithAuxiliary(), np.ones(1), np.full(1, 2.0), (10.0,), (4.0,))
    assert [y.item() for y in scaled(torch.tensor([[3.0]]))] == [14.0, 6.0]
    with pytest.raises(InputError):
        Normalized(WithAuxiliary(), (1.0,), (2.0,), (10.0, 9.0), (4.0, 4.0))(torch.tensor([[3.0]]))


@pytest.mark.usefixtures("fresh_registries")
def test_a_registered_network_replaces_others_of_its_name() -> None:
    register("tiny", kind="grid")(torch.nn.Linear)
    register("tiny", kind="grid")(lambda channels, outputs, *rest, hidden=4, **options: torch.nn.Flatten())
    assert isinstance(create("tiny", 1, 1, hidden=2), torch.nn.Flatten)
    assert model_options("tiny", "grid") == ["hidden"]
    assert "tiny" in model_names("grid") and "tiny" not in model_names("segment")
    register("raster")(torch.nn.Linear)  # without a kind: those of all kinds
    assert isinstance(create("raster", 3, 2, kind="density"), torch.nn.Linear)
    assert model_names("regress") == ["md", "raster"]  # its networks are those of `classify`
    for name, options in (("gru", {}), ("MD", {}), ("snake", {"cell": "leaky"}), ("pixel", {})):
        with pytest.raises(InputError):
            create(name, 1, 1, **options)  # type: ignore[arg-type]
    for kind in ("transcribe", "classify"):
        with pytest.raises(InputError):
            create("md", 1, 2, kind=kind, ndim=3, windows=[(2, 2)])
