"""The decoder in torch, one layer in memory at a time: truth and controls of the parity gate.

A model of any size is run on a few short sequences ("cases"), all of them in the same pass: a
matrix is loaded, multiplied with the rows of every case in every arithmetic, and forgotten. What is
run are the weights that the graph multiplies by; of a quantised linear, those are the dequantised
ones.

================  ================================================================================
arithmetic        what it is
================  ================================================================================
`TRUTH`           float64, nothing rounded in between
`CONTROL`         float32 as PyTorch computes it, new rows of the cache rounded to the cache's type
                  if that is one of floating point
`ROUNDED`         the same, activations of quantised linears rounded to int8 per block, as the
                  operator may at accuracy level 4, and new rows of a cache of int8 to whole steps
`HALF` fp16/bf16  half precision as on a GPU, weights and cache too; a cache of int8 as above
================  ================================================================================

A case may stand behind a prefix. The cache that its rows find is computed in float32 in the same
pass, and is an input of the case in all arithmetics alike. Of a cache of int8 all outputs here are
what its whole numbers stand for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from visionllm_edge.export.components.llm_decoder import rope_tables
from visionllm_edge.export.config import LlmConfig
from visionllm_edge.export.half_control import wide_kernels
from visionllm_edge.export.llm.decoder_graph import CacheScales
from visionllm_edge.export.llm.decoder_weights import (
    FINAL_NORM,
    HEAD,
    BlockLinear,
    DecoderWeights,
    DenseLinear,
    layer_linears,
    layer_norms,
)
from visionllm_edge.export.quantize.matrix import BlockQuantized
from visionllm_edge.plugins.quantized_linear.reference import round_activations
from visionllm_edge.runtime.backends.base import PAST_PREFIX, PRESENT_PREFIX
from visionllm_edge.runtime.ports import Array

__all__ = [
    "CONTROL",
    "HALF",
    "ROUNDED",
    "TRUTH",
    "Arithmetic",
    "DecoderCase",
    "StreamedRun",
    "run_streamed",
]

# Numbers of a weight that are widened at once: 256 MB in float64.
_CHUNK = 1 << 25
_PREFIX = "prefix"
_KINDS = ("key", "value")
# A whole number of a cache of int8 goes from -127 to 127.
_MOST = 127

Rows = dict[str, Tensor]
Note = Callable[[str], None]


@dataclass(frozen=True)
class Arithmetic:
    """How numbers are rounded.

    Attributes:
        name: key of its outputs.
        dtype: of everything that is computed.
        eight_bits: round what the graph holds in eight bits: activations in front of a quantised
            linear, and a cache of int8.
    """

    name: str
    dtype: torch.dtype
    eight_bits: bool = False

    @property
    def half(self) -> bool:
        """Whether it is half precision."""
        return self.dtype in (torch.float16, torch.bfloat16)


TRUTH = Arithmetic("truth", torch.float64)
CONTROL = Arithmetic("float32", torch.float32)
ROUNDED = Arithmetic("int8 activations", torch.float32, eight_bits=True)
HALF: Mapping[str, Arithmetic] = MappingProxyType(
    {
        "fp16": Arithmetic("fp16", torch.float16),
        "bf16": Arithmetic("bf16", torch.bfloat16),
    }
)


@dataclass(frozen=True)
class DecoderCase:
    """One step of the decoder.

    Attributes:
        rows: embeddings of the step [s,D], float32.
        prefix: embeddings of what is in the cache [p,D], float32; p may be 0.
        capacity: rows of the cache buffer, at least p + s.
        hidden_rows: rows of the step whose hidden states are wanted.
        logit_rows: which of those get logits.
    """

    rows: Array
    prefix: Array
    capacity: int
    hidden_rows: tuple[int, ...]
    logit_rows: tuple[int, ...]


@dataclass
class StreamedRun:
    """What a case gave.

    Attributes:
        inputs: of the graph, the cache included.
        valid: rows of the cache that have a value afterwards.
        outputs: arithmetic -> output -> array; of the cache the valid rows, before rounding in the
            truth, after it in the others.
    """

    inputs: dict[str, Array]
    valid: int
    outputs: dict[str, dict[str, Array]] = field(default_factory=dict)


def run_streamed(
    weights: DecoderWeights,
    config: LlmConfig,
    cases: Sequence[DecoderCase],
    arithmetics: Sequence[Arithmetic],
    *,
    first_only: Sequence[Arithmetic] = (),
    cache: str = "float32",
    cache_scales: CacheScales | None = None,
    note: Note = lambda text: None,
) -> list[StreamedRun]:
    """Run every case in every arithmetic.

    Args:
        weights: of the decoder; every matrix is loaded once.
        config: sizes.
        cases: at least one.
        arithmetics: of all cases.
        first_only: further ones, of the first case alone.
        cache: type of the cache's buffers, float32, float16 or int8.
        cache_scales: of a cache of int8, one pair for each layer.
        note: gets a line per layer.

    Returns:
        One entry per case.
    """
    plans = [_Plan(a, list(range(len(cases)))) for a in arithmetics]
    plans += [_Plan(a, [0]) for a in first_only]
    with torch.no_grad():
        return _Pass(weights, config, cases, plans, _Cache(cache, cache_scales)).run(note)


class _Cache:
    """How rows are held between steps."""

    def __init__(self, kind: str, scales: CacheScales | None) -> None:
        assert (kind == "int8") == (scales is not None), "a cache of int8 comes with scales"
        self.dtype = torch.from_numpy(np.empty(0, kind)).dtype
        self._steps = [
            {
                kind: torch.from_numpy(scale)[:, None]
                for kind, scale in zip(_KINDS, pair, strict=True)
            }
            for pair in scales or ()
        ]

    def written(self, rows: Tensor, layer: int, part: str) -> Tensor:
        """Rows [KV,s,Dh] as a buffer holds them."""
        if not self._steps:
            return rows.to(self.dtype)
        steps = self._steps[layer][part].to(rows.dtype)
        return torch.clamp(torch.round(rows / steps), -_MOST, _MOST).to(self.dtype)

    def read(self, held: Tensor, layer: int, part: str) -> Tensor:
        """What the numbers in a buffer stand for, of floating point."""
        return held.float() * self._steps[layer][part] if self._steps else held

    def rounded(self, rows: Tensor, layer: int, part: str, kind: Arithmetic) -> Tensor:
        """New rows [KV,s,Dh] as the attention of an arithmetic sees them."""
        if kind is TRUTH or (self._steps and not (kind.eight_bits or kind.half)):
            return rows
        if not self._steps:
            return rows if kind.half else rows.to(self.dtype).to(kind.dtype)
        steps = self._steps[layer][part].to(kind.dtype)
        return self.written(rows, layer, part).to(kind.dtype) * steps


@dataclass(frozen=True)
class _Plan:
    """An arithmetic and the cases that are run in it."""

    arithmetic: Arithmetic
    cases: list[int]


class _Pass:
    """One walk through the layers."""

    def __init__(
        self,
        weights: DecoderWeights,
        config: LlmConfig,
        cases: Sequence[DecoderCase],
        plans: list[_Plan],
        cache: _Cache,
    ) -> None:
        self._weights, self._config, self._cases, self._plans = weights, config, cases, plans
        self._cache = cache
        self._cos, self._sin = rope_tables(config)
        self._runs = [self._inputs(case) for case in cases]
        self._kinds = {plan.arithmetic.name: plan.arithmetic for plan in plans}
        self._kinds[_PREFIX] = CONTROL
        self._x: Rows = {
            plan.arithmetic.name: torch.cat(
                [torch.from_numpy(cases[i].rows) for i in plan.cases]
            ).to(plan.arithmetic.dtype)
            for plan in plans
        }
        self._x[_PREFIX] = torch.cat([torch.from_numpy(case.prefix) for case in cases])

    def run(self, note: Note) -> list[StreamedRun]:
        layers = self._config.num_hidden_layers
        for layer in range(layers):
            self._layer(layer, last=layer == layers - 1)
            note(f"torch: layer {layer + 1} of {layers}")
        self._head()
        return self._runs

    def _inputs(self, case: DecoderCase) -> StreamedRun:
        length, start = len(case.rows), len(case.prefix)
        assert start + length <= case.capacity, "the case fits into its cache"
        inputs: dict[str, Array] = {
            "inputs_embeds": case.rows[None],
            "past_length": np.array([start], np.int64),
            "hidden_rows": np.array(case.hidden_rows, np.int64),
            "logit_rows": np.array(case.logit_rows, np.int64),
        }
        return StreamedRun(inputs, start + length)

    def _layer(self, layer: int, *, last: bool) -> None:
        before, after = layer_norms(layer)
        linears = layer_linears(layer)
        projected = self._linear(linears["qkv"], self._norm(before))
        attended = self._attention(layer, projected)
        if last:
            del self._x[_PREFIX], attended[_PREFIX]
            attended = {name: self._wanted(name, rows) for name, rows in attended.items()}
            self._x = {name: self._wanted(name, rows) for name, rows in self._x.items()}
        self._add(self._linear(linears["o"], attended))
        stacked = self._linear(linears["gate_up"], self._norm(after))
        gated = {}
        for name, rows in stacked.items():
            gate, up = rows.chunk(2, dim=-1)
            gated[name] = F.silu(gate) * up
        self._add(self._linear(linears["down"], gated))

    def _head(self) -> None:
        self._x = self._norm(FINAL_NORM)
        chosen: Rows = {}
        for plan in self._plans:
            name, parts, start = plan.arithmetic.name, [], 0
            for index in plan.cases:
                case = self._cases[index]
                hidden = self._x[name][start : start + len(case.hidden_rows)]
                start += len(case.hidden_rows)
                self._keep(index, name, "hidden", hidden[None])
                parts.append(hidden[list(case.logit_rows)])
            chosen[name] = torch.cat(parts)
        logits = self._linear((HEAD,), chosen)
        for plan in self._plans:
            name, start = plan.arithmetic.name, 0
            for index in plan.cases:
                count = len(self._cases[index].logit_rows)
                self._keep(index, name, "logits", logits[name][start : start + count])
                start += count

    def _add(self, rows: Rows) -> None:
        self._x = {name: self._x[name] + rows[name] for name in self._x}

    def _norm(self, name: str) -> Rows:
        factors = torch.from_numpy(self._weights.norm(name))
        out = {}
        for key, x in self._x.items():
            kind = self._kinds[key]
            # A square overflows fp16: norms are computed in fp32 in every implementation.
            wide = x.float() if kind.half else x
            scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self._config.rms_norm_eps)
            out[key] = (wide * scale * factors.to(kind.dtype).to(wide.dtype)).to(kind.dtype)
        return out

    def _linear(self, names: tuple[str, ...], rows: Rows) -> Rows:
        linear = self._weights.linear(names)
        out = {
            key: torch.empty(len(x), linear.rows, dtype=self._kinds[key].dtype)
            for key, x in rows.items()
        }
        rounded: Rows = {}
        sums: Rows = {}
        if isinstance(linear, BlockLinear):
            for key, x in rows.items():
                if self._kinds[key].eight_bits:
                    rounded[key] = _rounded(x, linear.block_size)
                    sums[key] = x.reshape(len(x), -1, linear.block_size).sum(-1)
        for part, weight, zero_offset in _chunks(linear):
            exact = weight
            if zero_offset is not None:
                assert isinstance(linear, BlockLinear), "only blocks have an offset"
                exact = weight + zero_offset.repeat_interleave(linear.block_size, 1)
            for key, x in rows.items():
                kind = self._kinds[key]
                if key in rounded:
                    y = rounded[key] @ weight.T
                    if zero_offset is not None:
                        y = y + sums[key] @ zero_offset.T
                else:
                    with _kernels(kind):
                        y = x @ exact.to(kind.dtype).T
                out[key][:, part] = y
        return out

    def _attention(self, layer: int, projected: Rows) -> Rows:
        out: Rows = {}
        parts, start = [], 0
        for index, case in enumerate(self._cases):
            length = len(case.prefix)
            rows, keys, values = self._attend(
                layer, projected[_PREFIX][start : start + length], CONTROL
            )
            parts.append(rows)
            start += length
            for kind, made in zip(_KINDS, (keys, values), strict=True):
                heads, _, depth = made.shape
                buffer = torch.zeros(1, heads, case.capacity, depth, dtype=self._cache.dtype)
                buffer[0, :, :length] = self._cache.written(made, layer, kind)
                self._runs[index].inputs[f"{PAST_PREFIX}{layer}.{kind}"] = buffer.numpy()
        out[_PREFIX] = torch.cat(parts)
        for plan in self._plans:
            name, parts, start = plan.arithmetic.name, [], 0
            for index in plan.cases:
                length, past = len(self._cases[index].rows), len(self._cases[index].prefix)
                inputs = self._runs[index].inputs
                found = []
                for kind in _KINDS:
                    held = torch.from_numpy(inputs[f"{PAST_PREFIX}{layer}.{kind}"])[0, :, :past]
                    found.append(self._cache.read(held, layer, kind))
                rows, keys, values = self._attend(
                    layer, projected[name][start : start + length], plan.arithmetic, *found
                )
                parts.append(rows)
                start += length
                self._keep(index, name, f"{PRESENT_PREFIX}{layer}.key", keys[None])
                self._keep(index, name, f"{PRESENT_PREFIX}{layer}.value", values[None])
            out[name] = torch.cat(parts)
        return out

    def _attend(
        self,
        layer: int,
        rows: Tensor,
        kind: Arithmetic,
        past_key: Tensor | None = None,
        past_value: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attention output [s,H*Dh], keys and values [KV,p+s,Dh] of one sequence."""
        config, length = self._config, len(rows)
        heads, kv, depth = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        start = 0 if past_key is None else past_key.shape[1]
        cos, sin = (t[start : start + length].to(kind.dtype) for t in (self._cos, self._sin))
        query, key, value = (
            part.reshape(length, part.shape[1] // depth, depth).transpose(0, 1)
            for part in torch.split(rows, [heads * depth, kv * depth, kv * depth], dim=-1)
        )
        query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
        key, value = (
            self._cache.rounded(made, layer, part, kind)
            for part, made in zip(_KINDS, (key, value), strict=True)
        )
        if past_key is not None and past_value is not None:
            key = torch.cat([past_key.to(kind.dtype), key], dim=1)
            value = torch.cat([past_value.to(kind.dtype), value], dim=1)
        seen = torch.arange(start + length)[None] <= torch.arange(start, start + length)[:, None]
        group = heads // kv
        with _kernels(kind):
            scores = query @ key.repeat_interleave(group, 0).transpose(1, 2) * depth**-0.5
            shares = scores.masked_fill(~seen, float("-inf")).softmax(-1)
            mixed = shares @ value.repeat_interleave(group, 0)
        return mixed.transpose(0, 1).reshape(length, heads * depth), key, value

    def _wanted(self, name: str, rows: Tensor) -> Tensor:
        """The rows whose hidden states are asked for."""
        index, start = [], 0
        for i in next(plan.cases for plan in self._plans if plan.arithmetic.name == name):
            index += [start + row for row in self._cases[i].hidden_rows]
            start += len(self._cases[i].rows)
        return rows[index]

    def _keep(self, case: int, arithmetic: str, output: str, tensor: Tensor) -> None:
        kept = tensor if tensor.dtype == torch.float64 else tensor.float()
        # A copy: a view would keep the rows of all cases alive.
        array: Array = kept.clone().contiguous().numpy()
        self._runs[case].outputs.setdefault(arithmetic, {})[output] = array


def _chunks(
    linear: DenseLinear | BlockLinear,
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Outputs of a linear, their weights [n,K] in float32 and their zero offset [n,K/G]."""
    step = max(1, _CHUNK // linear.columns)
    parts = [slice(i, min(i + step, linear.rows)) for i in range(0, linear.rows, step)]
    if isinstance(linear, DenseLinear):
        dense = linear.load()
        assert dense.shape == (linear.columns, linear.rows), "the graph's order"
        for part in parts:
            yield part, torch.from_numpy(dense[:, part]).T, None
        return
    blocks = linear.load()
    for part in parts:
        whole = BlockQuantized(
            blocks.weight[part], blocks.scales[part], blocks.bits, blocks.block_size
        )
        offset = None
        if blocks.zero_offset is not None:
            offset = torch.from_numpy(blocks.zero_offset[part]).float()
        yield part, torch.from_numpy(whole.dequantize()), offset


def _rounded(x: Tensor, block_size: int) -> Tensor:
    """What int8 with one scale per row and block holds of the activations [R,K]."""
    numbers, scales = round_activations(x.numpy(), block_size)
    blocks = numbers.reshape(*scales.shape, block_size) * scales[..., None]
    return torch.from_numpy(blocks.reshape(numbers.shape))


def _kernels(kind: Arithmetic) -> contextlib.AbstractContextManager[object]:
    return wide_kernels(kind.dtype) if kind.half else contextlib.nullcontext()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split rotary embedding of x [H,s,Dh] with cos, sin [s,Dh/2]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
