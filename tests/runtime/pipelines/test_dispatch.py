"""Routing tokens of every decoder, in any turn, several in one answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from visionllm_edge.runtime import ChatResult, GenerationConfig, VisionLLM
from visionllm_edge.runtime.diffusion.image_maker import ImageOptions
from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.events import (
    DetectionEvent,
    DoneEvent,
    GroupEvent,
    ImageEvent,
    PoseEvent,
    ProgressEvent,
    TokenEvent,
)
from visionllm_edge.runtime.pipelines.pose import PoseSelecting
from visionllm_edge.runtime.prompts import Control, Text, Turn, scripted_answer
from visionllm_edge.runtime.task_prompts import (
    edit_answer,
    generation_answer,
    pose_answer,
)

IMAGES = ImageOptions(seed=7)
EVERYTHING = (
    *(Text("Sure, a cat"), Control("[DET]"), Text(" with a nose"), Control("[POSE]")),
    *(Text(", the hat"), Control("[GRD]"), Text(", a painting "), Control("[GEN]")),
    *(Text(" and a dog"), Control("[SEG]"), Text(", changed "), Control("[EDIT]"), Text(".")),
)


def replies(toy: Any) -> Any:
    toy.reply("hello", (Text("Hello."),))
    toy.reply("find", scripted_answer(["cat", "dog"]))
    toy.reply("pose", pose_answer(["cat", "dog"], ["nose", "left eye"]))
    toy.reply("generate", generation_answer())
    toy.reply("edit", edit_answer())
    toy.reply("everything", EVERYTHING)
    toy.reply("keypoints only", (Text("Sure, nose"), Control("[POSE]")))
    return toy


def chat(toy: Any, photo: Any, **options: Any) -> Any:
    wanted: dict[str, Any] = {
        "threshold": 0.0, "top_k": 5, "poses": PoseSelecting(0.0, None), "images": IMAGES,
    }  # fmt: skip
    return VisionLLM(replies(toy).pipeline).chat(photo, **{**wanted, **options})


def test_one_answer_for_every_decoder(full: Any, photo: Any) -> None:
    """Each group goes to its own decoder with its own hidden states, whatever stands around it."""
    talk = chat(full, photo)
    events = list(talk.stream("everything"))

    result = events[-1].result
    assert isinstance(result, ChatResult)
    assert [(s.routing, s.index) for s in result.spans] == [
        ("[DET]", 0), ("[POSE]", 1), ("[GRD]", 2), ("[GEN]", 3), ("[SEG]", 4), ("[EDIT]", 5),
    ]  # fmt: skip
    assert [s.label for s in result.spans][:2] == ["a cat", "with a nose"]
    assert {d.group for d in result.detections} == {0, 2, 4}
    assert [d.group for d in result.detections].count(2) == 1
    assert {(p.label, p.group) for p in result.poses} == {("a cat", 0)}
    assert [k.name for k in result.poses[0].keypoints] == ["with a nose"]
    assert [i.size for i in result.images] == [(16, 24), (16, 16)]
    assert result.words == "Sure, a cat with a nose, the hat, a painting and a dog, changed."

    # The same groups from one teacher-forced prefill over the whole conversation.
    pipeline = full.pipeline
    picture = pipeline.open(photo)
    sequence = pipeline.prompt((Turn("everything", EVERYTHING),), picture)
    states = full.new_session(1600).run(sequence, hidden=range(len(sequence))).hidden_rD
    det, pose, grd, gen, seg, edit = (
        states[g.position + 1 : g.position + 1 + g.rows] for g in sequence.groups
    )
    assert (len(det), len(pose), len(gen), len(edit)) == (3, 3, 7, 7)
    expected = [
        *pipeline.detector.find(
            picture, np.stack([det, seg]), ["a cat", "a dog"],
            groups=[0, 4], threshold=0.0, top_k=5, masks=False,
        ),
        *pipeline.detector.find(
            picture, grd[None], ["everything"], groups=[2], threshold=0.0, top_k=1, masks=False
        ),
    ]  # fmt: skip
    ours = sorted((d.group, d.label, d.score) for d in result.detections)
    for one, other in zip(ours, sorted((d.group, d.label, d.score) for d in expected), strict=True):
        assert one[:2] == other[:2] and one[2] == pytest.approx(other[2], abs=1e-4)
    poses = pipeline.pose.find(
        picture, det[None], pose[None], ["a cat"], ["with a nose"],
        groups=[0], selecting=PoseSelecting(0.0, None),
    )  # fmt: skip
    assert [p.score for p in result.poses] == pytest.approx([p.score for p in poses], abs=1e-4)
    assert [p.keypoints[0].x for p in result.poses] == pytest.approx(
        [p.keypoints[0].x for p in poses], abs=1e-3
    )
    generated = _drain(pipeline.maker("generate"), gen, None)
    edited = _drain(pipeline.maker("edit"), edit, photo)
    assert np.abs(result.images[0].image.astype(int) - generated).max() <= 1
    assert np.abs(result.images[1].image.astype(int) - edited).max() <= 1
    swapped = _drain(pipeline.maker("generate"), edit, None)
    assert np.abs(generated.astype(int) - swapped).max() > 1  # the hidden states matter


def _drain(maker: Any, hidden: Any, source: Any) -> Any:
    plan = maker.plan(IMAGES, None if source is None else source.shape[:2])
    making = maker.make(np.ascontiguousarray(hidden), plan, source)
    try:
        while True:
            next(making)
    except StopIteration as end:
        return end.value


def test_the_stream_is_in_one_order(full: Any, photo: Any) -> None:
    kinds = [type(event) for event in chat(full, photo).stream("everything")]
    first = kinds.index(DetectionEvent)
    assert set(kinds[:first]) == {TokenEvent, GroupEvent} and kinds[:first].count(GroupEvent) == 6
    order = [kind for i, kind in enumerate(kinds) if not i or kinds[i - 1] is not kind][-7:]
    assert order == [
        DetectionEvent, PoseEvent, ProgressEvent, ImageEvent, ProgressEvent, ImageEvent, DoneEvent,
    ]  # fmt: skip


def test_any_turn_may_ask_any_decoder(full: Any, photo: Any) -> None:
    """What a turn finds does not depend on the kind of groups in the turns before it."""
    talk = chat(full, photo)
    kinds = {}
    for question in ("find", "generate", "pose", "hello", "edit", "find", "generate"):
        result = talk.send(question)
        kinds[question] = (len(result.detections), len(result.poses), len(result.images))
    assert kinds == {
        "find": (5, 0, 0),
        "generate": (0, 0, 1),
        "pose": (5, 8, 0),
        "hello": (0, 0, 0),
        "edit": (0, 0, 1),
    }
    assert {p.label for p in talk.turns[2][1].poses} == {"cat", "dog"}
    assert [k.name for k in talk.turns[2][1].poses[0].keypoints] == ["nose", "left eye"]
    assert talk.turns[1][1].images[0].text == "generate"


def test_the_turns_seed_is_the_pictures_unless_it_has_its_own(full: Any, photo: Any) -> None:
    config = GenerationConfig(seed=5)
    free = [
        chat(full, photo, images=ImageOptions()).send("generate", config=config).images[0]
        for _ in range(2)
    ]
    assert [image.seed for image in free] == [5, 5]
    np.testing.assert_array_equal(free[0].image, free[1].image)
    own = chat(full, photo, images=ImageOptions(seed=6)).send("generate", config=config).images[0]
    assert own.seed == 6 and not np.array_equal(own.image, free[0].image)


def test_keypoints_without_an_object_find_nothing(full: Any, photo: Any) -> None:
    result = chat(full, photo).send("keypoints only")
    assert [s.label for s in result.spans] == ["nose"]
    assert result.poses == () and full.calls("pose_backbone") == 0


def test_without_a_picture_nothing_is_looked_for(full: Any) -> None:
    talk = chat(full, None)
    posed = talk.send("pose")
    assert len(posed.spans) == 4 and posed.poses == () and posed.detections == ()
    assert talk.send("generate").images[0].size == (16, 24)
    with pytest.raises(InputError, match=r"\[EDIT\].*picture"):
        talk.send("edit")
    assert [question for question, _ in talk.turns] == ["pose", "generate"]


@pytest.mark.parametrize(
    ("without", "question", "routing", "flag"),
    [
        ("pose", "pose", "[POSE]", "use_unipose"),
        ("generate", "generate", "[GEN]", "use_sd"),
        ("edit", "edit", "[EDIT]", "use_ip2p"),
        ("detector", "find", "[DET]", "use_gdino"),
    ],
)
def test_a_routing_token_without_a_decoder_is_told(
    make_full: Any, photo: Any, without: str, question: str, routing: str, flag: str
) -> None:
    toy = make_full(without=without)
    talk = chat(toy, photo)
    talk.send("hello")
    used = talk.context_used
    with pytest.raises(InputError) as caught:
        talk.send(question)
    message = str(caught.value)
    assert routing in message and flag in message and "this bundle has none" in message
    assert talk.context_used == used and len(talk.turns) == 1
    assert talk.send("hello").text == "Hello."


def test_a_routing_token_without_a_table_is_told_too(make_toy: Any, photo: Any) -> None:
    """The plain toy knows no [EDIT] row at all, and [POSE] only as a table."""
    toy = make_toy()
    with pytest.raises(InputError, match=r"wrote \[POSE\].*use_unipose"):
        toy.reply("pose", (Text("Sure, nose"), Control("[POSE]")))
        VisionLLM(toy.pipeline).chat(photo).send("pose")
    link = next(link for link in toy.links if link.name == "gen")
    token = toy.tokenizer.control_id("[GEN]")
    assert toy.pipeline.has("generate") is False and link.decoder == "gen"
    assert "[GEN]" in toy.pipeline.unanswered[token]


def test_words_of_a_text_task_never_fail_for_a_decoder(make_full: Any, photo: Any) -> None:
    toy = make_full(without="pose")
    toy.reply("describe", (Text("A nose"), Control("[POSE]"), Text(" here.")))
    assert VisionLLM(toy.pipeline).caption(photo).text == "A nose[POSE] here."


def test_an_answer_that_repeats_itself_ends(full: Any, photo: Any) -> None:
    full.reply("many", tuple(part for _ in range(6) for part in (Text("x"), Control("[GEN]"))))
    result = chat(full, photo).send("many")
    assert len(result.images) == 4 and result.finish_reason == "length"


def test_keypoints_end_where_the_slots_do(make_full: Any, photo: Any) -> None:
    toy = make_full(max_keypoints=2)
    toy.reply("long", pose_answer(["cat"], ["nose", "left eye", "tail"]))
    result = chat(toy, photo).send("long")
    assert [s.label for s in result.spans] == ["cat", "nose", "left eye"]
    assert result.finish_reason == "length" and len(result.poses) == 4


def test_stopping_in_the_middle_of_a_picture_leaves_the_history(full: Any, photo: Any) -> None:
    talk = chat(full, photo)
    stream = talk.stream("generate")
    for event in stream:
        if isinstance(event, ProgressEvent):
            break
    del stream
    assert talk.turns == () and talk.send("hello").text == "Hello."


def test_sampling_may_write_any_decoders_token(full: Any, photo: Any) -> None:
    """Random words with groups of all kinds: every span has an answer or none by rule."""
    routing = [full.tokenizer.control_id(t) for t in ("[DET]", "[POSE]", "[GEN]", "[EDIT]")]
    full.table[routing] *= 4
    seen = set()
    for seed in range(4):
        talk = VisionLLM(full.pipeline).chat(photo, threshold=0.0, images=IMAGES)
        config = GenerationConfig(max_new_tokens=24, temperature=1.5, seed=seed)
        result = talk.send("anything", config=config)
        kinds = [s.routing for s in result.spans]
        seen |= set(kinds)
        assert len(result.images) == kinds.count("[GEN]") + kinds.count("[EDIT]")
        assert bool(result.poses) <= ("[POSE]" in kinds and "[DET]" in kinds)
        assert {d.group for d in result.detections} <= {
            s.index for s in result.spans if s.routing == "[DET]"
        }
    assert len(seen) >= 3
