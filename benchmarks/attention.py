"""Cached attention on the CPU: our kernel with each kind of cache, and GroupQueryAttention.

Run as ``python -m visionllm_edge.benchmarks.attention``. A case is the attention of a whole
decoder: every layer has its own cache, bound once for past and present, so nothing is copied and
what one layer read is not what the next one reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from visionllm_edge.benchmarks.operator_forms import form_command, form_session, time_forms
from visionllm_edge.plugins.cached_attention.spec import CACHED_ATTENTION
from visionllm_edge.plugins.quantized_cached_attention.spec import QUANTIZED_CACHED_ATTENTION
from visionllm_edge.plugins.semantic_op import DOMAIN
from visionllm_edge.runtime.ports import Array

if TYPE_CHECKING:
    import onnx

__all__ = ["CASES", "FORMS", "Case", "compare"]

_GQA = "GroupQueryAttention fp32"
# Form -> element type of its cache, and how far its answers may be from those of the operator.
FORMS: Mapping[str, tuple[str, float]] = {
    _GQA: ("float32", 0.0),
    "kernel fp32": ("float32", 1e-4),
    "kernel fp16": ("float16", 1e-2),
    "kernel int8": ("int8", 1e-1),
}
_STEP = 1 / 30
_CACHES = {"past_key", "past_value", "present_key", "present_value"}


@dataclass(frozen=True)
class Case:
    """The attention of one decoder for one step.

    Attributes:
        layers: nodes of the graph.
        heads: H.
        kv_heads: KV.
        depth: Dh.
        past: rows that the cache holds.
        new: S.
    """

    layers: int
    heads: int
    kv_heads: int
    depth: int
    past: int
    new: int


_TINYLLAMA = (22, 32, 4, 64)
_LLAMA_7B_8_LAYERS = (8, 32, 32, 128)
CASES: Mapping[str, Case] = {
    "TinyLlama, 1 after 64": Case(*_TINYLLAMA, 64, 1),
    "TinyLlama, 1 after 1024": Case(*_TINYLLAMA, 1024, 1),
    "TinyLlama, 65 after 300": Case(*_TINYLLAMA, 300, 65),
    "TinyLlama, 512 after 0": Case(*_TINYLLAMA, 0, 512),
    "8 layers of Llama-7B, 1 after 64": Case(*_LLAMA_7B_8_LAYERS, 64, 1),
    "8 layers of Llama-7B, 1 after 1024": Case(*_LLAMA_7B_8_LAYERS, 1024, 1),
}


def compare(case: Case, library: Path, *, rounds: int, threads: int) -> dict[str, Any]:
    """Time every form on one case, interleaved.

    Args:
        case: the sizes.
        library: the CPU kernels.
        rounds: measured rounds; two more come before.
        threads: for each form.

    Raises:
        ParityError: two forms disagree, so that their times say nothing.
    """
    forms = {
        form: _contestant(case, cache, None if form == _GQA else library, threads)
        for form, (cache, _) in FORMS.items()
    }
    limits = {form: limit for form, (_, limit) in FORMS.items()}
    errors, times = time_forms(CACHED_ATTENTION.name, forms, limits, truth=_GQA, rounds=rounds)
    return {
        "max_abs_difference": errors,
        "times": times.to_dict(),
        "over_group_query_attention": {form: times.speedup(form, _GQA) for form in FORMS},
    }


def _contestant(case: Case, cache: str, library: Path | None, threads: int) -> Callable[[], Array]:
    """A session with everything bound once; runs give the last layer's attention."""
    model = _model(case, cache, contrib=library is None)
    session = form_session(model, threads, library)
    binding = session.io_binding()
    kept: list[Array] = []

    def bind(name: str, array: Array) -> None:
        kept.append(array)
        if name in {port.name for port in session.get_inputs()}:
            binding.bind_cpu_input(name, array)

    for name, array in _common_inputs(case).items():
        bind(name, array)
    capacity = case.past + case.new
    shape = (1, case.kv_heads, capacity, case.depth)
    attention = np.zeros((1, case.new, case.heads * case.depth), np.float32)
    for layer in range(case.layers):
        rng = np.random.default_rng(layer)
        for kind in ("key", "value"):
            numbers = rng.standard_normal(shape, dtype=np.float32)
            buffer = (
                np.clip(np.rint(numbers / _STEP), -127, 127).astype(np.int8)
                if cache == "int8"
                else numbers.astype(cache)
            )
            bind(f"past_{kind}.{layer}", buffer)
            binding.bind_output(
                f"present_{kind}.{layer}", "cpu", 0, buffer.dtype, shape, buffer.ctypes.data
            )
        binding.bind_output(
            f"attention.{layer}", "cpu", 0, np.float32, attention.shape, attention.ctypes.data
        )

    def run() -> Array:
        session.run_with_iobinding(binding)
        assert kept, "the session reads and writes these"
        return attention

    return run


def _common_inputs(case: Case) -> dict[str, Array]:
    rng = np.random.default_rng(1)
    half = case.depth // 2
    angles = np.arange(case.past + case.new)[:, None] / 10_000 ** (np.arange(half) / half)
    steps = np.full((case.kv_heads, case.depth), _STEP, np.float32)

    def rows(heads: int) -> Array:
        return rng.standard_normal((1, case.new, heads * case.depth), dtype=np.float32)

    return {
        "query": rows(case.heads),
        "key": rows(case.kv_heads),
        "value": rows(case.kv_heads),
        "past_length": np.array([case.past], dtype=np.int64),
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
        "key_scale": steps,
        "value_scale": steps,
    }


def _model(case: Case, cache: str, *, contrib: bool) -> bytes:
    from onnx import TensorProto, helper

    from visionllm_edge.plugins.cached_attention.onnx_function import (
        CONTRIB_DOMAIN,
        build_function,
    )

    op = QUANTIZED_CACHED_ATTENTION if cache == "int8" else CACHED_ATTENTION
    element = {
        "float32": TensorProto.FLOAT,
        "float16": TensorProto.FLOAT16,
        "int8": TensorProto.INT8,
        "int64": TensorProto.INT64,
    }
    combination = 3 if cache == "float16" else 0
    ends: dict[str, onnx.ValueInfoProto] = {}
    nodes = []

    def place(name: str, kind: str, rank: int, layer: int, *, own: bool) -> str:
        value = f"{name}.{layer}" if own else name
        ends[value] = helper.make_tensor_value_info(value, element[kind], [None] * rank)
        return value

    for layer in range(case.layers):
        types = op.type_combinations[combination]
        names = [
            place(port.name, kind, len(port.shape), layer, own=port.name in {*_CACHES, "attention"})
            for port, kind in zip(op.inputs + op.outputs, types, strict=True)
        ]
        nodes.append(
            helper.make_node(
                op.name,
                names[: len(op.inputs)],
                names[len(op.inputs) :],
                domain=DOMAIN,
                num_heads=case.heads,
                kv_num_heads=case.kv_heads,
                scale=case.depth**-0.5,
            )
        )
    made = {name for node in nodes for name in node.output}
    function = build_function(opset=21, contrib=True) if contrib else op.onnx_function(opset=21)
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "attention",
            [value for name, value in ends.items() if name not in made],
            [value for name, value in ends.items() if name in made],
        ),
        opset_imports=[
            helper.make_opsetid(domain, version)
            for domain, version in (("", 21), (DOMAIN, 1), (CONTRIB_DOMAIN, 1))
        ],
        functions=[function],
        ir_version=10,
    )
    content: bytes = model.SerializeToString()
    return content


def _table(cases: Mapping[str, dict[str, Any]]) -> str:
    lines = [f"{'case':<36}{'form':<26}{'median ms':>10}{'p90 ms':>9}"]
    for name, case in cases.items():
        ratios = case["over_group_query_attention"]
        for form, numbers in case["times"].items():
            text = "" if form == _GQA else f"  {ratios[form]:.1f}x as fast"
            median, p90 = numbers["median_ms"], numbers["p90_ms"]
            lines.append(f"{name:<36}{form:<26}{median:>10.2f}{p90:>9.2f}{text}")
    return "\n".join(lines)


main = form_command(
    lambda: CASES,
    compare,
    _table,
    rounds=25,
    packages=("visionllm-edge", "onnxruntime", "numpy"),
    timer="wall clock around one run, inputs and outputs bound, a cache for each layer",
    about="Time cached attention as kernel and as GroupQueryAttention on this CPU.",
)


if __name__ == "__main__":
    main()
