"""Switches: off is exact, all on is the quantised graph, one on shows that tensor alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from tests.export.passes.graphs import make_model, run
from visionllm_edge.export.calibration import calibrate_graph
from visionllm_edge.export.passes.infer_types import infer_types
from visionllm_edge.export.passes.quantize_dequantize import Quantization, quantize_dequantize
from visionllm_edge.export.quantized_control import run_quantized_control
from visionllm_edge.export.sensitivity import Probe, largest_share, relative_error
from visionllm_edge.runtime.ports import Array

RNG = np.random.default_rng(8)
WEIGHTS = {name: RNG.standard_normal((32, 32)).astype(np.float32) / 6 for name in ("a", "b", "c")}
RUNS: list[dict[str, Array]] = [
    {"x": RNG.standard_normal((4, 32)).astype(np.float32)} for _ in range(3)
]


def _load() -> ir.Model:
    """x -> a -> ReLU -> b -> + x -> c -> y; what `b` reads has a rare, huge channel."""
    huge = np.ones(32, np.float32)
    huge[5] = 3000.0
    model = make_model(
        [
            helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Mul", ["r", "huge"], ["s"]),
            helper.make_node("MatMul", ["s", "b"], ["t"], name="second"),
            helper.make_node("Add", ["t", "x"], ["u"]),
            helper.make_node("LayerNormalization", ["u", "gain"], ["n"]),
            helper.make_node("MatMul", ["n", "c"], ["v"], name="third"),
            helper.make_node("Add", ["v", "u"], ["y"]),
        ],
        inputs={"x": [4, 32]},
        outputs={"y": [4, 32]},
        constants=WEIGHTS | {"huge": huge, "gain": np.ones(32, np.float32)},
    )
    infer_types(model)
    return model


PLAN = Quantization("int8", ("first", "second", "third"), {"x": 4.0, "s": 9000.0, "n": 5.0})


def test_switches_off_are_exact_and_on_are_the_quantised_graph() -> None:
    quantised = _load()
    quantize_dequantize(quantised, PLAN)
    with Probe(_load(), PLAN, RUNS) as probe:
        assert probe.groups == {"x": ("first",), "s": ("second",), "n": ("third",)}
        assert probe.error([]) == 0.0
        (exact,) = run(_load(), RUNS[0])
        (expected,) = run(quantised, RUNS[0])
        limits = {"y": 1.0}
        share = probe.share(["x", "s", "n"], limits)
        assert share == pytest.approx(np.abs(expected - exact).max(), rel=1e-5)
        alone = [probe.share([name], limits) for name in ("x", "s", "n")]
        assert all(value > 0 for value in alone)
        probe.ranges["n"] = 0.1  # clips nearly everything
        assert probe.share(["n"], limits) > 10 * alone[2]


def test_a_layer_that_breaks_the_limit_alone_is_kept() -> None:
    with Probe(_load(), PLAN, RUNS) as probe:
        alone = {name: probe.share([name], {"y": 1.0}) for name in probe.groups}
    worst = max(alone, key=lambda name: alone[name])
    others = sum(value for name, value in alone.items() if name != worst)
    limit = 1.5 * others  # all but the worst fit
    assert alone[worst] > limit
    plan = calibrate_graph(_load, RUNS, {"y": limit}, "int8", origin="numbers")
    layer = {"x": "first", "s": "second", "n": "third"}[worst]
    assert plan.kept[layer] == "sensitive"
    assert layer not in plan.layers and len(plan.layers) >= 1
    assert set(plan.ranges) <= {"x", "s", "n"} - {worst}
    assert plan.to_dict()["runs"] == 3

    everything = calibrate_graph(_load, RUNS, {"y": 1e9}, "int8")
    assert everything.layers == ("first", "second", "third")
    nothing = calibrate_graph(_load, RUNS, {"y": 1e-9}, "int8")
    assert nothing.layers == () and set(nothing.kept.values()) == {"sensitive"}


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_the_control_rounds_every_layer_per_tensor(precision: str) -> None:
    (exact,) = run(_load(), RUNS[0])
    control = run_quantized_control(_load(), RUNS[0], precision)
    assert 0 < relative_error(control, {"y": exact}) < 0.2
    plan = calibrate_graph(_load, RUNS, {"y": 1e9}, precision)
    ours = _load()
    quantize_dequantize(ours, plan)
    (got,) = run(ours, RUNS[0])
    limit = 2 * float(np.abs(control["y"] - exact).max())
    assert largest_share({"y": got}, {"y": exact}, {"y": limit}) < 1
