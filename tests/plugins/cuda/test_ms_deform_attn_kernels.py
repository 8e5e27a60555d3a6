"""Deformable attention's CUDA kernels, run on the CPU, against the reference in float64."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.plugins.cuda.host_kernels import DTYPES, Array, Fault, HostKernels, worst
from visionllm_edge.plugins.cuda.launch import KernelLaunch
from visionllm_edge.plugins.ms_deform_attn.cuda import launch, launch_naive
from visionllm_edge.plugins.ms_deform_attn.reference import ms_deform_attn


@dataclass(frozen=True)
class Case:
    sizes: tuple[tuple[int, int], ...]
    batch: int = 1
    queries: int = 5
    heads: int = 2
    depth: int = 32
    points: int = 4


CASES = {
    "as in the model": Case(((7, 9), (4, 5), (2, 3), (1, 2)), queries=37, heads=8),
    "batch of 3": Case(((5, 3), (2, 2)), batch=3, queries=33, depth=16),
    "one query": Case(((3, 3), (2, 2), (1, 1), (1, 1)), queries=1),
    "levels of one pixel": Case(((1, 1), (1, 1)), heads=1, points=3),
    "a row and a column": Case(((1, 11), (13, 1)), points=5),
    "depth of three vectors": Case(((4, 4),), queries=50, heads=3, depth=24),
    "odd depth": Case(((4, 5), (2, 3)), queries=30, heads=3, depth=5, points=2),
    "depth of one": Case(((4, 5), (2, 3)), queries=70, depth=1, points=1),
    "depth above a block": Case(((4, 5),), batch=2, queries=3, heads=1, depth=133),
    "many vectors": Case(((3, 2),), queries=2, heads=1, depth=1056),
    "many levels": Case(((6, 5), (5, 4), (4, 3), (3, 2), (2, 2), (1, 2), (1, 1)), points=5),
    "many points": Case(((6, 5), (3, 3)), queries=9, points=33),
}


def make_inputs(case: Case, dtype: str, *, spread: float = 0.4) -> list[Array]:
    """Random inputs; locations reach beyond the borders, some stand on edges and corners."""
    rng = np.random.default_rng(len(case.sizes) + case.depth)
    areas = [height * width for height, width in case.sizes]
    rows = (case.batch, case.queries, case.heads, len(case.sizes), case.points)
    locations = rng.uniform(-spread, 1 + spread, (*rows, 2)).astype(np.float32)
    special = np.array([0.0, 1.0, -0.5, 1.5, 0.5, 30.0, -1e30, np.inf], dtype=np.float32)
    chosen = rng.random((*rows, 2)) < 0.2
    locations[chosen] = rng.choice(special, chosen.sum())
    locations[0, 0, 0, 0, 0] = 0.0
    locations[-1, -1, -1, -1, -1] = 1.0
    weights = rng.random(rows)
    weights /= weights.sum(axis=(3, 4), keepdims=True)
    value = rng.standard_normal((case.batch, sum(areas), case.heads, case.depth))
    return [
        value.astype(DTYPES[dtype]),
        np.array(case.sizes, dtype=np.int32),
        np.cumsum([0, *areas[:-1]]).astype(np.int32),
        locations,
        weights.astype(DTYPES[dtype]),
    ]


def exact(inputs: list[Array]) -> Array:
    value, sizes, starts, locations, weights = inputs
    # The reference multiplies by zero where nothing is inside: infinity must not meet it there.
    near = np.clip(locations.astype(np.float64), -2, 3)
    wide = value.astype(np.float64), weights.astype(np.float64)
    return np.asarray(ms_deform_attn(wide[0], sizes, starts, near, wide[1]))


def run(
    kernels: HostKernels, plan: KernelLaunch, inputs: list[Array], dtype: str, **options: bool
) -> Array:
    batch, _, heads, depth, _, queries, _ = plan.scalars
    return kernels.run(plan, inputs, ((batch, queries, heads, depth), dtype), **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_kernel_equals_the_reference(
    msda_kernels: HostKernels, case: Case, dtype: str
) -> None:
    inputs = make_inputs(case, dtype)
    shapes = [array.shape for array in inputs]
    expected = exact(inputs)
    fast = launch(shapes, dtype)
    fits = case.depth * np.dtype(DTYPES[dtype]).itemsize % 16 == 0
    assert fast.kernel.endswith("_vec" if fits else "_any")
    forward = run(msda_kernels, fast, inputs, dtype)
    assert worst(forward, expected, dtype) <= 1
    # Nothing between two barriers depends on which thread comes first.
    backward = run(msda_kernels, fast, inputs, dtype, backwards=True)
    assert np.array_equal(forward, backward)
    general = launch(shapes, dtype, aligned=False)
    assert general.kernel.endswith("_any")
    assert worst(run(msda_kernels, general, inputs, dtype, unaligned=True), expected, dtype) <= 1
    naive = launch_naive(shapes, dtype)
    assert worst(run(msda_kernels, naive, inputs, dtype, unaligned=True), expected, dtype) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_wide_level_keeps_its_sub_pixels(msda_kernels: HostKernels, dtype: str) -> None:
    # A saw over 2,000 pixels with teeth of 256: an fp16 coordinate is off by up to half a pixel.
    inputs = make_inputs(Case(((1, 2000),), queries=64, depth=8), dtype, spread=0.0)
    ramp = np.broadcast_to(np.arange(2000).reshape(1, 2000, 1, 1) % 256, inputs[0].shape)
    inputs[0] = ramp.astype(DTYPES[dtype])  # whole numbers below 256 are exact in every type
    inputs[4][:] = 0.25
    expected = exact(inputs)
    shapes = [array.shape for array in inputs]
    for plan in (launch(shapes, dtype), launch_naive(shapes, dtype)):
        found = run(msda_kernels, plan, inputs, dtype)
        # A coordinate of 2,000 in fp32 is off by 2000 * 2**-24, at a step of 255 by 255 times that.
        assert worst(found, expected, dtype, sums=255 * 2000 * 2.0**-23) <= 1


def test_unaligned_tensors_do_not_meet_vector_loads(msda_kernels: HostKernels) -> None:
    inputs = make_inputs(CASES["one query"], "float16")
    plan = launch([array.shape for array in inputs], "float16")
    with pytest.raises(AssertionError, match="a vector load from an unaligned address"):
        run(msda_kernels, plan, inputs, "float16", unaligned=True)


def test_nan_locations_read_nothing_outside(msda_kernels: HostKernels) -> None:
    inputs = make_inputs(CASES["as in the model"], "float32")
    inputs[3][:, ::2] = np.nan
    plan = launch([array.shape for array in inputs], "float32")
    found = run(msda_kernels, plan, inputs, "float32")
    assert not found[:, ::2].any()
    assert worst(found[:, 1::2], exact(inputs)[:, 1::2], "float32") <= 1


def test_no_queries_launch_nothing() -> None:
    shapes = [(1, 4, 2, 8), (1, 2), (1,), (1, 0, 2, 1, 4, 2), (1, 0, 2, 1, 4)]
    assert launch(shapes, "float16").empty
    assert launch_naive(shapes, "float16").empty


KERNEL, COMMON = "ms_deform_attn/kernel.cuh", "cuda/common.cuh"
STAGED_X = "const float x = sample.x * static_cast<float>(sample.width) - 0.5f;"
FAULTS = {
    "locations in half precision": Fault(
        KERNEL,
        STAGED_X,
        STAGED_X.replace("sample.x", "float_from_f16(f16_from_float(sample.x))"),
    ),
    "pixel coordinates in half precision": Fault(
        KERNEL,
        STAGED_X,
        STAGED_X.replace("= ", "= float_from_f16(f16_from_float(").replace(";", "));"),
    ),
    "half a pixel dropped": Fault(KERNEL, STAGED_X, STAGED_X.replace(" - 0.5f", "")),
    "x and y exchanged": Fault(KERNEL, STAGED_X, STAGED_X.replace("sample.x", "sample.y")),
    "left corner not clamped": Fault(KERNEL, "column_left = max(left, 0)", "column_left = left"),
    "lower corner not clamped": Fault(
        KERNEL, "sample.start + min(bottom, sample.height - 1)", "sample.start + bottom"
    ),
    "border counts as inside": Fault(KERNEL, "top >= 0 ? sample", "top >= -1 ? sample"),
    "last query of a block lost": Fault(
        KERNEL,
        "const bool active = first_query + row < queries;",
        "const bool active = first_query + row + 1 < queries;",
    ),
    "no barrier behind the staging": Fault(
        KERNEL, "      __syncthreads();\n      if (writes)", "      if (writes)"
    ),
    "no barrier before the next tile": Fault(
        KERNEL, "if (first + first_chunk > 0) __syncthreads();", ""
    ),
    "no start of the image": Fault(
        KERNEL, "value + static_cast<size_t>(image) * pixels * pitch + head", "value + head"
    ),
    "bf16 cut off": Fault(COMMON, "(bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16", "bits >> 16"),
    "halves exchanged": Fault(
        COMMON,
        "sum[0] += scale * float_from_f16(static_cast<unsigned short>(word));",
        "sum[0] += scale * float_from_f16(static_cast<unsigned short>(word >> 16));",
    ),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_planted_faults_are_caught(fault: Fault, tmp_path: Path) -> None:
    broken = HostKernels("ms_deform_attn", tmp_path / "build", fault)
    errors = []
    for name in ("as in the model", "batch of 3", "many levels", "a row and a column"):
        for dtype in ("float16", "bfloat16"):
            inputs = make_inputs(CASES[name], dtype)
            plan = launch([array.shape for array in inputs], dtype)
            errors.append(worst(run(broken, plan, inputs, dtype), exact(inputs), dtype))
    assert max(errors) > 1.5
