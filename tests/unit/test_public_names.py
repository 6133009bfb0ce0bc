"""The public names of every package, so that none appears or vanishes unnoticed."""

from __future__ import annotations

from importlib import import_module

import pytest
from helpers.checkout import modules

from mdlstm_tk import errors

PUBLIC = {
    "mdlstm_tk": """
        BoundaryState DeviceError Gate InputError MDLSTM MDLSTMError MissingExtraError ParityError
        StoppedError __version__ clear_caches register_cell
    """,
    "mdlstm_tk.benchmark": """
        Measurement SHAPES Shape contenders floor interleave measure measure_layers ratios_of
        torch_threads
    """,
    "mdlstm_tk.cells": """
        BUILT_IN_CELLS Cell Gate cell_names check_cell exp get_cell log maximum minimum
        register_cell relu sigmoid sign softplus sqrt tanh
    """,
    "mdlstm_tk.cli": "main",
    "mdlstm_tk.data": """
        Batch DatasetTask DiagonalBatch DiagonalTask DigitStrings Digits DigitsDensity Fashion
        Floats GaussianField Ising KINDS Kind SPLITS Split Task TaskSpec Textures UNLABELLED batches
    """,
    "mdlstm_tk.export": """
        ExportReport Parity VerificationReport export_drawing export_onnx export_run
        export_run_sizes export_tiles float64_reference lower translation_table verify_model
    """,
    "mdlstm_tk.models": """
        Classifier DensityNet GridNet HorizontalNet LineRecognizer MDNet Normalized PixelNet RasterNet
        Segmenter SnakeNet TextRecognizer create model_names model_options register
    """,
    "mdlstm_tk.report": "draw_comparison draw_run draw_samples render_report write_report",
    "mdlstm_tk.runtime": """
        Answer Character CharacterModel Decoding Inference Metadata Result Session TiledSession
        Transcription cut_line decode describe_model infer_paths load_array load_image read_page save_array
        write_page
    """,
    "mdlstm_tk.tiling": "Stage TileStages checkpointed",
    "mdlstm_tk.training": """
        Checkpoint Comparison ComparisonPlan Progress RecentMetrics Run TrainConfig TrainingJob
        build build_network compare_models configure configure_comparison configure_resumed
        default_config describe_run draw_images evaluate latest_run list_settings load_checkpoint
        load_task make_task new_job new_run open_run parse_settings plan_comparison predict
        register_task resume_job sample_run save_checkpoint train
    """,
}


def packages() -> list[str]:
    return [name for name, path in modules().items() if path.name == "__init__.py"]


@pytest.mark.parametrize("package", packages())
def test_public_names(package: str) -> None:
    module = import_module(package)
    exported = getattr(module, "__all__", [])
    assert len(exported) == len(set(exported))
    assert set(exported) == set(PUBLIC.get(package, "").split()), (
        f"PUBLIC in this file must list what __all__ of {package} does; new names belong in docs/api/, too"
    )
    missing = [name for name in exported if not hasattr(module, name)]
    assert not missing


def test_dir_lists_the_public_names() -> None:
    assert set(dir(import_module("mdlstm_tk"))) == set(PUBLIC["mdlstm_tk"].split())


def test_exit_codes_are_the_documented_ones() -> None:
    kinds = (errors.MDLSTMError, *errors.MDLSTMError.__subclasses__())
    assert {kind.__name__: kind.exit_code for kind in kinds} == {
        "MDLSTMError": 1,
        "InputError": 2,
        "ParityError": 3,
        "DeviceError": 4,
        "StoppedError": 1,
        "MissingExtraError": 1,
    }
