"""What `export_onnx` takes besides a plain network, and how its report shows the shapes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.networks import Conditioned
from mdlstm_tk.runtime.metadata_checks import layout_of
from torch import nn

from mdlstm_tk import MDLSTM
from mdlstm_tk.errors import InputError
from mdlstm_tk.export import ExportReport, export_onnx, float64_reference, verify_model
from mdlstm_tk.export.copies import eval_copy
from mdlstm_tk.runtime import Metadata, Session


def test_a_compiled_network_is_exported_as_what_it_wraps(tmp_path: Path) -> None:
    def compiled(module: nn.Module) -> nn.Module:
        return torch.compile(module, backend=fails_if_called)

    def fails_if_called(*_: Any) -> Any:
        raise AssertionError("the export compiled something")

    torch.manual_seed(0)
    plain = nn.Sequential(MDLSTM(2, 3), nn.Linear(3, 1)).eval()
    network = compiled(nn.Sequential(compiled(plain[0]), plain[1])).train()
    report = export_onnx(network, tmp_path / "m.onnx", grid=(3, 4))
    wrappers = [m for m in network.modules() if isinstance(m, torch._dynamo.OptimizedModule)]
    assert network.training and len(wrappers) == 2
    x = torch.rand(2, 3, 4, 2)
    np.testing.assert_allclose(Session(report.path, "cpu")(x.numpy()), plain(x).detach(), atol=1e-6)
    np.testing.assert_allclose(float64_reference(network)(x.numpy()), plain(x).detach(), atol=1e-6)
    verify_model(report.path, network, device="cpu", seeds=1).raise_if_failed()
    assert not any(isinstance(m, torch._dynamo.OptimizedModule) for m in eval_copy(network).modules())


def test_a_session_says_how_further_inputs_are_given(tmp_path: Path) -> None:
    x, z, k = torch.zeros(1, 3, 4, 2), torch.zeros(1, 2), torch.zeros(1, dtype=torch.long)
    session = Session(export_onnx(Conditioned(), tmp_path / "m.onnx", (x, z, k)).path, "cpu")
    names = ", ".join(f"{name}=…" for name in session.metadata.inputs[1:])
    with pytest.raises(InputError, match=re.escape(f"by name, as in session(x, {names})")):
        session(x.numpy(), z.numpy())


@pytest.mark.parametrize(
    ("grid", "window", "multiple_of", "channels_last", "text"),
    [
        (None, (2, 1), None, True, "x (N, H, W, 3) → y (N, ⌈H/2⌉, W, 4), scan"),
        (None, (2, 2), (4, 2), False, "x (N, 3, H, W) → y (N, 4, H/2, W/2), scan"),
        ((7, 8), (2, 2), None, False, "x (N, 3, 7, 8) → y (N, 4, 4, 4), scan"),
        (None, None, None, True, "x (N, H, W, 3) → y (N, …, 4), scan"),
    ],
)
def test_a_report_shows_the_extents_of_the_output(
    grid: Any, window: Any, multiple_of: Any, channels_last: bool, text: str
) -> None:
    metadata = Metadata(
        version="1",
        grid=grid,
        form="scan",
        layout=layout_of(2, channels_last),
        channels=3,
        outputs=4,
        window=window,
        multiple_of=multiple_of,
    )
    assert text in str(ExportReport(Path("m.onnx"), metadata, 1, 1, 0.0, 0.0))
