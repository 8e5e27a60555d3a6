"""Long rows become RowNormalization; a group norm of a padded map passes the gate by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import helper

from tests.export.passes.graphs import make_model, op_list, run
from tests.plugins.cpu.nodes import open_session
from visionllm_edge.export.lowering import lower
from visionllm_edge.export.parity import TensorParity, compare_outputs
from visionllm_edge.export.passes.normalize_rows import LONG_ROW, normalize_rows
from visionllm_edge.plugins.cpu.library import find_library
from visionllm_edge.plugins.semantic_op import DOMAIN
from visionllm_edge.runtime.ports import Array
from visionllm_edge.runtime.targets import find_target

GROUPS, CHANNELS, HEIGHT, WIDTH = 2, 16, 100, 136  # stride 8 of 800x1088, eight channels a group
LENGTH = CHANNELS // GROUPS * HEIGHT * WIDTH


def _model(length: int | str = LENGTH, *, rank: int = 3, epsilon: float | None = 1e-5) -> ir.Model:
    shape = [1, GROUPS, length, *[1] * (rank - 3)]
    norm = helper.make_node("InstanceNormalization", ["x", "s", "b"], ["y"], name="norm")
    if epsilon is not None:
        norm.attribute.append(helper.make_attribute("epsilon", epsilon))
    return make_model(
        [norm],
        inputs={"x": shape},
        outputs={"y": shape},
        constants={"s": np.array([1.0, -2.0], np.float32), "b": np.array([0.0, 3.0], np.float32)},
    )


def _map() -> torch.Tensor:
    """A projected map [1,C,H,W] of a picture that fills 60% of both sides: the rest is the bias."""
    rng = np.random.default_rng(0)
    x = np.broadcast_to(rng.standard_normal((CHANNELS, 1, 1)), (CHANNELS, HEIGHT, WIDTH)).copy()
    h, w = HEIGHT * 6 // 10, WIDTH * 6 // 10
    x[:, :h, :w] += rng.standard_normal((CHANNELS, h, w))
    return torch.from_numpy(x.astype(np.float32))[None]


def _gate(model: ir.Model, library: Path | None) -> TensorParity:
    """The graph against a group norm, by the rule that a stage has to pass."""
    x = _map()
    scale, bias = torch.tensor([1.0, -2.0]), torch.tensor([0.0, 3.0])
    each = CHANNELS // GROUPS

    def norm(x: torch.Tensor) -> Array:
        scales, biases = (t.repeat_interleave(each).to(x.dtype) for t in (scale, bias))
        y = torch.nn.functional.group_norm(x, GROUPS, scales, biases)
        return y.reshape(1, GROUPS, LENGTH).numpy()

    session = open_session(ir.serde.serialize_model(model), library)
    ours = session.run(None, {"x": x.reshape(1, GROUPS, LENGTH).numpy()})[0]
    (report,) = compare_outputs(
        {"y": np.asarray(ours)}, {"y": norm(x.double())}, {"y": norm(x)}, precision="fp32"
    )
    return report


def test_a_long_row_is_rewritten() -> None:
    model = _model()
    assert normalize_rows(model) == 1
    assert op_list(model) == ["RowNormalization"]
    (node,) = model.graph
    assert (node.domain, node.name) == (DOMAIN, "norm.rows")
    assert node.attributes["parts"].as_int() == 320 and LENGTH % 320 == 0
    assert node.attributes["epsilon"].as_float() == np.float32(1e-5)
    assert [value.name for value in node.inputs if value is not None] == ["x", "s", "b"]
    assert [function.name for function in model.functions.values()] == ["RowNormalization"]


def test_the_numbers_are_those_of_the_operator() -> None:
    x = np.random.default_rng(3).standard_normal((1, GROUPS, LONG_ROW), dtype=np.float32)
    model = _model(LONG_ROW, epsilon=None)
    (expected,) = run(_model(LONG_ROW, epsilon=None), {"x": x})
    assert normalize_rows(model) == 1
    np.testing.assert_allclose(run(model, {"x": x})[0], expected, atol=2e-5)


@pytest.mark.parametrize(
    "model",
    [_model(LONG_ROW - 1), _model("L"), _model(rank=4)],
    ids=["short", "length not known", "not [N,C,L]"],
)
def test_other_rows_stay(model: ir.Model) -> None:
    assert normalize_rows(model) == 0
    assert op_list(model) == ["InstanceNormalization"]
    assert not model.functions


def test_a_prime_length_stays_in_one_part() -> None:
    model = _model(16_411)
    normalize_rows(model)
    (node,) = model.graph
    assert node.attributes["parts"].as_int() == 1


def test_only_onnx_runtime_gets_it() -> None:
    cpu, engine = _model(), _model()
    assert [(entry.op, entry.form) for entry in lower(cpu, find_target("cpu"))] == [
        ("RowNormalization", "cpu_kernel")
    ]
    assert lower(engine, find_target("h100"), precision="fp32") == []
    assert op_list(engine) == ["InstanceNormalization"]


@pytest.mark.parametrize("kernels", [False, True], ids=["function", "kernel"])
def test_a_padded_map_passes_the_gate(kernels: bool) -> None:
    library = find_library() if kernels else None
    if kernels and library is None:
        pytest.skip("the CPU kernels are not built")
    before = _gate(_model(), None)
    assert not before.ok, "ONNX Runtime sums better now: is the pass still needed?"
    model = _model()
    lower(model, find_target("cpu"))
    after = _gate(model, library)
    assert after.ok, f"{after.error:.2g}, allowed {after.limit:.2g}"
    assert after.error < before.error / 10
