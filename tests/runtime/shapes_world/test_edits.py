from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.shapes_world import COLORS, SHAPES
from visionllm_edge.runtime.shapes_world.edits import (
    EDIT_KINDS,
    Edit,
    EditKind,
    draw_sketch,
    held_out,
    make_edit,
    make_sketch,
    sketch_of,
)


def _edits(kind: EditKind, count: int = 12) -> list[Edit]:
    rng = np.random.default_rng(3)
    return [make_edit(rng, kind=kind) for _ in range(count)]


def test_a_seed_always_gives_the_same_picture() -> None:
    first, second = (make_sketch(np.random.default_rng(7)) for _ in range(2))
    assert first == second
    np.testing.assert_array_equal(draw_sketch(first).image, draw_sketch(second).image)


@pytest.mark.parametrize("side", [64, 128])
def test_a_picture_shows_what_its_sketch_says(side: int) -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        sketch = make_sketch(rng)
        scene = draw_sketch(sketch, width=side, height=side)
        assert scene.image.shape == (side, side, 3)
        assert tuple(item.name for item in scene.items) == sketch.names
        centres = [(item.box_xyxy[0] + item.box_xyxy[2]) / 2 for item in scene.items]
        assert centres == sorted(centres)
        for item, figure in zip(scene.items, sketch.figures, strict=True):
            x0, y0, x1, y1 = item.box_xyxy
            assert abs(max(x1 - x0, y1 - y0) - figure.size * side) < 3
            assert min(x0, y0) >= 0
            assert max(x1, y1) <= side


def test_figures_do_not_touch_each_other() -> None:
    rng = np.random.default_rng(6)
    for _ in range(20):
        left, right = draw_sketch(make_sketch(rng, min_figures=2)).items
        assert left.box_xyxy[2] <= right.box_xyxy[0]


def test_a_caption_names_figures_from_left_to_right() -> None:
    sketch = sketch_of(["orange star", "blue person"], np.random.default_rng(0))
    assert sketch.caption == "an orange star and a blue person"
    assert sketch_of(["red circle"], np.random.default_rng(0)).caption == "a red circle"


def test_a_composed_picture_has_its_figures_in_the_middle_or_side_by_side() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        for names in (["red star"], ["red star", "blue person"]):
            boxes = [i.box_xyxy for i in draw_sketch(sketch_of(names, rng, composed=True)).items]
            middles = [(box[0] + box[2]) / 128 for box in boxes]
            wanted = [0.5] if len(names) == 1 else [0.26, 0.74]
            np.testing.assert_allclose(middles, wanted, atol=0.06)
            assert all(a[2] <= b[0] for a, b in pairwise(boxes))


@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_an_edit_changes_its_figure_and_nothing_else(kind: EditKind) -> None:
    for edit in _edits(kind):
        before, after = draw_sketch(edit.before), draw_sketch(edit.after)
        figure = edit.before.figures[edit.index]
        allowed = np.zeros((64, 64), dtype=np.bool_)
        x, y, size = (round(value * 64) for value in (figure.left, figure.top, figure.size))
        allowed[max(0, y - 2) : y + size + 3, max(0, x - 2) : x + size + 3] = True
        changed = (before.image != after.image).any(axis=2)
        assert changed.any()
        assert not (changed & ~allowed).any()


def test_instructions_say_what_changes() -> None:
    for edit in _edits("recolor"):
        old, new = edit.before.names[edit.index], edit.after.names[edit.index]
        assert edit.instruction == f"make the {old} {new.split()[0]}"
        assert old.split()[1] == new.split()[1]
        assert old != new
    for edit in _edits("replace"):
        old, new = edit.before.names[edit.index], edit.after.names[edit.index]
        assert edit.instruction == f"replace the {old} with a {new.split()[1]}"
        assert old.split()[0] == new.split()[0]
        assert old != new
    for edit in _edits("remove"):
        assert edit.instruction == f"remove the {edit.before.names[edit.index]}"
        assert len(edit.after.figures) == len(edit.before.figures) - 1 == 1


def test_no_edit_makes_two_figures_alike() -> None:
    for kind in EDIT_KINDS:
        for edit in _edits(kind, 40):
            assert len(set(edit.before.names)) == len(edit.before.names)
            assert len(set(edit.after.names)) == len(edit.after.names)


def test_a_tenth_of_the_pairs_is_kept_for_evaluation() -> None:
    names = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
    kept = [(a, b) for a in names for b in names if held_out([a, b])]
    assert 0.08 < len(kept) / len(names) ** 2 < 0.12
    # Every name stands among them on both sides, and none alone.
    assert {a for a, _ in kept} == {b for _, b in kept} == set(names)
    assert not any(held_out([name]) for name in names)


def _pairs(kept: bool | None) -> Sequence[bool]:
    rng = np.random.default_rng(1)
    return [held_out(make_sketch(rng, min_figures=2, kept=kept).names) for _ in range(60)]


def test_training_and_evaluation_do_not_share_a_pair() -> None:
    assert not any(_pairs(False))
    assert all(_pairs(True))
    assert 0 < sum(_pairs(None)) < 60
    assert all(
        held_out(make_edit(np.random.default_rng(i), kept=True).before.names) for i in range(9)
    )


def test_what_cannot_be_drawn_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="1 or 2 figures"):
        make_sketch(rng, max_figures=3)
    with pytest.raises(InputError, match="2 for the captions"):
        make_sketch(rng, kept=True)
    with pytest.raises(InputError, match="at least 32 px"):
        draw_sketch(make_sketch(rng), width=16, height=16)
    with pytest.raises(InputError, match="not higher than wide"):
        draw_sketch(make_sketch(rng), width=64, height=96)
