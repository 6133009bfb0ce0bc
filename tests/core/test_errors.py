"""Exceptions and their exit codes, which scripts rely on."""

from __future__ import annotations

from mdlstm_tk import errors


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
