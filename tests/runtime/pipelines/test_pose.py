"""The keypoint decoder's chain, and asking for poses: scripted, free, benchmark."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from visionllm_edge.runtime import VisionLLM
from visionllm_edge.runtime.decoder_specs import PoseSpec
from visionllm_edge.runtime.errors import BundleError, InputError
from visionllm_edge.runtime.events import DoneEvent, Event, GroupEvent, PoseEvent
from visionllm_edge.runtime.keypoints import PRESETS
from visionllm_edge.runtime.manifest import Normalization
from visionllm_edge.runtime.pipelines.pose import (
    BENCHMARK,
    PoseSelecting,
    pose_from_bundle,
)
from visionllm_edge.runtime.prompts import Control, Text
from visionllm_edge.runtime.task_prompts import pose_answer

NAMES = ["nose", "left eye", "tail"]
ALL: dict[str, Any] = {"threshold": 0.0, "nms_iou": None}


def model(toy: Any) -> VisionLLM:
    return VisionLLM(toy.pipeline)


def test_only_the_slots_that_were_asked_for_run(full: Any, photo: Any) -> None:
    result = model(full).pose(photo, ["cat", "dog"], NAMES, **ALL)

    (encoder,) = full.stages.stages["pose_encoder"].calls
    (keypoints,) = full.stages.stages["pose_keypoints"].calls
    assert encoder["object_states"] == (1, 2, 3, 16)
    assert keypoints["keypoint_states"] == (1, 3, 3, 16)
    assert len(result.poses) == 8  # four instances under two classes
    assert all([k.name for k in pose.keypoints] == NAMES for pose in result.poses)
    assert result.keypoint_names == tuple(NAMES) and result.classes == ("cat", "dog")
    assert {(pose.label, pose.group) for pose in result.poses} == {("cat", 0), ("dog", 1)}


def test_keypoints_are_in_pixels_of_the_picture(full: Any, photo: Any) -> None:
    """The decoder's own numbers, scaled: the picture is 48 wide and 40 high."""
    pose = model(full).pose(photo, ["cat"], NAMES).poses[0]
    left, top, right, bottom = pose.box_xyxy
    for keypoint in pose.keypoints:  # tanh keeps them inside the box, which is shifted by 0.01
        assert left - 1 <= keypoint.x <= right and top - 1 <= keypoint.y <= bottom
    assert right - left > 2 and bottom - top > 2


def test_the_hidden_states_reach_the_right_inputs(full: Any, photo: Any) -> None:
    """Objects and keypoints of one prefill, split where the keypoints begin."""
    from visionllm_edge.runtime.pipelines.scripted import hidden_of_groups
    from visionllm_edge.runtime.task_prompts import pose_question

    pipeline = full.pipeline
    picture = pipeline.open(photo)
    hidden = hidden_of_groups(
        pipeline, picture, pose_question(["cat"], NAMES), pose_answer(["cat"], NAMES)
    )
    expected = pipeline.pose.find(
        picture, hidden[:1], hidden[1:], ["cat"], NAMES, groups=[0], selecting=BENCHMARK
    )
    result = model(full).pose(photo, ["cat"], NAMES, benchmark=True)
    assert result.poses == tuple(expected)
    other = pipeline.pose.find(
        picture, hidden[1:2], hidden[1:], ["cat"], NAMES, groups=[0], selecting=BENCHMARK
    )
    assert result.poses != tuple(other)


def test_the_backbone_runs_once_per_picture(full: Any, photo: Any) -> None:
    vlm = model(full)
    vlm.pose(photo, ["cat"], NAMES)
    vlm.pose(photo, ["dog"], "coco17")
    assert (full.calls("pose_backbone"), full.calls("pose_encoder")) == (1, 2)
    vlm.pose(255 - photo, ["dog"], NAMES)
    assert full.calls("pose_backbone") == 2
    assert full.calls("det_backbone") == 0
    bucket = [b for name, b in full.stages.asked if name == "pose_backbone"]
    assert bucket == [(64, 96), (64, 96)]


def test_product_defaults_and_the_benchmark(full: Any, photo: Any) -> None:
    vlm = model(full)
    every = vlm.pose(photo, ["cat", "dog"], NAMES, benchmark=True)
    assert len(every.poses) == 8
    kept = vlm.pose(photo, ["cat", "dog"], NAMES)
    assert len(kept.poses) <= 4  # one instance cannot be two things
    assert {p.box_xyxy for p in kept.poses} <= {p.box_xyxy for p in every.poses}
    scores = [p.score for p in every.poses]
    assert scores == sorted(scores, reverse=True)
    assert all(p.score >= 0.1 for p in kept.poses)
    high = vlm.pose(photo, ["cat", "dog"], NAMES, threshold=scores[0], nms_iou=None)
    assert len(high.poses) == 1
    assert len(vlm.pose(photo, ["cat"], NAMES, top_k=2, benchmark=True).poses) == 2
    assert PoseSelecting() == PoseSelecting(0.1, 0.9, 100)


def test_free_and_scripted_agree_when_the_words_are_the_same(full: Any, photo: Any) -> None:
    full.reply("pinpoint", pose_answer(["cat", "dog"], NAMES))
    scripted = model(full).pose(photo, ["cat", "dog"], NAMES, **ALL)
    full.session.rewind(0)
    free = model(full).pose(photo, ["cat", "dog"], NAMES, mode="free", **ALL)

    assert free.text == scripted.text
    assert free.text.startswith("Sure, here are results for cat[DET], dog[DET].")
    assert free.text.endswith("nose[POSE], left eye[POSE], tail[POSE].")
    assert free.keypoint_names == scripted.keypoint_names
    for ours, theirs in zip(free.poses, scripted.poses, strict=True):
        assert (ours.label, ours.group) == (theirs.label, theirs.group)
        assert ours.score == pytest.approx(theirs.score, abs=1e-5)
        assert [k.x for k in ours.keypoints] == pytest.approx(
            [k.x for k in theirs.keypoints], abs=1e-3
        )


def test_the_model_may_leave_names_out(full: Any, photo: Any) -> None:
    full.reply("pinpoint", pose_answer(["dog"], ["tail"]))
    result = model(full).pose(photo, ["cat", "dog"], NAMES, mode="free", **ALL)
    assert {(p.label, p.group) for p in result.poses} == {("dog", 1)}
    assert result.keypoint_names == ("tail",)
    full.reply("pinpoint", (Text("I see no cat."),))
    assert model(full).pose(photo, ["cat"], NAMES, mode="free").poses == ()
    full.reply("pinpoint", (Text("Just a nose"), Control("[POSE]")))
    assert model(full).pose(photo, ["cat"], NAMES, mode="free").poses == ()


def test_events(full: Any, photo: Any) -> None:
    events: list[Event] = []
    result = model(full).pose(photo, ["cat"], NAMES, stream=events.append, **ALL)
    groups = [(e.routing, e.label, e.index) for e in events if isinstance(e, GroupEvent)]
    assert groups == [
        ("[DET]", "cat", 0),
        ("[POSE]", "nose", 1),
        ("[POSE]", "left eye", 2),
        ("[POSE]", "tail", 3),
    ]
    assert tuple(e.pose for e in events if isinstance(e, PoseEvent)) == result.poses
    assert isinstance(events[-1], DoneEvent)


def test_a_preset_asks_for_its_names(full: Any, photo: Any) -> None:
    result = model(full).pose(photo, ["cat"], "coco17")
    assert result.keypoint_names == PRESETS["coco17"].keypoints
    named = model(full).pose(photo, ["cat"], ["Left_Eye", "nose"])
    assert named.keypoint_names == ("left eye", "nose")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keypoints": "coco18"}, "preset"),
        ({"keypoints": [f"p {i}" for i in range(69)]}, "at most 68.*got 69"),
        ({"keypoints": ["nose", "Nose."]}, "each name once"),
        ({"keypoints": []}, "at least one"),
        ({"objects": []}, "at least one"),
        ({"objects": ["a", "a"]}, "each class once"),
        ({"objects": [f"o {i}" for i in range(101)]}, "at most 100"),
        ({"threshold": 1.5}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"nms_iou": -0.1}, "nms_iou"),
        ({"top_k": 0}, "top_k"),
        ({"mode": "listed"}, "mode"),
    ],
)
def test_unusable_requests_are_refused_before_any_work(
    full: Any, photo: Any, options: dict[str, Any], message: str
) -> None:
    asked: dict[str, Any] = {"objects": ["cat"], "keypoints": NAMES, **options}
    with pytest.raises(InputError, match=message):
        model(full).pose(photo, **asked)
    assert full.decoder.log == [] and full.stages.asked == []


def test_a_bundle_without_the_decoder(make_full: Any, photo: Any) -> None:
    toy = make_full(without="pose")
    with pytest.raises(InputError, match="use_unipose"):
        model(toy).pose(photo, ["cat"], NAMES)
    assert toy.decoder.log == []


def test_more_than_the_decoders_slots(make_full: Any, photo: Any) -> None:
    toy = make_full(max_keypoints=2)
    with pytest.raises(InputError, match=r"at most 2 .*got 3"):
        model(toy).pose(photo, ["cat"], NAMES)
    # Free words end where the slots do: no third group is opened.
    toy.reply("pinpoint", pose_answer(["cat"], NAMES))
    result = model(toy).pose(photo, ["cat"], NAMES[:2], mode="free", **ALL)
    assert result.keypoint_names == ("nose", "left eye")
    assert result.text.endswith("tail")


def test_the_decoder_refuses_what_it_has_no_slots_for(full: Any, photo: Any) -> None:
    picture = full.pipeline.open(photo)
    states = np.zeros((0, 3, 16), np.float32)
    with pytest.raises(InputError, match="1 to 100 object classes"):
        full.pipeline.pose.find(
            picture, states, states, [], [], groups=[], selecting=PoseSelecting()
        )


def bundle(*, spec: PoseSpec | None, stages: tuple[str, ...], mean: bool = True) -> Any:
    normal = Normalization((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)) if mean else None
    manifest = SimpleNamespace(
        model=SimpleNamespace(pose=spec),
        stages=dict.fromkeys(stages),
        preprocessing=lambda: SimpleNamespace(pose=normal),
    )
    return SimpleNamespace(manifest=manifest, root=Path("some/bundle"))


STAGES = ("pose_backbone", "pose_encoder", "pose_boxes", "pose_keypoints")
SPEC = PoseSpec(((64, 96),), 64, 96, 32, 7, 5, 3)


def test_the_decoder_of_a_bundle(full: Any) -> None:
    assert pose_from_bundle(bundle(spec=None, stages=()), full.stages) is None
    decoder = pose_from_bundle(bundle(spec=SPEC, stages=STAGES), full.stages)
    assert decoder is not None
    assert decoder.spec is SPEC
    assert decoder.backbone._constants == Normalization((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))


@pytest.mark.parametrize(
    ("stages", "mean", "missing"),
    [(STAGES[:3], True, "pose_keypoints"), (STAGES, False, "preprocessing constants")],
)
def test_a_bundle_that_lacks_a_part(
    full: Any, stages: tuple[str, ...], mean: bool, missing: str
) -> None:
    with pytest.raises(BundleError, match=f"bundle.*lacks {missing}|lacks its {missing}"):
        pose_from_bundle(bundle(spec=SPEC, stages=stages, mean=mean), full.stages)
