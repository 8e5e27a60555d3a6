"""JSON, COCO and pictures of poses, grounded captions and classes per pixel."""

from __future__ import annotations

import json

import numpy as np
import pytest

from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.results import (
    ChatResult,
    Detection,
    GroundedCaptionResult,
    GroundedPhrase,
    Keypoint,
    Pose,
    PoseResult,
    SemanticResult,
)

SIZE = (40, 48)
IMAGE = np.full((40, 48, 3), 90, np.uint8)
POSE = Pose(
    "cat",
    float(np.float32(0.75)),
    (1.0, 2.0, 30.0, 35.0),
    (Keypoint("nose", 10.0, 11.5), Keypoint("tail", 20.0, 21.0)),
    group=1,
)
POSES = PoseResult(SIZE, (POSE,), "Sure.", ("dog", "cat"), ("nose", "tail"))


def test_poses_are_plain_json() -> None:
    data = json.loads(json.dumps(POSES.to_dict()))
    assert data["keypoint_names"] == ["nose", "tail"] and data["classes"] == ["dog", "cat"]
    assert data["poses"] == [
        {
            "label": "cat",
            "score": 0.75,
            "box_xyxy": [1.0, 2.0, 30.0, 35.0],
            "keypoints": [
                {"name": "nose", "x": 10.0, "y": 11.5},
                {"name": "tail", "x": 20.0, "y": 21.0},
            ],
            "group": 1,
        }
    ]


def test_poses_as_coco_results() -> None:
    assert POSES.to_coco(7, {"cat": 17}) == [
        {
            "image_id": 7,
            "category_id": 17,
            "keypoints": [10.0, 11.5, 1, 20.0, 21.0, 1],
            "score": 0.75,
        }
    ]
    with pytest.raises(InputError, match=r"'cat' has no category id"):
        POSES.to_coco(7, {"dog": 18})


def test_a_grounded_caption_is_plain_json_and_draws() -> None:
    found = Detection("a cat", 0.5, (1.0, 2.0, 30.0, 35.0), np.ones(SIZE, bool))
    result = GroundedCaptionResult(
        SIZE, "I see a cat.", (GroundedPhrase("a cat", 6, 11, 0),), (found,)
    )
    data = json.loads(json.dumps(result.to_dict()))
    assert data["phrases"] == [{"text": "a cat", "start": 6, "end": 11, "group": 0}]
    assert "mask_rle" in data["detections"][0]
    assert "mask_rle" not in json.dumps(result.to_dict(masks=False))
    drawn = result.draw(IMAGE)
    assert drawn.width == 640 and drawn.height > 640 * 40 / 48  # the words stand below


def test_classes_per_pixel() -> None:
    labels = np.full(SIZE, -1, np.int16)
    labels[:10], labels[30:] = 0, 2
    result = SemanticResult(SIZE, ("sky", "sea", "sand"), labels)
    assert result.to_dict()["pixels"] == {"sky": 480, "sea": 0, "sand": 480}
    drawn = np.asarray(result.draw(IMAGE))
    top, middle, bottom = (drawn[row, 320] for row in (60, 266, 480))
    assert not np.array_equal(top, bottom) and tuple(middle) == (90, 90, 90)


def test_a_chat_result_has_words_phrases_and_poses() -> None:
    result = ChatResult(
        "a cat[DET]", image_size=SIZE, poses=(POSE,), words="a cat",
        phrases=(GroundedPhrase("a cat", 0, 5, 0),),
    )  # fmt: skip
    data = json.loads(json.dumps(result.to_dict()))
    assert data["words"] == "a cat" and data["phrases"][0]["end"] == 5
    assert data["poses"][0]["label"] == "cat" and data["images"] == []
    assert result.draw(IMAGE).tobytes() != ChatResult("a cat[DET]").draw(IMAGE).tobytes()
