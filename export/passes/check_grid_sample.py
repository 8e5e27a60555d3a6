"""Refuse GridSample in a form that some TensorRT releases compute wrongly without a word.

Opset 20 renamed the mode `bilinear` to `linear`. The parsers up to TensorRT 11.1 do not know the
new name and fall through to NEAREST. Up to opset 19 the name is `bilinear`, which all know.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from visionllm_edge.runtime.errors import ExportError

__all__ = ["check_grid_sample"]

MAX_OPSET = 19
_MODES = ("bilinear", "nearest", "bicubic")


def check_grid_sample(model: ir.Model) -> int:
    """Check every GridSample of the graph and of its functions; returns how many there are.

    Raises:
        ExportError: naming the first one at another opset or with another mode.
    """
    count = 0
    for where, opset, node in _grid_samples(model):
        count += 1
        mode = node.attributes.get_string("mode", "bilinear" if opset <= MAX_OPSET else "linear")
        if opset > MAX_OPSET or mode not in _MODES:
            raise ExportError(
                f"{where}: node '{node.name}' is GridSample with mode '{mode}' at opset {opset}; "
                f"expected {', '.join(_MODES)} at {MAX_OPSET} or below. TensorRT up to 11.1 "
                "silently samples the nearest pixel otherwise. Export the graph at opset 19."
            )
    return count


def _grid_samples(model: ir.Model) -> Iterator[tuple[str, int, ir.Node]]:
    places = [(f"graph '{model.graph.name}'", model.graph.opset_imports, model.graph)]
    places += [
        (f"function '{function.name}'", function.opset_imports, function.graph)
        for function in model.functions.values()
    ]
    for where, opsets, graph in places:
        for node in graph.all_nodes():
            if node.domain == "" and node.op_type == "GridSample":
                yield where, opsets.get("", 1), node
