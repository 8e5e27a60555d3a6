"""Canonical graphs of a bundle: what lowering to another target starts from.

A bundle keeps them beside the graphs of its own target, on the same weights file, so that neither
the checkpoint nor torch is needed to make a kit for a device.
"""

from __future__ import annotations

import onnx_ir as ir

from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.errors import BundleError, ExportError

__all__ = ["load_canonical"]


def load_canonical(bundle: Bundle, stage: str, bucket: tuple[int, int] | None = None) -> ir.Model:
    """The canonical graph of a stage; its large weights stay mapped files.

    Args:
        bundle: as opened; the weights are read from it as long as the model is used.
        stage: name in the manifest.
        bucket: size bucket of a stage that has several graphs.

    Raises:
        BundleError: no such stage or bucket, or a bundle without canonical graphs (one of engines).
        ExportError: the file cannot be read.
    """
    relative = bundle.variant(stage, bucket).canonical
    if relative is None:
        raise BundleError(
            f"bundle '{bundle.root.name}': stage '{stage}' carries no canonical graph. Take the "
            "bundle that was compiled for the cpu."
        )
    path = bundle.file(relative)
    try:
        return ir.load(path)
    # onnx and protobuf raise what they like; a file that does not parse is one error here.
    except Exception as e:
        raise ExportError(f"bundle '{bundle.root.name}': file '{relative}': {e}") from e
