"""From shapes to launches: the Python side, its C++ twin, and what both refuse."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import ml_dtypes
import numpy as np
import pytest

from tests.plugins.cuda.host_kernels import DTYPES, HostKernels
from visionllm_edge.plugins.cuda.launch import MAX_SHARED_BYTES, KernelLaunch
from visionllm_edge.plugins.grid_sample_prompt_pool import cuda as pool
from visionllm_edge.plugins.ms_deform_attn import cuda as msda

Shapes = Sequence[tuple[int, ...]]


def msda_shapes(sizes: Sequence[int]) -> Shapes:
    batch, pixels, heads, depth, levels, queries, points = sizes
    rows = (batch, queries, heads, levels, points)
    return [(batch, pixels, heads, depth), (levels, 2), (levels,), (*rows, 2), rows]


def pool_shapes(sizes: Sequence[int]) -> Shapes:
    images, grid_height, grid_width, channels, regions, height, width = sizes
    return [(images, grid_height, grid_width, channels), (regions, height, width), (regions,)]


def test_the_encoder_and_the_decoder_of_the_model() -> None:
    encoder = msda.launch(msda_shapes((1, 17821, 8, 32, 4, 17821, 4)), "float16")
    assert encoder.kernel == "msda_f16_vec"
    assert (encoder.grid, encoder.block) == ((557, 8, 1), (128, 1, 1))
    assert encoder.scalars == (1, 17821, 8, 32, 4, 17821, 4)
    decoder = msda.launch(msda_shapes((1, 17821, 8, 32, 4, 900, 4)), "float32")
    assert (decoder.kernel, decoder.grid) == ("msda_f32_vec", (57, 8, 1))
    regions = pool.launch(pool_shapes((1, 24, 24, 1024, 16, 336, 336)), "float16")
    assert regions.kernel == "pool_f16_fold_vec"
    assert (regions.grid, regions.block) == ((8, 16, 1), (640, 1, 1))


@pytest.mark.parametrize(
    ("kernels", "launch", "shapes", "largest"),
    [
        ("msda_kernels", msda.launch, msda_shapes, (3, 20000, 9, 140, 7, 20000, 9)),
        ("pool_kernels", pool.launch, pool_shapes, (3, 60, 60, 1100, 70, 700, 700)),
    ],
)
def test_the_cpp_twin_plans_the_same(
    kernels: str,
    launch: Callable[..., KernelLaunch],
    shapes: Callable[[Sequence[int]], Shapes],
    largest: Sequence[int],
    request: pytest.FixtureRequest,
) -> None:
    twin: HostKernels = request.getfixturevalue(kernels)
    rng = random.Random(0)
    asked = [[3, 5, 4, 8, 0, 0, 4]]  # no regions, no queries
    for _ in range(300):
        asked.append([rng.randint(1, size) for size in largest])
        asked.append([rng.randint(1, min(size, 40)) for size in largest])
    asked.append([2**15, 2**15, 8, 32, 4, 4, 4])
    asked.append([1, 24, 24, 1024, 16, 16385, 336])
    asked.append([1, 4, 70000, 8, 70000, 4, 4])
    refused = 0
    for sizes in asked:
        for number, dtype in enumerate(DTYPES):
            for aligned in (True, False):
                try:
                    expected = launch(shapes(sizes), dtype, aligned=aligned)
                except ValueError:
                    refused += 1
                    assert twin.plan(number, aligned, sizes) is None, sizes
                else:
                    assert twin.plan(number, aligned, sizes) == expected
                    assert expected.shared_bytes <= MAX_SHARED_BYTES
                    assert expected.block[0] <= 640
    assert refused > 0
    assert twin.plan(3, True, asked[1]) is None
    assert twin.plan(0, True, [-1, *asked[1][1:]]) is None


def test_what_a_kernel_cannot_count_is_refused() -> None:
    sizes = [1, 2**20, 64, 32, 4, 8, 4]
    with pytest.raises(ValueError, match=r"S \* M \* D .* at most 2147483647, got 2147483648"):
        msda.launch(msda_shapes(sizes), "float16")
    with pytest.raises(ValueError, match=r"H \(mask pixels of an axis\) expected at most 16384"):
        pool.launch(pool_shapes([1, 24, 24, 64, 1, 20000, 336]), "float16")
    with pytest.raises(ValueError, match="element type expected one of float32, float16, bfloat16"):
        msda.launch(msda_shapes([1, 4, 2, 8, 1, 3, 4]), "int8")


def test_shapes_that_contradict_each_other_are_refused() -> None:
    shapes = list(msda_shapes([1, 4, 2, 8, 1, 3, 4]))
    shapes[4] = (1, 3, 2, 1, 5)
    message = r"input 'attention_weights' expected shape \[1, 3, 2, 1, 4\], got \[1, 3, 2, 1, 5\]"
    with pytest.raises(ValueError, match=message):
        msda.launch(shapes, "float16")
    with pytest.raises(ValueError, match="5 input shapes expected, got 4"):
        msda.launch(shapes[:4], "float16")
    with pytest.raises(ValueError, match=r"input 'masks' expected shape \[R, H, W\], got \[4, 4\]"):
        pool.launch([(1, 2, 2, 4), (4, 4), (4,)], "float16")


def test_half_precision_conversions(msda_kernels: HostKernels) -> None:
    twin = msda_kernels
    bits = np.arange(65536, dtype=np.uint16)
    np.testing.assert_array_equal(twin.float_of_f16(bits), bits.view(np.float16).astype(np.float32))
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 2**32, 20000, dtype=np.uint32).view(np.float32)
    edges = [0.0, -0.0, 65504, 65519.9, 65520, 2**-24, 2**-25, 3 * 2**-25, 2**-14, 1e38, np.inf]
    numbers = np.concatenate([numbers[np.isfinite(numbers)], np.array(edges, dtype=np.float32)])
    small = rng.standard_normal(20000).astype(np.float32)
    for values in (numbers, small):
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16).view(np.uint16)
        np.testing.assert_array_equal(twin.half_bits("f16", values), halves)
        brains = values.astype(ml_dtypes.bfloat16).view(np.uint16)
        np.testing.assert_array_equal(twin.half_bits("bf16", values), brains)
    for code in ("f16", "bf16"):
        (nan,) = twin.half_bits(code, np.array([np.nan], dtype=np.float32))
        assert np.isnan(np.array([nan]).view({"f16": np.float16, "bf16": ml_dtypes.bfloat16}[code]))
