"""What the GPU check runs and what it expects: sizes, inputs, bytes moved, limits, verdicts.

Pure numpy and arithmetic; nothing here needs a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CHECKS",
    "LIMITS",
    "TARGETS",
    "TIMED",
    "Attention",
    "Pooling",
    "Target",
    "copies_beyond_cache",
    "relative_errors",
    "verdicts",
]

Arrays = tuple[NDArray[np.generic], ...]
_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
ENCODER_LEVELS = ((100, 134), (50, 67), (25, 34), (13, 17))
"""Strides 8, 16, 32, 64 of a picture of 800 x 1066 pixels, padded to 32."""

# Largest error over the largest true value. The output's own rounding is 2^-24, 2^-11 and 2^-8 of a
# value; sums run in fp32 over at most 64 products of 4 corners.
LIMITS = {"float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}


@dataclass(frozen=True)
class Attention:
    """One call of deformable attention.

    Attributes:
        name: in results.
        levels: (height, width) of each.
        queries: Lq; 0 stands for one query per pixel, as in the encoder.
        spread: standard deviation of the sampling offsets in pixels; None for anywhere, a fifth of
            it outside.
    """

    name: str
    levels: tuple[tuple[int, int], ...]
    queries: int
    batch: int = 1
    heads: int = 8
    depth: int = 32
    points: int = 4
    spread: float | None = 4.0

    op = "MultiScaleDeformableAttention"

    @property
    def pixels(self) -> int:
        """S, over all levels."""
        return sum(height * width for height, width in self.levels)

    @property
    def query_count(self) -> int:
        """Lq."""
        return self.queries or self.pixels

    def inputs(self, seed: int) -> Arrays:
        """Random inputs in the order of the specification; floats as float32."""
        rng = np.random.default_rng(seed)
        lead = (self.batch, self.query_count, self.heads, len(self.levels), self.points)
        value = rng.standard_normal((self.batch, self.pixels, self.heads, self.depth), np.float32)
        sizes = np.array(self.levels, np.int32).reshape(-1, 2)
        starts = np.cumsum([0, *(h * w for h, w in self.levels)])[:-1].astype(np.int32)
        if self.spread is None:
            locations = rng.uniform(-0.1, 1.1, (*lead, 2)).astype(np.float32)
        else:
            offsets = (
                rng.normal(0, self.spread, (*lead, 2)) / sizes[None, None, None, :, None, ::-1]
            )
            locations = (self._centres()[None, :, None, None, None] + offsets).astype(np.float32)
        weights = rng.random(lead, np.float32)
        weights /= weights.sum(axis=(3, 4), keepdims=True)
        return value, sizes, starts, locations, weights

    def moved_bytes(self, dtype: str) -> int:
        """Least traffic: every input read once, the output written once."""
        item = _ITEM_BYTES[dtype]
        samples = self.batch * self.query_count * self.heads * len(self.levels) * self.points
        values = self.batch * self.heads * self.depth * (self.pixels + self.query_count)
        return values * item + samples * (8 + item)

    def _centres(self) -> NDArray[np.float64]:
        """Reference point (x, y) of each query: its own pixel, or spread over the picture."""
        if self.queries:
            steps = (np.arange(self.queries) + 0.5) / self.queries
            return np.stack([(steps * 7.3) % 1.0, steps], axis=1)
        grids = []
        for height, width in self.levels:
            y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
            grids.append(np.stack([(x + 0.5) / width, (y + 0.5) / height], axis=-1).reshape(-1, 2))
        return np.concatenate(grids)


@dataclass(frozen=True)
class Pooling:
    """One call of prompt pooling; the last region's mask is empty when there is more than one."""

    name: str
    images: int
    grid: tuple[int, int]
    channels: int
    regions: int
    mask: tuple[int, int]

    op = "GridSamplePromptPool"

    def inputs(self, seed: int) -> Arrays:
        """Random inputs in the order of the specification; features as float32."""
        rng = np.random.default_rng(seed)
        shape = (self.images, *self.grid, self.channels)
        features = rng.standard_normal(shape, np.float32)
        masks = np.zeros((self.regions, *self.mask), np.float32)
        for region in range(self.regions):
            low = rng.random(2) * 0.5 * np.array(self.mask)
            high = low + (0.2 + 0.3 * rng.random(2)) * np.array(self.mask) + 1
            (top, left), (bottom, right) = low.astype(int), high.astype(int)
            masks[region, top:bottom, left:right] = 1.0
        if self.regions > 1:
            masks[-1] = 0.0
        images = rng.integers(0, max(self.images, 1), self.regions).astype(np.int32)
        return features, masks, images

    def moved_bytes(self, dtype: str) -> int:
        """Least traffic: every input read once, the output written once."""
        item = _ITEM_BYTES[dtype]
        cells = self.images * math.prod(self.grid) * self.channels
        masks = 4 * self.regions * (math.prod(self.mask) + 1)
        return (cells + self.regions * self.channels) * item + masks


CHECKS: tuple[Attention | Pooling, ...] = (
    Attention("msda odd sizes", ((7, 5), (3, 4), (1, 1)), 13, batch=2, heads=3, points=5),
    Attention("msda depth 20", ((9, 11), (4, 3)), 37, heads=2, depth=20, spread=None),
    Attention("msda one of everything", ((1, 1),), 1, heads=1, depth=1, points=1, spread=None),
    Attention("msda 0 queries of 5 pixels", ((1, 5),), 5, heads=1, depth=8, points=1),
    Attention("msda depth 64", ((20, 30), (10, 15)), 301, batch=3, heads=4, depth=64, spread=None),
    Attention("msda small encoder", ((25, 34), (13, 17), (7, 9), (4, 5)), 0, batch=2),
    Pooling("pool odd sizes", 2, (3, 5), 7, 4, (11, 13)),
    Pooling("pool one of everything", 1, (1, 1), 1, 1, (1, 1)),
    Pooling("pool 16 regions", 5, (24, 24), 1024, 16, (336, 336)),
    Pooling("pool large map", 1, (48, 64), 96, 3, (97, 201)),
)

TIMED: tuple[Attention | Pooling, ...] = (
    Attention("encoder 800x1066", ENCODER_LEVELS, 0),
    Attention("encoder 800x1066, anywhere", ENCODER_LEVELS, 0, spread=None),
    Attention("decoder 900 queries", ENCODER_LEVELS, 900),
    Pooling("16 regions", 1, (24, 24), 1024, 16, (336, 336)),
)


@dataclass(frozen=True)
class Target:
    """A number to reach on an H100: ``value`` names a result, ``limit`` bounds it."""

    value: str
    limit: float
    at_least: bool = False


TARGETS = (
    Target("encoder 800x1066/float16/ours_us", 200.0),
    Target("encoder 800x1066/float16/speedup_over_grid_sample", 10.0, at_least=True),
    Target("encoder 800x1066/float16/max_relative_error", 1e-3),
    Target("decoder 900 queries/float16/ours_us", 20.0),
)


def verdicts(results: Mapping[str, float]) -> list[dict[str, object]]:
    """Each target with the value reached; ``met`` is None where it was not measured."""
    out: list[dict[str, object]] = []
    for target in TARGETS:
        value = results.get(target.value)
        met = None
        if value is not None and math.isfinite(value):
            met = value >= target.limit if target.at_least else value <= target.limit
        elif value is not None:
            met = False
        word = "at least" if target.at_least else "at most"
        out.append(
            {"name": target.value, "wanted": f"{word} {target.limit:g}", "got": value, "met": met}
        )
    return out


def relative_errors(got: NDArray[np.generic], true: NDArray[np.float64]) -> dict[str, float]:
    """Largest and root-mean-square error, over the largest and root-mean-square true value.

    Where a value is not finite the errors are infinite; where everything is zero, zero is right.
    """
    if got.shape != true.shape:
        raise ValueError(f"outputs: expected shape {true.shape}, got {got.shape}")
    if true.size == 0:
        return {"max_relative_error": 0.0, "rms_relative_error": 0.0}
    wide = got.astype(np.float64)
    if not np.isfinite(wide).all():
        return {"max_relative_error": math.inf, "rms_relative_error": math.inf}
    error, largest = np.abs(wide - true), np.abs(true).max()
    if largest == 0:
        bad = math.inf if error.max() > 0 else 0.0
        return {"max_relative_error": bad, "rms_relative_error": bad}
    return {
        "max_relative_error": float(error.max() / largest),
        "rms_relative_error": float(np.sqrt((error**2).sum() / (true**2).sum())),
    }


def copies_beyond_cache(set_bytes: int, cache_bytes: int, *, limit: int = 64) -> int:
    """How many sets of buffers to rotate through so that a set has left the L2 when it returns."""
    if set_bytes <= 0:
        raise ValueError(f"a set of buffers expected some bytes, got {set_bytes}")
    return max(2, min(limit, -(-3 * cache_bytes // set_bytes)))
