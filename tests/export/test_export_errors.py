"""`export_onnx`: an error says what is wrong and leaves no file; the tolerance knows the scale."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers.damage import with_scaled_tanh
from helpers.networks import Function
from torch import Tensor, nn

from mdlstm_tk import MDLSTM, Gate, register_cell
from mdlstm_tk.errors import InputError, MDLSTMError, ParityError
from mdlstm_tk.export import api, export_onnx, float64_reference, lower, verify_model
from mdlstm_tk.export.arguments import read_spec
from mdlstm_tk.export.verification import export_verifier
from mdlstm_tk.export.verification.parity import compare, feature_scale
from mdlstm_tk.models import Normalized, create
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.choices import Form
from mdlstm_tk.runtime.io import npy


def rows(y: Tensor) -> Tensor:
    """A Python loop over the rows, which fixes their number."""
    return torch.stack([y[:, row] for row in range(y.shape[1])], dim=1)


def attention(y: Tensor) -> Tensor:
    """Attention of each position to all others."""
    flat = y.flatten(1, 2)
    return (torch.softmax(flat @ flat.mT, dim=-1) @ flat).view(y.shape)


G = {"grid": (3, 4)}
NEGATIVE: dict[str, Any] = {"example_inputs": torch.zeros(1, 3, 4, 1) - 1, "example_range": (1, 2)}
LARGE = {**NEGATIVE, "example_inputs": torch.zeros(1, 20, 30, 1) - 1, "form": "scan"}
ROUNDED = {"after": lambda y: (y + 1e5) - 1e5}
STEPS = {"after": lambda y: 1e3 * y - 1e3 * y.round()}
IN_FLOAT32 = "PyTorch in float32, .* off by .* needs more precision .* atol="
NAN = r"itself returns NaN on 3x4, random × 1, seed 0, x being standard normal; give example_range="
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {  # of `Function`, of the export, message
    "form": ({}, {**G, "form": "rolled"}, "unrolled, scan, tiles or None, got 'rolled'"),
    "grid": ({}, {"grid": 8}, "grid must be a list .*got 8"),
    "dtype": ({}, {**G, "dtype": "int4"}, "int4"),
    "metadata": ({}, {**G, "metadata": {"kind": "classify"}}, "classes"),
    "metadata, unknown": ({}, {**G, "metadata": {"kinds": 1}}, "metadata=.* 'kinds'"),
    "metadata, twice": ({}, {**G, "metadata": {"grid": (1, 2)}}, "metadata=.* 'grid'"),
    "verify_inputs": ({}, {**G, "verify_inputs": {"mine": np.zeros((3, 4))}}, r"mine has shape \(3, 4\)"),
    "tiles": ({}, {**G, "form": "tiles"}, "does not go together with grid="),
    "draw": ({}, {**G, "example_range": lambda shape, generator: 0.0}, r"example_range .*\(\)"),
    "output called x": ({"after": lambda y: {"x": y}}, G, "an output called 'x'.*output_names="),
    "no output": ({"after": lambda y: None}, {"form": "scan"}, "^Function returns a NoneType as"),
    "first axis": ({"after": lambda y: y[0]}, G, r"'y' of shape .*expected \(N"),
    "log": ({"before": lambda x: (x + 1e-3).log()}, G, f"Function {NAN}"),
    "inf": ({"after": lambda y: 1 / (0 * y)}, G, "itself returns inf"),
    "NaN on the example": ({"before": torch.log}, NEGATIVE, "itself returns NaN on example_inputs"),
    "NaN on the example, scan": ({"before": torch.log}, LARGE, "itself returns NaN on example_inputs"),
    "batch mixed": ({"before": lambda x: x - x.mean(0)}, G, "mixes the samples of a batch"),
    "random": ({"before": lambda x: x + torch.rand_like(x)}, G, "other numbers each time"),
}
FAILING: dict[str, tuple[dict[str, Any], dict[str, Any], type[Exception], str]] = {
    "unknown operator": ({"before": torch.special.bessel_j0}, G, MDLSTMError, "No ONNX function found"),
    "rows": ({"after": rows}, {"form": "scan"}, MDLSTMError, "Function"),
    "beyond float32": (ROUNDED, G, ParityError, f"{IN_FLOAT32}.*stable"),
    "beyond float32, stable": ({**ROUNDED, "cell": "stable"}, G, ParityError, rf"{IN_FLOAT32}\.\.\.$"),
    "float16": (
        STEPS,
        {**G, "dtype": "float16", "atol": 1e-9},
        ParityError,
        "float16 is not precise enough",
    ),
    "float32 in float16": (
        {"after": lambda y: y @ torch.eye(2)},
        {**G, "dtype": "float16"},
        MDLSTMError,
        "Function makes tensors of float32 itself.*leave out dtype=",
    ),
}
CASES = {name: (*row[:2], InputError, row[2]) for name, row in REFUSED.items()} | FAILING


@pytest.mark.parametrize("name", CASES)
def test_an_error_says_what_is_wrong_and_leaves_no_file(name: str, tmp_path: Path) -> None:
    parts, options, kind, message = CASES[name]
    torch.manual_seed(0)
    with pytest.raises(kind, match=message) as raised:
        export_onnx(Function(**parts), tmp_path / "m.onnx", **options)
    assert list(tmp_path.iterdir()) == []
    assert "\n" not in str(raised.value) and " --" not in str(raised.value)


@pytest.mark.parametrize("step", ["round", "byte", "greater"])
def test_integers_at_the_edge_of_a_step_may_be_either(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = 127.5 if step == "round" else 128.0

    def after(y: Tensor) -> Tensor:
        values = 1e-6 * y + edge
        return values > edge if step == "greater" else getattr(values, step)().byte()

    net = Function(after=after)
    report = export_onnx(net, tmp_path / "m.onnx", **G)
    assert report.max_abs == 0
    verify_model(report.path, net, device="cpu", seeds=1).raise_if_failed()


@pytest.mark.usefixtures("slightly_wrong_graphs")
def test_integers_away_from_the_edge_may_not(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="computes something else"):
        export_onnx(Function(after=lambda y: (1e6 * y).round().int()), tmp_path / "m.onnx", grid=(5, 5))


def test_a_layer_in_a_branch_and_weights_of_nan_are_refused(tmp_path: Path) -> None:
    class InBranch(Function):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, lambda x: self.layer(x), lambda x: self.layer(2 * x), (x,))

    with pytest.raises(MDLSTMError, match=r"branch|Cond"):  # torch 2.10 says Cond
        export_onnx(InBranch(), tmp_path / "m.onnx", **G)
    net = Function()
    net.layer.weight_hh_l0.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match=r"weights of Function hold NaN, first in layer\.weight_hh_l0"):
        export_onnx(net, tmp_path / "m.onnx", **G)
    assert list(tmp_path.iterdir()) == []


def test_missing_folders_are_not_created(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no folder .*mistyped for m\.onnx"):
        export_onnx(MDLSTM(1, 2), tmp_path / "mistyped/m.onnx", grid=(2, 2))
    assert list(tmp_path.iterdir()) == []


def regression() -> nn.Module:
    """A network with targets in the thousands, as training makes it."""
    torch.manual_seed(0)
    network = create("md", 1, 1, linear=True, directions="all", hidden=8)
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return Normalized(network, (0.5,), (0.3,), (0.0,), (20000.0,))


def test_a_regression_on_large_targets_exports(tmp_path: Path) -> None:
    net, grid = regression(), (8, 8)
    report = export_onnx(net, tmp_path / "m.onnx", grid=grid)
    x = np.random.default_rng(3).standard_normal((40, *grid, 1)).astype(np.float32)
    y, exact = Session(report.path, "cpu")(x), float64_reference(net)(x)
    assert not compare(y, exact).passed  # without the scale
    assert compare(y, exact, scale=feature_scale([exact])).passed


@pytest.fixture
def slightly_wrong_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every export wrong: a tanh of wavefront 3 is 0.1 % too small."""

    def wrong(model: onnx.ModelProto, form: Any, **options: bool) -> onnx.ModelProto:
        return with_scaled_tanh(lower(model, form, **options), "/wavefront_3/", 0.999)

    monkeypatch.setattr(api, "lower", wrong)


@pytest.mark.usefixtures("slightly_wrong_graphs")
@pytest.mark.parametrize("make", [regression, lambda: create("md", 1, 1)], ids=["large", "small"])
def test_a_wrong_graph_is_refused_at_every_scale(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="the exported graph computes something else") as raised:
        export_onnx(make(), tmp_path / "m.onnx", grid=(5, 5))
    assert "stable" not in str(raised.value) and list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("slightly_wrong_graphs")
def test_a_larger_tolerance_is_used_and_recorded(tmp_path: Path) -> None:
    report = export_onnx(create("md", 1, 1), tmp_path / "m.onnx", grid=(5, 5), atol=0.1)
    assert Session(report.path, "cpu").metadata.parity["atol"] == 0.1 and report.max_abs > 1e-5


def test_a_folder_is_no_file_to_write(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder, expected a file name"):
        export_onnx(Function(), tmp_path, **G)


def test_a_network_that_mixes_a_sample_with_those_before_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mixes the samples of a batch"):
        export_onnx(Function(after=lambda y: y.cumsum(0)), tmp_path / "m.onnx", **G)


def test_no_sample_is_nothing_to_verify_with(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mine is empty: its shape is \(0, 3, 4, 1\)"):
        export_onnx(Function(), tmp_path / "m.onnx", **G, verify_inputs={"mine": np.zeros((0, 3, 4, 1))})


def test_equal_numbers_are_within_a_tolerance_of_zero() -> None:
    y = np.array([[0.0, 1.0]])
    assert compare(y, y, atol=0).passed and not compare(y + 1e-9, y, atol=0).passed


def test_the_size_of_a_file_is_limited_by_onnx_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (export_verifier, npy):
        monkeypatch.setattr(module, "MAX_BYTES", 1000)
    assert export_onnx(Function(), tmp_path / "m.onnx", **G).bytes > 1000
    monkeypatch.setattr(onnx.checker, "MAXIMUM_PROTOBUF", 1000)
    with pytest.raises(MDLSTMError, match="larger than 2 GiB"):
        export_onnx(Function(), tmp_path / "n.onnx", **G)


def test_a_network_that_cannot_be_copied_is_refused(tmp_path: Path) -> None:
    weight = 2 * torch.ones(1, requires_grad=True)  # as torch.nn.utils.weight_norm leaves a weight
    for part in (weight, Lock()):
        network = Function()
        network.part = part
        with pytest.raises(InputError, match=r"Function cannot be copied: .*parametrizations$"):
            export_onnx(network, tmp_path / "m.onnx", **G)


def test_the_default_device_of_torch_does_not_matter(tmp_path: Path) -> None:
    layer = MDLSTM(1, 2)
    torch.set_default_device("meta")
    try:
        report = export_onnx(layer, tmp_path / "m.onnx", grid=(2, 3), padded=True)
    finally:
        torch.set_default_device(None)
    assert report.max_abs < 1e-5


@pytest.mark.usefixtures("fresh_registries")
def test_a_scan_whose_states_overflow_on_large_grids_says_so(tmp_path: Path) -> None:
    """c triples on each wavefront: on 15×21, the largest of the small grids, it is far from overflowing."""

    @register_cell("tripling", gates=[Gate("i"), Gate("z", "tanh")])
    def equations(gates: Any, states: Any) -> Any:
        i, z = gates
        c = i + 1.5 * sum(states["c"])
        return z * (c / (c + 1)), {"c": c}

    layer, path = MDLSTM(1, 2, cell="tripling"), tmp_path / "m.onnx"
    with pytest.warns(UserWarning, match=r"on \d+x\d+, random .* NaN or infinity, .* outgrow float32"):
        assert export_onnx(layer, path, form="scan").max_abs < 1e-5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert export_onnx(layer, path, grid=(15, 21)).max_abs < 1e-5


def test_a_scan_may_round_on_large_grids_as_torch_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = MDLSTM(2, 8, cell="slstm")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter *= 4  # n, which grows with the grid, becomes some thousands
    assert export_onnx(layer, tmp_path / "m.onnx", form="scan").max_abs < 1e-3


def test_a_scan_may_round_on_large_grids_as_operators_of_the_runtime_do(tmp_path: Path) -> None:
    """Its sigmoids err to the same side, so that errors add up that cancel out in torch."""
    torch.manual_seed(0)
    layer = MDLSTM(2, 4)
    with torch.no_grad():
        layer.weight_ih_l0.uniform_(-1.2, 1.2).mul_(3.5)  # as of a network that standardises x
        layer.bias_l0[:, 4:12] = -2
        layer.bias_l0 -= 0.5 * layer.weight_ih_l0.sum(-1)
    assert export_onnx(layer, tmp_path / "m.onnx", form="scan").max_abs < 1e-3


@pytest.mark.parametrize(
    ("network", "options", "expected"),
    [
        (MDLSTM(1, 2), {"any_size": True}, "256x256"),
        (MDLSTM(1, 2), {"grid": (48, None), "any_size": True}, "48x256"),
        (MDLSTM(1, 2, ndim=3), {"any_size": True}, "32x32x32"),
        (MDLSTM(1, 2), {"any_size": True, "multiple_of": 24}, "240x240"),
        (Function(after=attention), {"any_size": True}, "64x64"),
        (Function(after=lambda y: y + torch.zeros(64)[: y.shape[2], None]), {"any_size": True}, "64x64"),
        (MDLSTM(1, 2), {"grid": (8, 8)}, None),
    ],
    ids=["free", "height fixed", "3-D", "multiples", "attention", "table", "fixed"],
)
def test_the_large_grid_of_a_verification(
    network: Any, options: Any, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As large as the network takes it, and bounded: attention needs tensors of the square of the grid."""
    monkeypatch.setattr(time, "perf_counter", lambda: 0.0)
    spec = read_spec(network, channels=1, channels_last=True, **options)
    large = [*export_verifier._large_cases(spec, spec.interface.reference("float64"), (), True)]
    assert [case.group for case, _ in large] == ([] if expected is None else [expected])


class Deciding(nn.Module):
    """A layer whose output depends on a condition about the shape of x."""

    def __init__(self, condition: Callable[[torch.Size], bool]) -> None:
        super().__init__()
        self.condition, self.layer = condition, MDLSTM(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y if self.condition(x.shape) else 2 * y


@pytest.mark.parametrize(
    ("form", "condition", "message"),
    [
        ("scan", lambda shape: shape[1] < 300, "on 300x7, .* decide by an extent"),
        ("unrolled", lambda shape: shape[0] < 8, "mixes the samples of a batch"),
    ],
)
def test_what_a_network_decides_by_its_extents(
    tmp_path: Path, form: Form, condition: Callable[[torch.Size], bool], message: str
) -> None:
    """The file would compute what torch saw the network compute on smaller grids and batches."""
    with pytest.raises(MDLSTMError, match=message):
        export_onnx(Deciding(condition), tmp_path / "net.onnx", torch.rand(1, 4, 6, 1), form=form)
    assert not list(tmp_path.iterdir())


def test_outputs_without_elements_on_some_grids(tmp_path: Path) -> None:
    net = Function(after=lambda y: y[:, ::2, 1::2])  # nothing is left of a width of 1
    report = export_onnx(net, tmp_path / "net.onnx", torch.rand(1, 4, 6, 1), form="scan")
    assert min(grid[1] for grid in report.metadata.grids) > 1
    with pytest.raises(InputError, match="it returns an empty output"):
        export_onnx(
            Function(after=lambda y: (y, y[..., :0])), tmp_path / "other.onnx", grid=(4, 6), form="scan"
        )


def test_outputs_of_other_dtypes(tmp_path: Path) -> None:
    export_onnx(Function(after=torch.Tensor.bfloat16), tmp_path / "net.onnx", grid=(2, 3))
    with pytest.raises(InputError, match="complex numbers as output 'y'"):
        export_onnx(Function(after=torch.fft.fft), tmp_path / "other.onnx", grid=(2, 3))
