from __future__ import annotations

import pytest

from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.keypoints import (
    MAX_KEYPOINTS,
    PRESETS,
    keypoint_names,
    normalized_name,
    skeleton,
)


def test_presets_have_the_sizes_of_their_data_sets() -> None:
    sizes = {name: len(preset.keypoints) for name, preset in PRESETS.items()}
    assert sizes == {"coco17": 17, "ap10k17": 17, "face68": MAX_KEYPOINTS}


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_is_sound(name: str) -> None:
    preset = PRESETS[name]
    assert len(set(preset.keypoints)) == len(preset.keypoints)
    assert [normalized_name(one) for one in preset.keypoints] == list(preset.keypoints)
    ends = {end for edge in preset.edges for end in edge}
    assert ends == set(preset.keypoints)  # every point is joined to another
    undirected = {frozenset(edge) for edge in preset.edges}
    assert len(undirected) == len(preset.edges)


def test_coco_in_its_own_order() -> None:
    names = keypoint_names("coco17")
    assert names[0] == "nose" and names[5:7] == ("left shoulder", "right shoulder")
    assert names[9] == "left wrist" and names[16] == "right ankle"


def test_face_points_stand_where_300w_has_them() -> None:
    names = keypoint_names("face68")
    assert names[8] == "chin center" and names[30] == "nasal bridge 4"
    assert names[36] == "right eye eye corner 1" and names[45] == "left eye eye corner 2"
    assert names[48] == "right mouth corner" and names[54] == "left mouth corner"
    assert names[67] == "lower lip inter edge 1"


def test_animals_in_their_own_order() -> None:
    names = keypoint_names("AP10K17 ")
    assert names[:5] == ("left eye", "right eye", "nose", "neck", "root of tail")
    assert names[7] == "left front paw" and names[16] == "right back paw"


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("Left_Eye", "left eye"),
        ("left-eye", "left eye"),
        ("tail/root", "tail root"),
        ("  Nose. ", "nose"),
        ("the (left), eye!", "the left eye"),
        ("Augenbraue Ä", "augenbraue ä"),
        ("joint 2", "joint 2"),
        ("nose\ttip", "nose tip"),
        ("a\x00b\ud800", "ab"),
    ],
)
def test_names_are_normalised(given: str, written: str) -> None:
    assert normalized_name(given) == written


def test_own_names_keep_their_order() -> None:
    assert keypoint_names(["Wing_Tip", "beak"]) == ("wing tip", "beak")


@pytest.mark.parametrize(
    ("keypoints", "message"),
    [
        ("coco18", r"expected a preset \(coco17, ap10k17, face68\).*'coco18'"),
        ([], "at least one"),
        (["nose", " - "], "no letters"),
        (["left eye", "Left_Eye"], r"'Left_Eye'.*twice.*'left eye'"),
        ([f"point {i}" for i in range(69)], "at most 68.*got 69"),
        ([3], "expected a name, got int"),
    ],
)
def test_unusable_keypoints_are_refused(keypoints: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        keypoint_names(keypoints)


def test_68_names_are_taken_and_a_smaller_limit_counts() -> None:
    assert len(keypoint_names([f"point {i}" for i in range(68)])) == 68
    with pytest.raises(InputError, match=r"at most 5.*got 17"):
        keypoint_names("coco17", limit=5)


def test_a_skeleton_joins_what_is_there() -> None:
    names = ["left knee", "beak", "left ankle", "nose"]
    assert skeleton(names) == ((2, 0),)
    assert skeleton(["beak"]) == ()


def test_a_skeleton_is_that_of_the_best_preset() -> None:
    animal = PRESETS["ap10k17"]
    joined = {(animal.keypoints[a], animal.keypoints[b]) for a, b in skeleton(animal.keypoints)}
    assert joined == set(animal.edges)
    assert ("neck", "root of tail") in joined
