"""Marks that somebody makes to point at an item."""

from __future__ import annotations

import numpy as np
import pytest

from visionllm_edge.runtime import shapes_world as world
from visionllm_edge.runtime.shapes_world.pointing import POINTERS, Pointer, point_at


def scenes(count: int) -> list[world.Scene]:
    rng = np.random.default_rng(5)
    return [world.make_scene(rng) for _ in range(count)]


@pytest.mark.parametrize("pointer", POINTERS)
def test_marks_lie_on_the_item(pointer: Pointer) -> None:
    rng = np.random.default_rng(6)
    shares, covered = [], []
    for scene in scenes(12):
        for item in scene.items:
            marked = point_at(item, rng, pointer)
            assert marked.shape == item.mask.shape
            assert marked.dtype == np.bool_
            on_item = (marked & item.mask).sum()
            assert on_item > 0
            shares.append(on_item / marked.sum())
            covered.append(on_item / item.mask.sum())
    # Least shares: of the marks that lie on the item, and of the item that is marked.
    least = {
        "box": (0.4, 0.85),
        "point": (0.7, 0.005),
        "scribble": (0.5, 0.02),
        "polygon": (0.5, 0.5),
        "mask": (1.0, 1.0),
    }[pointer]
    assert float(np.mean(shares)) >= least[0]
    assert float(np.mean(covered)) >= least[1]
    if pointer in ("point", "scribble"):
        assert float(np.mean(covered)) < 0.6


def test_marks_are_those_of_their_item() -> None:
    """Marks made for one item are seldom on another."""
    rng = np.random.default_rng(7)
    own = other = 0
    for scene in scenes(12):
        for item in scene.items:
            marked = point_at(item, rng, "point")
            own += int((marked & item.mask).sum())
            other += sum(int((marked & one.mask).sum()) for one in scene.items if one is not item)
    assert own > 20 * other


@pytest.mark.parametrize("pointer", POINTERS)
def test_a_seed_gives_the_same_marks(pointer: Pointer) -> None:
    item = scenes(1)[0].items[0]
    first, again, third = (point_at(item, np.random.default_rng(s), pointer) for s in (1, 1, 2))
    assert np.array_equal(first, again)
    if pointer != "mask":
        assert not np.array_equal(first, third)
