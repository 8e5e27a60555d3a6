"""The decoder as TensorRT gets it: every way to write the cache, every precision, dense and packed.

ONNX Runtime runs what is in the graph, so a wrong mask, row or weight shows here; what a builder
makes of the graph afterwards is `test_decoder_engines`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.export.llm.decoder_runs import CAPACITY, STEPS, WIDE, check, in_blocks
from tests.export.llm.small_llama import dense_weights, random_llama
from tests.export.passes.graphs import op_list
from visionllm_edge.export.llm.decoder_graph import decoder_graph
from visionllm_edge.export.lowering import KEPT, LoweredNode, lower
from visionllm_edge.export.passes.emulate_bfloat16 import emulate_bfloat16
from visionllm_edge.plugins.semantic_op import DOMAIN
from visionllm_edge.runtime.errors import ParityError
from visionllm_edge.runtime.targets import TARGETS

RTX = TARGETS["rtx-ada"]
CACHES = ("cached_attention", "concat", "tensor_scatter")
DENSE = (0, 0)


def _made(bits: int, size: int, cache: str = "float32") -> tuple[ir.Model, Any]:
    if (bits, size) == DENSE:
        llama = random_llama(WIDE)
        return decoder_graph(WIDE, dense_weights(llama), cache=cache), llama
    weights, true = in_blocks(bits, size)
    return decoder_graph(WIDE, weights, cache=cache), true


def _lower(model: ir.Model, cache: str, precision: str, **options: Any) -> list[LoweredNode]:
    return lower(
        model, RTX, precision=precision, prefer={"CachedAttention": cache}, capacity=CAPACITY,
        **options,
    )  # fmt: skip


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_every_way_to_write_the_cache_is_right_at_every_step(cache: str, precision: str) -> None:
    model, true = _made(*DENSE)
    forms = {entry.op: entry.form for entry in _lower(model, cache, precision)}
    assert forms == {"CachedAttention": cache, "GatedSilu": "inline"}
    assert {node.domain for node in model.graph} == {""}
    ops = op_list(model)
    assert ("TensorScatter" in ops) is (cache == "tensor_scatter")
    assert ("ScatterND" in ops) is (cache != "tensor_scatter")
    if precision == "bf16":
        emulate_bfloat16(model)
    check(model, true, precision=precision)


@pytest.mark.parametrize(("bits", "size"), [(4, 32), (4, 128), (8, 32), (8, 128)])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_packed_weights_are_right_in_every_precision(bits: int, size: int, precision: str) -> None:
    model, true = _made(bits, size, cache="float16")
    _lower(model, "tensor_scatter", precision)
    wide = [n for n in model.graph if n.op_type == "DequantizeLinear"]
    assert len(wide) == 4 * WIDE.num_hidden_layers + 1
    assert {str(node.inputs[0].dtype) for node in wide if node.inputs[0]} == {f"INT{bits}"}
    # The products are in the precision of the graph: a builder multiplies by the packed weights.
    assert {node.outputs[0].dtype for node in wide} == {_TYPES[precision]}
    if precision == "bf16":
        emulate_bfloat16(model)
    check(model, true, precision=precision)


_TYPES = {
    "fp32": ir.DataType.FLOAT,
    "fp16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
}


def test_zero_points_stay_exact_in_half_precision() -> None:
    weights, true = in_blocks(4, 64, asymmetric=True)
    model = decoder_graph(WIDE, weights)
    _lower(model, "tensor_scatter", "fp16")
    assert "ReduceSum" in op_list(model)
    check(model, true, precision="fp16")


@pytest.mark.parametrize("stored", ["float32", "float16"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_cache_takes_the_precision_and_the_other_ends_stay(stored: str, precision: str) -> None:
    model, _ = _made(*DENSE, cache=stored)
    _lower(model, "tensor_scatter", precision)
    for value in (*model.graph.inputs, *model.graph.outputs):
        name = value.name or ""
        if name.startswith(("past_key_values", "present")):
            assert value.dtype == _TYPES[precision]
            assert list(value.shape or ())[2] == CAPACITY
        elif name in ("inputs_embeds", "logits", "hidden"):
            assert value.dtype == ir.DataType.FLOAT
        else:
            assert value.dtype == ir.DataType.INT64


def test_norms_stay_in_fp32_and_products_do_not() -> None:
    model, _ = _made(4, 32)
    _lower(model, "tensor_scatter", "fp16")
    half = {n.op_type for n in model.graph if n.outputs[0].dtype == ir.DataType.FLOAT16}
    full = {n.op_type for n in model.graph if n.outputs[0].dtype == ir.DataType.FLOAT}
    assert {"MatMul", "DequantizeLinear", "Softmax", "TensorScatter", "Sigmoid", "Split"} <= half
    assert {"Pow", "ReduceMean", "Sqrt", "Div"} <= full
    assert not {"MatMul", "Softmax", "DequantizeLinear", "TensorScatter"} & full
    assert model.meta[KEPT]["range"] == 3 * (2 * WIDE.num_hidden_layers + 1)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("fault", ["upper left", "everything", "one row late"])
def test_a_wrong_mask_is_refused(cache: str, fault: str) -> None:
    """A causal flag read from the upper left, no mask at all, and rows written one too far."""
    model, true = _made(*DENSE)
    _lower(model, cache, "fp32")
    compare = next(node for node in model.graph if node.op_type == "Greater")
    columns, own = compare.inputs
    assert columns is not None and own is not None
    step = "routing"
    if fault == "upper left":
        start = next(v for v in model.graph.inputs if v.name == "past_length")
        wrong = ir.node("Sub", [own, start], name="upper_left")
        model.graph.insert_before(compare, wrong)
        compare.replace_input_with(1, _typed(wrong, own))
    elif fault == "everything":
        wrong = ir.node("Add", [own, own], name="twice")
        model.graph.insert_before(compare, wrong)
        compare.replace_input_with(1, _typed(wrong, own))
    else:
        for node in model.graph:
            if node.op_type == "TensorScatter":
                node.replace_input_with(2, _one(model, node, node.inputs[2]))
            elif node.op_type == "ScatterND":
                node.replace_input_with(1, _one(model, node, node.inputs[1]))
        step = "token"
    with pytest.raises(ParityError, match="is wrong"):
        check(model, true, steps={step: STEPS[step]})


def _typed(node: ir.Node, like: ir.Value) -> ir.Value:
    (out,) = node.outputs
    out.name, out.type, out.shape = node.name, like.type, like.shape
    return out


def _one(model: ir.Model, before: ir.Node, rows: ir.Value | None) -> ir.Value:
    """Row numbers one higher."""
    assert rows is not None
    if "one_more" not in model.graph.initializers:
        tensor = ir.tensor(np.array([1], np.int64), name="one_more")
        value = ir.Value(name="one_more", shape=ir.Shape([1]), type=ir.TensorType(tensor.dtype),
                         const_value=tensor)  # fmt: skip
        model.graph.register_initializer(value)
    node = ir.node("Add", [rows, model.graph.initializers["one_more"]], name=f"{before.name}_late")
    model.graph.insert_before(before, node)
    return _typed(node, rows)


def test_swapped_halves_of_a_byte_are_refused() -> None:
    model, true = _made(4, 32)
    _lower(model, "tensor_scatter", "fp32")
    value = model.graph.initializers["model.layers.0.mlp.down_proj.weight.int4"]
    assert value.const_value is not None
    right = np.frombuffer(value.const_value.tobytes(), np.uint8)
    value.const_value = ir.PackedTensor(
        (right << 4) | (right >> 4),
        ir.DataType.INT4,
        shape=ir.Shape(value.const_value.shape.numpy()),
        name=value.name,
    )
    with pytest.raises(ParityError, match="is wrong"):
        check(model, true, steps={"token": STEPS["token"]})


@pytest.mark.parametrize(
    ("target", "cache", "opset"),
    [
        ("jetson-orin-jp6", "cached_attention", 21),
        ("h100", "tensor_scatter", 24),
        ("jetson-thor", "cached_attention", 21),
        ("rtx-blackwell", "tensor_scatter", 24),
    ],
)
def test_the_release_decides_how_the_cache_is_written(target: str, cache: str, opset: int) -> None:
    model, true = _made(4, 32)
    entries = lower(model, TARGETS[target], precision="fp16", capacity=CAPACITY)
    forms = {entry.op: entry.form for entry in entries}
    assert forms == {
        "CachedAttention": cache,
        "GatedSilu": "inline",
        "QuantizedLinear": "dequantize_linear",
    }
    assert model.graph.opset_imports[""] == opset
    assert DOMAIN not in model.graph.opset_imports
    check(model, true, precision="fp16", steps={"routing": STEPS["routing"]})


def test_hardware_without_four_bits_gets_bytes() -> None:
    model, true = _made(4, 32)
    entries = lower(model, TARGETS["rtx-turing"], precision="fp16", capacity=CAPACITY)
    forms = {entry.op: entry for entry in entries}
    assert forms["QuantizedLinear"].form == "dequantize_linear_int8"
    assert forms["QuantizedLinear"].reason.startswith("dequantize_linear refused: its hardware has")
    wide = [node for node in model.graph if node.op_type == "DequantizeLinear"]
    assert {node.inputs[0].dtype for node in wide if node.inputs[0]} == {ir.DataType.INT8}
    check(model, true, precision="fp16", steps={"routing": STEPS["routing"]})


def test_without_a_known_capacity_the_cache_is_written_by_rows() -> None:
    model, true = _made(*DENSE)
    entries = lower(model, RTX, precision="fp32")
    assert {entry.form for entry in entries} == {"cached_attention", "inline"}
    assert "the capacity of the cache is not fixed" in entries[0].reason
    check(model, true, steps={"prompt": STEPS["prompt"]})
