"""The CPU kernel of prompt pooling against the reference, on every instruction set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.plugins.conftest import PlantFault
from tests.plugins.cpu.nodes import narrow, one_node_model, open_session, run
from visionllm_edge.plugins.cpu.library import instruction_set
from visionllm_edge.plugins.grid_sample_prompt_pool.reference import grid_sample_prompt_pool
from visionllm_edge.plugins.grid_sample_prompt_pool.spec import GRID_SAMPLE_PROMPT_POOL

ATOL = 1e-5
Inputs = dict[str, NDArray[Any]]


def make_inputs(
    *,
    images: int = 2,
    grid: tuple[int, int] = (4, 6),
    channels: int = 5,
    mask: tuple[int, int] = (21, 30),
    region_image: tuple[int, ...] = (0, 1, 1),
    density: float = 0.3,
) -> Inputs:
    rng = np.random.default_rng(1)
    masks = rng.random((len(region_image), *mask)) < density
    return {
        "features": rng.standard_normal((images, *grid, channels), dtype=np.float32),
        "masks": masks.astype(np.float32) * np.float32(0.25),
        "region_image": np.array(region_image, dtype=np.int32),
    }


def run_kernel(library: Path, inputs: Inputs) -> NDArray[np.float32]:
    return run(one_node_model(GRID_SAMPLE_PROMPT_POOL), library, inputs)


def check(library: Path, inputs: Inputs) -> None:
    expected = grid_sample_prompt_pool(*inputs.values())
    np.testing.assert_allclose(run_kernel(library, inputs), expected, atol=ATOL)


@pytest.fixture(params=["avx512", "avx2", "portable"])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, cpu_library: Path) -> str:
    """Ask for one instruction set; skipped where the processor does not have it."""
    name: str = request.param
    monkeypatch.setenv("VISIONLLM_EDGE_CPU_ISA", name)
    if instruction_set(cpu_library) != name:
        pytest.skip(f"this processor has no {name}")
    return name


@pytest.mark.usefixtures("isa")
class TestEveryInstructionSet:
    @pytest.mark.parametrize("channels", [1, 3, 16, 31, 64, 300])
    def test_channels(self, cpu_library: Path, channels: int) -> None:
        check(cpu_library, make_inputs(channels=channels))

    @pytest.mark.parametrize("grid", [(1, 1), (1, 7), (5, 1), (24, 24)])
    @pytest.mark.parametrize("mask", [(1, 1), (1, 50), (17, 1), (3, 5), (48, 33), (100, 67)])
    def test_grids_and_masks(
        self, cpu_library: Path, grid: tuple[int, int], mask: tuple[int, int]
    ) -> None:
        check(cpu_library, make_inputs(grid=grid, mask=mask, density=0.6))

    def test_full_size(self, cpu_library: Path) -> None:
        inputs = make_inputs(
            grid=(24, 24), channels=128, mask=(336, 336), region_image=(0, 1, 0, 1), density=0.5
        )
        inputs["masks"][1, :, 100:] = 0
        inputs["masks"][2] = 1
        check(cpu_library, inputs)

    def test_what_counts_as_foreground(self, cpu_library: Path) -> None:
        # Anything that is not zero: negative, tiny, infinite, not a number; minus zero is zero.
        inputs = make_inputs(density=0.0)
        ones = {key: array.copy() for key, array in inputs.items()}
        for column, odd in enumerate([-1.0, 1e-40, np.inf, np.nan, -0.0]):
            inputs["masks"][:, 3, column] = odd
            ones["masks"][:, 3, column] = 0.0 if odd == 0 else 1.0
        np.testing.assert_array_equal(
            run_kernel(cpu_library, inputs), run_kernel(cpu_library, ones)
        )
        check(cpu_library, ones)

    @pytest.mark.parametrize(
        ("combination", "kind", "limit"), [(1, "float16", 1e-3), (2, "bfloat16", 8e-3)]
    )
    def test_half_precision_features_are_rounded_once(
        self, cpu_library: Path, combination: int, kind: str, limit: float
    ) -> None:
        inputs = make_inputs(channels=40)
        inputs["features"] = narrow(inputs["features"], kind)
        model = one_node_model(GRID_SAMPLE_PROMPT_POOL, combination=combination)
        result = run(model, cpu_library, inputs)
        expected = grid_sample_prompt_pool(*inputs.values())
        np.testing.assert_allclose(result, expected, rtol=limit / 2, atol=ATOL)


def test_empty_mask_and_foreign_images_give_zero(cpu_library: Path) -> None:
    inputs = make_inputs(region_image=(0, 2, -1, 1))
    inputs["masks"][0] = 0
    result = run_kernel(cpu_library, inputs)
    assert not result[:3].any()
    assert result[3].all()
    check(cpu_library, inputs)


def test_no_regions(cpu_library: Path) -> None:
    assert run_kernel(cpu_library, make_inputs(region_image=())).shape == (0, 5)


def test_kernel_and_function_are_the_same_file(cpu_library: Path) -> None:
    model = one_node_model(GRID_SAMPLE_PROMPT_POOL)
    inputs = make_inputs(grid=(24, 24), channels=64, mask=(336, 336), density=0.5)
    with_kernel, with_function = run(model, cpu_library, inputs), run(model, None, inputs)
    np.testing.assert_allclose(with_kernel, with_function, atol=1e-4)


def test_refuses_a_region_without_an_image(cpu_library: Path) -> None:
    inputs = make_inputs()
    inputs["region_image"] = inputs["region_image"][:2]
    session = open_session(one_node_model(GRID_SAMPLE_PROMPT_POOL), cpu_library)
    with pytest.raises(Exception, match="'region_image' expected one entry for each of the 3"):
        session.run(None, inputs)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("if (low >= 0) out[low] +=", "if (low > 0) out[low] +="),
        ("!= zero, shares, zero)", "> zero, shares, zero)"),
    ],
    ids=["first column lost", "negative pixels taken for background"],
)
def test_the_comparison_sees_a_wrong_kernel(
    plant_fault: PlantFault, right: str, wrong: str
) -> None:
    library = plant_fault("grid_sample_prompt_pool/cpu_kernel.h", right, wrong)
    inputs = make_inputs()
    inputs["masks"] *= -1
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check(library, inputs)
