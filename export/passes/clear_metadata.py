"""Remove what the exporter notes on nodes and values: stack traces with paths of this machine."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

__all__ = ["clear_metadata"]


def clear_metadata(model: ir.Model) -> int:
    """Drop metadata and doc strings everywhere; returns 1 if there were any."""
    model.metadata_props.clear()
    return int(ClearMetadataAndDocStringPass()(model).modified)
