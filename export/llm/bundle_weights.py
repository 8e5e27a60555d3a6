"""The decoder's weights as a compiled bundle holds them, read back from its canonical graph.

What the gate compares a quantised bundle with are its own dequantised weights, and after the
compile this is where they are. Large ones stay in the mapped file until they are asked for.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from visionllm_edge.export.canonical import load_canonical
from visionllm_edge.export.llm.decoder_graph import CacheScales
from visionllm_edge.export.llm.decoder_weights import (
    HEAD,
    BlockLinear,
    DenseLinear,
)
from visionllm_edge.export.quantize.matrix import BlockQuantized
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.errors import BundleError

__all__ = ["BundleWeights"]

_Number = TypeVar("_Number", bound=np.generic)
_CACHED = ("key", "value")
_STACKED = {"q_proj": "qkv_proj", "gate_proj": "gate_up_proj"}


class BundleWeights:
    """Implements `DecoderWeights`.

    Args:
        bundle: opened; its files are read as long as the weights are used.
    """

    def __init__(self, bundle: Bundle) -> None:
        """Read the graph without its weights.

        Raises:
            BundleError: the bundle has no canonical decoder.
            ExportError: the file cannot be read.
        """
        self._where = f"bundle '{bundle.root.name}', stage 'llm_decoder'"
        model = load_canonical(bundle, "llm_decoder")
        self._values = model.graph.initializers
        self._nodes = {
            node.inputs[1].name: node
            for node in model.graph
            if node.op_type in ("QuantizedLinear", "MatMul") and node.inputs[1] is not None
        }

        self._attentions = {
            node.name for node in model.graph if node.op_type == "QuantizedCachedAttention"
        }

    @property
    def quantized(self) -> bool:
        """Whether a linear is in blocks."""
        return any(node.op_type == "QuantizedLinear" for node in self._nodes.values())

    def cache_scales(self) -> CacheScales | None:
        """Of a cache of int8, one pair for each layer; None for every other cache."""
        scales: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
        while (name := f"model.layers.{len(scales)}.self_attn.attention") in self._attentions:
            key, value = (self._array(f"{name}.{kind}_scale", np.float32) for kind in _CACHED)
            scales.append((key, value))
        return scales or None

    def norm(self, name: str) -> NDArray[np.float32]:
        """See `DecoderWeights`."""
        return self._array(name, np.float32)

    def linear(self, names: tuple[str, ...]) -> DenseLinear | BlockLinear:
        """See `DecoderWeights`."""
        stem = _node_name(names)
        weight = self._value(f"{stem}.weight")
        node = self._nodes.get(weight.name)
        assert weight.shape is not None, "an initializer has a shape"
        shape = weight.shape.numpy()
        if node is None or node.op_type == "MatMul":
            columns, rows = shape
            return DenseLinear(rows, columns, lambda: self._array(f"{stem}.weight", np.float32))
        bits, size = (node.attributes[key].as_int() for key in ("bits", "block_size"))
        offset = f"{stem}.zero_offset"
        asymmetric = offset in self._values

        def load() -> BlockQuantized:
            return BlockQuantized(
                self._array(f"{stem}.weight", np.uint8),
                self._array(f"{stem}.scales", np.float16),
                bits,
                size,
                np.ascontiguousarray(self._array(offset, np.float16).T) if asymmetric else None,
            )

        return BlockLinear(shape[0], shape[1] * size, bits, size, asymmetric, load)

    def _value(self, name: str) -> ir.Value:
        value = self._values.get(name)
        if value is None or value.const_value is None:
            raise BundleError(f"{self._where}: expected an initializer '{name}', got none.")
        return value

    def _array(self, name: str, kind: type[_Number]) -> NDArray[_Number]:
        tensor = self._value(name).const_value
        assert tensor is not None, "looked at above"
        array = tensor.numpy()
        if array.dtype != kind:
            raise BundleError(
                f"{self._where}: initializer '{name}' expected {np.dtype(kind)}, got {array.dtype}."
            )
        # A copy: the mapped file need not stay in memory.
        return np.array(array, kind)


def _node_name(names: tuple[str, ...]) -> str:
    """The graph's name of a stacked linear."""
    if names == (HEAD,):
        return "lm_head"
    *parents, matrix, _ = names[0].split(".")
    return ".".join([*parents, _STACKED.get(matrix, matrix)])
