"""Eager form of the semantic operators against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from visionllm_edge.export.ops import cached_attention, ms_deform_attn


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_deform(
    value: Tensor, sizes: list[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    batch, queries, heads, levels, points, _ = locations.shape
    depth = value.shape[-1]
    out = torch.zeros(batch, queries, heads, depth)
    for n in range(batch):
        for q in range(queries):
            for m in range(heads):
                start = 0
                for level in range(levels):
                    height, width = sizes[level]
                    for p in range(points):
                        x = float(locations[n, q, m, level, p, 0]) * width - 0.5
                        y = float(locations[n, q, m, level, p, 1]) * height - 0.5
                        x0, y0 = math.floor(x), math.floor(y)
                        for yy, xx in ((y0, x0), (y0, x0 + 1), (y0 + 1, x0), (y0 + 1, x0 + 1)):
                            if 0 <= yy < height and 0 <= xx < width:
                                share = (1 - abs(x - xx)) * (1 - abs(y - yy))
                                pixel = value[n, start + yy * width + xx, m]
                                out[n, q, m] += weights[n, q, m, level, p] * share * pixel
                    start += height * width
    return out


SIZES = [(5, 7), (3, 4), (2, 1)]


def deform_inputs() -> tuple[Tensor, Tensor, Tensor]:
    locations = torch.rand(2, 6, 3, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    weights = noise(2, 6, 3, 6, seed=2).softmax(-1).view(2, 6, 3, 3, 2)
    # Half of the locations reach over the borders.
    return noise(2, 35 + 12 + 2, 3, 4), locations * 1.6 - 0.3, weights


def fast_deform(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    shapes = torch.tensor(SIZES, dtype=torch.int32)
    starts = torch.tensor([0, 35, 47], dtype=torch.int32)
    return ms_deform_attn(value, shapes, starts, locations, weights)


def test_deformable_attention_equals_loops() -> None:
    value, locations, weights = deform_inputs()
    expected = slow_deform(value, SIZES, locations, weights)
    torch.testing.assert_close(fast_deform(value, locations, weights), expected)


@pytest.mark.parametrize("fault", ["x and y", "levels", "points", "heads"])
def test_planted_faults_in_deformable_attention_show(fault: str) -> None:
    value, locations, weights = deform_inputs()
    expected = slow_deform(value, SIZES, locations, weights)
    if fault == "x and y":
        locations = locations.flip(-1)
    elif fault == "levels":
        weights = weights.flip(3)
    elif fault == "points":
        weights = weights.flip(4)
    else:
        value = value.flip(2)
    assert float((fast_deform(value, locations, weights) - expected).abs().max()) > 0.1


def slow_attention(
    query: Tensor, keys: Tensor, values: Tensor, heads: int, kv_heads: int, scale: float
) -> Tensor:
    """All rows from position 0 on; the rotation in complex numbers."""
    length, depth = query.shape[0], query.shape[1] // heads
    half = depth // 2
    frequency = 100.0 ** -(torch.arange(half) / half)

    def rotate(row: Tensor, position: int) -> Tensor:
        turned = torch.complex(row[:half], row[half:]) * torch.polar(
            torch.ones(half), position * frequency
        )
        return torch.cat([turned.real, turned.imag])

    out = torch.zeros_like(query)
    for h in range(heads):
        kv = h // (heads // kv_heads)
        at, kv_at = slice(h * depth, h * depth + depth), slice(kv * depth, kv * depth + depth)
        for i in range(length):
            q = rotate(query[i, at], i)
            scores = torch.stack([q @ rotate(keys[j, kv_at], j) * scale for j in range(i + 1)])
            out[i, at] = scores.softmax(0) @ values[: i + 1, kv_at]
    return out


@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("steps", [(9,), (1, 8), (4, 1, 1, 3)], ids=str)
def test_cached_attention_equals_loops(
    heads: int, kv_heads: int, steps: tuple[int, ...], scale: float | None
) -> None:
    depth, capacity = 6, 9
    query, key, value = noise(9, heads * depth), noise(9, kv_heads * depth, seed=1), None
    value = noise(9, kv_heads * depth, seed=2)
    expected = slow_attention(query, key, value, heads, kv_heads, scale or depth**-0.5)
    angles = torch.arange(16)[:, None] * 100.0 ** -(torch.arange(3) / 3)
    past_key = torch.full((1, kv_heads, capacity, depth), float("nan"))
    past_value = past_key.clone()
    found, start = [], 0
    for length in steps:
        end = start + length
        out, past_key, past_value = cached_attention(
            query[None, start:end],
            key[None, start:end],
            value[None, start:end],
            past_key,
            past_value,
            torch.tensor([start]),
            angles.cos(),
            angles.sin(),
            num_heads=heads,
            kv_num_heads=kv_heads,
            scale=scale,
        )
        found.append(out[0])
        start = end
    torch.testing.assert_close(torch.cat(found), expected, atol=1e-5, rtol=1e-5)
