"""Prompt pooling's CUDA kernels, run on the CPU, against the reference in float64."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.plugins.cuda.host_kernels import DTYPES, Array, Fault, HostKernels, worst
from visionllm_edge.plugins.cuda.launch import KernelLaunch
from visionllm_edge.plugins.grid_sample_prompt_pool.cuda import (
    launch,
    launch_naive,
    launch_sampled,
)
from visionllm_edge.plugins.grid_sample_prompt_pool.reference import grid_sample_prompt_pool


@dataclass(frozen=True)
class Case:
    grid: tuple[int, int]
    pixels: tuple[int, int]
    channels: int = 8
    images: int = 2
    regions: int = 6


CASES = {
    "as in the model": Case((24, 24), (336, 336), channels=16, regions=3),
    "not square": Case((3, 5), (20, 33), channels=24),
    "odd channels": Case((4, 3), (17, 11), channels=37),
    "channels above a block": Case((2, 2), (5, 6), channels=264, regions=5),
    "more cells than pixels": Case((7, 6), (5, 4)),
    "one cell": Case((1, 1), (9, 4)),
    "one pixel": Case((4, 3), (1, 1), images=1),
    "one line": Case((1, 9), (1, 40), channels=1),
    "the largest grid that folds": Case((48, 48), (50, 60), regions=2),
    "a grid too large to fold": Case((50, 50), (20, 24), regions=2),
}


def make_inputs(case: Case, dtype: str) -> list[Array]:
    """Regions: speckled, a box, empty, one pixel, full, tiny negative values."""
    rng = np.random.default_rng(case.channels)
    height, width = case.pixels
    masks = (rng.random((case.regions, height, width)) < 0.3).astype(np.float32)
    for region, mask in enumerate(masks):
        if region in (1, 2, 3):
            mask[:] = 0
        if region == 1:
            mask[height // 3 : height // 2 + 1, width // 3 : width // 2 + 2] = 1
        elif region == 3:
            mask[-1, -1] = 1
        elif region == 4:
            mask[:] = 1
        elif region == 5:
            mask *= -1e-30
    features = rng.standard_normal((case.images, *case.grid, case.channels))
    region_image = rng.permutation(np.arange(case.regions) % case.images).astype(np.int32)
    return [features.astype(DTYPES[dtype]), masks, region_image]


def exact(inputs: list[Array]) -> Array:
    return np.asarray(grid_sample_prompt_pool(inputs[0].astype(np.float64), *inputs[1:]))


def run(
    kernels: HostKernels, plan: KernelLaunch, inputs: list[Array], dtype: str, **options: bool
) -> Array:
    channels, regions = plan.scalars[3:5]
    return kernels.run(plan, inputs, ((regions, channels), dtype), **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_kernel_equals_the_reference(
    pool_kernels: HostKernels, case: Case, dtype: str
) -> None:
    inputs = make_inputs(case, dtype)
    shapes = [array.shape for array in inputs]
    expected = exact(inputs)
    fast = launch(shapes, dtype)
    fits = case.channels * np.dtype(DTYPES[dtype]).itemsize % 16 == 0
    form = "sampled" if case.grid == (50, 50) else "fold_vec" if fits else "fold_any"
    assert fast.kernel.endswith(form)
    forward = run(pool_kernels, fast, inputs, dtype)
    assert worst(forward, expected, dtype, sums=2e-6) <= 1
    # Nothing between two barriers depends on which thread comes first.
    assert np.array_equal(forward, run(pool_kernels, fast, inputs, dtype, backwards=True))
    general = launch(shapes, dtype, aligned=False)
    found = run(pool_kernels, general, inputs, dtype, unaligned=True)
    assert worst(found, expected, dtype, sums=2e-6) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_sampled_and_naive_agree(pool_kernels: HostKernels, case: Case, dtype: str) -> None:
    inputs = make_inputs(case, dtype)
    shapes = [array.shape for array in inputs]
    expected = exact(inputs)
    # Up to 112,896 samples are added one by one, so that fp32 sums may cost more than the fold's.
    for plan in (launch_sampled(shapes, dtype), launch_naive(shapes, dtype)):
        found = run(pool_kernels, plan, inputs, dtype, unaligned=True)
        assert worst(found, expected, dtype, sums=2e-5) <= 1


def test_an_image_index_out_of_range_gives_zeros(pool_kernels: HostKernels) -> None:
    inputs = make_inputs(CASES["not square"], "float32")
    inputs[2][:] = [-1, 2, 0, 1, 2**31 - 1, 1]
    shapes = [array.shape for array in inputs]
    for plan in (launch(shapes, "float32"), launch_sampled(shapes, "float32")):
        found = run(pool_kernels, plan, inputs, "float32")
        assert not found[[0, 1, 4]].any()
        assert worst(found, exact(inputs), "float32") <= 1


def test_cells_outside_a_region_are_never_read(pool_kernels: HostKernels) -> None:
    inputs = make_inputs(CASES["as in the model"], "float16")
    inputs[1][:] = 0
    inputs[1][:, 100:200, 100:200] = 1
    expected = exact(inputs)
    inputs[0][:, :6] = np.inf
    plan = launch([array.shape for array in inputs], "float16")
    assert worst(run(pool_kernels, plan, inputs, "float16"), expected, "float16") <= 1


def test_no_regions_launch_nothing() -> None:
    shapes = [(1, 24, 24, 64), (0, 336, 336), (0,)]
    assert launch(shapes, "float16").empty
    assert launch_sampled(shapes, "float16").empty
    assert launch_naive(shapes, "float16").empty


KERNEL = "grid_sample_prompt_pool/kernel.cuh"
FAULTS = {
    "half-pixel offset": Fault(KERNEL, "(2 * cell + 1)", "(2 * cell + 2)"),
    "left and right exchanged": Fault(KERNEL, "in_line[i] * 2 * width - right[i]", "right[i]"),
    "distance from the wrong cell": Fault(
        KERNEL, "- width - 2 * width * cell_x", "- 2 * width * cell_x"
    ),
    "mean over all pixels": Fault(
        KERNEL, "static_cast<float>(max(count, 1))", "static_cast<float>(width * height)"
    ),
    "first image for all": Fault(
        KERNEL, "features + static_cast<size_t>(image) * cells", "features + size_t(0) * cells"
    ),
    "a group of lanes lost": Fault(KERNEL, "from = 0; from < GROUPS", "from = 1; from < GROUPS"),
    "no barrier behind the weights": Fault(
        KERNEL, "  __syncthreads();\n\n  const int lane", "\n  const int lane"
    ),
    "no barrier behind the count": Fault(
        KERNEL, "if (thread == 0) count = 0;\n  __syncthreads();", "if (thread == 0) count = 0;"
    ),
    "points above one half only": Fault(
        KERNEL, "__ldg(lines[i] + x) != 0.0f", "__ldg(lines[i] + x) > 0.5f"
    ),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_planted_faults_are_caught(fault: Fault, tmp_path: Path) -> None:
    broken = HostKernels("grid_sample_prompt_pool", tmp_path / "build", fault)
    errors = []
    for name in ("not square", "more cells than pixels"):
        inputs = make_inputs(CASES[name], "float32")
        plan = launch([array.shape for array in inputs], "float32")
        for backwards in (False, True):
            found = run(broken, plan, inputs, "float32", backwards=backwards)
            errors.append(worst(found, exact(inputs), "float32"))
    assert max(errors) > 100
