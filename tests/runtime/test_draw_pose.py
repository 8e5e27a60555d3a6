from __future__ import annotations

import numpy as np
from PIL import Image

from visionllm_edge.runtime.draw_pose import draw_skeletons
from visionllm_edge.runtime.keypoints import PRESETS
from visionllm_edge.runtime.results import Keypoint, Pose, PoseResult

BOX = (8.0, 8.0, 40.0, 56.0)


def pose(*keypoints: Keypoint, score: float = 0.9) -> Pose:
    return Pose("person", score, BOX, keypoints)


def changed(drawn: Image.Image, x: int, y: int) -> bool:
    return drawn.getpixel((x, y)) != (90, 90, 90)


def blank(side: int = 128) -> Image.Image:
    return Image.new("RGB", (side, side), (90, 90, 90))


def test_lines_points_and_box() -> None:
    hip, knee = Keypoint("left hip", 20.0, 20.0), Keypoint("left knee", 20.0, 40.0)
    canvas = blank()
    drawn = draw_skeletons(canvas, [pose(hip, knee)], 2.0)
    assert canvas.getpixel((40, 60)) == (90, 90, 90)  # the given picture is not written to
    assert changed(drawn, 40, 60)  # half way between the two points
    assert drawn.getpixel((40, 40)) == (255, 255, 255)  # a left side's point
    assert changed(drawn, 80, 80) and not changed(drawn, 60, 80)  # the box's edge, and inside it


def test_points_that_nothing_joins_get_no_line() -> None:
    beak, tip = Keypoint("beak", 20.0, 20.0), Keypoint("wing tip", 20.0, 40.0)
    assert not changed(draw_skeletons(blank(), [pose(beak, tip)], 2.0), 40, 60)


def test_sides_have_colours_of_their_own() -> None:
    ends = [Keypoint("left eye", 12.0, 30.0), Keypoint("right eye", 24.0, 30.0)]
    drawn = draw_skeletons(blank(), [pose(*ends, Keypoint("nose", 36.0, 30.0))], 2.0)
    assert len({drawn.getpixel((x, 60)) for x in (24, 48, 72)}) == 3


def test_the_best_pose_lies_on_top() -> None:
    point = Keypoint("nose", 20.0, 30.0)
    best, other = pose(point, score=0.9), pose(point, score=0.2)
    alone = draw_skeletons(blank(), [best], 2.0)
    both = draw_skeletons(blank(), [best, other], 2.0)
    assert alone.tobytes() == both.tobytes()


def test_what_lies_outside_is_drawn_at_the_border() -> None:
    far = [Keypoint(name, -1e6, 1e6) for name in PRESETS["face68"].keypoints]
    drawn = draw_skeletons(blank(32), [Pose("face", 1.0, (-50, -50, 900, 900), tuple(far))], 1.0)
    assert drawn.size == (32, 32) and changed(drawn, 0, 31)


def test_a_result_draws_itself() -> None:
    image = np.full((64, 48, 3), 90, np.uint8)
    result = PoseResult((64, 48), (pose(Keypoint("nose", 20.0, 30.0)),))
    drawn = result.draw(image)
    assert drawn.size == (480, 640)
    assert drawn.getpixel((200, 300)) == (255, 60, 60)
    assert PoseResult((64, 48), ()).draw(image).getpixel((200, 300)) == (90, 90, 90)
