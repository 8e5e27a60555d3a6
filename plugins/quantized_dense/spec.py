"""A block-quantised linear layer with what follows it: ports, letters, attributes.

Letters, stored bytes, blocks and `accuracy_level` as in QuantizedLinear, which is the first half of
it; then comes the bias, then the activation. For vision stages, where the sums of many rows would
otherwise travel to memory and back for each of the two.

==============  =====================  ================================================
`activation`    name                   of z = x W^T + bias
==============  =====================  ================================================
0               none                   z
1               gelu                   z * (1 + erf(z / sqrt(2))) / 2
2               quick_gelu             z / (1 + exp(-1.702 z)), what OpenAI's CLIP has
3               relu                   max(z, 0)
==============  =====================  ================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from visionllm_edge.plugins.quantized_linear.spec import QUANTIZED_LINEAR
from visionllm_edge.plugins.semantic_op import OpPort, SemanticOp

__all__ = ["ACTIVATIONS", "QUANTIZED_DENSE"]

ACTIVATIONS: Mapping[str, int] = MappingProxyType(
    {"none": 0, "gelu": 1, "quick_gelu": 2, "relu": 3}
)
"""Name -> value of the attribute."""

QUANTIZED_DENSE = SemanticOp(
    name="QuantizedDense",
    summary="y = activation(x W^T + bias), W stored in 4 or 8 bits with one scale per block.",
    inputs=(*QUANTIZED_LINEAR.inputs, OpPort("bias", ("N",), ("float32",))),
    outputs=QUANTIZED_LINEAR.outputs,
    attributes=(*QUANTIZED_LINEAR.attributes, ("activation", "int")),
    module="visionllm_edge.plugins.quantized_dense",
)
