"""What this machine can do at most, measured here and now: read memory, and multiply matrices."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from visionllm_edge.benchmarks.bandwidth import measure_read_bandwidth
from visionllm_edge.benchmarks.bench.measurement import Roofline
from visionllm_edge.benchmarks.bench.profile import StageProfile

__all__ = ["MachineLimits", "measure_limits", "roofline"]

_SIDE = 768
_PASSES = 9


@dataclass(frozen=True)
class MachineLimits:
    """Measured rates.

    Attributes:
        read_bytes_per_s: of memory much larger than the caches.
        float_per_s: operations of a large float32 product in ONNX Runtime.
        int8_per_s: operations of a large 8-bit product in ONNX Runtime.
    """

    read_bytes_per_s: float
    float_per_s: float
    int8_per_s: float


def measure_limits(threads: int | None) -> MachineLimits:
    """About two seconds of work; the best pass counts, as other work only takes away.

    Args:
        threads: None takes all cores.
    """
    count = threads or os.cpu_count() or 1
    return MachineLimits(
        measure_read_bandwidth(count).bytes_per_s,
        _product_rate("MatMul", np.dtype(np.float32), threads),
        _product_rate("MatMulInteger", np.dtype(np.uint8), threads),
    )


def roofline(profile: StageProfile, median_ms: float, limits: MachineLimits) -> Roofline | None:
    """A stage's measured time per request against the least that this machine needs for it.

    Args:
        profile: counted.
        median_ms: measured without the profiler, all runs of one request together.
        limits: of the machine.
    """
    moved = profile.weight_bytes
    memory_ms = moved / limits.read_bytes_per_s * 1000
    compute_ms = 1000 * (
        profile.operations.get("float", 0) / limits.float_per_s
        + profile.operations.get("int8", 0) / limits.int8_per_s
    )
    limit = max(memory_ms, compute_ms)
    if limit <= 0 or median_ms <= 0:
        return None
    return Roofline(
        counted_bytes=moved,
        counted_operations=sum(profile.operations.values()),
        limit_ms=limit,
        bound="memory" if memory_ms > compute_ms else "compute",
        share=limit / median_ms,
    )


def _product_rate(op: str, dtype: np.dtype[np.generic], threads: int | None) -> float:
    """Operations a second of a square product."""
    from onnx import TensorProto, helper

    kinds = {"MatMul": TensorProto.FLOAT, "MatMulInteger": TensorProto.UINT8}
    out = TensorProto.FLOAT if op == "MatMul" else TensorProto.INT32
    shape = [_SIDE, _SIDE]
    graph = helper.make_graph(
        [helper.make_node(op, ["a", "b"], ["c"])],
        "product",
        [helper.make_tensor_value_info(name, kinds[op], shape) for name in "ab"],
        [helper.make_tensor_value_info("c", out, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(0)
    feeds = {name: (rng.random(shape) * 100).astype(dtype) for name in "ab"}
    session.run(None, feeds)
    times = []
    for _ in range(_PASSES):
        begin = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - begin)
    return float(2 * _SIDE**3 / min(times))
