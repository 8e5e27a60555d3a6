"""Regions drawn into a picture."""

from __future__ import annotations

import numpy as np
import pytest

from visionllm_edge.runtime.draw_regions import draw_regions
from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.regions import Box, Point


def test_a_box_gets_an_outline_on_both_sides() -> None:
    grey = np.full((40, 50, 3), 100, np.uint8)
    drawn = draw_regions(grey, [Box(10, 12, 30, 25)])
    assert (grey == 100).all(), "the picture itself is not touched"
    changed = (drawn != 100).any(axis=2)
    assert changed[11:27, 9:32].sum() == changed.sum(), "nothing beyond a pixel around the box"
    assert changed[12:26, 10:31].all() and (drawn[12, 10:31] == 255).all()
    assert (drawn[11, 10:31] == drawn[11, 10]).all() and not (drawn[11, 10] == 100).all()
    inside = drawn[20, 20].astype(int)
    assert inside[0] > 100 > inside[1], "tinted"


def test_several_regions() -> None:
    grey = np.full((40, 50, 3), 100, np.uint8)
    both = draw_regions(grey, [Point(5, 5), Point(40, 30)])
    assert (both[5, 5] != 100).any() and (both[30, 40] != 100).any() and (both[20, 20] == 100).all()
    np.testing.assert_array_equal(draw_regions(grey, []), grey)


def test_a_region_of_another_picture_is_refused() -> None:
    with pytest.raises(InputError, match="inside the picture of 50x40"):
        draw_regions(np.full((40, 50, 3), 100, np.uint8), [Point(60, 5)])
