"""Scripted and free answers over one session: that they agree, and what they reuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from visionllm_edge.runtime import GenerationConfig, VisionLLM
from visionllm_edge.runtime.errors import ContextError, InputError
from visionllm_edge.runtime.events import (
    DetectionEvent,
    DoneEvent,
    Event,
    GroupEvent,
    TokenEvent,
)
from visionllm_edge.runtime.prompts import (
    DETECTION_QUESTIONS,
    Control,
    Segment,
    Text,
    Turn,
    scripted_answer,
    scripted_grounding,
)

CLASSES = ["red circle", "person", "blue star"]
ANY: dict[str, Any] = {"threshold": 0.0, "top_k": 8}


def model(toy: Any) -> VisionLLM:
    return VisionLLM(toy.pipeline)


def scripted_ids(toy: Any, answer: tuple[Segment, ...]) -> None:
    toy.reply("analyze", answer)
    toy.reply("locate", scripted_grounding())
    toy.reply("describe", (Text("A red circle above a person."),))
    toy.reply("colour", (Text("red"),))


def test_free_and_scripted_agree_when_the_words_are_the_same(toy: Any, photo: Any) -> None:
    scripted_ids(toy, scripted_answer(CLASSES))

    scripted = model(toy).segment(photo, CLASSES, **ANY)
    toy.session.rewind(0)
    free = model(toy).segment(photo, CLASSES, mode="free", **ANY)

    assert (
        free.text
        == scripted.text
        == ("Sure, here are results for red circle[DET], person[DET], blue star[DET].")
    )
    assert free.classes == scripted.classes == tuple(CLASSES)
    assert [d.label for d in free.detections] == [d.label for d in scripted.detections]
    assert len({d.label for d in free.detections}) > 1
    for ours, theirs in zip(free.detections, scripted.detections, strict=True):
        assert ours.box_xyxy == pytest.approx(theirs.box_xyxy, abs=1e-3)
        assert ours.score == pytest.approx(theirs.score, abs=1e-5)
        np.testing.assert_array_equal(ours.mask, theirs.mask)


@pytest.mark.parametrize("seed", range(6))
def test_collected_hidden_states_equal_one_prefill_for_any_words(
    toy: Any, photo: Any, seed: int
) -> None:
    """Random answers of the toy model with groups of three kinds, step by step and at once."""
    from visionllm_edge.runtime.llm import Generation

    pipeline = toy.pipeline
    picture = pipeline.open(photo)
    # Routing tokens are made likely, so that random answers hold several.
    routing = [toy.tokenizer.control_id(t) for t in ("[DET]", "[POSE]", "[GEN]", "[GRD]")]
    toy.table[routing] *= 4
    sequence = pipeline.prompt((Turn("anything"),), picture)
    prompt_ids = list(sequence.ids)
    config = GenerationConfig(max_new_tokens=40, temperature=1.5, seed=seed)
    steps = list(
        Generation(
            pipeline.session, sequence, toy.tokenizer, config, suppressed=pipeline.suppressed
        )
    )
    groups = [(s.group, s.hidden_ND) for s in steps if s.group is not None]
    assert len({g.routing for g, _ in groups}) > 1

    again = pipeline.empty()
    again.image = picture.image_rows
    again.append(prompt_ids)
    again.append([s.token for s in steps])
    at_once = toy.new_session().run(again, hidden=range(len(again))).hidden_rD

    assert again.groups == [g for g, _ in groups]
    for group, hidden in groups:
        rows = at_once[group.position + 1 : group.position + 1 + group.rows]
        assert hidden is not None
        np.testing.assert_allclose(hidden, rows, atol=1e-4)


def test_the_next_token_comes_from_the_last_super_link_row(toy: Any, photo: Any) -> None:
    scripted_ids(toy, scripted_answer(["a"]))
    model(toy).detect(photo, ["a"], mode="free")

    routing_steps = [step for step in toy.decoder.log if step[1] == 4]
    assert len(routing_steps) == 1
    start, _ = routing_steps[0]
    # "." follows: one more step of one position, right behind the rows.
    assert (start + 4, 1) in toy.decoder.log


def test_scripted_detection_is_one_decoder_run(toy: Any, photo: Any) -> None:
    model(toy).detect(photo, CLASSES)
    assert len(toy.decoder.log) == 1


def test_detect_then_caption_share_picture_and_prefix(toy: Any, photo: Any) -> None:
    scripted_ids(toy, ())
    vlm = model(toy)
    vlm.detect(photo, CLASSES)
    length = toy.decoder.log[-1][1]
    caption = vlm.caption(photo.copy())

    assert caption.text == "A red circle above a person."
    assert caption.finish_reason == "stop"
    start, new = toy.decoder.log[1]
    assert start > length / 3 and new < 80
    assert toy.calls("vision_encoder") == 1
    assert toy.calls("det_backbone") == 1

    vlm.detect(photo, ["other"])
    assert toy.calls("det_backbone") == 1
    assert toy.calls("det_encoder") == 2


def test_a_reused_prefix_changes_nothing(toy: Any, make_toy: Any, photo: Any) -> None:
    vlm = model(toy)
    vlm.detect(photo, ["something", "else"])
    used = vlm.detect(photo, CLASSES, **ANY)
    fresh = model(make_toy()).detect(photo, CLASSES, **ANY)

    assert used.detections[0].label == fresh.detections[0].label
    for ours, theirs in zip(used.detections, fresh.detections, strict=True):
        assert ours.score == pytest.approx(theirs.score, abs=1e-5)
        assert ours.box_xyxy == pytest.approx(theirs.box_xyxy, abs=1e-4)


def test_another_picture_is_looked_at(toy: Any, make_toy: Any, photo: Any) -> None:
    vlm = model(toy)
    vlm.detect(photo, CLASSES)
    other = 255 - photo

    used = vlm.detect(other, CLASSES, **ANY)
    fresh = model(make_toy()).detect(other, CLASSES, **ANY)

    assert toy.calls("det_backbone") == 2
    assert [d.label for d in used.detections] == [d.label for d in fresh.detections]
    assert used.detections[0].score == pytest.approx(fresh.detections[0].score, abs=1e-5)


def test_masks_are_made_for_selected_queries_only(toy: Any, photo: Any) -> None:
    result = model(toy).segment(photo, CLASSES, threshold=0.0, top_k=2)

    (call,) = toy.stages.stages["det_masks"].calls
    assert call["queries"][1] <= 2
    assert len(result.detections) == 2
    for found in result.detections:
        assert found.mask is not None
        assert found.mask.shape == photo.shape[:2] and found.mask.dtype == np.bool_


def test_no_masks_unless_asked_and_none_for_nothing(toy: Any, photo: Any) -> None:
    result = model(toy).detect(photo, CLASSES, **ANY)
    assert all(found.mask is None for found in result.detections)
    assert model(toy).segment(photo, CLASSES, threshold=1.0).detections == ()
    assert toy.calls("det_masks") == 0


def test_ground_gives_the_one_best_box(toy: Any, photo: Any) -> None:
    scripted_ids(toy, ())
    expression = "the red circle, left of the [DET] sign"

    scripted = model(toy).ground(photo, expression, masks=True)
    free = model(toy).ground(photo, expression, mode="free")

    assert [d.label for d in scripted.detections] == [expression]
    assert scripted.detections[0].mask is not None
    assert [d.label for d in free.detections] == [expression]
    assert free.detections[0].box_xyxy == pytest.approx(scripted.detections[0].box_xyxy, abs=1e-3)


def test_free_labels_come_from_the_words(toy: Any, photo: Any) -> None:
    answer = (
        Text("Sure, here are results for person"),
        Control("[DET]"),
        Text(", green hat"),
        Control("[DET]"),
    )
    scripted_ids(toy, answer)

    result = model(toy).detect(photo, ["red circle", "person"], mode="free", **ANY)

    assert result.classes == ("red circle", "person", "green hat")
    assert {(d.label, d.group) for d in result.detections} <= {("person", 1), ("green hat", 2)}
    assert toy.stages.stages["det_encoder"].calls[0]["text_states"][1] == 2


def test_free_detection_without_groups_finds_nothing(toy: Any, photo: Any) -> None:
    scripted_ids(toy, (Text("I see none of these."),))

    result = model(toy).detect(photo, ["person"], mode="free")

    assert result.detections == () and result.text == "I see none of these."
    assert toy.calls("det_backbone") == 0


def test_events_of_a_free_detection(toy: Any, photo: Any) -> None:
    scripted_ids(toy, scripted_answer(["cat", "dog"]))
    events: list[Event] = []

    result = model(toy).detect(
        photo, ["cat", "dog"], mode="free", threshold=0.0, top_k=3, stream=events.append
    )

    kinds = [type(event) for event in events]
    assert kinds[-1] is DoneEvent and kinds.count(DoneEvent) == 1
    assert "".join(e.text for e in events if isinstance(e, TokenEvent)) == result.text
    groups = [e for e in events if isinstance(e, GroupEvent)]
    assert [(g.label, g.index, g.routing) for g in groups] == [
        ("cat", 0, "[DET]"),
        ("dog", 1, "[DET]"),
    ]
    found = tuple(e.detection for e in events if isinstance(e, DetectionEvent))
    assert found == result.detections and len(found) == 3
    first = kinds.index(DetectionEvent)
    assert TokenEvent not in kinds[first:]


def test_events_of_a_scripted_detection(toy: Any, photo: Any) -> None:
    events: list[Event] = []
    model(toy).detect(photo, ["cat"], threshold=0.0, top_k=2, stream=events.append)
    assert [type(e) for e in events] == [GroupEvent, DetectionEvent, DetectionEvent, DoneEvent]


def test_vqa_asks_for_a_short_answer_and_reports_the_question(toy: Any, photo: Any) -> None:
    scripted_ids(toy, ())
    toy.reply("one word", (Text("red"),))

    result = model(toy).vqa(photo, "  which colour? ")

    assert (result.text, result.question, result.finish_reason) == ("red", "which colour?", "stop")


def test_max_new_tokens_ends_an_answer(toy: Any, photo: Any) -> None:
    scripted_ids(toy, ())
    result = model(toy).caption(photo, config=GenerationConfig(max_new_tokens=5))
    assert result.finish_reason == "length"
    assert result.text == "A re"  # the first id is the blank in front


def test_min_new_tokens_holds_the_end_back(toy: Any, photo: Any) -> None:
    scripted_ids(toy, ())
    toy.reply("one word", (Text("red"),))
    config = GenerationConfig(min_new_tokens=9, max_new_tokens=9)
    result = model(toy).vqa(photo, "which colour?", config=config)
    assert result.text.startswith("red") and len(result.text) > len("red")
    assert result.finish_reason == "length"


def test_the_context_ends_an_answer(make_toy: Any, photo: Any) -> None:
    toy = make_toy()
    scripted_ids(toy, scripted_answer(["a"]))
    vlm = model(toy)
    vlm.detect(photo, ["a"], mode="free")
    question = DETECTION_QUESTIONS[0].format(classes="a")
    prompt = len(toy.pipeline.prompt((Turn(question),), toy.pipeline.open(photo)))
    # Room for the words up to the routing token, but not for its rows.
    words = len("Sure, here are results for a") + 1
    small = make_toy(capacity=prompt + words + 3)
    scripted_ids(small, scripted_answer(["a"]))

    result = model(small).detect(photo, ["a"], mode="free")

    assert result.text == "Sure, here are results for a"
    assert result.detections == ()


def test_groups_are_capped(make_toy: Any, photo: Any) -> None:
    toy = make_toy(max_text_len=3)
    names = [f"c{i}" for i in range(6)]
    scripted_ids(toy, scripted_answer(names))

    result = model(toy).detect(photo, names[:3], mode="free", threshold=0.0)

    assert result.classes == ("c0", "c1", "c2")
    assert result.text.endswith("c2[DET], c3")


def test_a_prompt_longer_than_the_context_costs_nothing(make_toy: Any, photo: Any) -> None:
    toy = make_toy(capacity=300)
    with pytest.raises(ContextError, match=r"at most 300 positions.*got \d+"):
        model(toy).vqa(photo, "why? " * 100)
    with pytest.raises(ContextError, match="at most 300"):
        model(toy).detect(photo, [f"class number {i}" for i in range(40)])
    assert toy.decoder.log == [] and toy.stages.asked == []


def test_256_classes_work_and_257_do_not(make_toy: Any, photo: Any) -> None:
    toy = make_toy(capacity=6000)
    names = [f"c{i}" for i in range(257)]

    result = model(toy).detect(photo, names[:256], threshold=0.0, top_k=1)

    assert len(result.classes) == 256
    assert toy.stages.stages["det_encoder"].calls[0]["text_states"] == (1, 256, 3, 16)
    with pytest.raises(InputError, match=r"at most 256.*got 257"):
        model(toy).detect(photo, names)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "at least one"),
        (["a", " a "], "each class once"),
        (["a", " "], "empty"),
        (["a\nb"], "one line"),
        (["a\x00"], "one line"),
        (["a, b"], "comma"),
        (["a\ud800"], "surrogate"),
        ("person", "list of names"),
        ([3], "expected text"),
    ],
)
def test_unusable_class_lists_are_refused_before_any_work(
    toy: Any, photo: Any, classes: Any, message: str
) -> None:
    for mode in ("scripted", "free"):
        with pytest.raises(InputError, match=message):
            model(toy).detect(photo, classes, mode=mode)
    assert toy.decoder.log == [] and toy.stages.asked == []


@pytest.mark.parametrize("name", ["<image>", "[DET]", "a [DET] b", "</s>", "<im_patch>", "{x}"])
def test_control_words_in_class_names_are_plain_text(toy: Any, photo: Any, name: str) -> None:
    result = model(toy).detect(photo, [name, "dog"], **ANY)

    assert result.classes == (name, "dog")
    assert toy.stages.stages["det_encoder"].calls[0]["text_states"][1] == 2
    assert result.text == f"Sure, here are results for {name}[DET], dog[DET]."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "other"}, "mode"),
        ({"threshold": 1.5}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"top_k": 0}, "top_k"),
        ({"routing": "[POSE]"}, "routing token"),
        ({"routing": "</s>"}, "routing token"),
    ],
)
def test_unusable_options_are_refused(
    toy: Any, photo: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        model(toy).detect(photo, ["a"], **options)


def test_seg_routing_asks_for_segmentation(toy: Any, photo: Any) -> None:
    events: list[Event] = []
    result = model(toy).segment(photo, ["sky"], routing="[SEG]", stream=events.append, **ANY)
    assert result.text == "Sure, here are results for sky[SEG]."
    assert isinstance(events[0], GroupEvent) and events[0].routing == "[SEG]"


def test_position_markers_are_never_written(toy: Any) -> None:
    names = {toy.tokenizer.control_name(token) for token in toy.pipeline.suppressed}
    assert {"[EMB]", "<im_patch>", "<image>", "[PAD]", "<s>"} <= names
    assert not {"[DET]", "[POSE]", "</s>", "<det>"} & names
