"""The public names of every package, so that none appears or vanishes unnoticed."""

from __future__ import annotations

from importlib import import_module

import pytest
from helpers.checkout import modules

from mdlstm_tk import errors

PUBLIC = {
    "mdlstm_tk": {
        *("MDLSTM", "DeviceError", "InputError", "MDLSTMError", "MissingExtraError", "ParityError"),
        "__version__",
    },
    "mdlstm_tk.benchmark": {
        *("SHAPES", "Measurement", "Shape", "contenders", "floor", "interleave", "measure"),
        *("measure_layers", "ratios_of", "torch_threads"),
    },
    "mdlstm_tk.cli": {"main"},
    "mdlstm_tk.data": {
        *("KINDS", "UNLABELLED", "Batch", "DiagonalBatch", "DiagonalTask", "DigitStrings", "Digits"),
        *("GaussianField", "Kind", "DatasetTask", "Split", "Task", "TaskSpec", "Textures", "batches"),
    },
    "mdlstm_tk.export": {
        *("Parity", "Report", "export_onnx", "float64_reference", "lower", "translation_table"),
    },
    "mdlstm_tk.models": {
        *("Classifier", "ConvNet", "GridNet", "HorizontalNet", "MDNet", "Normalized", "RasterNet"),
        *("TextRecognizer", "Segmenter", "SnakeNet", "create", "names", "model_options", "register"),
    },
    "mdlstm_tk.report": {"write_report"},
    "mdlstm_tk.runtime": {"Metadata", "Session", "load_array", "save_array"},
    "mdlstm_tk.training": {
        *("Checkpoint", "Progress", "Run", "TrainConfig", "build", "build_network", "default_config"),
        *("evaluate", "latest_run", "load_checkpoint", "make_task", "open_run", "predict"),
        *("save_checkpoint", "train"),
    },
}


def packages() -> list[str]:
    return [name for name, path in modules().items() if path.name == "__init__.py"]


@pytest.mark.parametrize("package", packages())
def test_public_names(package: str) -> None:
    module = import_module(package)
    exported = getattr(module, "__all__", [])
    assert len(exported) == len(set(exported))
    assert set(exported) == PUBLIC.get(package, set())
    missing = [name for name in exported if not hasattr(module, name)]
    assert not missing


def test_dir_lists_the_public_names() -> None:
    assert set(dir(import_module("mdlstm_tk"))) >= PUBLIC["mdlstm_tk"]


def test_exit_codes_are_the_documented_ones() -> None:
    kinds = (errors.MDLSTMError, *errors.MDLSTMError.__subclasses__())
    assert {kind.__name__: kind.exit_code for kind in kinds} == {
        "MDLSTMError": 1,
        "InputError": 2,
        "ParityError": 3,
        "DeviceError": 4,
        "MissingExtraError": 1,
    }
