"""Several expressions, grounded captions, a class per pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from visionllm_edge.runtime import VisionLLM
from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.events import (
    DetectionEvent,
    DoneEvent,
    Event,
    GroupEvent,
    TokenEvent,
)
from visionllm_edge.runtime.pipelines.scripted import hidden_of_groups
from visionllm_edge.runtime.prompts import (
    SEGMENTATION_QUESTIONS,
    Text,
    scripted_answer,
    scripted_grounding,
)
from visionllm_edge.runtime.semantic import SemanticSum, sigmoid
from visionllm_edge.runtime.task_prompts import Phrase, grounded_caption_answer

EXPRESSIONS = ["the tall hat", "a dog, left", "the sky"]
CAPTION = grounded_caption_answer(["I see ", Phrase("a red cat"), " and ", Phrase("two dogs"), "."])


def model(toy: Any) -> VisionLLM:
    return VisionLLM(toy.pipeline)


def test_several_expressions_are_each_asked_alone(toy: Any, make_toy: Any, photo: Any) -> None:
    several = model(toy).ground(photo, EXPRESSIONS, masks=True)

    assert several.classes == tuple(EXPRESSIONS)
    assert sorted(d.group for d in several.detections) == [0, 1, 2]
    assert all(d.label == EXPRESSIONS[d.group] for d in several.detections)
    scores = [d.score for d in several.detections]
    assert scores == sorted(scores, reverse=True)
    for found in several.detections:
        (alone,) = model(make_toy()).ground(photo, found.label).detections
        assert found.score == pytest.approx(alone.score, abs=1e-5)
        assert found.box_xyxy == pytest.approx(alone.box_xyxy, abs=1e-3)
        assert found.mask is not None
    assert toy.calls("det_backbone") == 1 and toy.calls("vision_encoder") == 1
    assert len(toy.decoder.log) == 3
    whole = toy.decoder.log[0][1]
    assert all(new < whole / 2 for _, new in toy.decoder.log[1:])  # the beginning is shared


def test_events_of_several_expressions(toy: Any, photo: Any) -> None:
    events: list[Event] = []
    model(toy).ground(photo, EXPRESSIONS, stream=events.append)
    assert [type(e) for e in events] == [GroupEvent, DetectionEvent] * 3 + [DoneEvent]
    assert [(e.label, e.index) for e in events if isinstance(e, GroupEvent)] == [
        (text, i) for i, text in enumerate(EXPRESSIONS)
    ]


def test_free_words_for_several_expressions(toy: Any, photo: Any) -> None:
    toy.reply("locate", scripted_grounding())
    toy.reply("the sky", (Text("There is none."),))
    toy.decoder.replies = dict(reversed(toy.decoder.replies.items()))
    events: list[Event] = []

    scripted = model(toy).ground(photo, EXPRESSIONS[:2])
    free = model(toy).ground(photo, EXPRESSIONS, mode="free", stream=events.append)

    assert free.text.splitlines() == ["Sure,[GRD].", "Sure,[GRD].", "There is none."]
    assert [(d.label, d.group) for d in free.detections] == [
        (d.label, d.group) for d in scripted.detections
    ]
    for ours, theirs in zip(free.detections, scripted.detections, strict=True):
        assert ours.box_xyxy == pytest.approx(theirs.box_xyxy, abs=1e-3)
    assert [e.index for e in events if isinstance(e, GroupEvent)] == [0, 1]


@pytest.mark.parametrize(
    ("expressions", "message"),
    [([], "at least one"), (["a", " a "], "each once"), (["a", ""], "empty"), (["a\nb"], "line")],
)
def test_unusable_expressions_are_refused(
    toy: Any, photo: Any, expressions: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        model(toy).ground(photo, expressions)
    assert toy.decoder.log == []


def test_a_grounded_caption(toy: Any, photo: Any) -> None:
    toy.reply("localize", CAPTION)
    events: list[Event] = []

    result = model(toy).grounded_caption(
        photo, threshold=0.0, top_k=6, masks=True, stream=events.append
    )

    assert result.text == "I see a red cat and two dogs."
    assert [(p.text, p.start, p.end, p.group) for p in result.phrases] == [
        ("a red cat", 6, 15, 0),
        ("two dogs", 20, 28, 1),
    ]
    assert {(d.label, d.group) for d in result.detections} == {("a red cat", 0), ("two dogs", 1)}
    assert len(result.detections) == 6 and all(d.mask is not None for d in result.detections)
    streamed = "".join(e.text for e in events if isinstance(e, TokenEvent))
    assert streamed.strip() == "I see<det> a red cat</det>[DET] and<det> two dogs</det>[DET]."
    found = tuple(e.detection for e in events if isinstance(e, DetectionEvent))
    assert found == result.detections
    assert toy.stages.stages["det_encoder"].calls[0]["text_states"][1] == 2


def test_phrases_without_a_group_are_not_looked_for(toy: Any, photo: Any) -> None:
    toy.reply("localize", (Text("Nothing here."),))
    result = model(toy).grounded_caption(photo)
    assert (result.text, result.phrases, result.detections) == ("Nothing here.", (), ())
    assert toy.calls("det_backbone") == 0


def test_another_question_may_be_asked(toy: Any, photo: Any) -> None:
    toy.reply("left half", CAPTION)
    assert len(model(toy).grounded_caption(photo, "Tell me the left half.").phrases) == 2
    with pytest.raises(InputError, match="question"):
        model(toy).grounded_caption(photo, " ")


def test_every_pixel_gets_its_best_class(toy: Any, photo: Any) -> None:
    """Against the formula over all queries, from the same stages."""
    names = ["sky", "sea", "sand"]
    result = model(toy).semantic(photo, names, threshold=0.0)

    pipeline = toy.pipeline
    picture = pipeline.open(photo)
    question = SEGMENTATION_QUESTIONS[0].format(classes="sky, sea, sand")
    hidden = hidden_of_groups(pipeline, picture, question, scripted_answer(names, "[SEG]"))
    stages = {name: stage.function for name, stage in toy.stages.stages.items()}
    prepared = picture.features["det_backbone"].prepared
    maps = stages["det_backbone"](prepared.pixels)
    encoded = stages["det_encoder"](
        *(maps[f"map{i}"] for i in (2, 3, 4)), np.array(prepared.valid_size), hidden[None]
    )
    decoded = stages["det_decoder"](encoded["memory"], encoded["text"], None)
    masks = stages["det_masks"](maps["map1"], encoded["memory"], decoded["queries"])["masks"]
    total = SemanticSum(3, valid_size=prepared.valid_size, original_size=(40, 48))
    total.add(sigmoid(decoded["logits"][0]), masks[0])

    assert result.labels.shape == (40, 48) and result.labels.dtype == np.int16
    np.testing.assert_array_equal(result.labels, total.labels(0.0))
    assert result.text == "Sure, here are results for sky[SEG], sea[SEG], sand[SEG]."
    assert toy.stages.stages["det_masks"].calls[0]["queries"][1] == 6  # all of them
    assert (model(toy).semantic(photo, names, threshold=1.0).labels == -1).any()


def test_masks_of_all_queries_are_made_a_few_at_a_time(
    toy: Any, photo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from visionllm_edge.runtime.pipelines import detector

    whole = model(toy).semantic(photo, ["sky", "sea"], threshold=0.0).labels
    monkeypatch.setattr(detector, "_QUERIES_AT_ONCE", 4)
    parts = model(toy).semantic(photo, ["sky", "sea"], threshold=0.0).labels
    assert [c["queries"][1] for c in toy.stages.stages["det_masks"].calls] == [6, 4, 2]
    assert (whole == parts).mean() > 0.999


def test_a_bundle_without_a_detector(make_full: Any, photo: Any) -> None:
    vlm = model(make_full(without="detector"))
    with pytest.raises(InputError, match="detector"):
        vlm.ground(photo, "a cat")
    with pytest.raises(InputError, match="detector"):
        vlm.grounded_caption(photo)
    with pytest.raises(InputError, match="detector"):
        vlm.semantic(photo, ["a"])
