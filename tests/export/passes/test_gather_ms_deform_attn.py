from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tests.export.passes.graphs import op_list, run
from tests.export.passes.msda import feeds, msda_model
from tests.plugins.ms_deform_attn.test_ms_deform_attn import make_inputs
from visionllm_edge.export.passes.drop_dead_code import drop_dead_code
from visionllm_edge.export.passes.gather_ms_deform_attn import gather_ms_deform_attn
from visionllm_edge.plugins.ms_deform_attn.reference import ms_deform_attn

FOUR = [(7, 5), (4, 3), (2, 2), (1, 1)]


def test_op_list_has_no_sampling_and_no_indexed_gather() -> None:
    model = msda_model(make_inputs(FOUR))
    assert gather_ms_deform_attn(model, model.graph[0]) is None
    drop_dead_code(model)
    counts = Counter(op_list(model))
    assert set(counts) == {
        "Add", "Cast", "Concat", "Equal", "Floor", "Gather", "MatMul", "Max", "Min", "Mul",
        "Reshape", "Squeeze", "Sub",
    }  # fmt: skip
    # Two coordinates, then index, weights and rows of each level.
    assert counts["Gather"] == 2 + 3 * len(FOUR)
    assert counts["MatMul"] == len(FOUR)
    assert not model.functions


@pytest.mark.parametrize(
    ("sizes", "batch", "queries", "spread"),
    [
        (FOUR, 2, 5, 0.4),
        ([(6, 6)], 1, 1, 0.0),
        ([(3, 8), (1, 9)], 3, 17, 2.0),
        ([(1, 1)], 1, 3, 30.0),
    ],
    ids=["four levels", "one level", "far outside", "one pixel"],
)
def test_numbers(sizes: list[tuple[int, int]], batch: int, queries: int, spread: float) -> None:
    inputs = make_inputs(sizes, batch=batch, queries=queries, spread=spread)
    expected = ms_deform_attn(*inputs.values())
    model = msda_model(inputs)
    assert gather_ms_deform_attn(model, model.graph[0]) is None
    np.testing.assert_allclose(run(model, feeds(inputs))[0], expected, atol=2e-6)


def test_borders_and_pixel_centres_are_exact() -> None:
    inputs = make_inputs([(2, 2)], batch=1, queries=4, heads=1, depth=1, points=1)
    inputs["value"] = np.array([1, 2, 3, 4], np.float32).reshape(1, 4, 1, 1)
    places = np.array([[0.5, 0.5], [0.75, 0.75], [0.0, 0.0], [-0.5, 0.5]], np.float32)
    inputs["sampling_locations"] = places.reshape(1, 4, 1, 1, 1, 2)
    inputs["attention_weights"] = np.ones((1, 4, 1, 1, 1), np.float32)
    model = msda_model(inputs)
    assert gather_ms_deform_attn(model, model.graph[0]) is None
    assert run(model, feeds(inputs))[0].reshape(-1).tolist() == [2.5, 4.0, 0.25, 0.0]


def test_half_precision_values_keep_full_locations() -> None:
    inputs = make_inputs([(1, 1000)], spread=0.0)
    ramp = np.linspace(0, 1, 1000, dtype=np.float16).reshape(1, 1000, 1, 1)
    inputs["value"] = np.broadcast_to(ramp, (2, 1000, 3, 4)).astype(np.float32)
    mix = inputs["attention_weights"].astype(np.float16)
    inputs["attention_weights"] = mix.astype(np.float32)
    expected = ms_deform_attn(*inputs.values())
    model = msda_model(inputs, dtype="float16")
    assert gather_ms_deform_attn(model, model.graph[0]) is None
    (got,) = run(model, feeds(inputs, dtype="float16"))
    assert got.dtype == np.float16
    np.testing.assert_allclose(got.astype(np.float32), expected, atol=6e-4)


def test_a_wrong_weight_is_seen() -> None:
    inputs = make_inputs(FOUR)
    model = msda_model(inputs)
    assert gather_ms_deform_attn(model, model.graph[0]) is None
    half = model.graph.initializers["msda.gather.x_half"].const_value
    assert half is not None
    half.numpy()[...] = 0.0  # pixel corners instead of centres
    wrong = run(model, feeds(inputs))[0]
    assert float(np.abs(wrong - ms_deform_attn(*inputs.values())).max()) > 0.05


def test_unknown_sizes_are_refused_and_the_node_stays() -> None:
    model = msda_model(make_inputs(FOUR), fixed=False)
    refusal = gather_ms_deform_attn(model, model.graph[0])
    assert refusal == "batch, pixels, heads or head size unknown"
    assert op_list(model) == ["MultiScaleDeformableAttention"]


def test_levels_that_are_inputs_are_refused() -> None:
    model = msda_model(make_inputs(FOUR))
    model.graph.initializers["spatial_shapes"].const_value = None
    refusal = gather_ms_deform_attn(model, model.graph[0])
    assert refusal == "level sizes are no constants"
