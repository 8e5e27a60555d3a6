"""Visual prompts: what each kind covers, how it shrinks, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.regions import (
    Box,
    Mask,
    Point,
    Polygon,
    Region,
    Scribble,
    model_mask,
    picture_mask,
)
from visionllm_edge.runtime.resize import bilinear_matrix, touched_by_bilinear

SIZE = (60, 80)


def cover(region: Region, size: tuple[int, int] = SIZE, side: int = 56) -> np.ndarray:
    return picture_mask(region, size, side)


def drawn(rows: slice, columns: slice, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, np.bool_)
    mask[rows, columns] = True
    return mask


def test_box_has_both_ends() -> None:
    np.testing.assert_array_equal(
        cover(Box(10.9, 5.0, 20.0, 7.99)), drawn(slice(5, 8), slice(10, 21))
    )


def test_box_is_cut_at_the_border() -> None:
    np.testing.assert_array_equal(
        cover(Box(-30, 50.5, 3.2, 900)), drawn(slice(50, 60), slice(0, 4))
    )


def test_point_is_a_disc_of_the_models_pixels() -> None:
    # The model sees 80 x 160: two of its pixels are two rows and one column of this picture.
    mask = cover(Point(40.5, 30.2), size=(80, 80), side=80)
    wanted = np.zeros((80, 80), np.bool_)
    for y, x in np.ndindex(80, 80):
        wanted[y, x] = (y - 30) ** 2 + (x - 40) ** 2 <= 4
    np.testing.assert_array_equal(mask, wanted)
    wide = cover(Point(40.5, 30.2), size=(80, 160), side=80)
    assert wide[30, 36:45].all() and not wide[30, 35] and not wide[30, 45]
    assert wide[28:33, 40].all() and not wide[27, 40] and not wide[33, 40]


def test_point_in_a_picture_smaller_than_the_models_input() -> None:
    mask = cover(Point(1.9, 0.0), size=(3, 3), side=336)
    assert mask.sum() == 1 and mask[0, 1]


def test_polygon_covers_the_centres_inside() -> None:
    triangle = cover(Polygon(((10, 10), (40.2, 10), (10, 40.2))))
    inside = np.zeros(SIZE, np.bool_)
    for y, x in np.ndindex(*SIZE):
        inside[y, x] = x >= 10 and y >= 10 and x + y + 1 < 50.2
    np.testing.assert_array_equal(triangle, inside)


def test_thin_polygon_is_its_outline() -> None:
    mask = cover(Polygon(((10, 10.1), (40, 10.1), (40, 10.2))))
    assert mask[10, 10:40].all() and mask.sum() < 100


def test_polygon_may_stick_out() -> None:
    # Half of the diamond lies to the left of the picture, and it is taller than the picture.
    mask = cover(Polygon(((-20, 30), (0, -100), (20, 30), (0, 160))))
    assert mask[:, 0].all() and mask[30, :19].all() and not mask[30, 20:].any()


def test_scribble_follows_its_points() -> None:
    # One picture pixel is one of the model's; 4 wide.
    size, side = (80, 80), 80
    mask = cover(Scribble(((10.5, 20.5), (50.5, 20.5), (50.5, 60.5))), size, side)
    np.testing.assert_array_equal(np.flatnonzero(mask[:, 30]), np.arange(18, 23))
    np.testing.assert_array_equal(np.flatnonzero(mask[45]), np.arange(48, 53))
    assert not mask[40, 20]
    thick = cover(Scribble(((10.5, 20.5), (50.5, 20.5)), width=10), size, side)
    np.testing.assert_array_equal(np.flatnonzero(thick[:, 30]), np.arange(15, 26))


def test_points_may_be_an_array() -> None:
    corners = np.array([[10, 10], [40, 10], [10, 40]], np.float32)
    assert Polygon(corners) == Polygon(((10, 10), (40, 10), (10, 40)))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"expected \(x, y\)"):
        Scribble(np.zeros((2, 3)))  # type: ignore[arg-type]


def test_scribble_may_leave_the_picture_and_come_back() -> None:
    mask = cover(Scribble(((70, 30), (500, 30), (500, -200))), (80, 80), 80)
    assert mask[30, 70:].all() and not mask[30, :66].any()


def test_mask_array_and_file(tmp_path: Path) -> None:
    bits = drawn(slice(3, 9), slice(20, 60))
    np.testing.assert_array_equal(cover(Mask(bits)), bits)
    np.testing.assert_array_equal(cover(Mask(bits.astype(np.uint8))), bits)
    for value in (1, 255):  # either way of writing a mask
        path = tmp_path / f"{value}.png"
        Image.fromarray(bits.astype(np.uint8) * value).save(path)
        np.testing.assert_array_equal(cover(Mask(path)), bits)
    noisy = tmp_path / "noisy.jpg"
    Image.fromarray(bits.astype(np.uint8) * 255).save(noisy, quality=60)
    assert (cover(Mask(noisy)) == bits).mean() > 0.99


@pytest.mark.parametrize("size", [(60, 80), (336, 336), (700, 500), (1080, 1920)])
def test_resizing_keeps_every_positive_value(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    mask = rng.random(size) < 0.05
    down, across = (bilinear_matrix(length, 112) for length in size)
    exact = down @ mask.astype(np.float32) @ across.T
    np.testing.assert_array_equal(touched_by_bilinear(mask, 112, 112), exact > 0)


def test_small_regions_grow_by_the_resizing() -> None:
    """Every positive value counts, so a pixel that is scaled up reaches its neighbours."""
    mask = model_mask(Mask(drawn(slice(2, 3), slice(2, 3), (8, 8))), (8, 8), 16)
    np.testing.assert_array_equal(mask, drawn(slice(3, 7), slice(3, 7), (16, 16)))


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (Point(80, 5), "point 80,5: expected a place inside the picture of 80x60"),
        (Point(-0.1, 5), "inside the picture"),
        (Box(80, 5, 99, 20), "box 80,5,99,20: expected a region inside the picture of 80x60"),
        (Box(-9, 5, -1, 20), "lies outside"),
        (Polygon(((90, 0), (120, 0), (100, 40))), "polygon: expected a region inside"),
        (Scribble(((90, 0), (120, 40))), "scribble: expected a region inside"),
        (Mask(np.ones((80, 60), np.bool_)), "the size of the picture, 80x60 pixels, got 60x80"),
        (Mask(np.zeros((60, 80), np.bool_)), "at least one pixel of the region"),
        (Mask(np.ones((60, 80), np.float32)), "bool or uint8"),  # type: ignore[arg-type]
        (Mask(np.ones((60, 80, 3), np.uint8)), "got uint8 "),
        (Mask("no_such_mask.png"), "does not exist"),
        ((1, 2, 3, 4), "expected Box, Point"),
    ],
)
def test_what_does_not_fit_the_picture_is_refused(region: Region, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model_mask(region, SIZE, 56)


def test_a_region_that_vanishes_is_refused() -> None:
    bits = drawn(slice(1, 2), slice(1, 2), (1000, 1000))
    with pytest.raises(InputError, match="vanishes"):
        model_mask(Mask(bits), (1000, 1000), 28)


def test_what_is_no_region_is_refused() -> None:
    with pytest.raises(InputError, match="x1 < x2"):
        Box(5, 5, 5, 9)
    with pytest.raises(InputError, match="upper left corner first"):
        Box(9, 9, 5, 5)
    with pytest.raises(InputError, match="finite numbers"):
        Box(float("nan"), 0, 5, 5)
    with pytest.raises(InputError, match="finite numbers"):
        Point("3", 4)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="3 to 10000 points, got 2"):
        Polygon(((0, 0), (5, 5)))
    with pytest.raises(InputError, match="on one line"):
        Polygon(((0, 0), (5, 5), (9, 9), (2, 2)))
    with pytest.raises(InputError, match="on one line"):
        Polygon(((7, 7), (7, 7), (7, 7)))
    with pytest.raises(InputError, match="2 to 10000 points, got 1"):
        Scribble(((0, 0),))
    with pytest.raises(InputError, match=r"expected \(x, y\)"):
        Scribble(((0, 0), (1, 2, 3)))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="width"):
        Scribble(((0, 0), (1, 2)), width=0)


def test_a_bow_tie_has_an_inside() -> None:
    mask = cover(Polygon(((10, 10), (40, 40), (40, 10), (10, 40))))
    assert mask[25, 12] and mask[25, 38] and not mask[12, 25] and not mask[38, 25]
