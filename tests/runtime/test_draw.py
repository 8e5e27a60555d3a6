"""Pictures: what is where, in which size. How they look, a person must judge."""

from __future__ import annotations

import numpy as np
import pytest

from visionllm_edge.runtime.draw import SHOW_SIDE, draw_result
from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.results import Detection

GREY = np.full((64, 128, 3), 128, dtype=np.uint8)


def pixels(*found: Detection, image: np.ndarray = GREY, lines: tuple[str, ...] = ()) -> np.ndarray:
    return np.asarray(draw_result(image, found, lines))


def test_small_images_grow_and_large_ones_stay() -> None:
    assert pixels().shape == (320, SHOW_SIDE, 3)
    large = np.full((900, 700, 3), 9, dtype=np.uint8)
    assert np.array_equal(pixels(image=large), large)


def test_the_given_image_is_not_touched() -> None:
    image = GREY.copy()
    pixels(Detection("dog", 0.9, (10, 10, 50, 50)), image=image)
    assert np.array_equal(image, GREY)


def test_box_and_label_stand_where_they_belong() -> None:
    drawn = pixels(Detection("dog", 0.9, (40, 30, 90, 60)))
    changed = (drawn != 128).any(axis=2)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    assert abs(columns[0] - 200) <= 4 and abs(columns[-1] - 450) <= 4
    assert abs(rows[-1] - 300) <= 4
    # The label's plate adds its height above the box.
    assert 10 < 150 - rows[0] < 40
    # The inside of the box stays clear.
    assert not changed[180:280, 230:420].any()


def test_mask_tints_its_pixels_only() -> None:
    mask = np.zeros((64, 128), dtype=bool)
    mask[20:40, 30:60] = True
    with_mask = pixels(Detection("dog", 0.9, (100, 50, 120, 60), mask))
    without = pixels(Detection("dog", 0.9, (100, 50, 120, 60)))
    changed = (with_mask != without).any(axis=2)
    inside = np.repeat(np.repeat(mask, 5, axis=0), 5, axis=1)
    assert changed[inside].mean() > 0.95
    assert changed[~inside].mean() < 0.01


def test_labels_do_not_cover_each_other() -> None:
    # Two boxes with the same corner: the second label goes elsewhere.
    one = pixels(Detection("dog", 0.9, (40, 30, 90, 60)))
    two = pixels(
        Detection("dog", 0.9, (40, 30, 90, 60)), Detection("dog", 0.3, (40, 30, 90, 60), None, 0)
    )
    assert np.array_equal(one[:150], two[:150])
    assert (one[160:] != two[160:]).any()


@pytest.mark.parametrize(
    "box", [(-20, -20, 300, 300), (50, 50, 20, 20), (500, 500, 600, 600), (5, 5, 5, 5)]
)
def test_odd_boxes_draw(box: tuple[float, float, float, float]) -> None:
    assert pixels(Detection("a long label that is wider than its box", 1.0, box)).shape[1] == 640


def test_same_label_same_colour() -> None:
    drawn = pixels(
        Detection("dog", 0.9, (10, 30, 30, 60), None, 0),
        Detection("dog", 0.8, (60, 30, 80, 60), None, 0),
        Detection("cat", 0.7, (100, 30, 120, 60), None, 1),
    )
    first, second, third = (tuple(drawn[220, x * 5]) for x in (10, 60, 100))
    assert first == second != third


def test_strip_holds_all_words_and_is_wrapped() -> None:
    short = pixels(lines=("a dog",))
    long = pixels(lines=("a dog and " * 30, "x" * 300))
    assert short.shape[1] == long.shape[1] == 640
    assert np.array_equal(short[:320], pixels())
    assert long.shape[0] > short.shape[0] + 5 * 20
    assert (short[320:] < 60).any(axis=2).sum() > 50


def test_mask_of_another_size_is_refused() -> None:
    with pytest.raises(InputError, match="the mask of 'dog' is 3 high and 4 wide"):
        pixels(Detection("dog", 0.9, (0, 0, 4, 3), np.ones((3, 4), dtype=bool)))
