"""`export_onnx`: further inputs, metadata, layouts, padded samples, operators that need trust, and models
captured with torch alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from helpers.networks import ConvStem, Everything, FoldedHeight, Function, Padded, Tokens
from torch import Tensor, nn
from torch.nn import functional

from mdlstm_tk import MDLSTM
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.export import export_onnx, float64_reference, lower, translation_table, verify_model
from mdlstm_tk.runtime import Session

IMAGE, RGB = torch.rand(1, 1, 8, 12), torch.rand(1, 3, 8, 12)


def further(batch: int, height: int, width: int) -> dict[str, Tensor]:
    """Random inputs after x."""
    return {
        "tanh": torch.rand(batch, 2) + 1,  # positive, as its logarithm is taken
        "k": torch.randint(4, (batch,), dtype=torch.int32),
        "mask": torch.rand(batch, height, width) > 0.5,
        "z": torch.randn(batch, 3, height, width),
    }


def test_further_inputs_of_each_type(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, examples = Everything(), (torch.randn(2, 4, 6, 2), *further(2, 4, 6).values())
    report = export_onnx(net, tmp_path / "m.onnx", examples, form="scan", grid_inputs=["mask", "z"])
    session = Session(report.path, "cpu")
    assert session.metadata == report.metadata
    assert session.metadata.inputs == ("x", "tanh", "k", "mask", "z")
    for grid in ((4, 6), (20, 9), (1, 1)):
        x, given = torch.randn(3, *grid, 2), further(3, *grid)
        arrays = {name: value.numpy() for name, value in given.items()}
        y, exact = session(x.numpy(), **arrays), float64_reference(net)(x.numpy(), **arrays)
        assert list(y) == ["y", "mean", "same"]
        for name, truth in exact.items():
            np.testing.assert_allclose(y[name], truth, rtol=0, atol=1e-5, err_msg=name)
    for wrong in ({"z": None}, {"k": arrays["tanh"]}, {"tanh": arrays["tanh"][:, :1]}):
        with pytest.raises(MDLSTMError):
            session(x.numpy(), **{k: v for k, v in {**arrays, **wrong}.items() if v is not None})
    for value in (-1, 100):  # ONNX counts -1 from the end, torch does not
        with pytest.raises(MDLSTMError, match="out of data bounds"):
            session(x.numpy(), **{**arrays, "k": np.full(3, value)})


def test_metadata_tell_what_a_file_takes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    metadata = export_onnx(FoldedHeight(), tmp_path / "m.onnx", IMAGE, grid=(8, None)).metadata
    assert (metadata.grid, metadata.form, metadata.layout) == ((8, None), "scan", "N C H W")
    session = Session(tmp_path / "m.onnx", "cpu")
    with pytest.raises(InputError):
        session(np.zeros((10, 12)))
    many = session.run_many([np.zeros((8, 4)), np.zeros((8, 6))])
    assert [y.shape for y in many] == [(2, 5), (3, 5)]
    fixed = export_onnx(ConvStem(6), tmp_path / "f.onnx", RGB, grid=(8, 12), form="scan").metadata
    assert (fixed.grid, fixed.layout, fixed.channels, fixed.window) == ((8, 12), "N C H W", 3, None)


def test_a_grid_of_tokens_without_an_axis_of_channels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, tokens = Tokens(0), torch.randint(7, (3, 4, 5))
    session = Session(export_onnx(net, tmp_path / "t.onnx", tokens, form="scan").path, "cpu")
    metadata = session.metadata
    assert (metadata.integer, metadata.channel_axis, metadata.example_range) == (True, False, (0, 6))
    other = np.random.default_rng(0).integers(0, 7, (2, 3, 9))
    np.testing.assert_allclose(session(other), float64_reference(net)(other), rtol=0, atol=1e-5)
    with pytest.raises(InputError):
        session(other + 0.5)
    verify_model(tmp_path / "t.onnx", device="cpu", seeds=1).raise_if_failed()


def untrusted(y: Tensor) -> dict[str, Tensor]:
    """Features at places that the network computes, and the sum of the positive ones of each sample, by way
    of their indices."""
    index, flat = torch.nonzero(y.flatten(1) > 0), y.flatten(1)
    total = y.new_zeros(y.shape[0]).index_add(0, index[:, 0], flat[index[:, 0], index[:, 1]])
    sampled = functional.grid_sample(y.movedim(-1, 1), y, align_corners=False)
    return {"sampled": sampled, "total": total[:, None]}


def test_operators_outside_the_list_need_trust(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Function(lambda x: x.log()[..., None], untrusted)  # of positive x (N, time, frequency)
    report = export_onnx(net, tmp_path / "m.onnx", torch.rand(2, 4, 5) + 1)
    assert report.needs_trust == ("GridSample", "NonZero")
    for opened in (lambda: Session(report.path, "cpu"), lambda: verify_model(report.path, net)):
        with pytest.raises(InputError, match="NonZero"):
            opened()
    session, x = Session(report.path, "cpu", trusted=True), np.random.default_rng(0).random((3, 4, 5)) + 1
    y, exact = session(x.astype(np.float32)), float64_reference(net)(x)
    for name, truth in exact.items():
        np.testing.assert_allclose(y[name], truth, rtol=0, atol=1e-5, err_msg=name)
    verify_model(report.path, net, device="cpu", seeds=1, trusted=True).raise_if_failed()


def branching(inside: Any) -> Function:
    """A branch that some batches of more than three samples take."""
    return Function(lambda x: torch.cond((x.mean((1, 2, 3)) < 0).sum() > 3, inside, torch.clone, (x,)))


def test_samples_take_several_branches(tmp_path: Path) -> None:
    torch.manual_seed(0)
    report = export_onnx(branching(lambda h: 2 * h - h), tmp_path / "m.onnx", grid=(6, 6))
    assert report.needs_trust == ("If",)
    with pytest.raises(InputError, match="mixes the samples"):
        export_onnx(branching(lambda h: h + h.mean(0)), tmp_path / "n.onnx", grid=(6, 6))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # raised inside torch
def test_a_model_exported_with_torch_itself_can_be_lowered() -> None:
    net, x = nn.Sequential(MDLSTM(2, 3, num_layers=2), nn.Linear(3, 2)).eval(), torch.randn(2, 4, 3, 2)
    options: Any = {"custom_translation_table": translation_table(), "verbose": False, "opset_version": 18}
    program = torch.onnx.export(net, (x,), dynamo=True, **options)
    assert program is not None
    for form in ("unrolled", "scan"):
        content = lower(program.model_proto, form).SerializeToString()  # type: ignore[arg-type]
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(y, net(x).detach(), rtol=0, atol=1e-5)


def channels_first(after: Callable[[Tensor], Tensor]) -> nn.Module:
    return Function(after=after, channels_last=False)


OUTPUTS: dict[str, tuple[nn.Module, str, int]] = {  # form and features
    "features last": (channels_first(lambda y: y.movedim(1, -1)), "scan", 2),
    "for one grid": (channels_first(lambda y: y.movedim(1, -1).reshape(-1, 5, 6, 2)), "unrolled", 2),
    "extents alone": (Function(after=lambda y: y.argmax(-1)), "scan", 1),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_may_have_its_features_last_or_none(name: str, tmp_path: Path) -> None:
    net, form, features = OUTPUTS[name]
    metadata = export_onnx(net, tmp_path / "m.onnx", grid=(5, 6), form=form).metadata  # type: ignore[arg-type]
    assert (metadata.outputs, metadata.window) == (features, None)


@pytest.mark.parametrize(("form", "channels_last"), [("unrolled", True), ("scan", False)])
def test_padded_samples_give_the_same_numbers_as_the_samples_alone(
    form: Any, channels_last: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net, axis, z = Padded(channels_last), -1 if channels_last else 1, torch.randn(2, 2)
    example = torch.zeros(2, *((5, 6, 1) if channels_last else (1, 5, 6)))
    report = export_onnx(net, tmp_path / "m.onnx", (example, z), form=form, padded=True)
    session, reference = Session(report.path, "cpu"), float64_reference(net)
    assert session.metadata.inputs == ("x", "sizes", "z")
    assert session.metadata.windows == {"fine": (1, 1), "coarse": (2, 2), "shift": None}
    values = np.random.default_rng(0).random((2, 5, 6), np.float32)
    for height, width in [(5, 6), (1, 1), (1, 6), (5, 1), (3, 4)]:
        x = np.expand_dims(values[:, :height, :width], axis)
        exact, y = reference(x, z=z.numpy()), session(x, z=z.numpy())
        assert all(np.abs(y[name] - exact[name]).max() < 1e-5 for name in exact)
    sizes, outputs = np.array([[5, 6], [3, 4]]), []
    for padding in (0, 1, np.nan):  # in any runtime, so that ONNX Runtime is called without a session
        padded = values.copy()
        padded[1, 3:] = padded[1, :, 4:] = padding
        feeds = {"x": np.expand_dims(padded, axis), "sizes": sizes, "z": z.numpy()}
        outputs.append(session.graph.session.run(["fine"], feeds)[0])
    assert np.array_equal(outputs[0], outputs[1]) and np.array_equal(outputs[0], outputs[2])
    alone, whole = (np.moveaxis(each, axis, -1)[-1] for each in (exact["fine"], outputs[0]))
    np.testing.assert_allclose(whole[:3, :4], alone, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="sizes"):
        session(x, sizes=np.asarray([5, 6]), z=z.numpy())
