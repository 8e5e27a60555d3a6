"""Example inputs whose best proposals come in an order that rounding cannot change.

A two-stage decoder takes its queries from the best-scoring pixels, and which query gets which pixel
follows from their order. Among 20,000 pixels hundreds of neighbours in that order differ by less
than a rounding error, so two right implementations may take them differently and then answer
differently. For a comparison the doubtful pixels are filled with the features of the pixel that
scores worst; those that stay keep what the model made of the picture.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["rows_in_clear_order"]

_HALVINGS = 20


def rows_in_clear_order(scores: Tensor, usable: Tensor, count: int, *, step: float) -> Tensor:
    """Which row of the memory each place shall hold.

    Args:
        scores: [S], best score of each place over the classes; it depends on the place's row alone.
        usable: bool [S]; places that may not be used share one score.
        count: places whose order matters, from the best on.
        step: how far apart two scores shall be; halved until `count` places are that far apart.

    Returns:
        int64 [S]: its own number where a row stays, that of the worst usable place where its score
        would be too close to a better one.
    """
    values: list[float] = scores.double().tolist()
    may: list[bool] = usable.tolist()
    order = sorted((i for i, ok in enumerate(may) if ok), key=lambda i: -values[i])
    shared = [value for value, ok in zip(values, may, strict=True) if not ok]
    out = torch.arange(len(values))
    for _ in range(_HALVINGS):
        doubtful = _doubtful(order, values, shared, count, step)
        if doubtful is not None:
            out[doubtful] = order[-1]
            break
        step /= 2
    return out


def _doubtful(
    order: list[int], values: list[float], shared: list[float], count: int, step: float
) -> list[int] | None:
    """Places to fill so that the best `count` are a step apart; None where too few would stay."""
    level = shared[0] if shared else float("-inf")
    fill: list[int] = []
    kept, last = 0, float("inf")
    for place, index in enumerate(order):
        value = values[index]
        passed = len(shared) if value < level else 0
        if passed and last > level:
            last = level  # all unusable places come here, as one
        if kept + passed >= count and last - value >= step:
            return fill
        if last - value >= step and abs(value - level) >= step and place < len(order) - 1:
            kept, last = kept + 1, value
        else:
            fill.append(index)
    return None
