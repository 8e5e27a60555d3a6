"""A launch read off as formulas gives what the operator's own function gives, or is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from visionllm_edge.plugins.cuda.launch import KernelLaunch
from visionllm_edge.plugins.grid_sample_prompt_pool import cuda as pool
from visionllm_edge.plugins.grid_sample_prompt_pool.spec import GRID_SAMPLE_PROMPT_POOL
from visionllm_edge.plugins.ms_deform_attn import cuda as msda
from visionllm_edge.plugins.ms_deform_attn.spec import MS_DEFORM_ATTN
from visionllm_edge.plugins.tensorrt_glue.launch_formula import CeilDiv, launch_formula

MSDA_SHAPES = [(-1, -1, 8, 32), (4, 2), (4,), (-1, -1, 8, 4, 4, 2), (-1, -1, 8, 4, 4)]


def msda_shapes(batch: int, pixels: int, queries: int, depth: int = 32) -> list[tuple[int, ...]]:
    rows = (batch, queries, 8, 4, 4)
    return [(batch, pixels, 8, depth), (4, 2), (4,), (*rows, 2), rows]


@pytest.mark.parametrize("depth", [1, 20, 32, 256])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_deformable_attention(dtype: str, depth: int) -> None:
    unknown = [(-1, -1, 8, depth), *MSDA_SHAPES[1:]]
    formula = launch_formula(MS_DEFORM_ATTN, msda.launch, unknown, dtype)
    for batch, pixels, queries in [(1, 22223, 22223), (2, 5, 900), (7, 1, 1), (1, 40, 0)]:
        sizes = {"N": batch, "S": pixels, "Lq": queries}
        wanted = msda.launch(msda_shapes(batch, pixels, queries, depth), dtype)
        assert formula.at(sizes) == wanted


def test_the_formula_names_its_sizes() -> None:
    formula = launch_formula(MS_DEFORM_ATTN, msda.launch, MSDA_SHAPES, "float16")
    assert formula.kernel == "msda_f16_vec"
    assert formula.grid == (CeilDiv("Lq", 32), 8, CeilDiv("N", 1))
    assert formula.scalars == ("N", "S", 8, 32, 4, "Lq", 4)


def test_fixed_sizes_need_no_formula() -> None:
    shapes = msda_shapes(1, 100, 900)
    formula = launch_formula(MS_DEFORM_ATTN, msda.launch, shapes, "float32")
    assert formula.at({}) == msda.launch(shapes, "float32")


def test_pooling_over_any_number_of_regions() -> None:
    unknown = [(1, 24, 24, 1024), (-1, 336, 336), (-1,)]
    formula = launch_formula(GRID_SAMPLE_PROMPT_POOL, pool.launch, unknown, "float16")
    assert formula.grid == (8, CeilDiv("R", 1), 1)
    for regions in (0, 1, 16, 1000):
        shapes = [(1, 24, 24, 1024), (regions, 336, 336), (regions,)]
        assert formula.at({"R": regions}) == pool.launch(shapes, "float16")


def test_a_kernel_that_depends_on_an_unknown_size_is_refused() -> None:
    # The fold needs a map that fits shared memory, so its choice depends on Gh and Gw.
    unknown = [(1, -1, -1, 64), (3, 20, 30), (3,)]
    with pytest.raises(ValueError, match=r"GridSamplePromptPool.*fixed sizes for Gh, Gw"):
        launch_formula(GRID_SAMPLE_PROMPT_POOL, pool.launch, unknown, "float32")


@pytest.mark.parametrize(
    "change",
    [
        lambda launch, queries: {"grid": (queries // 32 + 1, *launch.grid[1:])},
        lambda launch, queries: {"block": (32 if queries < 512 else 128, 1, 1)},
        lambda launch, queries: {"shared_bytes": 16 * queries},
        lambda launch, queries: {"scalars": (*launch.scalars[:-1], 2 * queries)},
        lambda launch, queries: {"grid": (launch.grid[0] * launch.grid[2], 8, 1)},
    ],
    ids=["one block too many", "block by size", "memory by size", "twice a size", "a product"],
)
def test_another_dependence_is_refused(change: object) -> None:
    def launch(shapes: Sequence[tuple[int, ...]], dtype: str, *, aligned: bool) -> KernelLaunch:
        plan = msda.launch(shapes, dtype, aligned=aligned)
        assert callable(change)
        return dataclasses.replace(plan, **change(plan, shapes[3][1]))

    with pytest.raises(ValueError, match=r"MultiScaleDeformableAttention: at .* the formula"):
        launch_formula(MS_DEFORM_ATTN, launch, MSDA_SHAPES, "float32")
