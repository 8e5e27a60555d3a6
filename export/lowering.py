"""Which form a semantic operator takes on a target: the table, and the walk that applies it.

The table is data: operator x kind of target -> forms in order of preference. A form may refuse a
node with a reason; the next one is tried. The report names the form of every node and why the
better ones were refused, so that no build chooses silently.

======================  =================================  =======================================
form                    node becomes                       runs on
======================  =================================  =======================================
function                itself, body in the model          any backend that knows ONNX functions
cpu_kernel              the same; the body is one          ONNX Runtime with our kernel library; the
                        operator of ONNX Runtime's where   function of the file without it
                        there is one: MatMulNBits,
                        GroupQueryAttention
group_query_attention   com.microsoft GroupQueryAttention  ONNX Runtime, cache updated in place;
                                                           only where it is asked for
plugin                  itself, with plugin attributes     TensorRT with our plugin; the body stays
                                                           where the release prefers the plugin
cached_attention        explicit mask, ScatterND, MatMul,  TensorRT: right on every release, and its
                        Softmax, MatMul                    builder fuses it
tensor_scatter          the same with TensorScatter        releases that have it: the cache is
                                                           updated in place
concat                  the same on old and new rows       every TensorRT; only where it is asked
                        side by side                       for
dequantize_linear       DequantizeLinear, MatMul           everything with 4-bit numbers, where they
                                                           are such: weights in blocks, packed
dequantize_linear_int8  the same, a byte for each number   everything
gather                  row gathers and a MatMul           every TensorRT: no GridSample at all
inline                  its function's body                every TensorRT that has the operators
======================  =================================  =======================================

Layers in int8 or fp8 are written first: for TensorRT in the canonical graph whose ranges were
measured, for ONNX Runtime as QuantizedDense, which rounds activations as they come. For ONNX
Runtime, attention in standard operators then becomes one semantic node, and so do what only moves
rows and the normalisation of long rows. After the forms come, in this order: functions inlined, the
opset brought down to what the release takes, half precision, functions stripped where they would
hide a plugin, and the checks. Facts about releases are data in `visionllm_edge.runtime.releases`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import onnx_ir as ir

from visionllm_edge.export.passes.check_grid_sample import check_grid_sample
from visionllm_edge.export.passes.check_operators import check_operators, has_block_weights
from visionllm_edge.export.passes.convert_precision import HALF_TYPES, convert_precision
from visionllm_edge.export.passes.drop_dead_code import drop_dead_code
from visionllm_edge.export.passes.fix_axis import fix_axis
from visionllm_edge.export.passes.fuse_attention import fuse_attention
from visionllm_edge.export.passes.gather_ms_deform_attn import gather_ms_deform_attn
from visionllm_edge.export.passes.inline_functions import inline_functions
from visionllm_edge.export.passes.keep_list import keep_list
from visionllm_edge.export.passes.lower_cached_attention_to_gqa import (
    lower_cached_attention_to_gqa,
    write_gqa_function,
)
from visionllm_edge.export.passes.lower_opset import lower_opset
from visionllm_edge.export.passes.lower_quantized_linear import (
    lower_to_dequantize_linear,
    lower_to_matmul_nbits,
)
from visionllm_edge.export.passes.merge_row_moves import merge_row_moves
from visionllm_edge.export.passes.normalize_rows import normalize_rows
from visionllm_edge.export.passes.quantize_dense import quantize_dense
from visionllm_edge.export.passes.quantize_dequantize import Quantization, quantize_dequantize
from visionllm_edge.export.passes.retype_cache import retype_cache
from visionllm_edge.export.passes.strip_functions import strip_functions
from visionllm_edge.export.passes.write_cache import write_cache
from visionllm_edge.plugins.semantic_op import DOMAIN
from visionllm_edge.runtime.backends.base import PAST_PREFIX, PRESENT_PREFIX
from visionllm_edge.runtime.errors import ExportError
from visionllm_edge.runtime.ports import Port, StagePorts
from visionllm_edge.runtime.targets import QUANTIZED, Target

__all__ = [
    "CAPACITY",
    "FORMS",
    "KEPT",
    "TABLE",
    "Form",
    "LoweredNode",
    "forms_for",
    "lower",
    "lowered_ports",
]

CAPACITY = "C"
"""Symbol of the cache's rows in the decoder's ports."""

KEPT = "visionllm.kept"
"""Key of a lowered model's `meta`: rule of the keep list -> nodes that it left in fp32."""

_PORT_TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class LoweredNode:
    """What became of one semantic node.

    Attributes:
        node: its name in the graph.
        op: its operator.
        form: name of the form it got.
        reason: why this form, with the refusals of the forms that come before it.
    """

    node: str
    op: str
    form: str
    reason: str

    def to_dict(self) -> dict[str, str]:
        """Plain JSON types, as in the manifest."""
        return {"node": self.node, "op": self.op, "form": self.form, "reason": self.reason}


def _no_types(node: ir.Node) -> tuple[str, ...]:
    return ()


def _weight_types(node: ir.Node) -> tuple[str, ...]:
    return (f"int{node.attributes['bits'].as_int()}",)


@dataclass(frozen=True)
class Form:
    """One way to express a semantic node.

    Attributes:
        apply: changes the node, or gives the reason why it cannot.
        why: one line for the report.
        inlined: the node is replaced by its function's body after all nodes were visited.
        needs: operators that the target's release must have.
        types: element types that the target's hardware must have for a node.
    """

    apply: Callable[[ir.Model, ir.Node], str | None]
    why: str
    inlined: bool = False
    needs: tuple[str, ...] = ()
    types: Callable[[ir.Node], tuple[str, ...]] = _no_types

    def refusal(self, model: ir.Model, node: ir.Node, target: Target) -> str | None:
        """Change the node, or say why not."""
        release = target.release
        if release.operators is not None:  # ONNX Runtime emulates what is missing
            for op in self.needs:
                if op not in release.operators:
                    return f"{release.label} has no {op}"
            for name in self.types(node):
                if name not in target.hardware_types:
                    return f"its hardware has no {name}"
        return self.apply(model, node)


def _has_function(model: ir.Model, node: ir.Node) -> str | None:
    known = node.op_identifier() in model.functions
    return None if known else "the model holds no function body for it"


def _kernel_or_function(model: ir.Model, node: ir.Node) -> str | None:
    if node.op_type in ("QuantizedDense", "QuantizedLinear"):
        return lower_to_matmul_nbits(model, node)
    if node.op_type == "CachedAttention":
        write_gqa_function(model, node)  # where that is refused, the function stays as it is
    return _has_function(model, node)


def _tensor_scatter(model: ir.Model, node: ir.Node) -> str | None:
    return write_cache(model, node, "tensor_scatter")


def _concat(model: ir.Model, node: ir.Node) -> str | None:
    return write_cache(model, node, "concat")


def _widened(model: ir.Model, node: ir.Node) -> str | None:
    return lower_to_dequantize_linear(model, node, widen=True)


def _has_plugin_attributes(model: ir.Model, node: ir.Node) -> str | None:
    missing = [a for a in ("plugin_version", "plugin_namespace") if a not in node.attributes]
    return f"the node has no attribute {', '.join(missing)}" if missing else None


FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "function": Form(_has_function, "ONNX Runtime runs the function of the file"),
        "cpu_kernel": Form(
            _kernel_or_function,
            "our kernel where its library is there, else the function of the file",
        ),
        "group_query_attention": Form(
            lower_cached_attention_to_gqa, "ONNX Runtime's operator updates the cache in place"
        ),
        "plugin": Form(
            _has_plugin_attributes, "our plugin: fp32 locations and sums, one kernel launch"
        ),
        "cached_attention": Form(
            _has_function,
            "explicit mask: the parsers misread the causal flag and drop the valid length",
            inlined=True,
        ),
        "tensor_scatter": Form(
            _tensor_scatter,
            "explicit mask; the release updates the cache in place",
            inlined=True,
            needs=("TensorScatter",),
        ),
        "concat": Form(
            _concat, "explicit mask; attention does not wait for the cache", inlined=True
        ),
        "dequantize_linear": Form(
            lower_to_dequantize_linear,
            "weights stay packed in blocks along the inputs",
            types=_weight_types,
        ),
        "dequantize_linear_int8": Form(
            _widened, "weights in blocks along the inputs, a byte for each number"
        ),
        "gather": Form(gather_ms_deform_attn, "no GridSample, so right on every release"),
        "inline": Form(_has_function, "standard operators of its function", inlined=True),
    }
)

TABLE: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "CachedAttention": {
            "onnxruntime": ("cpu_kernel",),
            "plugins": ("tensor_scatter", "cached_attention"),
            "standard": ("tensor_scatter", "cached_attention"),
        },
        "GatedSilu": {
            "onnxruntime": ("cpu_kernel",),
            "plugins": ("inline",),
            "standard": ("inline",),
        },
        "GatherRows": {
            "onnxruntime": ("cpu_kernel",),
            "plugins": ("inline",),
            "standard": ("inline",),
        },
        "GridSamplePromptPool": {
            "onnxruntime": ("cpu_kernel",),
            "plugins": ("plugin", "inline"),
            "standard": ("inline",),
        },
        "MultiScaleDeformableAttention": {
            "onnxruntime": ("cpu_kernel",),
            "plugins": ("plugin", "gather", "inline"),
            "standard": ("gather", "inline"),
        },
        "QuantizedCachedAttention": {
            "onnxruntime": ("cpu_kernel",),
            "plugins": ("inline",),
            "standard": ("inline",),
        },
        "QuantizedDense": {
            "onnxruntime": ("cpu_kernel",),
            "plugins": ("inline",),
            "standard": ("inline",),
        },
        "QuantizedLinear": {
            "onnxruntime": ("cpu_kernel",),
            "plugins": ("dequantize_linear", "dequantize_linear_int8"),
            "standard": ("dequantize_linear", "dequantize_linear_int8"),
        },
        "RowNormalization": {
            "onnxruntime": ("cpu_kernel",),
            "plugins": ("inline",),
            "standard": ("inline",),
        },
        "UnmaskedAttention": {
            "onnxruntime": ("cpu_kernel",),
            "plugins": ("inline",),
            "standard": ("inline",),
        },
    }
)
"""Operator -> kind of target -> forms, best first. Kinds: `onnxruntime`; TensorRT with our
`plugins`; TensorRT with `standard` operators only."""


def forms_for(op: str, target: Target, *, plugins: bool = True) -> tuple[str, ...]:
    """The forms of an operator on a target, best first; none if the table has no entry."""
    kind = target.backend if target.backend == "onnxruntime" else "plugins"
    if kind == "plugins" and not plugins:
        kind = "standard"
    return TABLE.get(op, {}).get(kind, ())


def lower(
    model: ir.Model,
    target: Target,
    *,
    precision: str | None = None,
    plugins: bool = True,
    quantization: Quantization | None = None,
    prefer: Mapping[str, str] | None = None,
    capacity: int | None = None,
) -> list[LoweredNode]:
    """Bring a canonical graph into the form of a target, in place.

    Args:
        model: canonical, in fp32.
        target: a row of the target table.
        precision: of the result; the target's default if not given.
        plugins: whether our TensorRT plugins may be used.
        quantization: of this graph, where the precision is int8 or fp8; ONNX Runtime needs none.
        prefer: operator -> form to try before those of the table, such as the portable
            `dequantize_linear` for ONNX Runtime.
        capacity: rows of the decoder's cache, written into the graph for TensorRT; forms that
            update it in place need it.

    Returns:
        One entry per semantic node, in graph order.

    Raises:
        ConfigError: the target does not compute in that precision.
        ExportError: int8 or fp8 without a calibration, an operator without a form for the target,
            every form refused a node, or the release lacks or misreads what is in the graph.
    """
    precision = target.resolve_precision(precision)
    in_bytes = precision in QUANTIZED
    if in_bytes and target.backend == "onnxruntime":
        quantize_dense(model)
        precision = "fp32"  # of all the rest
    elif in_bytes:
        if quantization is None or quantization.precision != precision:
            raise ExportError(
                f"graph '{model.graph.name}': precision '{precision}' expected its calibration, "
                f"got {'none' if quantization is None else quantization.precision}. Calibrate it."
            )
        quantize_dequantize(model, quantization)
        precision = "fp16"
    if target.backend != "onnxruntime":
        retype_cache(model, ir.DataType.FLOAT)  # there the precision says what the cache is in
        if capacity is not None:
            fix_axis(model, CAPACITY, capacity)
    elif precision == "fp32":
        fuse_attention(model, rounded=in_bytes)
        merge_row_moves(model)
        normalize_rows(model)
    report = []
    for node in [node for node in model.graph.all_nodes() if node.domain == DOMAIN]:
        first = (prefer or {}).get(node.op_type)
        forms = forms_for(node.op_type, target, plugins=plugins)
        report.append(_lower_node(model, node, target, (first, *forms) if first else forms))
    drop_dead_code(model)
    inline_functions(model, {entry.op for entry in report if FORMS[entry.form].inlined})
    release = target.release
    lower_opset(model, release.opset_for(in_blocks=has_block_weights(model)))
    if precision != "fp32":
        keep = keep_list(model, HALF_TYPES[precision])
        model.meta[KEPT] = Counter(keep.values())
        convert_precision(model, precision, keep, half_ends=_cache_ends(model))
    in_plugins = {entry.op for entry in report if entry.form == "plugin"}
    if in_plugins and release.node_with_function == "function":
        strip_functions(model)
    drop_dead_code(model)
    if not any(node.domain == DOMAIN for node in model.graph):
        model.graph.opset_imports.pop(DOMAIN, None)
    if target.backend != "onnxruntime":
        check_grid_sample(model)
    check_operators(model, release, plugins=in_plugins)
    return report


def lowered_ports(ports: StagePorts, target: Target, precision: str) -> StagePorts:
    """The ends of a lowered stage: on TensorRT the cache is in the precision, the rest stays."""
    if target.backend == "onnxruntime" or precision not in _PORT_TYPES:
        return ports

    def typed(port: Port) -> Port:
        cache = port.name.startswith((PAST_PREFIX, PRESENT_PREFIX)) and port.dtype != "int8"
        return Port(port.name, _PORT_TYPES[precision], port.shape) if cache else port

    return StagePorts(
        ports.stage, tuple(map(typed, ports.inputs)), tuple(map(typed, ports.outputs))
    )


def _cache_ends(model: ir.Model) -> set[str]:
    """Ends that take the half type: a cache of whole numbers keeps its own."""
    ends = [value for value in (*model.graph.inputs, *model.graph.outputs) if value.name]
    return {
        str(value.name)
        for value in ends
        if value.dtype == ir.DataType.FLOAT
        and str(value.name).startswith((PAST_PREFIX, PRESENT_PREFIX))
    }


def _lower_node(
    model: ir.Model, node: ir.Node, target: Target, forms: tuple[str, ...]
) -> LoweredNode:
    op, name = node.op_type, node.name or ""
    refusals: list[str] = []
    for form in forms:
        refusal = FORMS[form].refusal(model, node, target)
        if refusal is None:
            return LoweredNode(name, op, form, "; ".join([*refusals, FORMS[form].why]))
        refusals.append(f"{form} refused: {refusal}")
    raise ExportError(
        f"graph '{model.graph.name}': node '{name}' ({op}) has no form for target "
        f"'{target.name}': {'; '.join(refusals) or 'the lowering table has no entry'}."
    )
