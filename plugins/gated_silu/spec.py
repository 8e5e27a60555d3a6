"""The gate of a LLaMA's MLP on both of its inputs side by side: ports, letters, types.

Letters: B batch, S rows, F features of one input. The first F columns are the gate, the last F what
it gates: y = silu(gate) * up, silu(x) = x / (1 + exp(-x)).

One linear makes both inputs, so they lie side by side; taking them apart first costs a copy of all
of them, which on a CPU takes as long as the whole gate.
"""

from __future__ import annotations

from visionllm_edge.plugins.semantic_op import OpPort, SemanticOp

__all__ = ["GATED_SILU"]

_FLOAT = ("float32", "float16", "bfloat16")

GATED_SILU = SemanticOp(
    name="GatedSilu",
    summary="y = silu(first half) * second half of every row.",
    inputs=(OpPort("gate_up", ("B", "S", "2*F"), _FLOAT),),
    outputs=(OpPort("y", ("B", "S", "F"), _FLOAT),),
    attributes=(),
    module="visionllm_edge.plugins.gated_silu",
)
