"""The canonical decoder graph, built by hand: one graph that every target's lowering starts from.

==========================  =========  ========================================================
end                         type       shape
==========================  =========  ========================================================
inputs_embeds               float32    [1,s,D], rows of this step
past_length                 int64      [1], rows of the cache that are valid
hidden_rows                 int64      [r], rows of this step whose hidden states are wanted
logit_rows                  int64      [l], numbers into hidden_rows whose logits are wanted
past_key_values.i.key       cache      [1,KV,C,Dh], a buffer of C rows; value alike
logits                      float32    [l,V]
hidden                      float32    [1,r,D], behind the final norm
present.i.key               cache      [1,KV,C,Dh], past with rows past_length.. written
==========================  =========  ========================================================

It holds standard operators of opset 21 and semantic ones, `CachedAttention` (its twin for a cache
of int8), `GatedSilu` and `QuantizedLinear`, with their functions attached. q, k and v are one
linear, gate and up another: one pass over the rows instead of three or two. Behind the last layer's
attention only the wanted rows go on, so output projection, MLP, norm and head cost nothing for the
rest of a prompt.

Norms are Pow, ReduceMean, Add, Sqrt, Div, Mul: the form that ONNX Runtime makes one operator of and
that every TensorRT takes. The torch twin is
`visionllm_edge.export.components.llm_decoder.Llama`. Weights are read when they are written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from visionllm_edge.export.components.llm_decoder import rope_tables
from visionllm_edge.export.config import LlmConfig
from visionllm_edge.export.llm.decoder_weights import (
    FINAL_NORM,
    HEAD,
    BlockLinear,
    DecoderWeights,
    DenseLinear,
    layer_linears,
    layer_norms,
)
from visionllm_edge.export.passes.append_functions import append_functions
from visionllm_edge.export.quantize.matrix import BlockQuantized
from visionllm_edge.plugins.semantic_op import DOMAIN, PLUGIN_NAMESPACE, PLUGIN_VERSION
from visionllm_edge.runtime.backends.base import PAST_PREFIX, PRESENT_PREFIX
from visionllm_edge.runtime.ports import Port, StagePorts

__all__ = ["OPSET", "CacheScales", "decoder_graph", "decoder_ports"]

OPSET = 21
_IR_VERSION = 10
_NAME = "llm_decoder"
_FLOAT, _HALF, _INT64 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT64
_PLUGIN = {"plugin_version": PLUGIN_VERSION, "plugin_namespace": PLUGIN_NAMESPACE}
_TYPES = {"float32": _FLOAT, "float16": _HALF, "int64": _INT64, "int8": ir.DataType.INT8}

CacheScales = Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Per layer: what a whole number in the cache stands for, of keys and of values, [KV,Dh]."""


def decoder_ports(config: LlmConfig, *, cache: str = "float32") -> StagePorts:
    """The ends of the graph.

    Args:
        config: sizes.
        cache: element type of keys and values, float32, float16 or int8.
    """
    dim, vocab = config.hidden_size, config.vocab_size
    buffer = (1, config.num_key_value_heads, "C", config.head_dim)
    entries = [f"{i}.{kind}" for i in range(config.num_hidden_layers) for kind in ("key", "value")]
    return StagePorts(
        _NAME,
        (
            Port("inputs_embeds", "float32", (1, "s", dim)),
            Port("past_length", "int64", (1,)),
            Port("hidden_rows", "int64", ("r",)),
            Port("logit_rows", "int64", ("l",)),
            *(Port(PAST_PREFIX + entry, cache, buffer) for entry in entries),
        ),
        (
            Port("logits", "float32", ("l", vocab)),
            Port("hidden", "float32", (1, "r", dim)),
            *(Port(PRESENT_PREFIX + entry, cache, buffer) for entry in entries),
        ),
    )


def decoder_graph(
    config: LlmConfig,
    weights: DecoderWeights,
    *,
    cache: str = "float32",
    accuracy_level: int = 4,
    cache_scales: CacheScales | None = None,
) -> ir.Model:
    """Build the graph; see the module. Matrices are read when they are written to a file.

    Args:
        config: sizes.
        weights: of the decoder.
        cache: element type of keys and values, float32, float16 or int8.
        accuracy_level: of every QuantizedLinear: 4 lets a form round its activations to eight
            bits per block, 1 does not.
        cache_scales: of a cache of int8, one pair for each layer.
    """
    assert (cache == "int8") == (cache_scales is not None), "a cache of int8 comes with scales"
    return _Decoder(config, weights, cache, accuracy_level, cache_scales).build()


class _Decoder:
    def __init__(
        self,
        config: LlmConfig,
        weights: DecoderWeights,
        cache: str,
        accuracy_level: int,
        cache_scales: CacheScales | None,
    ) -> None:
        self.cache_scales = cache_scales
        self.config, self.weights, self.accuracy_level = config, weights, accuracy_level
        self.ports = decoder_ports(config, cache=cache)
        ends = [
            ir.Value(
                name=port.name, shape=ir.Shape(port.shape), type=ir.TensorType(_TYPES[port.dtype])
            )
            for port in self.ports.inputs
        ]
        self.inputs = {value.name: value for value in ends}
        self.graph = ir.Graph(ends, [], nodes=[], opset_imports={"": OPSET, DOMAIN: 1}, name=_NAME)
        self.present: dict[str, ir.Value] = {}
        self.held = _Held()

    def build(self) -> ir.Model:
        x = self.inputs["inputs_embeds"]
        for layer in range(self.config.num_hidden_layers):
            x = self._layer(layer, x)
        hidden = self._norm(x, "model.norm", FINAL_NORM)
        rows = self._gather(hidden, "logit_rows", "model.scored")
        scored = self._linear(rows, "lm_head", (HEAD,))
        axis = self._ints("axis_0", [0])
        logits = self._add("Squeeze", [scored, axis], "logits", ("l", self.config.vocab_size))
        # The value behind the last norm is an end of the graph and carries the port's name.
        hidden.name = "hidden"
        ends = {"logits": logits, "hidden": hidden, **self.present}
        self.graph.outputs.extend(ends[port.name] for port in self.ports.outputs)
        model = ir.Model(self.graph, ir_version=_IR_VERSION)
        append_functions(model)
        return model

    def _layer(self, layer: int, x: ir.Value) -> ir.Value:
        config, name = self.config, f"model.layers.{layer}"
        linears, norms = layer_linears(layer), layer_norms(layer)
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        normed = self._norm(x, f"{name}.input_layernorm", norms[0])
        stacked = self._linear(normed, f"{name}.self_attn.qkv_proj", linears["qkv"])
        query, key, value = self._split(
            stacked, [f"{name}.self_attn.{kind}" for kind in ("query", "key", "value")],
            [queries, keys, keys],
        )  # fmt: skip
        out = self._attention(layer, query, key, value)
        if layer == config.num_hidden_layers - 1:
            out = self._gather(out, "hidden_rows", f"{name}.self_attn.wanted")
            x = self._gather(x, "hidden_rows", f"{name}.wanted")
        x = self._join(x, self._linear(out, f"{name}.self_attn.o_proj", linears["o"]),
                       f"{name}.attended")  # fmt: skip
        normed = self._norm(x, f"{name}.post_attention_layernorm", norms[1])
        stacked = self._linear(normed, f"{name}.mlp.gate_up_proj", linears["gate_up"])
        gated = self._gate(stacked, f"{name}.mlp.gated")
        down = self._linear(gated, f"{name}.mlp.down_proj", linears["down"])
        return self._join(x, down, f"{name}.output")

    def _attention(self, layer: int, query: ir.Value, key: ir.Value, value: ir.Value) -> ir.Value:
        config, name = self.config, f"model.layers.{layer}.self_attn.attention"
        past = [self.inputs[f"{PAST_PREFIX}{layer}.{kind}"] for kind in ("key", "value")]
        op, scales = "CachedAttention", []
        if self.cache_scales is not None:
            op = "QuantizedCachedAttention"
            scales = [
                self._initializer(f"{name}.{kind}_scale", np.ascontiguousarray(array))
                for kind, array in zip(("key", "value"), self.cache_scales[layer], strict=True)
            ]
        given = [query, key, value, *past, self.inputs["past_length"], *self._rotation(), *scales]
        node = ir.node(
            op,
            given,
            {
                "num_heads": config.num_attention_heads,
                "kv_num_heads": config.num_key_value_heads,
                "scale": config.head_dim**-0.5,
                **_PLUGIN,
            },
            domain=DOMAIN,
            num_outputs=3,
            name=name,
        )
        self.graph.append(node)
        out, *present = node.outputs
        _describe(out, name, query.dtype, query.shape)
        for kind, before, after in zip(("key", "value"), past, present, strict=True):
            _describe(after, f"{PRESENT_PREFIX}{layer}.{kind}", before.dtype, before.shape)
            self.present[f"{PRESENT_PREFIX}{layer}.{kind}"] = after
        return out

    def _gate(self, x: ir.Value, name: str) -> ir.Value:
        """Gate and what it gates, side by side, become one."""
        node = ir.node("GatedSilu", [x], dict(_PLUGIN), domain=DOMAIN, name=name)
        self.graph.append(node)
        (out,) = node.outputs
        _describe(out, name, x.dtype, ir.Shape([1, _rows(x), self.config.intermediate_size]))
        return out

    def _rotation(self) -> list[ir.Value]:
        """The rotary tables, one pair for all layers."""
        if "cos" not in self.graph.initializers:
            for name, table in zip(("cos", "sin"), rope_tables(self.config), strict=True):
                self._initializer(name, table.numpy())
        return [self.graph.initializers["cos"], self.graph.initializers["sin"]]

    def _norm(self, x: ir.Value, name: str, weight: str) -> ir.Value:
        """RMS norm over the last axis: x / sqrt(mean(x^2) + eps) * weight."""
        two = self._scalar("two", 2.0)
        eps = self._scalar("rms_norm_eps", self.config.rms_norm_eps)
        shape = [1, x.shape[1], 1] if x.shape is not None else []
        squares = self._like("Pow", [x, two], f"{name}.squares")
        mean = self._add(
            "ReduceMean", [squares, self._ints("last_axis", [-1])], f"{name}.mean", shape
        )
        shifted = self._like("Add", [mean, eps], f"{name}.shifted")
        root = self._like("Sqrt", [shifted], f"{name}.root")
        scaled = self._like("Div", [x, root], f"{name}.scaled")
        factors = self._initializer(weight, np.ascontiguousarray(self.weights.norm(weight)))
        return self._like("Mul", [scaled, factors], name)

    def _linear(self, x: ir.Value, name: str, names: tuple[str, ...]) -> ir.Value:
        linear = self.weights.linear(names)
        if isinstance(linear, DenseLinear):
            shape = (linear.columns, linear.rows)
            weight = self._lazy(f"{name}.weight", _FLOAT, shape, linear.load)
            return self._add("MatMul", [x, weight], name, [1, _rows(x), linear.rows])
        return self._block_linear(x, name, linear)

    def _block_linear(self, x: ir.Value, name: str, linear: BlockLinear) -> ir.Value:
        n, k, size = linear.rows, linear.columns, linear.block_size
        blocks, held = k // size, self.held
        packed = (n, blocks, size * linear.bits // 8)
        weight = self._lazy(
            f"{name}.weight", ir.DataType.UINT8, packed, lambda: held.read(linear).weight
        )
        scales = self._lazy(f"{name}.scales", _HALF, (n, blocks), lambda: held.read(linear).scales)
        exact = f"{name}.symmetric" if linear.asymmetric else name
        node = ir.node(
            "QuantizedLinear",
            [x, weight, scales],
            {
                "K": k,
                "N": n,
                "bits": linear.bits,
                "block_size": size,
                "accuracy_level": self.accuracy_level,
                **_PLUGIN,
            },
            domain=DOMAIN,
            name=exact,
        )
        self.graph.append(node)
        (out,) = node.outputs
        _describe(out, exact, _FLOAT, ir.Shape([1, _rows(x), n]))
        return self._shift(x, name, linear, out) if linear.asymmetric else out

    def _shift(self, x: ir.Value, name: str, linear: BlockLinear, out: ir.Value) -> ir.Value:
        """What zero points add: the sum of each block of inputs times its offset."""
        blocks, size = linear.columns // linear.block_size, linear.block_size

        def offsets() -> NDArray[np.float16]:
            offset = self.held.read(linear).zero_offset
            assert offset is not None, f"{name}: an asymmetric linear has offsets"
            return np.ascontiguousarray(offset.T)

        stored = self._lazy(f"{name}.zero_offset", _HALF, (blocks, linear.rows), offsets)
        wide = self._add("Cast", [stored], f"{name}.offsets", stored.shape, to=int(_FLOAT))
        shape = self._ints(f"blocks_{blocks}_{size}", [1, -1, blocks, size])
        apart = self._add("Reshape", [x, shape], f"{name}.blocks", [1, _rows(x), blocks, size])
        sums = self._add(
            "ReduceSum", [apart, self._ints("last_axis", [-1])], f"{name}.block_sums",
            [1, _rows(x), blocks], keepdims=0,
        )  # fmt: skip
        shift = self._add("MatMul", [sums, wide], f"{name}.shift", [1, _rows(x), linear.rows])
        return self._join(out, shift, name)

    def _split(self, x: ir.Value, names: list[str], sizes: list[int]) -> list[ir.Value]:
        parts = self._ints("_".join(map(str, ("split", *sizes))), sizes)
        node = ir.node(
            "Split", [x, parts], {"axis": -1}, num_outputs=len(sizes), name=f"{names[0]}.split"
        )
        self.graph.append(node)
        for value, name, size in zip(node.outputs, names, sizes, strict=True):
            _describe(value, name, x.dtype, ir.Shape([1, _rows(x), size]))
        return list(node.outputs)

    def _gather(self, x: ir.Value, rows: str, name: str) -> ir.Value:
        """Rows of [1,rows,width]."""
        indices = self.inputs[rows]
        assert x.shape is not None, "made here, so it has a shape"
        assert indices.shape is not None, "a port has a shape"
        shape = [1, indices.shape[0], x.shape[2]]
        return self._add("Gather", [x, indices], name, shape, axis=1)

    def _join(self, x: ir.Value, y: ir.Value, name: str) -> ir.Value:
        return self._like("Add", [x, y], name)

    def _like(self, op: str, inputs: list[ir.Value], name: str) -> ir.Value:
        """An elementwise node whose result is like its first input."""
        return self._add(op, inputs, name, inputs[0].shape)

    def _add(
        self,
        op: str,
        inputs: list[ir.Value],
        name: str,
        shape: Sequence[int | str | ir.SymbolicDim] | ir.Shape | None,
        **attributes: int,
    ) -> ir.Value:
        node = ir.node(op, inputs, attributes, name=name)
        self.graph.append(node)
        (out,) = node.outputs
        _describe(out, name, _FLOAT, ir.Shape(list(shape or [])))
        return out

    def _ints(self, name: str, numbers: list[int]) -> ir.Value:
        return self._constant(name, np.array(numbers, np.int64))

    def _scalar(self, name: str, number: float) -> ir.Value:
        return self._constant(name, np.array(number, np.float32))

    def _constant(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        """A small initializer, once for all who ask for the name."""
        known = self.graph.initializers.get(name)
        return self._initializer(name, array) if known is None else known

    def _initializer(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.graph.register_initializer(value)
        return value

    def _lazy(
        self,
        name: str,
        dtype: ir.DataType,
        shape: Sequence[int],
        load: Callable[[], NDArray[np.generic]],
    ) -> ir.Value:
        def read() -> ir.TensorProtocol:
            array = load()
            assert array.shape == tuple(shape), f"{name}: {array.shape}, expected {shape}"
            return ir.Tensor(array, dtype=dtype, name=name)

        value = ir.Value(
            name=name,
            shape=ir.Shape(list(shape)),
            type=ir.TensorType(dtype),
            const_value=ir.LazyTensor(read, dtype=dtype, shape=ir.Shape(list(shape)), name=name),
        )
        self.graph.register_initializer(value)
        return value


class _Held:
    """The quantised linear that was read last.

    Its parts (numbers, scales, offsets) are written one after the other, and reading the source
    may mean unpacking a whole file.
    """

    def __init__(self) -> None:
        self._linear: BlockLinear | None = None
        self._content: BlockQuantized | None = None

    def read(self, linear: BlockLinear) -> BlockQuantized:
        if self._content is None or self._linear is not linear:
            self._content = None  # the one before goes first
            self._linear, self._content = linear, linear.load()
        return self._content


def _rows(x: ir.Value) -> int | ir.SymbolicDim:
    assert x.shape is not None, "made here, so it has a shape"
    return x.shape[1]


def _describe(
    value: ir.Value, name: str, dtype: ir.DataType | None, shape: ir.Shape | None
) -> None:
    assert dtype is not None, f"{name}: every value has a type"
    value.name, value.type = name, ir.TensorType(dtype)
    value.shape = None if shape is None else ir.Shape(list(shape))
