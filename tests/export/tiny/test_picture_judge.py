from pathlib import Path

import numpy as np

from visionllm_edge.export.tiny.frozen_model import frozen_model, frozen_tokenizer
from visionllm_edge.export.tiny.picture_judge import edit_done, found_names, near_misses
from visionllm_edge.runtime.shapes_world.edits import draw_sketch, make_edit, make_sketch

CHECKPOINT = Path(__file__).parents[3] / "export" / "tiny" / "checkpoint"


def test_drawn_pictures_are_judged_right_and_others_wrong() -> None:
    model, tokenizer = frozen_model(CHECKPOINT), frozen_tokenizer(CHECKPOINT)
    rng = np.random.default_rng(4)
    sketches = [make_sketch(rng, kept=None) for _ in range(8)]
    asked = [near_misses(sketch.names, rng) for sketch in sketches]
    images = [draw_sketch(sketch).image for sketch in sketches]
    found = found_names(model, tokenizer, images, asked)
    assert [set(seen) for seen in found] == [set(sketch.names) for sketch in sketches]
    wrong = found_names(model, tokenizer, images[1:] + images[:1], asked)
    right = [set(s.names) <= seen.keys() for s, seen in zip(sketches, wrong, strict=True)]
    assert sum(right) <= 1
    grey = found_names(model, tokenizer, [np.full((64, 64, 3), 128, np.uint8)], asked[:1])
    assert grey == [{}]


def test_near_misses_hold_the_names_and_what_is_close_to_them() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        names = near_misses(["red circle", "blue star"], rng)
        assert len(set(names)) == 6
        assert {"red circle", "blue star"} <= set(names)


def test_an_edit_is_done_when_the_new_is_there_and_the_old_is_not() -> None:
    rng = np.random.default_rng(0)
    recolor = make_edit(rng, kind="recolor", kept=True)
    old, new = recolor.before.names[recolor.index], recolor.after.names[recolor.index]
    other = recolor.before.names[1 - recolor.index]
    assert edit_done(recolor, {new: 0.9, other: 0.9}) == (True, True)
    assert edit_done(recolor, {new: 0.9}) == (True, False)
    assert edit_done(recolor, {new: 0.9, old: 0.4, other: 0.9}) == (False, True)
    assert edit_done(recolor, {other: 0.9}) == (False, True)
    removed = make_edit(rng, kind="remove")
    gone, kept = removed.before.names[removed.index], removed.before.names[1 - removed.index]
    assert edit_done(removed, {kept: 0.9}) == (True, True)
    assert edit_done(removed, {kept: 0.9, gone: 0.9}) == (False, True)
