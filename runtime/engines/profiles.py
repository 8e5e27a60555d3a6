"""Optimisation profiles: how large each dynamic axis of a stage may become, per use.

Size buckets are separate graphs, so heights and widths are numbers. The other axes are symbols of
the stage's ports:

======  ====================================  ===============================================
symbol  axis                                  smallest, best, largest
======  ====================================  ===============================================
n       tiles of the picture                  1, all tiles, all tiles
s       rows given to the decoder, prefill    1, a picture and a short question, the context
s       the same, decode                      1, 1, a routing token and its rows, or a guess
r       rows whose hidden states are wanted   1, 1, as many as are given
l       rows whose logits are wanted          1, 1, those of a decode step
T       classes asked for                     1, a quarter, the detector's limit
k       kept queries                          1, all queries, all queries
R       regions of one picture                1, 4, as many as are encoded at once
No      object classes of a pose question      1, 1, the keypoint decoder's limit
K       keypoint names of it                  1, 17 as for people, the limit
b       pictures in the UNet's batch          1, the guidance's, 3
h, w    latents, per side                     a quarter of the default picture, it, half as much
                                              again
H, W    pixels of a picture to edit           the same
C       rows of the cache                     the capacity, three times
======  ====================================  ===============================================

A scripted answer asks for the rows of all its routing tokens at once, so prefill takes any number.
Logits are wanted of the last row, and of a few more where tokens were guessed.

The cache's capacity is one number because the runtime makes one buffer per conversation and an
engine with a fixed capacity can alias it. Only the decoder has two profiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from visionllm_edge.runtime.backends.base import PAST_PREFIX
from visionllm_edge.runtime.engines.plan import Profile, ShapeRange
from visionllm_edge.runtime.errors import ConfigError
from visionllm_edge.runtime.manifest import ModelSpec
from visionllm_edge.runtime.regions import REGIONS_AT_ONCE

__all__ = [
    "GUESSED_ROWS",
    "QUESTION_ROWS",
    "Axes",
    "axis_ranges",
    "cache_rows",
    "profiles_for",
]

Range = tuple[int, int, int]
Axes = Mapping[str, Range]

QUESTION_ROWS = 128
"""Rows of a short question around the picture, for the size that prefill is tuned for."""

_PEOPLES_KEYPOINTS = 17
_EDITING_BATCH = 3  # with words and picture, with the picture alone, with neither

GUESSED_ROWS = 8
"""Tokens that a step may guess ahead (prompt lookup); the step has one row more."""


def axis_ranges(model: ModelSpec, *, capacity: int | None = None) -> dict[str, Axes]:
    """Ranges of every symbol, per use (`prefill` and `decode`).

    Args:
        model: sizes from the manifest.
        capacity: rows of the cache; the model's context if None.

    Raises:
        ConfigError: a capacity that the model cannot use.
    """
    context = model.llm.max_positions
    rows = context if capacity is None else capacity
    if not 1 <= rows <= context:
        raise ConfigError(
            f"cache capacity {rows}: expected 1 to {context}, the model's context. "
            "Leave it out to get all of it."
        )
    # A language model alone has no picture in its prompt, and no axis of tiles.
    tiles = 1 if model.vision is None else model.vision.max_tiles
    pictured = 0 if model.vision is None else tiles * model.vision.tokens_per_tile
    prompt = min(rows, pictured + QUESTION_ROWS)
    links = [link.rows for link in model.superlink.values() if link.decoder]
    step = min(rows, 1 + max([GUESSED_ROWS, *links]))
    shared: dict[str, Range] = {"n": (1, tiles, tiles), "C": (rows, rows, rows)}
    if model.detector is not None:
        classes, queries = model.detector.max_text_len, model.detector.num_queries
        shared["T"] = (1, max(1, classes // 4), classes)
        shared["k"] = (1, queries, queries)
    if model.regions:
        shared["R"] = (1, 4, REGIONS_AT_ONCE)
    if model.pose is not None:
        names = model.pose.max_keypoints
        shared["No"] = (1, 1, model.pose.max_objects)
        shared["K"] = (1, min(_PEOPLES_KEYPOINTS, names), names)
    shared |= _picture_axes(model)
    return {
        "prefill": {**shared, "s": (1, prompt, rows), "r": (1, 1, rows), "l": (1, 1, step)},
        "decode": {**shared, "s": (1, 1, step), "r": (1, 1, step), "l": (1, 1, step)},
    }


def _picture_axes(model: ModelSpec) -> dict[str, Range]:
    """Axes of the branches that make pictures; one range serves both."""
    branches = [spec for spec in (model.generation, model.editing) if spec is not None]
    if not branches:
        return {}
    out: dict[str, Range] = {"b": (1, 2 if model.generation else _EDITING_BATCH, _EDITING_BATCH)}
    factor = branches[0].vae_factor
    for latent, pixel, sides in (
        ("h", "H", [spec.default_height for spec in branches]),
        ("w", "W", [spec.default_width for spec in branches]),
    ):
        rows = [side // factor for side in sides]
        low, best, high = max(1, min(rows) // 4), rows[0], max(rows) * 3 // 2
        out[latent] = (low, best, high)
        out[pixel] = (low * factor, best * factor, high * factor)
    return out


def cache_rows(ranges: Mapping[str, Axes]) -> int:
    """The capacity of the cache that ranges were made for."""
    return ranges["prefill"]["C"][2]


def profiles_for(
    stage: str,
    inputs: Mapping[str, Sequence[int | str]],
    ranges: Mapping[str, Axes],
    *,
    examples: Mapping[str, Sequence[int]] | None = None,
) -> tuple[Profile, ...]:
    """The profiles of one graph.

    Args:
        stage: for messages.
        inputs: shape of every graph input; a str is a dynamic axis.
        ranges: from `axis_ranges`.
        examples: shapes of a golden run. A range grows to hold them (the cache's capacity does
            not: golden caches are padded to it), so that the engine can be checked with them.

    Returns:
        None where all axes are fixed; two where the rows of the decoder (`s`) are dynamic.

    Raises:
        ConfigError: a dynamic axis that no rule knows.
    """
    symbols = {axis for shape in inputs.values() for axis in shape if isinstance(axis, str)}
    if not symbols:
        return ()
    uses = ("prefill", "decode") if "s" in symbols else ("all",)
    out = []
    for use in uses:
        axes = ranges[use if use in ranges else "prefill"]
        unknown = sorted(symbols - axes.keys())
        if unknown:
            raise ConfigError(
                f"stage '{stage}': dynamic axis {unknown[0]!r} has no range; known are "
                f"{', '.join(sorted(axes))}. Fix the axis in the graph, or add a rule for it."
            )
        grown = dict(axes)
        if use != "decode":
            _grow(grown, inputs, examples or {})
        shapes = {
            name: _shape_range(shape, grown)
            for name, shape in inputs.items()
            # A cache of fixed capacity has a range as well: whoever checks the engine reads it.
            if any(isinstance(axis, str) for axis in shape) or name.startswith(PAST_PREFIX)
        }
        out.append(Profile(use, shapes))
    return tuple(out)


def _grow(
    axes: dict[str, Range],
    inputs: Mapping[str, Sequence[int | str]],
    examples: Mapping[str, Sequence[int]],
) -> None:
    for name, example in examples.items():
        for axis, length in zip(inputs.get(name, ()), example, strict=False):
            if isinstance(axis, str) and axis != "C":
                low, best, high = axes[axis]
                axes[axis] = (min(low, length), best, max(high, length))


def _shape_range(shape: Sequence[int | str], axes: Axes) -> ShapeRange:
    low, best, high = (
        tuple(axes[axis][i] if isinstance(axis, str) else axis for axis in shape) for i in range(3)
    )
    return ShapeRange(low, best, high)
