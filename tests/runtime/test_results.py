"""Results and events: JSON, COCO, pictures."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.events import DetectionEvent, DoneEvent, Event, GroupEvent, TokenEvent
from visionllm_edge.runtime.results import ChatResult, Detection, DetectionResult, Span, TextResult
from visionllm_edge.runtime.rle import encode_mask

MASK = np.zeros((12, 16), dtype=bool)
MASK[2:6, 3:9] = True
RED = Detection("red circle", 0.75, (3.0, 2.0, 9.0, 6.0), MASK, 0)
DOG = Detection("dog", 0.5, (0.0, 1.0, 4.0, 8.0), None, 1)
RESULT = DetectionResult((12, 16), (RED, DOG), "red circle[DET], dog[DET].", ("red circle", "dog"))


def through_json(value: object) -> Any:
    return json.loads(json.dumps(value, allow_nan=False))


def test_detection_result_is_plain_json() -> None:
    assert through_json(RESULT.to_dict()) == {
        "image_size": {"height": 12, "width": 16},
        "classes": ["red circle", "dog"],
        "text": "red circle[DET], dog[DET].",
        "detections": [
            {
                "label": "red circle",
                "score": 0.75,
                "box_xyxy": [3.0, 2.0, 9.0, 6.0],
                "group": 0,
                "mask_rle": encode_mask(MASK),
            },
            {"label": "dog", "score": 0.5, "box_xyxy": [0.0, 1.0, 4.0, 8.0], "group": 1},
        ],
    }
    assert "mask_rle" not in json.dumps(RESULT.to_dict(masks=False))


def test_numpy_numbers_become_plain_ones() -> None:
    corners: Any = tuple(np.arange(4, dtype=np.float32))
    score: Any = np.float32(0.5)
    group: Any = np.int64(3)
    found = Detection("a", score, corners, None, group)
    assert through_json(found.to_dict())["group"] == 3


def test_coco_entries() -> None:
    first, second = RESULT.to_coco(7, {"red circle": 1, "dog": 18})
    assert first == {
        "image_id": 7,
        "category_id": 1,
        "bbox": [3.0, 2.0, 6.0, 4.0],
        "score": 0.75,
        "segmentation": encode_mask(MASK),
    }
    assert second["category_id"] == 18 and "segmentation" not in second


def test_coco_loads_in_pycocotools() -> None:
    coco = pytest.importorskip("pycocotools.mask")
    entry = RESULT.to_coco(1, {"red circle": 1, "dog": 2})[0]
    assert int(coco.area(entry["segmentation"])) == MASK.sum()
    assert coco.toBbox(entry["segmentation"]).tolist() == [3, 2, 6, 4]


def test_a_label_without_category_is_named() -> None:
    with pytest.raises(InputError, match="'dog' has no category id"):
        RESULT.to_coco(1, {"red circle": 1})


def test_masks_take_no_part_in_comparisons() -> None:
    assert Detection("red circle", 0.75, (3.0, 2.0, 9.0, 6.0), ~MASK, 0) == RED != DOG


def test_text_and_chat_json() -> None:
    assert TextResult("red", "What colour?").to_dict() == {
        "text": "red",
        "question": "What colour?",
        "finish_reason": "stop",
    }
    chat = ChatResult("dog [DET]", (Span("[DET]", "dog", 0),), (DOG,), (12, 16), "Where?", "length")
    data = through_json(chat.to_dict())
    assert data["spans"] == [{"routing": "[DET]", "label": "dog", "index": 0}]
    assert data["finish_reason"] == "length"
    assert ChatResult("hello").to_dict()["image_size"] is None


def test_events_say_what_they_are() -> None:
    events: list[Event] = [
        TokenEvent("dog", 17),
        GroupEvent("[DET]", "dog", 0),
        DetectionEvent(DOG),
        DoneEvent(RESULT),
    ]
    data = [through_json(event.to_dict()) for event in events]
    assert [d["event"] for d in data] == ["token", "group", "detection", "done"]
    assert data[2]["detection"]["label"] == "dog"
    assert data[3]["result"]["classes"] == ["red circle", "dog"]


def test_results_draw_themselves() -> None:
    image = np.full((12, 16, 3), 128, dtype=np.uint8)
    plain = RESULT.draw(image)
    assert isinstance(plain, Image.Image) and plain.size == (640, 480)
    chat = ChatResult("a dog", (), (DOG,), (12, 16), "What?").draw(image)
    assert chat.width == 640 and chat.height > 480
    assert TextResult("a dog").draw(image).height < chat.height
