"""The block-quantised linear layer as an ONNX function, in standard or in ONNX Runtime's operators.

Standard: bytes are shifted and masked into numbers, scaled, multiplied; exact in float32 at every
accuracy level (the level allows less, it does not ask for it). One body serves 4 and 8 bits: the
shifts are Range(0, 8, bits). With `contrib` the body is one com.microsoft MatMulNBits, which reads
the same bytes and knows the same levels; it wants its scales in float32. They have to be constant
when it is set up, which they are after constant folding: seen with ONNX Runtime 1.32, 8 bits at
level 4 are wrong by as much as the result itself when the Cast runs at every call.
"""

from __future__ import annotations

import onnx
from onnx import AttributeProto, TensorProto

from visionllm_edge.plugins.function_body import FunctionBody, require_opset
from visionllm_edge.plugins.quantized_linear.spec import QUANTIZED_LINEAR

__all__ = ["CONTRIB_DOMAIN", "MAX_OPSET", "MIN_OPSET", "add_linear", "build_function"]

MIN_OPSET = 18
MAX_OPSET = 21
CONTRIB_DOMAIN = "com.microsoft"
_PREFIX = "qlin_"


def build_function(*, opset: int, contrib: bool = False) -> onnx.FunctionProto:
    """Build the function body for a model at `opset` (18 to 21).

    Args:
        opset: default-domain opset of the model.
        contrib: use ONNX Runtime's MatMulNBits; such a file runs nowhere else.

    Raises:
        ValueError: opset outside 18..21.
    """
    require_opset(QUANTIZED_LINEAR, opset, MIN_OPSET, MAX_OPSET, "Export the decoder at opset 21.")
    body = FunctionBody(_PREFIX)
    names = body.inputs(QUANTIZED_LINEAR)
    x, weight, scales = names
    y = QUANTIZED_LINEAR.outputs[0].name
    output = add_linear(body, x, weight, scales, y, contrib=contrib)
    return body.function(
        QUANTIZED_LINEAR, [output], opset=opset, contrib=CONTRIB_DOMAIN if contrib else None
    )


def add_linear(
    body: FunctionBody, x: str, weight: str, scales: str, output: str, *, contrib: bool
) -> str:
    """Append the layer to a body whose attributes are those of the operator.

    Args:
        body: gets the nodes.
        x: name of the activations.
        weight: name of the stored weights.
        scales: name of their scales.
        output: name of the result, without the prefix.
        contrib: one MatMulNBits instead of standard operators.

    Returns:
        Name of the result.
    """
    add = _contrib if contrib else _standard
    return add(body, x, weight, scales, output)


def _contrib(body: FunctionBody, x: str, weight: str, scales: str, output: str) -> str:
    scales_f32 = body.add("Cast", [scales], "scales_f32", to=TensorProto.FLOAT)
    y = body.add("MatMulNBits", [x, weight, scales_f32], output, domain=CONTRIB_DOMAIN)
    body.nodes[-1].attribute.extend(
        AttributeProto(name=name, ref_attr_name=name, type=AttributeProto.INT)
        for name, _ in QUANTIZED_LINEAR.attributes
    )
    return y


def _standard(body: FunctionBody, x: str, weight: str, scales: str, output: str) -> str:
    bits = body.attribute("bits", "int")
    zero = body.add("Constant", [], "zero", value_int=0)
    one = body.add("Constant", [], "one", value_int=1)
    two = body.add("Constant", [], "two", value_int=2)
    eight = body.add("Constant", [], "eight", value_int=8)
    last = body.ints("last_axis", [-1])
    # 4 bits: shifts 0 and 4, mask 15, offset 8; 8 bits: shift 0, mask 255, offset 128.
    shifts_i64 = body.add("Range", [zero, eight, bits], "shifts_i64")
    shifts = body.add("Cast", [shifts_i64], "shifts", to=TensorProto.UINT8)
    levels = body.add("Pow", [two, bits], "levels")
    mask_i64 = body.add("Sub", [levels, one], "mask_i64")
    mask = body.add("Cast", [mask_i64], "mask", to=TensorProto.UINT8)
    offset_i64 = body.add("Div", [levels, two], "offset_i64")
    offset = body.add("Cast", [offset_i64], "offset", to=TensorProto.FLOAT)

    # [N, K/G, G*bits/8] -> [N, K/G, G*bits/8, 8/bits] -> [N, K/G, G]: low half first.
    bytes_apart = body.add("Unsqueeze", [weight, last], "bytes_apart")
    shifted = body.add("BitShift", [bytes_apart, shifts], "shifted", direction="RIGHT")
    stored_apart = body.add("BitwiseAnd", [shifted, mask], "stored_apart")
    stored = body.add("Reshape", [stored_apart, body.ints("merge", [0, 0, -1])], "stored")
    stored_f32 = body.add("Cast", [stored], "stored_f32", to=TensorProto.FLOAT)
    numbers = body.add("Sub", [stored_f32, offset], "numbers")
    scales_f32 = body.add("Cast", [scales], "scales_f32", to=TensorProto.FLOAT)
    scale_column = body.add("Unsqueeze", [scales_f32, last], "scale_column")
    scaled = body.add("Mul", [numbers, scale_column], "scaled")
    # [N, K/G, G] -> [N, K] -> [K, N].
    rows = body.add("Reshape", [scaled, body.ints("rows_shape", [0, -1])], "rows")
    columns = body.add("Transpose", [rows], "columns", perm=[1, 0])
    return body.add("MatMul", [x, columns], output)
