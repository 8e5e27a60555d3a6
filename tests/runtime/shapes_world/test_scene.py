"""Scenes: the truth that comes with a picture is exact, and a seed gives one picture."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from visionllm_edge.runtime import shapes_world
from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.shapes_world.background import MAX_CHROMA, make_background
from visionllm_edge.runtime.shapes_world.outline import draw_outline
from visionllm_edge.runtime.shapes_world.scene import MIN_CENTRE_GAP

SIZES = [(128, 128), (200, 96), (96, 200), (65, 47)]


def scenes(n: int, *, width: int = 128, height: int = 128) -> list[shapes_world.Scene]:
    rng = np.random.default_rng([n, width, height])
    return [shapes_world.make_scene(rng, width=width, height=height) for _ in range(n)]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_boxes_are_tight_around_the_visible_masks(width: int, height: int) -> None:
    for scene in scenes(25, width=width, height=height):
        assert scene.image.shape == (height, width, 3)
        assert scene.image.dtype == np.uint8
        for item in scene.items:
            assert item.mask.shape == (height, width)
            rows, columns = np.nonzero(item.mask)
            tight = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert item.box_xyxy == tight


def test_masks_of_one_scene_share_no_pixel() -> None:
    for scene in scenes(60):
        assert np.sum([item.mask for item in scene.items], axis=0).max() == 1


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_left_to_right_has_one_answer(width: int, height: int) -> None:
    for scene in scenes(25, width=width, height=height):
        centres = [(item.box_xyxy[0] + item.box_xyxy[2]) / 2 for item in scene.items]
        assert all(b - a >= MIN_CENTRE_GAP * min(width, height) for a, b in pairwise(centres))


def test_a_mask_shows_its_items_color() -> None:
    bases = np.array([shapes_world.COLOR_RGB[color] for color in shapes_world.COLORS], dtype=float)
    for scene in scenes(60):
        for item in scene.items:
            mean = scene.image[item.mask].mean(axis=0)
            nearest = int(np.argmin(np.abs(bases - mean).sum(axis=1)))
            assert shapes_world.COLORS[nearest] == item.color


def test_backgrounds_are_muted_and_items_are_not() -> None:
    rng = np.random.default_rng(3)
    for _ in range(60):
        background = make_background(rng, 128, 128)
        assert np.ptp(background, axis=2).max() < MAX_CHROMA
    assert min(np.ptp(rgb) for rgb in shapes_world.COLOR_RGB.values()) > 1.5 * MAX_CHROMA


def test_most_of_each_item_is_in_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    areas: list[int] = []

    def record(shape: str, size_px: float, rng: np.random.Generator) -> object:
        outline = draw_outline(shape, size_px, rng)
        areas.append(int((outline.alpha >= 0.5).sum()))
        return outline

    monkeypatch.setattr(shapes_world.scene, "draw_outline", record)
    hidden = 0
    rng = np.random.default_rng(5)
    for _ in range(80):
        areas.clear()
        scene = shapes_world.make_scene(rng, min_items=5, max_items=5)
        # Draws that found no place come first: the scene's own are the last five.
        whole = sorted(areas[-5:])
        seen = sorted(int(item.mask.sum()) for item in scene.items)
        assert sum(seen) <= sum(whole)
        # Sorted, the i-th smallest visible area is at least 0.6 times the i-th smallest area.
        assert all(s >= 0.6 * w for s, w in zip(seen, whole, strict=True))
        hidden += sum(seen) < sum(whole)
    assert hidden > 20, "items are meant to overlap now and then"


def test_items_of_one_color_do_not_touch() -> None:
    for scene in scenes(80):
        for i, one in enumerate(scene.items):
            for other in scene.items[i + 1 :]:
                if one.color == other.color:
                    grown = np.zeros((130, 130), dtype=bool)
                    for dy in range(3):
                        for dx in range(3):
                            grown[dy : dy + 128, dx : dx + 128] |= one.mask
                    assert not (grown[1:-1, 1:-1] & other.mask).any()


def test_only_persons_have_keypoints_and_they_lie_on_the_figure() -> None:
    persons = 0
    in_sight = 0
    for scene in scenes(120):
        for item in scene.items:
            if item.shape != "person":
                assert item.keypoints is None
                continue
            persons += 1
            assert item.keypoints is not None
            assert item.keypoints.shape == (17, 3)
            x, y, v = item.keypoints.T
            assert set(np.unique(v)) <= {1.0, 2.0}
            assert min(x.min(), y.min()) >= 0 and max(x.max(), y.max()) <= 128
            # Facing the viewer: the figure's left is on the right of the picture.
            assert x[5] > x[6] and x[11] > x[12] and x[3] > x[4]
            sight = v == 2
            in_sight += int(item.mask[y[sight].astype(int), x[sight].astype(int)].sum())
            in_sight -= int(sight.sum())
            assert not item.mask[y[~sight].astype(int), x[~sight].astype(int)].any()
    assert persons > 30
    assert in_sight == 0


def test_a_seed_gives_one_scene_and_another_seed_another() -> None:
    one, same, other = (shapes_world.make_scene(np.random.default_rng(s)) for s in (7, 7, 8))
    np.testing.assert_array_equal(one.image, same.image)
    assert [i.name for i in one.items] == [i.name for i in same.items]
    assert [i.box_xyxy for i in one.items] == [i.box_xyxy for i in same.items]
    assert not np.array_equal(one.image, other.image)


def test_every_count_shape_and_color_occurs() -> None:
    many = scenes(300)
    assert {len(scene.items) for scene in many} == {1, 2, 3, 4, 5}
    assert {item.name for scene in many for item in scene.items} == {
        f"{color} {shape}" for color in shapes_world.COLORS for shape in shapes_world.SHAPES
    }


@pytest.mark.parametrize("count", [1, 5])
def test_the_number_of_items_is_kept(count: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        scene = shapes_world.make_scene(rng, min_items=count, max_items=count)
        assert len(scene.items) == count


def test_impossible_wishes_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="at least 32 px"):
        shapes_world.make_scene(rng, width=16)
    with pytest.raises(InputError, match="min_items <= max_items"):
        shapes_world.make_scene(rng, min_items=3, max_items=2)
    with pytest.raises(InputError, match="Lower max_items"):
        shapes_world.make_scene(rng, min_items=60, max_items=60)
