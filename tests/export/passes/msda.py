"""One-node models of deformable attention with fixed sizes, as in a canonical graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from tests.export.passes.graphs import Arrays as Inputs
from visionllm_edge.plugins.ms_deform_attn.spec import MS_DEFORM_ATTN
from visionllm_edge.plugins.semantic_op import DOMAIN

TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


def msda_model(inputs: Inputs, *, dtype: str = "float32", fixed: bool = True) -> ir.Model:
    """Level sizes are initializers; `fixed` says whether the value's shape is known."""
    names = [port.name for port in MS_DEFORM_ATTN.inputs]
    node = helper.make_node(
        MS_DEFORM_ATTN.name,
        names,
        ["output"],
        name="msda",
        domain=DOMAIN,
        plugin_version="1",
        plugin_namespace="visionllm",
    )
    half = TYPES[dtype]
    kinds = {"value": half, "attention_weights": half, "sampling_locations": TensorProto.FLOAT}
    ends = [
        helper.make_tensor_value_info(
            name, kind, inputs[name].shape if fixed else [None] * inputs[name].ndim
        )
        for name, kind in kinds.items()
    ]
    constants = [
        numpy_helper.from_array(np.asarray(inputs[name]), name)
        for name in ("spatial_shapes", "level_start_index")
    ]
    batch, _, heads, depth = inputs["value"].shape
    shape = [batch, inputs["sampling_locations"].shape[1], heads, depth]
    output = helper.make_tensor_value_info("output", half, shape)
    model = helper.make_model(
        helper.make_graph([node], "test", ends, [output], constants),
        opset_imports=[helper.make_opsetid("", 19), helper.make_opsetid(DOMAIN, 1)],
        functions=[MS_DEFORM_ATTN.onnx_function(opset=19, levels=len(inputs["spatial_shapes"]))],
        ir_version=9,
    )
    return ir.serde.deserialize_model(model)


def feeds(inputs: Inputs, *, dtype: str = "float32") -> Inputs:
    """What the model's inputs take."""
    return {
        "value": inputs["value"].astype(dtype),
        "sampling_locations": inputs["sampling_locations"],
        "attention_weights": inputs["attention_weights"].astype(dtype),
    }
