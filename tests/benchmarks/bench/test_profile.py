"""What is counted from a profile."""

from __future__ import annotations

from typing import Any

import pytest

from visionllm_edge.benchmarks.bench.limits import MachineLimits, roofline
from visionllm_edge.benchmarks.bench.profile import count_operations, read_profile


def node(name: str, op: str, at: int, took: int, inputs: Any, outputs: Any) -> dict[str, Any]:
    shapes = {
        f"{end}_type_shape": [{"float": list(shape)} for shape in those]
        for end, those in (("input", inputs), ("output", outputs))
    }
    return {
        "cat": "Node",
        "name": f"{name}_kernel_time",
        "ts": at,
        "dur": took,
        "args": {"op_name": op, **shapes},
    }


def run(at: int, took: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": at, "dur": took, "args": {}}


def test_only_runs_behind_the_warm_up_count() -> None:
    events = [
        run(0, 90),
        node("a.b/linear", "MatMul", 10, 9000, [(4, 8)], [(4, 16)]),
        run(100, 50),
        node("a.b/linear", "MatMul", 110, 2000, [(4, 8)], [(4, 16)]),
        node("a/add", "Add", 130, 500, [(4, 16), (16,)], [(4, 16)]),
        node("model.layers.0.attention", "CachedAttention", 140, 100, [(1, 2)], [(1, 2)]),
        run(200, 50),
        node("a.b/linear", "MatMul", 210, 4000, [(4, 8)], [(4, 16)]),
    ]
    profile = read_profile(events, skip_runs=1, requests=2, weight_bytes=1000)
    first = profile.layers[0]
    assert (first.module, first.op, first.total_ms) == ("a.b", "MatMul", 3.0)
    assert profile.operations == {"float": (2 * 2 * 4 * 16 * 8 + 64) // 2}
    assert profile.weight_bytes == 1000
    assert profile.uncounted == ("CachedAttention",)


@pytest.mark.parametrize(
    ("op", "inputs", "outputs", "expected"),
    [
        ("MatMul", [(2, 3, 8), (8, 5)], [(2, 3, 5)], 2 * 2 * 3 * 5 * 8),
        ("MatMul", [(2, 3, 8)], [(2, 3, 5)], 2 * 2 * 3 * 5 * 8),  # packed weights have no shape
        ("Conv", [(1, 3, 8, 8), (16, 3, 3, 3), (16,)], [(1, 16, 6, 6)], 2 * 16 * 36 * 27),
        ("QuantizedLinear", [(1, 4, 64), (32, 2, 16), (32, 2)], [(1, 4, 32)], 2 * 4 * 64 * 32),
        ("Transpose", [(2, 3)], [(3, 2)], 0),
        ("Softmax", [(2, 3)], [(2, 3)], 6),
        ("CachedAttention", [(1, 1, 8)], [(1, 1, 8)], None),
    ],
)
def test_operations(op: str, inputs: Any, outputs: Any, expected: int | None) -> None:
    assert count_operations(op, inputs, outputs) == expected


def test_the_longer_of_two_limits_counts() -> None:
    profile = read_profile(
        [run(0, 10), node("x/y", "MatMul", 1, 5, [(100, 100)], [(100, 100)])],
        skip_runs=0,
        requests=1,
        weight_bytes=40_000,
    )
    slow_memory = roofline(profile, 100.0, MachineLimits(1e3, 1e12, 1e12))
    assert slow_memory is not None and slow_memory.bound == "memory"
    assert slow_memory.limit_ms == pytest.approx(40_000.0)
    slow_units = roofline(profile, 4.0, MachineLimits(1e12, 1e9, 1e12))
    assert slow_units is not None and slow_units.bound == "compute"
    assert slow_units.share == pytest.approx(2.0 / 4.0)
