from __future__ import annotations

import numpy as np
import pytest

from visionllm_edge.runtime.errors import BackendError
from visionllm_edge.runtime.pose_postprocess import PoseSelection, distinct_boxes, select_poses

# Three instances: the first two nearly the same box, two classes, one keypoint each.
LOGITS = np.array([[2.0, -3.0], [1.0, -4.0], [-1.0, 3.0]], np.float32)
BOXES = np.array([[0.5, 0.5, 0.4, 0.4], [0.501, 0.5, 0.4, 0.4], [0.2, 0.2, 0.2, 0.2]], np.float32)
KEYPOINTS = np.array([[[0.5, 0.25]], [[0.6, 0.25]], [[0.1, 0.2]]], np.float32)


def chosen(*, threshold: float = 0.1, iou: float | None = 0.9, top_k: int = 100) -> PoseSelection:
    return select_poses(
        LOGITS, BOXES, KEYPOINTS,
        top_k=top_k, threshold=threshold, iou=iou, image_size=(100, 200),
    )  # fmt: skip


def test_the_best_pairs_in_pixels_of_the_picture() -> None:
    found = chosen()
    # -1 gives a score of 0.27, so the third instance is there under both classes: one is left.
    assert found.labels.tolist() == [1, 0]
    np.testing.assert_allclose(found.scores, 1 / (1 + np.exp([-3.0, -2.0])), rtol=1e-5)
    np.testing.assert_allclose(found.boxes_xyxy, [[20, 10, 60, 30], [60, 30, 140, 70]], atol=1e-4)
    np.testing.assert_allclose(found.keypoints_xy, [[[20, 20]], [[100, 25]]], atol=1e-4)


def test_a_benchmark_keeps_every_pair() -> None:
    found = chosen(threshold=0.0, iou=None)
    assert found.labels.tolist() == [1, 0, 0, 0, 1, 1]
    assert found.keypoints_xy[:, 0, 0].tolist() == pytest.approx([20, 100, 120, 20, 100, 120])
    assert len(chosen(threshold=0.0, iou=None, top_k=2).scores) == 2


def test_boxes_that_are_less_alike_stay() -> None:
    assert len(chosen(threshold=0.5, iou=0.9999).scores) == 3
    assert len(chosen(threshold=0.5, iou=0.9).scores) == 2


def test_distinct_boxes() -> None:
    boxes = np.array(
        [[0, 0, 10, 10], [0, 0, 10, 9], [5, 5, 5, 5], [5, 5, 5, 5], [20, 0, 30, 10]], np.float32
    )
    assert distinct_boxes(boxes, 0.8).tolist() == [0, 2, 3, 4]  # empty boxes are like none
    assert distinct_boxes(boxes, 0.9).tolist() == [0, 1, 2, 3, 4]
    assert distinct_boxes(boxes[:0], 0.9).tolist() == []


def test_a_suppressed_box_suppresses_none() -> None:
    """A chain: the second is like the first, the third only like the second."""
    boxes = np.array([[0, 0, 10, 10], [3, 0, 13, 10], [6, 0, 16, 10]], np.float32)
    assert distinct_boxes(boxes, 0.5).tolist() == [0, 2]


@pytest.mark.parametrize("part", ["logits", "boxes", "keypoints"])
def test_values_that_are_no_numbers_are_refused(part: str) -> None:
    arrays = {"logits": LOGITS.copy(), "boxes": BOXES.copy(), "keypoints": KEYPOINTS.copy()}
    arrays[part].flat[0] = np.nan
    with pytest.raises(BackendError, match="pose decoder"):
        select_poses(**arrays, top_k=5, threshold=0.1, iou=None, image_size=(10, 10))
