"""What each release of a backend does with a graph, as data; every fact names its source.

The compiler reads it to lower a graph, the engine builder to know what the parser must say about
each node. Nothing here imports a backend: it also holds for devices that are not this machine.

Marks in the sources: *seen* was run on the package named; *source* was read in the public parser
source or its changelog; *documented* stands in NVIDIA's documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["RELEASES", "Release", "release_of"]

FUNCTION_WINS = "function"
PLUGIN_WINS = "plugin"
NAMESPACE_DECIDES = "namespace"


@dataclass(frozen=True)
class Release:
    """Facts about one release.

    Attributes:
        backend: ``onnxruntime``, ``tensorrt`` or ``tensorrt_rtx``.
        version: as a target names it; empty for ONNX Runtime.
        max_opset: newest opset of the default domain that is safe to hand over.
        block_opset: the same for a graph that dequantises 4-bit weights in blocks (opset 21).
        node_with_function: what a node becomes that has a function in the model and a plugin in
            the registry: ``function`` (the plugin is out of reach), ``plugin``, or ``namespace``
            (the plugin if the node names its ``plugin_namespace``).
        captures_names: an inner name of a function that equals an outer one is bound to the outer.
        linear_is_nearest: GridSample's mode ``linear`` (opset 20) silently becomes NEAREST.
        grid_sample_types: element types of GridSample; data and grid must share one.
        attention_causal: what the flag of ONNX ``Attention`` means: ``none`` (no such operator),
            ``upper_left`` (wrong when the cache is longer than the step) or ``onnx``.
        operators: what the parser takes and the builder can run, of the default domain.
        max_top_k: largest k of TopK, 0 where there is no limit.
        sources: field name -> where the fact is from.
    """

    backend: str
    version: str
    max_opset: int
    block_opset: int
    node_with_function: str
    captures_names: bool
    linear_is_nearest: bool
    grid_sample_types: tuple[str, ...]
    attention_causal: str
    operators: frozenset[str] | None
    max_top_k: int
    sources: Mapping[str, str]

    @property
    def label(self) -> str:
        """As in messages: ``TensorRT 10.3``."""
        names = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
        return f"{names.get(self.backend, 'ONNX Runtime')} {self.version}".strip()

    def opset_for(self, *, in_blocks: bool) -> int:
        """Newest opset for a graph with or without weights in blocks."""
        return self.block_opset if in_blocks else self.max_opset


# Operators that the 10.1 parser's table marks as supported, without those that its builder or a
# later one does not run: NonZero and RoiAlign want a plugin that is not there, NonMaxSuppression
# has no kernel, DeformConv fails to build, and nobody here needs recurrent or random operators.
_OPERATORS_10_NAMES = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast
CastLike Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum
DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand Flatten Floor Gather
GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual
GridSample GroupNormalization HardSigmoid HardSwish Identity If InstanceNormalization IsInf
IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop MatMul Max MaxPool Mean
Min Mish Mod Mul Neg Not Or PRelu Pad Pow QuantizeLinear Range Reciprocal ReduceL1 ReduceL2
ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
ReduceSumSquare Relu Reshape Resize Round ScatterElements ScatterND Selu Shape Sigmoid Sign Sin
Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh
Tile TopK Transpose Trilu Unsqueeze Where Xor
"""
_OPERATORS_10 = frozenset(_OPERATORS_10_NAMES.split())
_FROM_10_14 = frozenset({"Attention"})
_FROM_10_15 = frozenset({"RMSNormalization", "RotaryEmbedding", "TensorScatter"})
_FROM_11 = frozenset({"Swish"})

_TABLE_10_1 = "source: onnx-tensorrt 10.1-GA, docs/operators.md"
_CHANGELOG = "source: NVIDIA/TensorRT CHANGELOG.md"
_ISSUE_4646 = "documented: github.com/NVIDIA/TensorRT/issues/4646"
_PULL_1060 = "documented: github.com/onnx/onnx-tensorrt/pull/1060"
_SEEN_RTX = "seen: tensorrt-rtx 1.7.1.116"
_INT4_10_1 = (
    "source: onnx-tensorrt 10.1-GA onnxOpImporters.cpp takes 4-bit weights and reads the block off "
    "the shape of the scales; not run on a device"
)
_TOP_K = f"{_TABLE_10_1}: k below 3840"
_NO_RUNNER = "; without what the builder of tensorrt-rtx 1.7.1 refused (seen)"

_FACTS = (
    Release(
        backend="onnxruntime",
        version="",
        max_opset=21,
        block_opset=21,
        node_with_function=FUNCTION_WINS,
        captures_names=False,
        linear_is_nearest=False,
        grid_sample_types=("fp32", "fp16"),
        attention_causal="onnx",
        operators=None,
        max_top_k=0,
        sources={
            "max_opset": "ours: canonical graphs stop there; ONNX Runtime 1.22 knows it",
            "block_opset": "seen: onnxruntime 1.32 makes one operator of it and the product",
            "node_with_function": "seen: onnxruntime 1.32 inlines functions before kernels are "
            "looked up",
            "captures_names": "seen: onnxruntime 1.32",
            "linear_is_nearest": "seen: onnxruntime 1.32 against torch",
            "grid_sample_types": "seen: onnxruntime 1.32, fp16 through casts",
            "attention_causal": "seen: onnxruntime 1.32",
            "operators": "ours: ONNX Runtime says itself what it lacks when it loads a graph",
            "max_top_k": "seen: onnxruntime 1.32",
        },
    ),
    Release(
        backend="tensorrt",
        version="10.3",
        max_opset=20,
        block_opset=21,
        node_with_function=FUNCTION_WINS,
        captures_names=True,
        linear_is_nearest=True,
        grid_sample_types=("fp32", "fp16"),
        attention_causal="none",
        operators=_OPERATORS_10,
        max_top_k=3839,
        sources={
            "max_opset": f"{_TABLE_10_1}: opset 9 to 20",
            "block_opset": _INT4_10_1,
            "node_with_function": "source: onnx-tensorrt 10.1-GA ModelImporter.cpp; changed in "
            "10.7 (CHANGELOG)",
            "captures_names": "source: onnx-tensorrt 10.1-GA LocalFunctionImporter; fixed in 10.8 "
            "(CHANGELOG)",
            "linear_is_nearest": "source: onnx-tensorrt 10.1-GA onnxOpImporters.cpp knows nearest, "
            "bilinear and bicubic and falls through",
            "grid_sample_types": f"{_TABLE_10_1}: FP32, FP16, 4D",
            "attention_causal": f"{_CHANGELOG}: Attention arrives in 10.14",
            "operators": _TABLE_10_1 + _NO_RUNNER,
            "max_top_k": _TOP_K,
        },
    ),
    Release(
        backend="tensorrt",
        version="10.13",
        max_opset=20,
        block_opset=21,
        node_with_function=PLUGIN_WINS,
        captures_names=False,
        linear_is_nearest=True,
        grid_sample_types=("fp32", "fp16"),
        attention_causal="none",
        operators=_OPERATORS_10,
        max_top_k=3839,
        sources={
            "max_opset": f"{_TABLE_10_1}: opset 9 to 20; nothing newer is documented before 11",
            "block_opset": _INT4_10_1,
            "node_with_function": "documented: github.com/NVIDIA/TensorRT/issues/4113; source: "
            "CHANGELOG 10.7 and 10.15",
            "captures_names": f"{_CHANGELOG}: fixed in 10.8",
            "linear_is_nearest": f"{_ISSUE_4646} (10.13.3)",
            "grid_sample_types": f"{_TABLE_10_1}: FP32, FP16; nothing newer found",
            "attention_causal": f"{_CHANGELOG}: Attention arrives in 10.14",
            "operators": _TABLE_10_1 + _NO_RUNNER,
            "max_top_k": _TOP_K,
        },
    ),
    Release(
        backend="tensorrt",
        version="10.16",
        max_opset=24,
        block_opset=24,
        node_with_function=NAMESPACE_DECIDES,
        captures_names=False,
        linear_is_nearest=True,
        grid_sample_types=("fp32", "fp16"),
        attention_causal="upper_left",
        operators=_OPERATORS_10 | _FROM_10_14 | _FROM_10_15,
        max_top_k=3839,
        sources={
            "max_opset": f"{_CHANGELOG}: TensorScatter, which is of opset 24, since 10.15",
            "block_opset": f"{_INT4_10_1}; {_CHANGELOG}: opset 24 since 10.15",
            "node_with_function": "source: onnx-tensorrt 10.15 ModelImporter.cpp; CHANGELOG 10.15",
            "captures_names": f"{_CHANGELOG}: fixed in 10.8",
            "linear_is_nearest": f"{_ISSUE_4646} (10.13.3) and {_PULL_1060} (11.1): between them",
            "grid_sample_types": f"{_TABLE_10_1}: FP32, FP16; nothing newer found",
            "attention_causal": f"{_SEEN_RTX}, whose parser is of a later generation",
            "operators": f"{_TABLE_10_1}; {_CHANGELOG} for 10.14 and 10.15{_NO_RUNNER}",
            "max_top_k": _TOP_K,
        },
    ),
    Release(
        backend="tensorrt",
        version="11.4",
        max_opset=24,
        block_opset=24,
        node_with_function=NAMESPACE_DECIDES,
        captures_names=False,
        linear_is_nearest=True,
        grid_sample_types=("fp32", "fp16"),
        attention_causal="upper_left",
        operators=_OPERATORS_10 | _FROM_10_14 | _FROM_10_15 | _FROM_11,
        max_top_k=3839,
        sources={
            "max_opset": "documented: docs.nvidia.com/deeplearning/tensorrt onnx-opset-guide says "
            "25 for 11.x, the 11.5 release notes call 25 new",
            "block_opset": f"{_SEEN_RTX}, whose parser is of this generation",
            "node_with_function": "source: CHANGELOG 10.15, not changed since",
            "captures_names": f"{_CHANGELOG}: fixed in 10.8",
            "linear_is_nearest": f"{_PULL_1060} (11.1); no fix found up to 11.4",
            "grid_sample_types": f"{_TABLE_10_1}: FP32, FP16; bf16 only seen on tensorrt-rtx 1.7.1",
            "attention_causal": f"{_SEEN_RTX}, whose parser is of this generation",
            "operators": f"{_TABLE_10_1}; {_CHANGELOG} up to 11.0{_NO_RUNNER}",
            "max_top_k": _TOP_K,
        },
    ),
    Release(
        backend="tensorrt_rtx",
        version="1.7",
        max_opset=24,
        block_opset=24,
        node_with_function=NAMESPACE_DECIDES,
        captures_names=False,
        linear_is_nearest=False,
        grid_sample_types=("fp32", "fp16", "bf16"),
        attention_causal="upper_left",
        operators=_OPERATORS_10 | _FROM_10_14 | _FROM_10_15 | _FROM_11,
        max_top_k=3840,
        sources={
            "max_opset": f"{_SEEN_RTX} takes models up to 27; operators of 24 tried",
            "block_opset": f"{_SEEN_RTX}: 4 and 8 bits in blocks built at 21 and 24",
            "node_with_function": _SEEN_RTX,
            "captures_names": f"{_SEEN_RTX}; {_CHANGELOG}: fixed in 10.8",
            "linear_is_nearest": f"{_SEEN_RTX}: the layer reads LINEAR; 1.5 was wrong "
            f"({_PULL_1060})",
            "grid_sample_types": _SEEN_RTX,
            "attention_causal": f"{_SEEN_RTX}: the layer reads UPPER_LEFT",
            "operators": f"{_TABLE_10_1}; {_CHANGELOG} up to 11.0{_NO_RUNNER}",
            "max_top_k": f"{_SEEN_RTX} builds 3840, not 5000",
        },
    ),
)

RELEASES: Mapping[tuple[str, str], Release] = MappingProxyType(
    {(release.backend, release.version): release for release in _FACTS}
)
"""(backend, version) -> facts."""


def release_of(backend: str, version: str) -> Release:
    """The facts of a release.

    Raises:
        KeyError: the table has no such release (a target always names one that it has).
    """
    return RELEASES[backend, version]
