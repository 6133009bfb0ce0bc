"""`export_onnx` and `export_run`: parity at any size, standard operators only, no file after a failure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from mdlstm_tk import MDLSTM
from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.data import DiagonalTask
from mdlstm_tk.errors import InputError, MDLSTMError, ParityError
from mdlstm_tk.export import (
    export_onnx,
    export_run,
    export_run_sizes,
    float64_reference,
    lower,
    translation_table,
    verify_model,
)
from mdlstm_tk.export.verification import export_verifier
from mdlstm_tk.models import create
from mdlstm_tk.runtime import Session
from mdlstm_tk.training import Run, build, load_checkpoint


def relevant_loss(session: Session, size: int) -> float:
    batch = DiagonalTask((size, size)).batch(9, 0, 32, "validation")
    error = (session(batch.x) - batch.y) ** 2
    return float(np.mean([error[k, row, column] for k, (row, column) in enumerate(batch.second)]))


@pytest.mark.parametrize("grid", [(5, 7), (32, 32), (7, 1)], ids=format_size)
def test_a_trained_model_agrees_with_float64_within_1e_5_at_any_size(
    trained: Run, tmp_path: Path, grid: tuple[int, int]
) -> None:
    checkpoint = load_checkpoint(trained.best)
    report = export_run(trained, tmp_path / "m.onnx", grid=grid)
    network, _ = build(checkpoint.config)
    checkpoint.load_model(network)
    reference, session = float64_reference(network), Session(report.path, "cpu")
    for count in (1, 7):
        x = np.random.default_rng(1).random((count, *grid, 1), dtype=np.float32)
        assert np.abs(session(x) - reference(x)).max() <= 1e-5


class Surrounded(nn.Module):
    """An MDLSTM layer with options between two linear layers."""

    def __init__(self, ndim: int, **options: object) -> None:
        super().__init__()
        self.before = nn.Linear(2, 3)
        self.layer = MDLSTM(3, 4, ndim=ndim, **options)
        self.after = nn.Linear(self.layer.output_size, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.layer(self.before(x).tanh()))


OPTIONS = {
    "peephole, layer norm": {"peephole": True, "layer_norm": True},
    "no bias, window": {"bias": False, "window": (2, 3)},
    "stacked, all, sum": {"num_layers": 2, "directions": "all", "merge": "sum"},
}


@pytest.mark.parametrize("form", ["unrolled", "scan"])
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_exports_in_both_forms(option: str, form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Surrounded(2, **OPTIONS[option])
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    grid = (4, 6) if form == "unrolled" else None
    report = export_onnx(net, tmp_path / "m.onnx", grid=grid, form=form, channels=2)
    assert report.max_abs < 1e-5
    assert report.metadata.window == ((2, 3) if "window" in option else (1, 1))


class Classifier(nn.Module):
    """Channels first: a convolution, two layers with different cells, pooling and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)
        self.first = MDLSTM(4, 3, cell="stable", directions="all", channels_last=False)
        self.second = MDLSTM(12, 5, cell="leaky", channels_last=False)
        self.head = nn.Linear(5, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(self.convolution(x).relu())).mean(dim=(2, 3)))


@pytest.mark.parametrize("form", ["unrolled", "scan"])
def test_a_whole_network_exports(form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Classifier()
    grid = (5, 8) if form == "unrolled" else None
    report = export_onnx(net, tmp_path / "m.onnx", grid=grid, form=form, channels=3)
    metadata = report.metadata
    assert (metadata.layout, metadata.channels, metadata.outputs, metadata.window) == (
        "N C H W",
        3,
        7,
        None,
    )
    session, x = Session(report.path, "cpu"), np.random.default_rng(0).random((2, 3, 5, 8), np.float32)
    assert session(x).shape == (2, 7)
    assert session(x[0]).shape == (7,)
    np.testing.assert_allclose(session(x), float64_reference(net)(x), rtol=0, atol=1e-5)
    assert net.training  # the module itself is unchanged


class Conditioned(nn.Module):
    """A three-dimensional network with an extra input z and sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = MDLSTM(1, 3, ndim=3, window=2)
        self.shift = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor, z: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        return self.layer(x, sizes) + self.shift(z)[:, None, None, None]


def test_extra_inputs_and_sizes_can_be_combined(tmp_path: Path) -> None:
    z = torch.randn(3, 2)
    report = export_onnx(
        Conditioned(), tmp_path / "m.onnx", grid=(3, 4, 5), form="scan", padded=True, extra_inputs={"z": z}
    )
    session = Session(report.path, "cpu")
    assert session.metadata.inputs == ("x", "sizes", "z")
    x = np.ones((2, 2, 3), np.float32)
    assert session(x, z=z[0].numpy()).shape == (1, 1, 2, 3)
    with pytest.raises(InputError, match=r"\bz\b"):
        session(x)
    with pytest.raises(InputError, match=r"z .*\(3, 2\)"):
        session(np.ones((2, 3, 4, 5, 1)), z=z)
    with pytest.raises(InputError, match=r"Surrounded.*'sizes'"):
        export_onnx(Surrounded(2), tmp_path / "n.onnx", grid=(3, 3), padded=True)


@pytest.mark.parametrize("model", ["md", "horizontal", "snake"])
def test_padded_samples_give_the_same_numbers_as_the_samples_alone(model: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = create(model, 1, 2)
    report = export_onnx(net, tmp_path / "m.onnx", grid=(5, 6), form="scan", padded=True, channels=1)
    session, reference, rng = Session(report.path, "cpu"), float64_reference(net), np.random.default_rng(0)
    grids = [(5, 6), (1, 1), (1, 6), (5, 1), (3, 4)]
    samples = [rng.random(grid, np.float32) for grid in grids]
    for sample, y in zip(samples, session.run_many(samples), strict=True):
        exact = reference(sample[None, ..., None])[0]
        np.testing.assert_allclose(y, exact, rtol=0, atol=1e-6)
        np.testing.assert_allclose(session(sample), exact, rtol=0, atol=1e-6)
    x = rng.random((2, 5, 6, 1), np.float32)
    y = session(x, sizes=np.asarray([[5, 6], [2, 3]]))
    np.testing.assert_allclose(y[1, :2, :3], reference(x[1:, :2, :3])[0], rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="6x6"):
        session(np.ones((6, 6)))
    with pytest.raises(InputError, match=r"\(5, 6\)"):
        session(x, sizes=np.asarray([[5, 7], [2, 3]]))
    with pytest.raises(InputError, match=r"\(2, 2\)"):
        session(x, sizes=np.asarray([5, 6]))


def test_one_file_serves_every_size(trained: Run, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(trained.best)
    report = export_run(trained, tmp_path / "any.onnx", form="scan")
    assert report.bytes < 100_000
    network, _ = build(checkpoint.config)
    checkpoint.load_model(network)
    reference, session = float64_reference(network), Session(report.path, "cpu")
    grids = [(8, 8), (1, 1), (1, 7), (7, 1), (5, 8), (8, 5), (8, 8)]
    samples = [np.random.default_rng(k).random(grid, np.float32) for k, grid in enumerate(grids)]
    for x, y in zip(samples, session.run_many(samples), strict=True):
        np.testing.assert_allclose(y[None, ..., None], reference(x[None, ..., None]), rtol=0, atol=1e-5)
    assert relevant_loss(session, 32) < 0.01
    with pytest.raises(InputError, match=r"\(3,\).*\(N, H, W, C\)$"):
        session(np.ones(3))


@pytest.mark.parametrize("form", ["unrolled", "scan"])
def test_float16_is_verified_with_a_tolerance_of_5e_3(form: str, trained: Run, tmp_path: Path) -> None:
    report = export_run(trained, tmp_path / "m.onnx", grid=(8, 8), form=form, dtype="float16")
    metadata, session = report.metadata, Session(report.path, "cpu")
    assert (metadata.dtype, metadata.parity["atol"]) == ("float16", 5e-3)
    assert 1e-5 < metadata.parity["max_abs"] < 5e-3
    assert session(np.eye(8)).dtype == np.float32
    weights = {tensor.data_type for tensor in onnx.load(report.path).graph.initializer if tensor.dims}
    assert onnx.TensorProto.FLOAT not in weights


@pytest.mark.filterwarnings("ignore::FutureWarning")  # raised inside torch
def test_a_model_exported_with_torch_itself_can_be_lowered() -> None:
    net, x = Surrounded(2).eval(), torch.randn(2, 4, 3, 2)
    program = torch.onnx.export(
        net,
        (x,),
        dynamo=True,
        custom_translation_table=translation_table(),
        verbose=False,
        opset_version=18,
    )
    for form in ("unrolled", "scan"):
        model = lower(program.model_proto, form)
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(y, net(x).detach(), rtol=0, atol=1e-5)


def test_the_file_is_self_contained_and_has_standard_operators_and_metadata(
    model: Path, trained: Run
) -> None:
    proto = onnx.load(model)
    onnx.checker.check_model(proto, full_check=True)
    assert {opset.domain for opset in proto.opset_import} == {""}
    assert {node.domain for node in proto.graph.node} == {""}
    assert not proto.functions
    assert not any(tensor.external_data for tensor in proto.graph.initializer)
    assert [d.dim_param or d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        8,
        8,
        1,
    ]
    assert any(node.name.startswith("body_0/wavefront_14/") for node in proto.graph.node)
    assert b"/site-packages/" not in model.read_bytes()
    metadata = Session(model, "cpu").metadata
    assert (metadata.grid, metadata.form, metadata.layout) == ((8, 8), "unrolled", "N H W C")
    assert (metadata.model, metadata.task) == ("md", "diagonal")
    digest = hashlib.sha256(trained.checkpoint.read_bytes()).hexdigest()
    assert metadata.checkpoint_sha256 == digest
    assert 0 <= metadata.parity["max_abs"] < 1e-5


@pytest.fixture
def shifted_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the reference wrong by 1e-3 for the verifier."""

    def shifted(module: nn.Module, output_names: Sequence[str]) -> object:
        reference = float64_reference(module, output_names)
        return lambda x: reference(x) + 1e-3

    monkeypatch.setattr(export_verifier, "float64_reference", shifted)


@pytest.mark.usefixtures("shifted_reference")
def test_a_parity_failure_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"1\.0e-03"):
        export_onnx(create("md", 1, 1), tmp_path / "m.onnx", grid=(3, 3))
    assert list(tmp_path.iterdir()) == []


class _Bessel(MDLSTM):
    def __init__(self) -> None:
        super().__init__(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(torch.special.bessel_j0(x))


class _Sampled(MDLSTM):
    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        y = super().forward(x).movedim(-1, 1)
        return nn.functional.grid_sample(y, y[:, :2].movedim(1, -1), align_corners=False)


class _Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = MDLSTM(1, 2), MDLSTM(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda x: self.one(x), lambda x: self.other(x), (x,))


class _Rows(nn.Module):
    """A Python loop over the rows fixes their number."""

    def __init__(self) -> None:
        super().__init__()
        self.body = MDLSTM(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        return torch.stack([y[:, row] for row in range(x.shape[1])], dim=1)


def test_an_error_names_what_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rolled"):
        export_onnx(create("md", 1, 1), tmp_path / "m.onnx", grid=(3, 3), form="rolled")
    with pytest.raises(InputError, match="Linear"):
        export_onnx(nn.Linear(2, 2), tmp_path / "m.onnx", grid=(3, 3))
    with pytest.raises(InputError, match=r"3x3 .*5 channels"):
        export_onnx(nn.Linear(2, 2), tmp_path / "m.onnx", grid=(3, 3), channels=5)
    with pytest.raises(InputError, match="grid"):
        export_onnx(create("md", 1, 1), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="int4"):
        export_onnx(create("md", 1, 1), tmp_path / "m.onnx", grid=(3, 3), dtype="int4")
    with pytest.raises(InputError, match="functions"):
        export_onnx(create("md", 1, 1), tmp_path / "m.onnx", form="scan", functions=True)
    with pytest.raises(MDLSTMError, match="_Bessel: No ONNX function found"):
        export_onnx(_Bessel(), tmp_path / "m.onnx", grid=(3, 3))
    refused = r"_Sampled cannot be exported.*'GridSample', which models may not use; compute that part"
    with pytest.raises(MDLSTMError, match=refused):
        export_onnx(_Sampled(1, 2), tmp_path / "m.onnx", grid=(3, 3))
    with pytest.raises(MDLSTMError, match=r"branch|Cond"):  # torch 2.10 says Cond
        export_onnx(_Branch(), tmp_path / "m.onnx", grid=(3, 3))
    with pytest.raises(MDLSTMError, match="_Rows"):
        export_onnx(_Rows(), tmp_path / "m.onnx", form="scan", channels=1)
    assert list(tmp_path.iterdir()) == []


def test_parametrized_weights_are_folded_into_constants(tmp_path: Path) -> None:
    net = create("md", 1, 1)
    nn.utils.parametrizations.weight_norm(net.body, "weight_hh_l0")
    assert export_onnx(net, tmp_path / "m.onnx", grid=(3, 3)).max_abs < 1e-6


@pytest.mark.usefixtures("shifted_reference")
def test_a_larger_tolerance_is_used_and_recorded(tmp_path: Path) -> None:
    report = export_onnx(create("md", 1, 1), tmp_path / "m.onnx", grid=(3, 3), atol=2e-3)
    assert Session(report.path, "cpu").metadata.parity["atol"] == 2e-3
    assert report.max_abs == pytest.approx(1e-3, rel=0.01)


def test_export_run_names_the_file_and_does_not_replace_it(trained: Run, tmp_path: Path) -> None:
    report = export_run(trained.folder, tmp_path, grid=(2, 3))
    assert report.path == tmp_path / "model-2x3.onnx"
    assert str(report).startswith(f"{report.path}: x (N, 2, 3, 1) → y (N, 2, 3, 1), unrolled, ")
    assert report.as_dict()["bytes"] == report.path.stat().st_size
    with pytest.raises(InputError, match=r"model-2x3\.onnx"):
        export_run(trained, tmp_path, grid=(2, 3))
    export_run(trained, tmp_path, grid=(2, 3), force=True)
    assert export_run(trained, tmp_path, form="scan").path == tmp_path / "model-any.onnx"


def test_export_run_takes_a_checkpoint_file(trained: Run, tmp_path: Path) -> None:
    report = export_run(trained.last, tmp_path / "last.onnx", grid=(2, 2))
    assert report.metadata.checkpoint_sha256 == hashlib.sha256(trained.last.read_bytes()).hexdigest()
    assert verify_model(report.path, trained.last, device="cpu", seeds=1).failed == []
    with pytest.raises(InputError, match=r"none\.safetensors"):
        export_run(tmp_path / "none.safetensors", tmp_path / "m.onnx")


def test_export_run_sizes_checks_all_files_before_the_first_export(trained: Run, tmp_path: Path) -> None:
    (tmp_path / "model-2x3.onnx").touch()
    with pytest.raises(InputError, match=r"model-2x3\.onnx"):
        export_run_sizes(trained, [(2, 2), (2, 3)], tmp_path)
    with pytest.raises(InputError, match="2x2, 2x2"):
        export_run_sizes(trained, [(2, 2), (2, 2)], tmp_path)
    with pytest.raises(InputError, match="got 2 sizes"):
        export_run_sizes(trained, [(2, 2), (3, 3)], tmp_path / "m.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model-2x3.onnx"]
