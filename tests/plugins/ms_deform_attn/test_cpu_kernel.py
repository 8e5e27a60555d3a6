"""The CPU kernel of deformable attention against the reference, on every instruction set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from tests.plugins.conftest import PlantFault
from tests.plugins.cpu.nodes import narrow, one_node_model, open_session, run
from visionllm_edge.plugins.cpu.library import instruction_set
from visionllm_edge.plugins.ms_deform_attn.reference import ms_deform_attn
from visionllm_edge.plugins.ms_deform_attn.spec import MS_DEFORM_ATTN

ATOL = 1e-5
ISAS = ["avx512", "avx2", "portable"]
PYRAMID = [(7, 5), (4, 3), (2, 2), (1, 1)]
Inputs = dict[str, NDArray[Any]]


def make_inputs(
    sizes: list[tuple[int, int]],
    *,
    batch: int = 2,
    queries: int = 5,
    heads: int = 3,
    depth: int = 4,
    points: int = 4,
    spread: float = 0.4,
) -> Inputs:
    """Random inputs; locations reach `spread` beyond the borders on both sides."""
    rng = np.random.default_rng(0)
    areas = [height * width for height, width in sizes]
    shape = (batch, queries, heads, len(sizes), points)
    return {
        "value": rng.standard_normal((batch, sum(areas), heads, depth), dtype=np.float32),
        "spatial_shapes": np.array(sizes, dtype=np.int32).reshape(-1, 2),
        "level_start_index": np.cumsum([0, *areas[:-1]]).astype(np.int32),
        "sampling_locations": rng.uniform(-spread, 1 + spread, (*shape, 2)).astype(np.float32),
        "attention_weights": rng.random(shape, dtype=np.float32) / (len(sizes) * points),
    }


def run_kernel(library: Path, inputs: Inputs, *, threads: int = 2) -> NDArray[np.float32]:
    levels = len(inputs["spatial_shapes"])
    return run(one_node_model(MS_DEFORM_ATTN, levels=levels), library, inputs, threads=threads)


def check(library: Path, inputs: Inputs, **options: int) -> None:
    expected = ms_deform_attn(*inputs.values())
    np.testing.assert_allclose(run_kernel(library, inputs, **options), expected, atol=ATOL)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, cpu_library: Path) -> str:
    """Ask for one instruction set; skipped where the processor does not have it."""
    name: str = request.param
    monkeypatch.setenv("VISIONLLM_EDGE_CPU_ISA", name)
    if instruction_set(cpu_library) != name:
        pytest.skip(f"this processor has no {name}")
    return name


@pytest.mark.usefixtures("isa")
class TestEveryInstructionSet:
    @pytest.mark.parametrize("depth", [1, 3, 4, 8, 16, 20, 32, 35, 48, 64, 128])
    def test_depths(self, cpu_library: Path, depth: int) -> None:
        check(cpu_library, make_inputs(PYRAMID, depth=depth))

    @pytest.mark.parametrize("points", [1, 2, 4, 5, 17, 40])
    @pytest.mark.parametrize("sizes", [[(6, 6)], [(3, 8), (1, 9)], PYRAMID])
    def test_levels_and_points(
        self, cpu_library: Path, sizes: list[tuple[int, int]], points: int
    ) -> None:
        check(cpu_library, make_inputs(sizes, points=points, depth=32))

    def test_more_points_than_one_pass_at_several_channel_blocks(self, cpu_library: Path) -> None:
        check(cpu_library, make_inputs(PYRAMID, points=50, depth=150, queries=3))

    @pytest.mark.parametrize(("batch", "queries", "heads"), [(1, 1, 1), (3, 65, 8), (2, 200, 5)])
    def test_batches_queries_heads(
        self, cpu_library: Path, batch: int, queries: int, heads: int
    ) -> None:
        inputs = make_inputs(PYRAMID, batch=batch, queries=queries, heads=heads, depth=32)
        check(cpu_library, inputs, threads=1)
        check(cpu_library, inputs, threads=2)

    def test_locations_far_outside_and_not_a_number_give_zero(self, cpu_library: Path) -> None:
        inputs = make_inputs(PYRAMID, depth=32)
        for nowhere in (-1e30, 1e30, np.inf, -np.inf, np.nan, 3e9, -3e9):
            inputs["sampling_locations"][:] = nowhere
            assert not run_kernel(cpu_library, inputs).any(), nowhere

    def test_exactly_on_the_borders(self, cpu_library: Path) -> None:
        inputs = make_inputs([(2, 3), (1, 1)], queries=1, heads=1, depth=16, points=6)
        rows = np.array([0.0, 1.0, 0.5, 1 / 6, -1 / 6, 7 / 6], dtype=np.float32)
        inputs["sampling_locations"][..., 0] = rows
        inputs["sampling_locations"][..., 1] = rows[::-1]
        check(cpu_library, inputs)

    @pytest.mark.parametrize(
        ("combination", "kind", "limit"), [(1, "float16", 1e-3), (2, "bfloat16", 8e-3)]
    )
    @pytest.mark.parametrize("depth", [3, 8, 32, 64])
    def test_half_precision_values_are_rounded_once(
        self, cpu_library: Path, combination: int, kind: str, limit: float, depth: int
    ) -> None:
        inputs = make_inputs(PYRAMID, depth=depth)
        for name in ("value", "attention_weights"):
            inputs[name] = narrow(inputs[name], kind)
        expected = ms_deform_attn(*inputs.values())
        model = one_node_model(MS_DEFORM_ATTN, combination=combination, levels=4)
        result = run(model, cpu_library, inputs)
        # Half a unit in the last place of the result, and nothing else.
        np.testing.assert_allclose(result, expected, rtol=limit / 2, atol=ATOL)


ENCODER = [(37, 20), (18, 33), (16, 16), (5, 1)]


@pytest.mark.parametrize("batch", [1, 2])
def test_queries_that_are_the_pixels(cpu_library: Path, batch: int) -> None:
    # As many queries as pixels: the kernel walks them in squares; the answer must not know.
    pixels = sum(height * width for height, width in ENCODER)
    check(cpu_library, make_inputs(ENCODER, batch=batch, queries=pixels, depth=8, points=1))


def test_as_many_queries_as_pixels_but_levels_in_another_order(cpu_library: Path) -> None:
    pixels = sum(height * width for height, width in ENCODER)
    inputs = make_inputs(ENCODER, batch=1, queries=pixels, depth=8, points=1)
    # Two levels change places; the third and fourth overlap, so some pixels belong to none.
    inputs["level_start_index"] = np.array([18 * 33, 0, 37 * 20 + 18 * 33, 0], dtype=np.int32)
    check(cpu_library, inputs)


def test_as_many_queries_as_pixels_and_pixels_of_no_level(cpu_library: Path) -> None:
    inputs = make_inputs([(20, 20)], batch=1, queries=450, depth=8)
    inputs["value"] = np.concatenate([inputs["value"], inputs["value"][:, :50]], axis=1)
    check(cpu_library, inputs)


def test_no_queries(cpu_library: Path) -> None:
    assert run_kernel(cpu_library, make_inputs(PYRAMID, queries=0)).shape == (2, 0, 3, 4)


def test_a_level_without_pixels_adds_nothing(cpu_library: Path) -> None:
    inputs = make_inputs([(3, 4), (0, 5)], depth=32)
    result = run_kernel(cpu_library, inputs)
    one_level = inputs | {
        "spatial_shapes": inputs["spatial_shapes"][:1],
        "sampling_locations": inputs["sampling_locations"][:, :, :, :1],
        "attention_weights": inputs["attention_weights"][:, :, :, :1],
    }
    np.testing.assert_allclose(result, ms_deform_attn(*one_level.values()), atol=ATOL)
    assert not run_kernel(cpu_library, make_inputs([(0, 1)], depth=32)).any()


def test_a_large_level_keeps_sub_pixels(cpu_library: Path) -> None:
    inputs = make_inputs([(1, 4000)], heads=1, depth=16, spread=0.0)
    inputs["value"][:] = np.linspace(0, 1, 4000, dtype=np.float32).reshape(1, 4000, 1, 1)
    check(cpu_library, inputs)


@pytest.mark.parametrize("combination", [0, 1])
def test_kernel_and_function_are_the_same_file(cpu_library: Path, combination: int) -> None:
    model = one_node_model(MS_DEFORM_ATTN, combination=combination, levels=4)
    inputs = make_inputs(PYRAMID, batch=1, queries=300, heads=8, depth=32)
    with_kernel, with_function = run(model, cpu_library, inputs), run(model, None, inputs)
    np.testing.assert_allclose(with_kernel, with_function, atol=1e-4 if combination == 0 else 1e-3)


def test_the_kernel_replaces_the_function(cpu_library: Path, tmp_path: Path) -> None:
    # Seen in the profile: one node with the kernel, GridSample and its company without.
    inputs = make_inputs(PYRAMID)
    ran = {}
    for name, library in (("kernel", cpu_library), ("function", None)):
        options = ort.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(tmp_path / name)
        if library is not None:
            options.register_custom_ops_library(str(library))
        model = one_node_model(MS_DEFORM_ATTN, levels=4).SerializeToString()
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        session.run(None, inputs)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        ran[name] = {event["args"].get("op_name") for event in events if "args" in event}
    assert MS_DEFORM_ATTN.name in ran["kernel"]
    assert "GridSample" not in ran["kernel"]
    assert MS_DEFORM_ATTN.name not in ran["function"]
    assert "GridSample" in ran["function"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spatial_shapes": [[7, 5], [4, 3], [2, 2], [2, 1]]}, "level 3: 2 x 1 pixels from row 51"),
        ({"spatial_shapes": [[7, 5], [4, 3], [2, 2], [-1, 1]]}, "level 3: -1 x 1 pixels"),
        ({"spatial_shapes": [[2**31 - 1] * 2] * 4}, "level 0: 2147483647 x 2147483647 pixels"),
        ({"level_start_index": [0, 35, 47, -1]}, "level 3: 1 x 1 pixels from row -1"),
        ({"level_start_index": [0, 35, 47]}, r"'level_start_index' expected \[4, 2\] and \[4\]"),
    ],
)
def test_refuses_levels_that_leave_the_value(
    cpu_library: Path, change: dict[str, Any], message: str
) -> None:
    inputs = make_inputs(PYRAMID) | {k: np.array(v, dtype=np.int32) for k, v in change.items()}
    session = open_session(one_node_model(MS_DEFORM_ATTN, levels=4), cpu_library)
    with pytest.raises(Exception, match=f"MultiScaleDeformableAttention: .*{message}"):
        session.run(None, inputs)


@pytest.mark.parametrize("name", ["sampling_locations", "attention_weights"])
def test_refuses_shapes_that_do_not_fit(cpu_library: Path, name: str) -> None:
    inputs = make_inputs(PYRAMID)
    inputs[name] = inputs[name][:, :, :2]
    session = open_session(one_node_model(MS_DEFORM_ATTN, levels=4), cpu_library)
    with pytest.raises(Exception, match=f"input '{name}': axis 2 expected 3, got 2"):
        session.run(None, inputs)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("x = x * width - 0.5f;", "x = x * width;"),
        ("(right <= last_x, right_share, zero)", "(right <= width, right_share, zero)"),
        (
            "store_as(share + N, top_share * right_share);",
            "store_as(share + N, top_share * left_share);",
        ),
    ],
    ids=["pixel centres half a pixel off", "right border not cut", "two corners swapped"],
)
def test_the_comparison_sees_a_wrong_kernel(
    plant_fault: PlantFault, right: str, wrong: str
) -> None:
    library = plant_fault("ms_deform_attn/cpu_kernel.h", right, wrong)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check(library, make_inputs(PYRAMID, depth=32))
