from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from visionllm_edge.runtime import ChatResult, GenerationConfig, VisionLLM
from visionllm_edge.runtime.errors import ContextError, InputError
from visionllm_edge.runtime.events import DetectionEvent, DoneEvent, GroupEvent, TokenEvent
from visionllm_edge.runtime.prompts import Control, Text, Turn, scripted_answer

HELLO = (Text("Hello."),)
FIND = scripted_answer(["cat", "dog"])


@pytest.fixture
def talker(toy: Any) -> Any:
    toy.reply("hello", HELLO)
    toy.reply("find", FIND)
    toy.reply("both", (Text("Sure,"), Control("[GRD]"), Text(" and a hat"), Control("[DET]")))
    toy.reply("locate", (Text("Sure,"), Control("[GRD]"), Text(".")))
    toy.reply("tags", (Control("<det>"), Text("a fox"), Control("</det>"), Control("[DET]")))
    return toy


def test_turns_cost_their_new_words_only(talker: Any, photo: Any) -> None:
    chat = VisionLLM(talker.pipeline).chat(photo)
    chat.send("hello")
    before = len(talker.decoder.log)
    used = chat.context_used

    answer = chat.send("now find them")

    start, new = talker.decoder.log[before]
    # The last written token is not in the cache before it is needed, then "</s>" and the turn.
    assert start >= used - 1 and new <= len("USER: now find them ASSISTANT:") + 4
    assert talker.calls("vision_encoder") == 1
    assert answer.text == "Sure, here are results for cat[DET], dog[DET]."
    assert [question for question, _ in chat.turns] == ["hello", "now find them"]


def test_history_is_what_the_template_would_give(talker: Any, photo: Any) -> None:
    """Turn by turn and as one templated conversation: the same positions, groups included."""
    chat = VisionLLM(talker.pipeline).chat(photo)
    for question in ("find it", "hello", "find more"):
        chat.send(question)

    whole = talker.pipeline.prompt(
        (Turn("find it", FIND), Turn("hello", HELLO), Turn("find more", FIND)),
        talker.pipeline.open(photo),
    )

    assert chat._sequence is not None
    assert chat._sequence.keys == whole.keys[:-1]  # the last answer is not closed yet
    assert chat._sequence.groups == whole.groups
    assert len(whole.groups) == 4


def test_a_later_turn_equals_a_fresh_conversation(talker: Any, photo: Any) -> None:
    chat = VisionLLM(talker.pipeline).chat(photo, threshold=0.0)
    chat.send("find it")
    second = chat.send("find more")
    sequence = chat._sequence
    assert sequence is not None
    start = sequence.groups[2].position + 1
    hidden = talker.new_session().run(sequence, hidden=range(start, len(sequence))).hidden_rD
    rows = np.stack([hidden[:3], hidden[sequence.groups[3].position + 1 - start :][:3]])

    expected = talker.pipeline.detector.find(
        talker.pipeline.open(photo), rows, ["cat", "dog"],
        groups=[0, 1], threshold=0.0, top_k=100, masks=False,
    )  # fmt: skip

    assert [d.label for d in second.detections] == [d.label for d in expected]
    for ours, theirs in zip(second.detections, expected, strict=True):
        assert ours.score == pytest.approx(theirs.score, abs=1e-4)
        assert ours.box_xyxy == pytest.approx(theirs.box_xyxy, abs=1e-3)


def test_other_questions_between_turns_change_nothing(
    talker: Any, make_toy: Any, photo: Any
) -> None:
    vlm = VisionLLM(talker.pipeline)
    chat = vlm.chat(photo, threshold=0.0)
    chat.send("find it")
    vlm.detect(255 - photo, ["boat"])
    vlm.chat().send("hello")

    second = chat.send("find more")

    alone = make_toy()
    alone.decoder.replies = talker.decoder.replies
    quiet = VisionLLM(alone.pipeline).chat(photo, threshold=0.0)
    quiet.send("find it")
    expected = quiet.send("find more")
    assert second.text == expected.text
    for ours, theirs in zip(second.detections, expected.detections, strict=True):
        assert ours.score == pytest.approx(theirs.score, abs=1e-4)


def test_another_question_in_the_middle_of_an_answer_changes_nothing(
    talker: Any, photo: Any
) -> None:
    vlm = VisionLLM(talker.pipeline)
    expected = vlm.chat(photo, threshold=0.0).send("find it")
    events = []

    for event in vlm.chat(photo, threshold=0.0).stream("find it"):
        events.append(event)
        if isinstance(event, TokenEvent | GroupEvent):
            vlm.detect(255 - photo, ["boat"])

    done = events[-1]
    assert isinstance(done, DoneEvent) and isinstance(done.result, ChatResult)
    assert done.result.text == expected.text
    for ours, theirs in zip(done.result.detections, expected.detections, strict=True):
        assert ours.score == pytest.approx(theirs.score, abs=1e-4)


def test_events_end_with_detections_and_done(talker: Any, photo: Any) -> None:
    chat = VisionLLM(talker.pipeline).chat(photo, threshold=0.0, top_k=4, masks=True)
    kinds = [type(event) for event in chat.stream("find")]
    assert kinds[-5:] == [DetectionEvent] * 4 + [DoneEvent]
    assert kinds.count(GroupEvent) == 2
    result = chat.turns[0][1]
    assert all(found.mask is not None for found in result.detections)
    assert result.image_size == photo.shape[:2]


def test_a_referring_group_gives_one_box_and_is_named_by_the_question(
    talker: Any, photo: Any
) -> None:
    chat = VisionLLM(talker.pipeline).chat(photo, threshold=0.0, top_k=3)

    known = chat.send("Where can we locate the tall hat in the image?")
    free = chat.send("show me both")

    assert [(s.routing, s.label) for s in known.spans] == [("[GRD]", "tall hat")]
    assert [d.label for d in known.detections] == ["tall hat"]
    assert [(s.routing, s.label, s.index) for s in free.spans] == [
        ("[GRD]", "show me both", 0),
        ("[DET]", "a hat", 1),
    ]
    assert [d.group for d in free.detections].count(0) == 1
    assert [d.group for d in free.detections].count(1) == 3
    scores = [d.score for d in free.detections]
    assert scores == sorted(scores, reverse=True)


def test_phrase_tags_give_the_label(talker: Any, photo: Any) -> None:
    result = VisionLLM(talker.pipeline).chat(photo).send("tags")
    assert [s.label for s in result.spans] == ["a fox"]
    assert result.words == "a fox"
    assert [(p.text, p.start, p.end, p.group) for p in result.phrases] == [("a fox", 0, 5, 0)]


def test_without_a_picture(talker: Any) -> None:
    chat = VisionLLM(talker.pipeline).chat()
    assert chat.send("hello").text == "Hello."
    found = chat.send("find")
    assert len(found.spans) == 2 and found.detections == () and found.image_size is None
    assert talker.stages.asked == []


def test_reset_forgets_the_turns(talker: Any, photo: Any) -> None:
    chat = VisionLLM(talker.pipeline).chat(photo)
    chat.send("hello")
    used = chat.context_used
    chat.send("hello")
    chat.reset()
    assert chat.turns == () and chat.context_used == 0
    chat.send("hello")
    assert chat.context_used == used


def test_an_abandoned_answer_leaves_the_history(talker: Any, photo: Any) -> None:
    chat = VisionLLM(talker.pipeline).chat(photo)
    chat.send("hello")
    used = chat.context_used

    stream = chat.stream("find")
    for _ in range(5):
        next(stream)
    del stream

    assert chat.context_used == used and len(chat.turns) == 1
    assert chat.send("hello").text == "Hello."


def test_a_question_that_does_not_fit_loses_nothing(make_toy: Any, photo: Any) -> None:
    toy = make_toy(capacity=420)
    toy.reply("hello", HELLO)
    chat = VisionLLM(toy.pipeline).chat(photo)
    chat.send("hello")
    used = chat.context_used
    runs = len(toy.decoder.log)

    with pytest.raises(ContextError, match="at most 420"):
        chat.stream("hello " * 100)
    with pytest.raises(InputError, match="question"):
        chat.stream("  ")

    assert (chat.context_used, len(toy.decoder.log)) == (used, runs)
    assert chat.send("hello").text == "Hello."


def test_an_answer_cut_by_the_limit_can_be_followed(talker: Any, photo: Any) -> None:
    chat = VisionLLM(talker.pipeline).chat(photo)
    cut = chat.send("find", config=GenerationConfig(max_new_tokens=4))
    assert cut.finish_reason == "length" and cut.text == "Sur"
    assert chat.send("hello").text == "Hello."
