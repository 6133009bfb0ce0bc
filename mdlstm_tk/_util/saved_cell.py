"""The cell that saved weights are for, in the metadata of a state dict."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class NamesItsCell(nn.Module):
    """A module whose state dict names its cell, as weights of several cells have the same shapes.

    The name stands in the metadata that torch keeps beside the tensors: `torch.save`, pickle and copies
    keep it, and files of tensors alone have none. Weights without it load into any cell that they fit.
    """

    _version = 2  # 1 names no cell
    cell: str

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):  # a dict that a caller fills may have none
            destination._metadata[prefix[:-1]]["cell"] = self.cell

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Tensor],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load the weights, or say in `error_msgs`, which `load_state_dict` raises, that they are for
        another cell; then none changes."""
        cell = local_metadata.get("cell", self.cell)
        if cell == self.cell:
            others = (strict, missing_keys, unexpected_keys, error_msgs)
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)
            return
        name = prefix[:-1] or type(self).__name__
        error_msgs.append(
            f"{name} has the cell '{self.cell}', got weights of a layer with the cell '{cell}'; create the "
            "layer with that cell"
        )
