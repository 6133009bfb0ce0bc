"""Networks with several outputs, in every place that an output goes through."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.command import mdlstm
from helpers.networks import ManyHeads
from torch import Tensor, nn

from mdlstm_tk import MDLSTM
from mdlstm_tk.errors import InputError
from mdlstm_tk.export import export_onnx, float64_reference, verify_model
from mdlstm_tk.export.outputs import named_outputs
from mdlstm_tk.export.server import write_server_repo
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.batching import run_batches
from mdlstm_tk.runtime.cuda_graph import CudaGraphRunner

Pair = namedtuple("Pair", ["first", "second"])
T = torch.zeros(2, 3)


@pytest.fixture(scope="module")
def heads() -> nn.Module:
    torch.manual_seed(0)
    return ManyHeads()


@pytest.fixture(scope="module")
def path(heads: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network for any grid."""
    path = tmp_path_factory.mktemp("heads") / "m.onnx"
    export_onnx(heads, path, torch.zeros(1, 3, 4, 6), form="scan")
    return path


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (T, ["y"]),
        ((T, T), ["y", "y1"]),
        ([T, T, T], ["y", "y1", "y2"]),
        ({"out": T, "aux": T}, ["out", "aux"]),
        (Pair(T, T), ["first", "second"]),
    ],
    ids=str,
)
def test_names_of_outputs(result: object, names: list[str]) -> None:
    assert list(named_outputs(result, "Net")) == names


@pytest.mark.parametrize(
    ("result", "names", "message"),
    [
        ((T, (T, T)), None, "tuple as output 'y1'"),
        ({"y": None}, None, "NoneType as output 'y'"),
        ({}, None, "no output"),
        ((T, T), ["a"], "output_names has 1"),
        ((T, T), ["a", "a"], "different names"),
    ],
    ids=str,
)
def test_other_results_are_refused(result: object, names: list[str] | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        named_outputs(result, "Net", names)


def test_reports_are_printed_in_a_line_for_each_thing(heads: nn.Module, tmp_path: Path) -> None:
    report = export_onnx(heads, tmp_path / "m.onnx", torch.zeros(1, 3, 4, 6))
    assert str(report).startswith(f"{report.path}: x (N, 3, 4, 6) → map (N, ")
    first, *lines = str(verify_model(report.path, heads, device="cpu", seeds=1)).splitlines()
    assert first == f"{report.path} (unrolled, 4x6): largest error against the given ManyHeads in float64"
    assert [line.split(":")[0] for line in lines] == [
        "torch, float32",
        "ONNX Runtime, cpu",
        "ONNX reference evaluator",
    ]
    assert all(line.endswith(", within tolerance") for line in lines)


def test_a_session_returns_them_by_name(heads: nn.Module, path: Path) -> None:
    session, reference = Session(path, "cpu"), float64_reference(heads)
    assert session.metadata.output_names == ("map", "numbers", "mask")
    x = np.random.default_rng(0).standard_normal((5, 3, 4, 6)).astype(np.float32)
    y, exact = session(x), reference(x)
    assert list(y) == list(exact) == ["map", "numbers", "mask"]
    for name in y:
        np.testing.assert_allclose(y[name], exact[name], rtol=0, atol=1e-5)
    assert y["mask"].dtype == np.int64
    single = session(x[0])
    assert {name: array.shape for name, array in single.items()} == {
        "map": (2, 4, 6),
        "numbers": (4,),
        "mask": (4, 6),
    }
    many = session.run_many([x[0], x[1:3], x[3][:, :2]])
    np.testing.assert_allclose(many[1]["numbers"], y["numbers"][1:3], rtol=0, atol=1e-6)
    assert many[2]["map"].shape == (2, 2, 6)
    ((_, split),) = run_batches(session, [("all", x)], batch_size=2)
    np.testing.assert_allclose(split["numbers"], y["numbers"], rtol=0, atol=1e-6)
    assert verify_model(path, heads, device="cpu", seeds=1).failed == []


class PaddedHeads(nn.Module):
    """Outputs with different windows, and `sizes`."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = MDLSTM(1, 2), MDLSTM(1, 3, window=2)

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.fine(x, sizes), self.coarse(x, sizes)


def test_padded_outputs_are_cropped_by_their_own_windows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, names = PaddedHeads(), ["fine", "coarse"]
    report = export_onnx(net, tmp_path / "m.onnx", grid=(4, 6), padded=True, output_names=names)
    session, reference = Session(report.path, "cpu"), float64_reference(net, names)
    assert session.metadata.windows == {"fine": (1, 1), "coarse": (2, 2)}
    samples = [np.random.default_rng(k).random(grid, np.float32) for k, grid in enumerate([(4, 6), (3, 1)])]
    for x, outputs in zip(samples, session.run_many(samples), strict=True):
        for name, exact in reference(x[None, ..., None]).items():
            np.testing.assert_allclose(outputs[name], exact[0], rtol=0, atol=1e-5)


def test_infer_writes_them_to_npz(path: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((2, 3, 4, 5), np.float32)
    np.save(tmp_path / "a.npy", x)
    done = mdlstm("infer", "a.npy", "-m", path, cwd=tmp_path)
    assert done.code == 0, done.err
    written, y = np.load(tmp_path / "a.out.npz"), Session(path, "cpu")(x)
    assert sorted(written) == sorted(y)
    np.testing.assert_allclose(written["map"], y["map"], rtol=0, atol=1e-6)


def test_a_server_lists_all_outputs(path: Path, tmp_path: Path) -> None:
    written = write_server_repo(path, tmp_path / "served", "heads")
    config = (written.parent.parent / "config.pbtxt").read_text()
    assert all(f'name: "{name}"' in config for name in ("map", "numbers", "mask"))


def test_cuda_graphs_return_all_outputs(path: Path) -> None:
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    runner = CudaGraphRunner(onnxruntime, session, "cpu", 0)
    x = np.random.default_rng(0).random((2, 3, 4, 5), np.float32)
    for _ in range(4):  # from the third run on, in buffers
        outputs = runner({"x": x}, onnxruntime.RunOptions())
        for y, expected in zip(outputs, session.run(None, {"x": x}), strict=True):
            np.testing.assert_array_equal(y, expected)


def test_outputs_that_the_metadata_do_not_name_are_refused(path: Path, tmp_path: Path) -> None:
    model = onnx.load(path)
    model.graph.output.pop()
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(InputError, match="mask"):
        Session(tmp_path / "m.onnx", "cpu")
