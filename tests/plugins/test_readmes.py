"""The type table in an operator's README is the one in its specification."""

from __future__ import annotations

from pathlib import Path

import pytest

from visionllm_edge.plugins.registry import SEMANTIC_OPS
from visionllm_edge.plugins.semantic_op import OpPort

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"


def row(port: OpPort) -> str:
    shape = ", ".join(map(str, port.shape))
    types = ", ".join(dict.fromkeys(port.dtypes))
    return f"| {port.name} | [{shape}] | {types} |"


@pytest.mark.parametrize(
    "name",
    [
        "GatherRows",
        "GridSamplePromptPool",
        "MultiScaleDeformableAttention",
        "QuantizedDense",
        "QuantizedLinear",
        "RowNormalization",
        "UnmaskedAttention",
    ],
)
def test_the_type_table_is_that_of_the_specification(name: str) -> None:
    op = SEMANTIC_OPS[name]
    text = (PLUGINS / op.module.rpartition(".")[2] / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {name}\n")
    rows = [row(port) for port in (*op.inputs, *op.outputs)]
    assert "\n".join(["| port | shape | type |", "|---|---|---|", *rows, ""]) in text
