"""Numbers for keypoints: the truth gets full marks, and each planted fault shows."""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from visionllm_edge.benchmarks.accuracy import evaluate
from visionllm_edge.benchmarks.workload import samples
from visionllm_edge.runtime.errors import EdgeError
from visionllm_edge.runtime.keypoints import PRESETS
from visionllm_edge.runtime.results import Keypoint, Pose, PoseResult
from visionllm_edge.runtime.shapes_world import Item

IMAGES, SEED = 16, 5
NAMES = PRESETS["coco17"].keypoints


class Oracle:
    """Knows every picture's figures.

    Faults: keypoints moved by a part of the torso, left and right exchanged, the box moved away,
    no answer at all, a ghost beside every figure.
    """

    def __init__(
        self,
        *,
        away: float = 0.0,
        mirrored: bool = False,
        box_shift: float = 0.0,
        silent: bool = False,
        ghost: float | None = None,
        names: Sequence[str] = NAMES,
    ) -> None:
        self._scenes = {s.scene.image.tobytes(): s.scene for s in samples(SEED, IMAGES)}
        self._away, self._mirrored, self._shift = away, mirrored, box_shift
        self._silent, self._ghost, self._names = silent, ghost, names
        self.asked: list[tuple[list[str], str, bool]] = []

    def pose(
        self, image: NDArray[np.uint8], objects: Sequence[str], keypoints: str, *, benchmark: bool
    ) -> PoseResult:
        self.asked.append((list(objects), keypoints, benchmark))
        poses: list[Pose] = []
        for item in self._scenes[image.tobytes()].items:
            if item.keypoints is not None and not self._silent:
                poses.append(self._told(item, 0.9))
                if self._ghost is not None:
                    poses.append(self._told(item, self._ghost, ghost=True))
        poses.sort(key=lambda pose: -pose.score)
        return PoseResult((128, 128), tuple(poses), classes=("person",))

    def _told(self, item: Item, score: float, *, ghost: bool = False) -> Pose:
        assert item.keypoints is not None
        points = item.keypoints[:, :2].astype(float)
        torso = float(np.hypot(*(points[5] - points[12])))
        if self._mirrored:
            points[1::2], points[2::2] = points[2::2].copy(), points[1::2].copy()
        points[:, 0] += torso * (5.0 if ghost else self._away)
        x0, y0, x1, y1 = (v + self._shift for v in item.box_xyxy)
        named: Mapping[str, Any] = dict(zip(NAMES, points, strict=True))
        return Pose(
            "person", score, (x0, y0, x1, y1),
            tuple(Keypoint(name, *map(float, named[name])) for name in self._names),
        )  # fmt: skip


def numbers(oracle: Oracle) -> dict[str, float | int]:
    model: Any = oracle
    return evaluate(model, "pose", images=IMAGES, seed=SEED).metrics


def test_the_truth_gets_full_marks() -> None:
    oracle = Oracle()
    metrics = numbers(oracle)
    assert metrics["pck_0.2"] == metrics["persons_found"] == 1.0
    assert metrics["oks_ap"] == pytest.approx(1.0, abs=1e-6)
    assert metrics["persons"] >= 6
    visible = sum(
        int((item.keypoints[:, 2] == 2).sum())
        for sample in samples(SEED, IMAGES)
        for item in sample.scene.items
        if item.keypoints is not None
    )
    assert metrics["keypoints"] == visible
    assert oracle.asked == [(["person"], "coco17", True)] * IMAGES


def test_near_is_a_fifth_of_the_torso() -> None:
    assert numbers(Oracle(away=0.19))["pck_0.2"] == 1.0
    assert numbers(Oracle(away=0.21))["pck_0.2"] == 0.0


def test_oks_falls_before_pck_does() -> None:
    near, far = numbers(Oracle(away=0.1)), numbers(Oracle(away=0.15))
    assert near["pck_0.2"] == far["pck_0.2"] == 1.0
    assert 1.0 > near["oks_ap"] > far["oks_ap"] > 0.3


def test_a_mirrored_figure_is_wrong_but_for_the_nose() -> None:
    metrics = numbers(Oracle(mirrored=True))
    assert metrics["pck_0.2"] == pytest.approx(1 / 17) and metrics["oks_ap"] == 0.0


def test_a_figure_whose_box_is_elsewhere_has_no_keypoint_right() -> None:
    metrics = numbers(Oracle(box_shift=60.0))
    assert metrics["pck_0.2"] == metrics["persons_found"] == 0.0


def test_the_best_scoring_pose_counts() -> None:
    assert numbers(Oracle(ghost=0.5))["pck_0.2"] == 1.0
    worse = numbers(Oracle(ghost=0.95))
    assert worse["pck_0.2"] == 0.0 and worse["oks_ap"] < 0.6


def test_nothing_found_and_missing_names() -> None:
    silent = numbers(Oracle(silent=True))
    assert silent["pck_0.2"] == silent["oks_ap"] == 0.0 and silent["persons"] > 0
    half = numbers(Oracle(names=NAMES[:5]))["pck_0.2"]
    assert 0.2 < half < 0.4


def test_pycocotools_is_asked_for_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("pycocotools"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    oracle = Oracle()
    with pytest.raises(EdgeError, match="bench"):
        numbers(oracle)
    assert oracle.asked == []
