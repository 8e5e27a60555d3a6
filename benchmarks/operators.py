"""Operators on the CPU: our kernel, the ONNX function and torch, in turns.

Run as ``python -m visionllm_edge.benchmarks.operators``. The sizes are those of a detector at
800x1333: an encoder layer, where every pixel of four levels is a query, and a decoder layer of 900
queries. The kernel and the function are the same ONNX model in ONNX Runtime, with the library of
CPU kernels registered and without; torch computes the grid_sample form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visionllm_edge.benchmarks.operator_forms import form_command, form_session, time_forms
from visionllm_edge.plugins.ms_deform_attn.spec import MS_DEFORM_ATTN
from visionllm_edge.plugins.semantic_op import DOMAIN, PLUGIN_NAMESPACE, PLUGIN_VERSION
from visionllm_edge.runtime.ports import Array

__all__ = ["CASES", "Case", "compare", "make_inputs"]

_KERNEL, _FUNCTION, _TORCH = "kernel", "function", "torch"
_TOLERANCE = 1e-4
_OFFSET_PX = 2.0


@dataclass(frozen=True)
class Case:
    """One size of deformable attention.

    Attributes:
        levels: (height, width) of every level.
        queries: Lq; 0 means every pixel is a query, as in an encoder.
        heads: M.
        depth: D.
        points: P.
    """

    levels: tuple[tuple[int, int], ...]
    queries: int = 0
    heads: int = 8
    depth: int = 32
    points: int = 4


_LEVELS_800X1333 = ((100, 167), (50, 84), (25, 42), (13, 21))
CASES: Mapping[str, Case] = {
    "encoder 800x1333": Case(_LEVELS_800X1333),
    "decoder 900 queries": Case(_LEVELS_800X1333, queries=900),
}


def make_inputs(case: Case, *, seed: int = 0) -> dict[str, Array]:
    """Inputs of the operator, fp32 and int32, in the order of its ports.

    The points of a query lie around its own place, N(0, 2 pixels) of each level away: its pixel in
    an encoder, anywhere in a decoder.
    """
    rng = np.random.default_rng(seed)
    places = [
        np.stack(np.meshgrid((np.arange(w) + 0.5) / w, (np.arange(h) + 0.5) / h), axis=-1)
        for h, w in case.levels
    ]
    place = np.concatenate([grid.reshape(-1, 2) for grid in places])
    pixels = len(place)
    if case.queries:
        place = rng.random((case.queries, 2))
    shape = (1, len(place), case.heads, len(case.levels), case.points)
    # (height, width) -> (x, y) order, one row per level.
    sizes = np.array([(w, h) for h, w in case.levels], dtype=np.float64)
    offsets = rng.normal(0, _OFFSET_PX, (*shape, 2)) / sizes[:, None, :]
    weights = rng.random(shape, dtype=np.float32)
    areas = [h * w for h, w in case.levels]
    return {
        "value": rng.standard_normal((1, pixels, case.heads, case.depth), dtype=np.float32),
        "spatial_shapes": np.array(case.levels, dtype=np.int32),
        "level_start_index": np.cumsum([0, *areas[:-1]]).astype(np.int32),
        "sampling_locations": (place[None, :, None, None, None] + offsets).astype(np.float32),
        "attention_weights": weights / weights.sum(axis=(3, 4), keepdims=True),
    }


def compare(
    case: Case, library: Path, *, rounds: int, threads: int, seed: int = 0
) -> dict[str, Any]:
    """Time the three forms of one case, interleaved.

    Args:
        case: the size.
        library: the CPU kernels.
        rounds: measured rounds; two more come before.
        threads: for each of the three.
        seed: of the inputs.

    Raises:
        ParityError: two forms disagree, so that their times say nothing.
    """
    inputs = make_inputs(case, seed=seed)
    model = _one_node_model(case)
    forms = {
        _FUNCTION: _in_onnxruntime(model, inputs, threads, None),
        _KERNEL: _in_onnxruntime(model, inputs, threads, library),
        _TORCH: _in_torch(inputs, threads),
    }
    errors, times = time_forms(
        MS_DEFORM_ATTN.name,
        forms,
        dict.fromkeys(forms, _TOLERANCE),
        truth=_FUNCTION,
        rounds=rounds,
    )
    return {
        "sizes": {
            "pixels": inputs["value"].shape[1],
            "queries": inputs["sampling_locations"].shape[1],
            "heads": case.heads,
            "depth": case.depth,
            "levels": [list(level) for level in case.levels],
            "points": case.points,
        },
        "max_abs_difference_to_function": errors,
        "times": times.to_dict(),
        "kernel_speedup": {
            "over_function": times.speedup(_KERNEL, _FUNCTION),
            "over_torch": times.speedup(_KERNEL, _TORCH),
        },
    }


def _one_node_model(case: Case) -> bytes:
    from onnx import TensorProto, helper

    element = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32}
    types = MS_DEFORM_ATTN.type_combinations[0]
    ends = [
        helper.make_tensor_value_info(port.name, element[kind], [None] * len(port.shape))
        for port, kind in zip(MS_DEFORM_ATTN.inputs + MS_DEFORM_ATTN.outputs, types, strict=True)
    ]
    node = helper.make_node(
        MS_DEFORM_ATTN.name,
        [port.name for port in MS_DEFORM_ATTN.inputs],
        [port.name for port in MS_DEFORM_ATTN.outputs],
        domain=DOMAIN,
        plugin_version=PLUGIN_VERSION,
        plugin_namespace=PLUGIN_NAMESPACE,
    )
    model = helper.make_model(
        helper.make_graph([node], "operator", ends[:-1], ends[-1:]),
        opset_imports=[helper.make_opsetid("", 19), helper.make_opsetid(DOMAIN, 1)],
        functions=[MS_DEFORM_ATTN.onnx_function(opset=19, levels=len(case.levels))],
        ir_version=9,
    )
    content: bytes = model.SerializeToString()
    return content


def _in_onnxruntime(
    model: bytes, inputs: Mapping[str, Array], threads: int, library: Path | None
) -> Callable[[], Array]:
    """The session, with inputs and output bound once, as the runtime's backend does it."""
    session = form_session(model, threads, library)
    batch, _, heads, depth = inputs["value"].shape
    output = np.zeros((batch, inputs["sampling_locations"].shape[1], heads, depth), np.float32)
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    binding.bind_output("output", "cpu", 0, output.dtype, output.shape, output.ctypes.data)

    def run() -> Array:
        session.run_with_iobinding(binding)
        return output

    return run


def _in_torch(inputs: Mapping[str, Array], threads: int) -> Callable[[], Array]:
    import torch

    from visionllm_edge.export.ops import ms_deform_attn

    torch.set_num_threads(threads)
    tensors = [torch.from_numpy(array) for array in inputs.values()]

    def run() -> Array:
        with torch.inference_mode():
            output: Array = ms_deform_attn(*tensors).numpy()
        return output

    return run


def _table(cases: Mapping[str, dict[str, Any]]) -> str:
    lines = [f"{'case':<22}{'form':<10}{'median ms':>10}{'p90 ms':>9}{'kernel is':>12}"]
    for name, case in cases.items():
        for form, times in case["times"].items():
            ratio = case["kernel_speedup"].get(f"over_{form}")
            text = "" if ratio is None else f"{ratio:.1f}x as fast"
            median, p90 = times["median_ms"], times["p90_ms"]
            lines.append(f"{name:<22}{form:<10}{median:>10.2f}{p90:>9.2f}  {text}")
    return "\n".join(lines)


main = form_command(
    lambda: CASES,
    compare,
    _table,
    rounds=15,
    packages=("visionllm-edge", "torch", "onnxruntime", "numpy"),
    timer="wall clock around one run, inputs and outputs bound, warm caches",
    about="Time deformable attention as kernel, ONNX function and torch on this CPU.",
)


if __name__ == "__main__":
    main()
