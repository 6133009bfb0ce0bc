"""`export_onnx`: an error says what is wrong and leaves no file."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.utils.prune
from helpers.networks import Function, TwoGrids
from torch import Tensor, nn

from mdlstm_tk import MDLSTM
from mdlstm_tk.errors import InputError, MDLSTMError, ParityError
from mdlstm_tk.export import export_onnx, verify_model
from mdlstm_tk.kinds import kind_names
from mdlstm_tk.runtime import Session, decode


def rows(y: Tensor) -> Tensor:
    """A Python loop over the rows, which fixes their number."""
    return torch.stack([y[:, row] for row in range(y.shape[1])], dim=1)


def strided(y: Tensor) -> Tensor:
    """A convolution whose output has an extent of its own."""
    return nn.functional.conv2d(y.movedim(-1, 1), torch.ones(2, 2, 2, 2).to(y), stride=2, padding=1)


class Sized(Function):
    """A layer with the sizes of padded samples; one that returns states, too, if `states`."""

    def __init__(self, after: Any = None, states: bool = False, before: Any = None) -> None:
        super().__init__(before, after)
        self.states = states

    def forward(self, x: Tensor, sizes: Tensor) -> Tensor:  # type: ignore[override]
        x = x if self.before is None else self.before(x)
        y = self.layer(x, sizes, return_state=True)[0] if self.states else self.layer(x, sizes)
        return y if self.after is None else self.after(y)


class InBranch(Function):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: self.layer(x), lambda x: self.layer(2 * x), (x,))


def with_own_forward() -> nn.Module:
    """A copy of it would change the statistics of the original."""
    net = nn.BatchNorm2d(3)
    forward = net.forward
    net.forward = lambda x: forward(x) * 2  # type: ignore[method-assign]
    return net


class Calling(nn.Module):
    """A network that calls a part of itself through a function in an attribute."""

    def __init__(self, wrap: Callable[[Callable[[Tensor], Tensor]], Any]) -> None:
        super().__init__()
        self.norm, self.layer = nn.BatchNorm2d(3), MDLSTM(3, 2, channels_last=False)
        self.calls = wrap(lambda x: self.norm(x))

    def forward(self, x: Tensor) -> Tensor:
        call = self.calls
        while not callable(call):
            call = call[0]
        y: Tensor = self.layer(call(x))
        return y


def of_dtype(x: Tensor) -> Tensor:
    return x.float() / 255 if x.dtype == torch.uint8 else x.float()


def pruned() -> nn.Module:
    net = nn.Sequential(MDLSTM(1, 3), nn.Linear(3, 2))
    torch.nn.utils.prune.l1_unstructured(net[0], "weight_hh_l0", 0.5)
    return net


def changed(name: str, value: Any) -> Callable[[], nn.Module]:
    """A network with another attribute, or with another number in a weight."""

    def make() -> nn.Module:
        net = Function()
        if name == "part":
            net.part = value
        else:
            getattr(net.layer, name).data.view(-1)[0] = value
        return net

    return make


def before(function: Callable[[Tensor], Tensor], **options: Any) -> Callable[[], nn.Module]:
    return lambda: Function(function, **options)


def after(function: Callable[[Tensor], Any], **options: Any) -> Callable[[], nn.Module]:
    return lambda: Function(after=function, **options)


def by(condition: Callable[[Tensor], bool]) -> Callable[[], nn.Module]:
    return after(lambda y: 2 * y if condition(y) else y)


def of_one_row(y: Tensor) -> Tensor:
    total = y.sum((1, 2)).square()  # on large grids larger by orders of magnitude
    return total if y.shape[1] > 1 else -total


def doubled(x: Tensor) -> Tensor:
    return torch.cond(x.mean() > 0, lambda x: 2 * x, torch.clone, (x,))


def converted(x: Tensor) -> Tensor:
    return x.bfloat16()


EMPTY, NO_AXES = np.zeros((0, 3, 4, 1)), np.zeros(3)
Row = tuple[Callable[[], nn.Module], dict[str, Any], str]
X = torch.rand(1, 4, 6, 1)
G = {"grid": (3, 4)}
HALF = {**G, "dtype": "float16"}
NEGATIVE: dict[str, Any] = {"example_inputs": torch.zeros(1, 3, 4, 1) - 1, "example_range": (1, 2)}
LARGE = {**NEGATIVE, "example_inputs": torch.zeros(1, 20, 30, 1) - 1, "form": "scan"}
PADDED = {"example_inputs": torch.rand(2, 5, 5, 1), "padded": True}
SCAN = {"form": "scan"}
LARGE_X = {"example_inputs": torch.rand(2, 11, 12, 1), **SCAN}
GRIDS: dict[str, Any] = {"example_inputs": (X, torch.rand(1, 4, 5, 3)), **SCAN, "grid_inputs": ["z"]}
NON_LEAF = 2 * torch.ones(1, requires_grad=True)  # as torch.nn.utils.weight_norm leaves a weight
IN_FLOAT32 = "PyTorch in float32, .* off by .* needs more precision .* atol="
NAN = r"itself returns NaN on 3x4, random × 1, seed 0, x being standard normal; give example_range="
OF_ORIGINAL = r"BatchNorm2d is run by a function of the object, .* training mode; call eval\(\) before"
NO_WINDOW = "which part of its output 'y'"
ONE_SAMPLE = r"one sample of shape \(\d, 4, \d\).*x\[None\]"
REFUSED: dict[str, Row] = {  # network, options of the export, message
    "metadata": (after(lambda y: y.mean((1, 2))), {**G, "metadata": {"kind": "classify"}}, "classes"),
    "metadata, no kind": (
        Function,
        {**G, "metadata": {"kind": "clasify", "classes": ("a",)}},
        "kind 'clasify', which is not registered; did you mean 'classify'",
    ),
    "metadata, twice": (Function, {**G, "metadata": {"grid": (1, 2)}}, "metadata=.* 'grid'"),
    "metadata, a typo": (Function, {**G, "metadata": {"kinds": "tag"}}, "metadata=.* 'kinds'"),
    "verify_inputs": (
        Function,
        {**G, "verify_inputs": {"mine": NO_AXES}},
        r"mine: x has shape \(3,\), expected \(N, H, W, C\)",
    ),
    "no sample": (Function, {**G, "verify_inputs": {"mine": EMPTY}}, r"mine: x has shape \(0, 3, 4, 1\)"),
    "another grid to verify": (
        Function,
        {**G, "verify_inputs": {"mine": np.zeros((1, 3, 5, 1))}},
        "mine: x has a 3x5 grid, but this model takes 3x4; ",
    ),
    "no multiple to verify": (
        Function,
        {**SCAN, "multiple_of": 2, "verify_inputs": {"mine": np.zeros((1, 3, 4, 1))}},
        "mine: x has a 3x4 grid, .* multiples of 2x2;",
    ),
    "tiles": (Function, {**G, "form": "tiles"}, "leave out grid="),
    "draw": (Function, {**G, "example_range": lambda shape, generator: 0.0}, r"example_range .*\(\)"),
    "output called x": (after(lambda y: {"x": y}), G, "an output called 'x'.*output_names="),
    "no output": (after(lambda y: None), SCAN, "^Function returns a NoneType as"),
    "empty output": (after(lambda y: (y, y[..., :0])), SCAN, "it returns an empty output"),
    "complex output": (after(torch.fft.fft), G, "complex numbers as output 'y'"),
    "first axis": (after(lambda y: y[0]), G, r"'y' of shape .*expected \(N"),
    "log": (before(lambda x: (x + 1e-3).log()), G, f"Function {NAN}"),
    "inf": (after(lambda y: 1 / (0 * y)), G, "itself returns inf"),
    "NaN on the example": (before(torch.log), NEGATIVE, "itself returns NaN on example_inputs"),
    "NaN on the example, scan": (before(torch.log), LARGE, "itself returns NaN on example_inputs"),
    "batch mixed in tiny outputs": (
        after(lambda y: 1e-8 * (y - y.mean(0))),
        G,
        "mixes the samples of a batch",
    ),
    "batch mixed": (before(lambda x: x - x.mean(0)), G, "mixes the samples of a batch"),
    "mixed with those before": (after(lambda y: y.cumsum(0)), G, "mixes the samples of a batch"),
    "by the batch": (after(lambda y: y if y.shape[0] < 8 else 2 * y), G, "mixes the samples of a batch"),
    "one batch": (by(lambda y: y.shape[0] == 20), G, "mixes the samples of a batch"),
    "each 25th batch": (by(lambda y: y.shape[0] % 25 == 0), SCAN, "mixes the samples of a batch"),
    "a branch by the batch": (before(doubled), G, "mixes the samples of a batch"),
    "random": (before(lambda x: x + torch.rand_like(x)), G, "other numbers each time"),
    "weights of NaN": (changed("weight_hh_l0", torch.nan), G, r"hold NaN, first in layer\.weight_hh_l0"),
    "a tensor that is no leaf": (changed("part", NON_LEAF), G, "cannot be copied: .*parametrizations$"),
    "a lock": (changed("part", Lock()), G, "Function cannot be copied: .*parametrizations$"),
    "forward of the object": (
        with_own_forward,
        G,
        r"forward of BatchNorm2d .* is in training mode; call eval\(\) before",
    ),
    "a function that calls a part": (lambda: Calling(lambda f: f), {**G, "channels": 3}, OF_ORIGINAL),
    "functions in a list": (lambda: Calling(lambda f: [{0: f}]), {**G, "channels": 3}, OF_ORIGINAL),
    "a part as a default": (
        lambda: Calling(lambda f: lambda x, call=f: call(x)),
        {**G, "channels": 3},
        OF_ORIGINAL,
    ),
    "uint8": (
        before(of_dtype),
        {"example_inputs": torch.randint(256, (1, 3, 4, 1), dtype=torch.uint8)},
        r"something else from torch\.uint8 than from int64, .* whatever their dtype",
    ),
    "uint8, padded": (
        lambda: Sized(before=of_dtype),
        {
            "example_inputs": torch.randint(256, (1, 3, 4, 1), dtype=torch.uint8),
            "padded": True,
        },
        r"something else from torch\.uint8",
    ),
    "uint8 that wraps around": (
        before(lambda x: (x + 200).float() / 255),
        {"example_inputs": torch.randint(100, 256, (1, 3, 4, 1), dtype=torch.uint8)},
        r"something else from torch\.uint8",
    ),
    "pruned": (pruned, G, r"cannot be copied: .* parameters by torch\.nn\.utils\.prune\.remove"),
    "one sample": (lambda: MDLSTM(3, 4), {"example_inputs": torch.rand(5, 4, 3)}, ONE_SAMPLE),
    "one sample, first": (
        lambda: MDLSTM(5, 4, channels_last=False),
        {"example_inputs": torch.rand(5, 4, 3), **SCAN},
        ONE_SAMPLE,
    ),
    "padded, stride": (lambda: Sized(strided), PADDED, NO_WINDOW),
    "padded, stride, scan": (lambda: Sized(strided), {**PADDED, **SCAN}, NO_WINDOW),
    "padded, flat": (lambda: Sized(lambda y: y.flatten(1, 2)), {**PADDED, **SCAN}, NO_WINDOW),
    "padded, smaller to verify": (
        Sized,
        {**PADDED, "verify_inputs": {"mine": np.zeros((1, 2, 3, 2))}},
        r"mine: x has shape \(1, 2, 3, 2\), .* C = 1",
    ),
    "padded, no features": (lambda: Sized(lambda y: y.sum(-1)), PADDED, NO_WINDOW),
    "another grid": (TwoGrids, GRIDS, r"grid axes of x, got 'z' of shape \(1, 4, 5, 3\)"),
}
FAILING: dict[str, Row] = {
    "unknown operator": (before(torch.special.bessel_j0), G, "No ONNX function found"),
    "rows": (after(rows), SCAN, "Function"),
    "a layer in a branch": (InBranch, G, "branch|Cond"),  # torch 2.10 says Cond
    "states and sizes": (
        lambda: Sized(states=True),
        {**G, **SCAN, "padded": True},
        "layer: .* leave sizes out",
    ),
    "bfloat16": (lambda: Function(converted, torch.Tensor.float).bfloat16(), G, "converts to bfloat16"),
    "length": (before(lambda x: x / len(x)), SCAN, r"axis 0 of x .*len\(x\).*x\.shape\[0\]"),
    "python number": (before(lambda x: x * float(x.shape[1])), LARGE_X, r"axis 1 of x .*grid=\(11, 12\)"),
    "an extent": (after(lambda y: y if y.shape[1] < 300 else 2 * y), SCAN, "on 300x7, .* by an extent"),
    "an extent, infinite": (
        after(lambda y: y / (300 - y.shape[1]) if y.shape[1] < 300 else 2 * y),
        SCAN,
        "error inf .* on 300x7, .* by an extent",
    ),
    "an extent, in float16": (
        after(lambda y: y if y.shape[1] < 300 else 2 * y),
        {**SCAN, "dtype": "float16"},
        "on 300x7, .* by an extent",
    ),
    "a multiple": (by(lambda y: y.shape[1] % 24 == 0), SCAN, "on 24x.*, .* by an extent"),
    "one extent": (by(lambda y: y.shape[1] == 30), SCAN, "on 30x.*, .* by an extent"),
    "a product": (
        by(lambda y: y.shape[1] * y.shape[2] == 1225),
        SCAN,
        "on 35x35|on 245x5|on 175x7, .* by an",
    ),
    "logcumsumexp": (after(lambda y: y.logcumsumexp(-1)), G, "no logcumsumexp .*; use torch.logsumexp"),
    "small grids beside a large sum": (after(of_one_row), SCAN, "on 1x., .* by an extent"),
    "float32 in float16": (after(lambda y: y @ torch.eye(2)), HALF, "itself.*leave out dtype="),
}
ROUNDED, STEPS = (lambda y: (y + 1e5) - 1e5), (lambda y: 1e3 * y - 1e3 * y.round())
UNEQUAL: dict[str, Row] = {
    "beyond float32": (after(ROUNDED), G, f"{IN_FLOAT32}.*stable"),
    "beyond float32, stable": (after(ROUNDED, cell="stable"), G, rf"{IN_FLOAT32}\.\.\. \(--atol\)$"),
    "beyond float32, one feature": (
        after(lambda y: torch.cat([ROUNDED(y), 1e6 * y], dim=1), channels_last=False),
        G,
        IN_FLOAT32,
    ),
    "float16": (after(STEPS), {**HALF, "atol": 1e-9}, "float16 is not precise enough"),
    "tiny float16": (after(lambda y: 1e-8 * y), HALF, "float16 is not precise enough"),
}
KINDS = {InputError: REFUSED, MDLSTMError: FAILING, ParityError: UNEQUAL}
CASES = {name: (kind, rows[name]) for kind, rows in KINDS.items() for name in rows}


@pytest.mark.parametrize("name", CASES)
def test_an_error_says_what_is_wrong_and_leaves_no_file(name: str, tmp_path: Path) -> None:
    kind, (make, options, message) = CASES[name]
    torch.manual_seed(0)
    with pytest.raises(kind, match=message) as raised:
        export_onnx(make(), tmp_path / "m.onnx", **options)
    assert list(tmp_path.iterdir()) == []
    assert "\n" not in str(raised.value)


def test_the_statistics_of_a_module_in_training_mode_stay(tmp_path: Path) -> None:
    network = Calling(lambda f: f)
    before = copy.deepcopy(network.norm.state_dict())
    path = export_onnx(network.eval(), tmp_path / "m.onnx", **G, channels=3).path
    network.train()
    for call in (
        lambda: export_onnx(network, tmp_path / "other.onnx", **G, channels=3),
        lambda: verify_model(path, network),
    ):
        with pytest.raises(InputError, match=OF_ORIGINAL):
            call()
        assert all(torch.equal(each, network.norm.state_dict()[name]) for name, each in before.items())
    assert not any(part._forward_pre_hooks for part in network.modules())


def test_functions_that_forward_does_not_call_do_not_matter(tmp_path: Path) -> None:
    network = Function()
    network.loss = lambda x: network(x).sum()
    export_onnx(network, tmp_path / "m.onnx", **G)


def test_an_example_of_other_integers_stays_as_it_is(tmp_path: Path) -> None:
    def changed(x: Tensor) -> Tensor:
        x += 1
        return x.float()

    for dtype, axes in ((torch.int32, 4), (torch.int32, 3), (torch.float32, 3)):
        tokens = torch.randint(9, (2, 3, 4, 1)[:axes], dtype=torch.int32).to(dtype)
        before = tokens.clone()
        network = Function(changed if axes == 4 else lambda x: changed(x)[..., None])
        export_onnx(network, tmp_path / "m.onnx", tokens)
        assert torch.equal(tokens, before)


SHAPES: dict[str, Any] = {  # what a network makes of y (N, H, W, 2)
    "a grid": None,
    "pooled": lambda y: y.mean((1, 2)),
    "columns": lambda y: y.mean(1),
    "windows": lambda y: y[:, ::2, ::2],
    "flat": lambda y: y.flatten(1, 2),
    "numbers": lambda y: y.mean((1, 2, 3)),
}
NAMES: dict[str, dict[str, Any]] = {
    "classify": {"classes": ["a", "b"]},
    "segment": {"classes": ["a", "b"]},
    "tag": {"classes": ["a", "b"]},
    "regress": {"classes": ["a", "b"]},
    "transcribe": {"classes": ["a"]},
}


@pytest.mark.parametrize(
    "shape", ["a grid", "pooled", *(pytest.param(name, marks=pytest.mark.slow) for name in [*SHAPES][2:])]
)
def test_a_file_is_written_only_if_its_kind_can_read_it(shape: str, tmp_path: Path) -> None:
    written = set()
    for kind in {*kind_names()} - {"baselines"}:  # whose answers `mdlstm read` makes of the lines
        path, network = tmp_path / f"{kind}.onnx", Function(after=SHAPES[shape])
        fields = {"kind": kind, **NAMES.get(kind, {})}
        refused = ""
        try:
            export_onnx(network, path, grid=(4, 6), metadata=fields)
        except InputError as error:
            refused = str(error)
        if refused:
            message = f"has kind '{kind}', but Function returns shape .* as 'y', |metadata"
            assert re.search(message, refused) and "\n" not in refused and not path.exists()
            continue
        session = Session(path)
        decode(session(np.zeros((1, 4, 6, 1), np.float32)), session.metadata)
        written.add(kind)
    expected = {"a grid": {"segment"}, "pooled": {"classify", "tag", "regress"}, "columns": {"transcribe"}}
    assert written >= {"grid"} | expected.get(shape, set())
    assert shape != "a grid" or not written & {"classify", "tag", "regress"}


def test_a_path_is_that_of_a_file_in_a_folder(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path, "is a folder, expected a file name"),
        (tmp_path / "mistyped/m.onnx", r"no folder .*mistyped for m\.onnx"),
    ):
        with pytest.raises(InputError, match=message):
            export_onnx(Function(), path, **G)
    assert list(tmp_path.iterdir()) == []


def test_the_size_of_a_file_is_limited_by_onnx_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx.checker, "MAXIMUM_PROTOBUF", 1000)
    with pytest.raises(MDLSTMError, match="larger than 2 GiB"):
        export_onnx(Function(), tmp_path / "n.onnx", **G)


def test_the_default_dtype_of_torch_is_named(tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(MDLSTMError, match=r"makes tensors of float64 itself, .*\(torch\.float32\)"):
            export_onnx(Function(after=lambda y: y * torch.ones(2)), tmp_path / "m.onnx", **G)
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_default_device_of_torch_does_not_matter(tmp_path: Path) -> None:
    layer, padded = MDLSTM(1, 2), Sized(before=lambda x: (x * 100) / 1000)
    torch.set_default_device("meta")
    try:
        report = export_onnx(layer, tmp_path / "m.onnx", grid=(2, 3), padded=True)
        x = torch.full((2, 3, 4, 1), 9, dtype=torch.uint8, device="cpu")
        with pytest.raises(InputError, match="something else from"):  # 100 · 9 is beyond 8 bits
            export_onnx(padded, tmp_path / "n.onnx", x, padded=True)
    finally:
        torch.set_default_device(None)
    assert report.max_abs < 1e-5


def test_outputs_without_elements_on_some_grids_and_of_bfloat16(tmp_path: Path) -> None:
    net = Function(after=lambda y: y[:, ::2, 1::2])  # nothing is left of a width of 1
    report = export_onnx(net, tmp_path / "net.onnx", X, form="scan")
    assert min(grid[1] for grid in report.metadata.grids) > 1
    export_onnx(Function(after=torch.Tensor.bfloat16), tmp_path / "net.onnx", grid=(2, 3))
