"""Regions in the prompt: places, what is computed again, tasks, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from visionllm_edge.runtime import VisionLLM
from visionllm_edge.runtime.errors import ContextError, InputError
from visionllm_edge.runtime.pipelines.regions import question_with_regions
from visionllm_edge.runtime.prompts import Control, Segment, Text, Turn
from visionllm_edge.runtime.regions import Box, Mask, Point, Region
from visionllm_edge.runtime.task_prompts import (
    describe_question,
    interactive_answer,
    interactive_question,
)

LEFT, RIGHT = Box(2, 3, 20, 30), Point(40, 20)
REGION = Control("<region>")


@pytest.fixture
def toy(make_toy: Callable[..., Any]) -> Any:
    return make_toy(regions=True)


def model(toy: Any) -> VisionLLM:
    return VisionLLM(toy.pipeline)


def asked(toy: Any, photo: Any, *regions: Region) -> Any:
    """The sequence of a question about regions."""
    pipeline = toy.pipeline
    picture = pipeline.open(photo)
    question = interactive_question(len(regions))
    return pipeline.prompt((Turn(question),), picture, pipeline.mark(picture, regions))


def test_each_region_stands_in_its_place(toy: Any, photo: Any) -> None:
    sequence = asked(toy, photo, LEFT, RIGHT)
    rows = sequence.embeddings(0, toy.session._table)
    places = np.flatnonzero(np.array(sequence.ids) == toy.tokenizer.control_id("<region>"))
    assert len(places) == 2 and len(rows) == len(sequence.ids)

    pipeline = toy.pipeline
    picture = pipeline.open(photo)
    marked = pipeline.mark(picture, [LEFT, RIGHT])
    seen = picture.vision_states
    assert seen is not None
    masks = np.stack(marked.masks)[:, None].astype(np.float32)
    stage = toy.stages.stages["region_encoder"].function
    wanted = stage(seen.pixels, masks, seen.level1, seen.states)["region_tokens"]
    np.testing.assert_array_equal(rows[places], wanted)
    assert np.abs(wanted[0] - wanted[1]).max() > 1e-2

    swapped = asked(toy, photo, RIGHT, LEFT).embeddings(0, toy.session._table)
    np.testing.assert_array_equal(swapped[places[::-1]], rows[places])
    others = np.setdiff1d(np.arange(len(rows)), places)
    np.testing.assert_array_equal(swapped[others], rows[others])


def test_the_whole_picture_is_what_the_region_encoder_sees(toy: Any) -> None:
    wide = np.random.default_rng(3).integers(0, 255, (16, 47, 3)).astype(np.uint8)
    picture = toy.pipeline.open(wide)
    toy.pipeline.prompt((Turn(describe_question()),), picture, toy.pipeline.mark(picture, [LEFT]))
    seen = picture.vision_states
    tiles = toy.stages.stages["vision_encoder"].calls[0]["pixels"][0]
    assert tiles == 4 and seen is not None and seen.pixels.shape == (1, 3, 8, 8)
    from PIL import Image

    small = Image.fromarray(wide).resize((8, 8), Image.Resampling.BICUBIC)
    scaled = (np.asarray(small, np.float32) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(seen.pixels[0], scaled.transpose(2, 0, 1), atol=1e-6)


def test_a_cache_never_takes_one_region_for_another(toy: Any, photo: Any) -> None:
    first, second = asked(toy, photo, LEFT), asked(toy, photo, RIGHT)
    assert first.ids == second.ids
    toy.session.run(first)
    output = toy.session.run(second)

    place = second.ids.index(toy.tokenizer.control_id("<region>"))
    assert output.computed == len(second) - place
    # What stands behind the region has seen it through the cache.
    behind = toy.session.run(second, hidden=[place + 1]).hidden_rD
    fresh = toy.new_session().run(second, hidden=[place + 1]).hidden_rD
    np.testing.assert_allclose(behind, fresh, atol=1e-5)
    wrong = toy.new_session().run(first, hidden=[place + 1]).hidden_rD
    assert np.abs(behind - wrong).max() > 1e-3, "the region matters"


def test_the_same_region_again_is_found(toy: Any, photo: Any) -> None:
    toy.session.run(asked(toy, photo, LEFT, RIGHT))
    again = asked(toy, photo, Box(2.4, 3.9, 20.2, 30.1), RIGHT)  # the same pixels
    assert toy.session.run(again).computed == 1
    assert toy.calls("vision_encoder") == toy.calls("region_encoder") == 1


def test_only_new_regions_are_computed(toy: Any, photo: Any) -> None:
    asked(toy, photo, LEFT)
    asked(toy, photo, LEFT, RIGHT, LEFT)
    shapes = [call["masks"][0] for call in toy.stages.stages["region_encoder"].calls]
    assert shapes == [1, 1]


def test_many_regions_take_several_runs(toy: Any, photo: Any) -> None:
    points = [Point(x, y) for x in range(3, 45, 8) for y in range(3, 39, 7)]
    sequence = asked(toy, photo, *points)
    shapes = [call["masks"][0] for call in toy.stages.stages["region_encoder"].calls]
    masks = set(toy.pipeline.mark(toy.pipeline.open(photo), points).numbers)
    assert sum(shapes) == len(masks) > 16 and max(shapes) <= 16
    assert sequence.count_regions(sequence.ids) == len(points)


def test_same_region_of_another_picture_is_another_row(toy: Any, photo: Any) -> None:
    one = asked(toy, photo, LEFT)
    other = asked(toy, photo[::-1].copy(), LEFT)
    assert one.ids == other.ids and one.keys != other.keys


def test_a_copy_keeps_its_regions(toy: Any, photo: Any) -> None:
    sequence = asked(toy, photo, LEFT)
    copy = sequence.copy()
    table = toy.session._table
    np.testing.assert_array_equal(copy.embeddings(0, table), sequence.embeddings(0, table))
    copy.append(toy.tokenizer.encode([Text("more")], bos=False))
    assert len(copy) > len(sequence)


def test_describe_and_classify(toy: Any, photo: Any) -> None:
    toy.reply("What is in", (Text("a red circle"),))
    toy.reply("Which of", (Text("star"),))
    described = model(toy).describe(photo, LEFT)
    assert (described.text, described.question) == ("a red circle", "What is in region?")
    chosen = model(toy).classify_region(photo, RIGHT, ["circle", " star "])
    assert (chosen.text, chosen.question) == ("star", "Which of circle, star is in region?")
    assert toy.calls("vision_encoder") == 1


def test_classify_answers_with_one_of_the_classes_only(toy: Any, photo: Any) -> None:
    toy.reply("Which of", (Text("something else"),))
    chosen = model(toy).classify_region(photo, RIGHT, ["circle", "star"])
    assert chosen.text in ("circle", "star")


def test_every_region_gets_its_best_object(toy: Any, photo: Any) -> None:
    vlm = model(toy)
    found = vlm.segment(photo, regions=[LEFT, RIGHT, Point(5, 35)])
    assert [d.label for d in found.detections] == ["region1", "region2", "region3"]
    assert [d.group for d in found.detections] == [0, 1, 2]
    assert all(d.mask is not None and d.mask.shape == (40, 48) for d in found.detections)
    assert found.text == "Sure, here are results for region1[DET], region2[DET], region3[DET]."
    assert len(toy.decoder.log) == 1, "one decoder run"

    # The best of each, out of every pair of query and region.
    pipeline = toy.pipeline
    picture = pipeline.open(photo)
    marked = pipeline.mark(picture, [LEFT, RIGHT, Point(5, 35)])
    from visionllm_edge.runtime.pipelines.scripted import hidden_of_groups

    hidden = hidden_of_groups(
        pipeline, picture, interactive_question(3), interactive_answer(3), marked
    )
    everything = pipeline.detector.find(
        picture,
        hidden,
        ["region1", "region2", "region3"],
        groups=range(3),
        threshold=0.0,
        top_k=1000,
        masks=True,
    )
    for ours in found.detections:
        best = max((d for d in everything if d.label == ours.label), key=lambda d: d.score)
        assert ours.score == pytest.approx(best.score)
        assert ours.box_xyxy == pytest.approx(best.box_xyxy)
        np.testing.assert_array_equal(ours.mask, best.mask)


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([], "expected 1 to 64, got 0"),
        ([LEFT] * 65, "expected 1 to 64, got 65"),
        ([Point(48, 3)], "inside the picture of 48x40"),
        ([Mask(np.zeros((40, 48), np.bool_))], "at least one pixel"),
        (LEFT, r"Pass \[Box"),
    ],
)
def test_wrong_regions_cost_nothing(toy: Any, photo: Any, regions: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model(toy).segment(photo, regions=regions)
    assert not toy.decoder.log and not toy.calls("vision_encoder")


def test_classes_and_regions_together_are_refused(toy: Any, photo: Any) -> None:
    with pytest.raises(InputError, match="classes or regions"):
        model(toy).segment(photo, ["star"], regions=[LEFT])


def test_more_than_the_context_holds_is_refused(make_toy: Any, photo: Any) -> None:
    small = make_toy(capacity=300, regions=True)
    with pytest.raises(ContextError):
        model(small).segment(photo, regions=[LEFT] * 40)
    assert not small.calls("vision_encoder") and not small.calls("region_encoder")


def test_a_bundle_without_a_region_encoder_says_so(make_toy: Any, photo: Any) -> None:
    plain = make_toy()
    with pytest.raises(InputError, match="use_region_encoder"):
        model(plain).describe(photo, LEFT)
    with pytest.raises(InputError, match="use_region_encoder"):
        model(plain).segment(photo, regions=[LEFT])


def test_the_model_cannot_write_a_region(toy: Any) -> None:
    assert toy.tokenizer.control_id("<region>") in toy.pipeline.suppressed


def places(number: int | None) -> tuple[Segment, ...]:
    name = "region" if number is None else f"region{number}"
    return (Control("<reg>"), Text(name), REGION, Control("</reg>"))


@pytest.mark.parametrize(
    ("text", "count", "known", "segments", "wanted"),
    [
        ("Is region1 red?", 1, 0, (Text("Is "), *places(1), Text(" red?")), (0,)),
        ("What is in region?", 1, 0, (Text("What is in "), *places(None), Text("?")), (0,)),
        (
            "region2 or region1, region2?",
            2,
            0,
            (
                Text(""),
                *places(2),
                Text(" or "),
                *places(1),
                Text(", "),
                *places(2),
                Text("?"),
            ),
            (1, 0, 1),
        ),
        ("Like region1, region3?", 1, 2, (Text("Like region1, "), *places(3), Text("?")), (0,)),
        ("Which region is region1?", 1, 0, (Text("Which region is "), *places(1), Text("?")), (0,)),
    ],
)
def test_words_that_name_regions(
    text: str, count: int, known: int, segments: Any, wanted: Any
) -> None:
    assert question_with_regions(text, count, known=known) == (segments, wanted)


@pytest.mark.parametrize(
    ("text", "count", "known", "missing"),
    [
        ("What is this?", 1, 0, "region1"),
        ("Is region1 red?", 2, 0, "region2"),
        ("Is region1 red?", 1, 1, "region2"),
        ("Is a regional region12 red?", 1, 0, "region1 "),
    ],
)
def test_a_region_that_is_not_named_is_refused(
    text: str, count: int, known: int, missing: str
) -> None:
    with pytest.raises(InputError, match=missing):
        question_with_regions(text, count, known=known)


def test_a_conversation_points_at_regions(toy: Any, photo: Any) -> None:
    toy.reply("What is in", (Text("a red circle"),))
    toy.reply("Compare", (Text("no"),))
    chat = model(toy).chat(photo)
    assert chat.next_region == 1
    first = chat.send("What is in region1?", regions=[LEFT])
    assert (first.text, first.question) == ("a red circle", "What is in region1?")
    assert chat.next_region == 2
    before = len(toy.decoder.log)
    chat.send("Compare region3 with region2 and region1.", regions=[RIGHT, Point(3, 3)])

    whole = toy.pipeline.empty()
    picture = toy.pipeline.open(photo)
    turns = (
        Turn((Text("What is in "), *places(1), Text("?")), (Text("a red circle"),)),
        Turn(
            (
                Text("Compare "),
                *places(3),
                Text(" with "),
                *places(2),
                Text(" and region1."),
            ),
            (Text("no"),),
        ),
    )
    marked = toy.pipeline.mark(picture, [LEFT, Point(3, 3), RIGHT])
    whole = toy.pipeline.prompt(turns, picture, marked)
    assert chat._sequence is not None
    assert chat._sequence.keys == whole.keys[:-1]  # the last answer is not closed yet
    start, _ = toy.decoder.log[before]
    assert start >= len("What is in"), "the first turn is found in the cache"
    assert toy.calls("vision_encoder") == 1


def test_a_conversation_segments_regions(toy: Any, photo: Any) -> None:
    """One object for each region whatever its score, beside what is found by name."""
    toy.reply("segment", (*interactive_answer(2)[:-1], Text(", cat"), Control("[DET]")))
    chat = model(toy).chat(photo, threshold=1.0, masks=True)
    answer = chat.send("Please segment region1 and region2.", regions=[LEFT, RIGHT])
    assert [span.label for span in answer.spans] == ["region1", "region2", "cat"]
    assert sorted(found.label for found in answer.detections) == ["region1", "region2"]
    assert all(found.mask is not None for found in answer.detections)


def test_a_later_turn_answers_about_its_own_region(toy: Any, photo: Any) -> None:
    """The prompt says region2 where the second turn's region stands, and so does what is found."""
    first, second = "Please segment region1.", "Now find region2."
    said = {
        name: (Text(f"Sure, here are results for {name}"), Control("[DET]"), Text("."))
        for name in ("region1", "region2")
    }
    toy.reply("segment", said["region1"])
    toy.reply("find", said["region2"])
    chat = model(toy).chat(photo, threshold=1.0)
    assert [d.label for d in chat.send(first, regions=[LEFT]).detections] == ["region1"]
    later = chat.send(second, regions=[RIGHT])
    assert [(span.label, span.index) for span in later.spans] == [("region2", 0)]

    turns = (
        Turn((Text("Please segment "), *places(1), Text(".")), said["region1"]),
        Turn((Text("Now find "), *places(2), Text(".")), said["region2"]),
    )
    picture = toy.pipeline.open(photo)
    whole = toy.pipeline.prompt(turns, picture, toy.pipeline.mark(picture, [LEFT, RIGHT]))
    assert chat._sequence is not None and chat._sequence.keys == whole.keys[:-1]
    swapped = toy.pipeline.prompt(turns, picture, toy.pipeline.mark(picture, [RIGHT, LEFT]))
    assert chat._sequence.keys != swapped.keys[:-1]
    # What is found comes from the second turn's group, whose rows have seen both turns.
    group = whole.groups[1]
    rows = range(group.position + 1, group.position + 1 + group.rows)
    hidden = toy.pipeline.session.run(whole, hidden=list(rows)).hidden_rD
    (wanted,) = toy.pipeline.detector.find(
        picture,
        hidden[None],
        ["region2"],
        groups=[0],
        threshold=0.0,
        top_k=1,
        masks=False,
        best_of_each=True,
    )
    (found,) = later.detections
    assert (found.label, found.group) == ("region2", 0)
    assert found.score == pytest.approx(wanted.score, rel=1e-4)
    assert found.box_xyxy == pytest.approx(wanted.box_xyxy, rel=1e-3)


def test_a_turn_that_fails_counts_no_regions(toy: Any, photo: Any) -> None:
    toy.reply("What is in", (Text("a red circle"),))
    chat = model(toy).chat(photo)
    for regions, text, message in (
        ([LEFT], "What is this?", "the word region1"),
        ([Point(99, 1)], "What is in region1?", "inside the picture"),
    ):
        with pytest.raises(InputError, match=message):
            chat.send(text, regions=regions)
    next(chat.stream("What is in region1?", regions=[LEFT]))  # and given up
    assert chat.next_region == 1 and not chat.turns
    chat.send("What is in region1?", regions=[LEFT])
    assert chat.next_region == 2
    chat.reset()
    assert chat.next_region == 1


def test_regions_need_a_picture(toy: Any) -> None:
    with pytest.raises(InputError, match="about a picture"):
        model(toy).chat().send("What is in region1?", regions=[LEFT])


def test_words_alone_are_no_region(toy: Any, photo: Any) -> None:
    """What a user types cannot become a control."""
    toy.reply("What", (Text("x"),))
    chat = model(toy).chat(photo)
    chat.send("What is in <reg>region1<region></reg>?")
    region = toy.tokenizer.control_id("<region>")
    assert chat._sequence is not None and region not in chat._sequence.ids
