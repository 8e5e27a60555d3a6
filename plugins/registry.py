"""The list of semantic operators: one folder per operator, one entry here.

An operator's meaning is fixed by its folder: `spec.py` (shapes in letters, types), `reference.py`
(numpy, obvious) and `onnx_function.py` (the same in standard ONNX, so any backend can run the
file). Which form a node takes on a target is decided elsewhere; see `export/lowering.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from visionllm_edge.plugins.cached_attention.spec import CACHED_ATTENTION
from visionllm_edge.plugins.gated_silu.spec import GATED_SILU
from visionllm_edge.plugins.gather_rows.spec import GATHER_ROWS
from visionllm_edge.plugins.grid_sample_prompt_pool.spec import GRID_SAMPLE_PROMPT_POOL
from visionllm_edge.plugins.ms_deform_attn.spec import MS_DEFORM_ATTN
from visionllm_edge.plugins.quantized_cached_attention.spec import QUANTIZED_CACHED_ATTENTION
from visionllm_edge.plugins.quantized_dense.spec import QUANTIZED_DENSE
from visionllm_edge.plugins.quantized_linear.spec import QUANTIZED_LINEAR
from visionllm_edge.plugins.row_normalization.spec import ROW_NORMALIZATION
from visionllm_edge.plugins.semantic_op import SemanticOp
from visionllm_edge.plugins.unmasked_attention.spec import UNMASKED_ATTENTION

__all__ = ["SEMANTIC_OPS"]

SEMANTIC_OPS: Mapping[str, SemanticOp] = MappingProxyType(
    {
        op.name: op
        for op in (
            CACHED_ATTENTION,
            GATED_SILU,
            GATHER_ROWS,
            GRID_SAMPLE_PROMPT_POOL,
            MS_DEFORM_ATTN,
            QUANTIZED_CACHED_ATTENTION,
            QUANTIZED_DENSE,
            QUANTIZED_LINEAR,
            ROW_NORMALIZATION,
            UNMASKED_ATTENTION,
        )
    }
)
"""op_type -> operator, for every operator of domain `visionllm`."""
