"""Evaluation: a model that knows the truth gets full marks, and each planted fault shows."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from visionllm_edge.benchmarks import cli, detection_metrics
from visionllm_edge.benchmarks.accuracy import Model, evaluate
from visionllm_edge.benchmarks.workload import samples
from visionllm_edge.runtime import shapes_world
from visionllm_edge.runtime.errors import EdgeError, InputError
from visionllm_edge.runtime.results import Detection, DetectionResult, TextResult
from visionllm_edge.runtime.shapes_world import Scene

IMAGES = 12
SEED = 3


class Oracle:
    """Recognises the evaluation's pictures and answers with their truth.

    The keyword arguments plant faults.
    """

    def __init__(
        self,
        *,
        shift_px: float = 0.0,
        wrong_label: bool = False,
        grow_mask: int = 0,
        score: float = 0.9,
        reverse_caption: bool = False,
        answer: Callable[[str], str] = str,
    ) -> None:
        self._scenes: dict[bytes, Scene] = {
            sample.scene.image.tobytes(): sample.scene for sample in samples(SEED, IMAGES)
        }
        self._shift_px = shift_px
        self._wrong_label = wrong_label
        self._grow_mask = grow_mask
        self._score = score
        self._reverse_caption = reverse_caption
        self._answer = answer
        self.calls: list[dict[str, object]] = []

    def detect(
        self, image: NDArray[np.uint8], classes: Sequence[str], *, threshold: float, top_k: int
    ) -> DetectionResult:
        self.calls.append({"classes": list(classes), "threshold": threshold, "top_k": top_k})
        return self._find(image, classes, masks=False)

    def segment(
        self, image: NDArray[np.uint8], classes: Sequence[str], *, threshold: float, top_k: int
    ) -> DetectionResult:
        return self._find(image, classes, masks=True)

    def caption(self, image: NDArray[np.uint8]) -> TextResult:
        scene = self._scenes[image.tobytes()]
        if self._reverse_caption:
            scene = Scene(scene.image, scene.items[::-1])
        return TextResult(shapes_world.caption(scene))

    def vqa(self, image: NDArray[np.uint8], question: str) -> TextResult:
        # The generator's state after the scene is what the evaluation asks its questions from.
        for sample in samples(SEED, IMAGES):
            if sample.scene.image.tobytes() == image.tobytes():
                for asked in shapes_world.questions(sample.scene, sample.rng, 3):
                    if asked.text == question:
                        return TextResult(self._answer(asked.answer), question)
        raise AssertionError(question)

    def _find(
        self, image: NDArray[np.uint8], classes: Sequence[str], *, masks: bool
    ) -> DetectionResult:
        found = []
        for group, name in enumerate(classes):
            for item in self._scenes[image.tobytes()].items:
                if shapes_world.matches(name, item):
                    label = classes[(group + 1) % len(classes)] if self._wrong_label else name
                    box = tuple(v + self._shift_px for v in item.box_xyxy)
                    assert len(box) == 4
                    mask = _grown(item.mask, self._grow_mask) if masks else None
                    found.append(Detection(label, self._score, box, mask, group))
        return DetectionResult(image.shape[:2], tuple(found), "", tuple(classes))


def _grown(mask: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    grown = mask.copy()
    for _ in range(by):
        grown[1:] |= grown[:-1].copy()
        grown[:, 1:] |= grown[:, :-1].copy()
    return grown


def metrics(
    model: Model,
    task: Literal["detect", "segment", "caption", "vqa"],
    prompts: Literal["shape", "phrase"] = "shape",
) -> Mapping[str, float | int]:
    return evaluate(model, task, images=IMAGES, seed=SEED, prompts=prompts).metrics


@pytest.mark.parametrize("prompts", ["shape", "phrase"])
def test_the_truth_gets_full_marks(prompts: Literal["shape", "phrase"]) -> None:
    assert metrics(Oracle(), "detect", prompts)["box_ap"] == pytest.approx(1.0)
    seen = metrics(Oracle(), "segment", prompts)
    for name in ("box_ap", "box_ap50", "mask_ap", "mask_iou_matched", "mask_iou_misses_as_zero"):
        assert seen[name] == pytest.approx(1.0), name
    assert seen["recall_at_score_0.3"] == 1.0


def test_shifted_boxes_cost_precision_at_the_strict_thresholds_first() -> None:
    little = metrics(Oracle(shift_px=2.0), "detect")
    much = metrics(Oracle(shift_px=25.0), "detect")
    assert little["box_ap50"] > 0.95
    assert 0.2 < little["box_ap"] < 0.9
    assert much["box_ap"] < 0.05


def test_a_wrong_label_is_a_miss() -> None:
    assert metrics(Oracle(wrong_label=True), "detect")["box_ap"] < 0.1
    seen = metrics(Oracle(wrong_label=True), "segment")
    assert seen["mask_iou_misses_as_zero"] < 0.1


def test_fat_masks_lower_mask_numbers_only() -> None:
    seen = metrics(Oracle(grow_mask=3), "segment")
    assert seen["box_ap"] == pytest.approx(1.0)
    assert seen["mask_iou_matched"] < 0.9
    assert seen["mask_ap"] < 0.9


def test_low_scores_are_misses_for_the_mask_number_but_not_for_precision() -> None:
    seen = metrics(Oracle(score=0.2), "segment")
    assert seen["box_ap"] == pytest.approx(1.0)
    assert seen["mask_iou_misses_as_zero"] == seen["recall_at_score_0.3"] == 0.0


def test_one_missing_item_separates_the_two_mask_numbers() -> None:
    class Forgetful(Oracle):
        def segment(
            self, image: NDArray[np.uint8], classes: Sequence[str], *, threshold: float, top_k: int
        ) -> DetectionResult:
            full = super().segment(image, classes, threshold=threshold, top_k=top_k)
            return DetectionResult(full.image_size, full.detections[1:], "", full.classes)

    seen = metrics(Forgetful(), "segment")
    assert seen["mask_iou_matched"] == pytest.approx(1.0)
    missed = IMAGES / seen["items"]
    assert seen["mask_iou_misses_as_zero"] == pytest.approx(1.0 - missed)
    assert seen["recall_at_score_0.3"] == pytest.approx(1.0 - missed)


def test_finding_nothing_scores_zero() -> None:
    class Blind(Oracle):
        def detect(
            self, image: NDArray[np.uint8], classes: Sequence[str], *, threshold: float, top_k: int
        ) -> DetectionResult:
            return DetectionResult((128, 128), (), "", tuple(classes))

    assert metrics(Blind(), "detect")["box_ap"] == 0.0


def test_two_detections_of_one_item_match_it_once() -> None:
    (sample,) = samples(SEED, 1)
    item = sample.scene.items[0]
    twice = [Detection(item.shape, s, item.box_xyxy, item.mask) for s in (0.9, 0.8)]
    judged = detection_metrics.Judged(
        (item,), (item.shape,), DetectionResult((128, 128), tuple(twice))
    )
    iou = detection_metrics.mask_iou([judged])
    assert (iou.items, iou.recall, iou.with_misses_as_zero) == (1, 1.0, 1.0)


def test_detection_asks_for_all_shapes_and_cuts_nothing() -> None:
    oracle = Oracle()
    metrics(oracle, "detect")
    expected = {"classes": list(shapes_world.SHAPES), "threshold": 0.0, "top_k": 100}
    assert oracle.calls == [expected] * IMAGES


def test_caption_scores() -> None:
    assert metrics(Oracle(), "caption") == {"exact_match": 1.0, "object_jaccard": 1.0}
    swapped = metrics(Oracle(reverse_caption=True), "caption")
    assert swapped["exact_match"] < 0.6
    assert swapped["object_jaccard"] == 1.0


def test_answers_are_counted_per_kind() -> None:
    seen = metrics(Oracle(answer=lambda answer: f" {answer.capitalize()}."), "vqa")
    assert seen["accuracy"] == 1.0
    assert seen["asked_count"] + seen["asked_color"] + seen["asked_yesno"] == 3 * IMAGES
    flipped = {"yes": "no", "no": "yes"}
    wrong = metrics(Oracle(answer=lambda answer: flipped.get(answer, answer)), "vqa")
    assert wrong["accuracy_yesno"] == 0.0
    assert wrong["accuracy_color"] == wrong["accuracy_count"] == 1.0
    assert 0.0 < wrong["accuracy"] < 1.0


def test_scenes_depend_on_seed_and_index_only() -> None:
    few = [sample.scene.image for sample in samples(1, 2)]
    many = [sample.scene.image for sample in samples(1, 4)]
    np.testing.assert_array_equal(few[1], many[1])
    other = next(iter(samples(2, 1))).scene.image
    assert not np.array_equal(few[0], other)


def test_out_of_range_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="images 0"):
        evaluate(Oracle(), "detect", images=0, seed=0)


def test_missing_pycocotools_names_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("pycocotools"):
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EdgeError, match=r"pip install 'visionllm-edge\[bench\]'"):
        metrics(Oracle(), "detect")


@pytest.fixture
def eval_cli(monkeypatch: pytest.MonkeyPatch) -> Iterator[CliRunner]:
    monkeypatch.setattr(cli, "_load", lambda bundle, threads: Oracle())
    yield CliRunner()


def test_eval_prints_one_json_object_and_keeps_progress_apart(eval_cli: CliRunner) -> None:
    options = ["b", "--task", "segment", "--images", str(IMAGES), "--seed", str(SEED), "--json"]
    result = eval_cli.invoke(cli.eval_, options)
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["metrics"]["box_ap"] == pytest.approx(1.0)
    assert (said["task"], said["images"], said["seed"]) == ("segment", IMAGES, SEED)
    assert f"{IMAGES}/{IMAGES}" in result.stderr


def test_eval_prints_a_table(eval_cli: CliRunner) -> None:
    options = ["b", "--task", "segment", "--images", str(IMAGES), "--seed", str(SEED)]
    lines = eval_cli.invoke(cli.eval_, options).stdout.splitlines()
    assert lines[0] == f"segment, {IMAGES} pictures, seed {SEED}, prompts by shape"
    table = dict(line.split() for line in lines[1:-1])
    assert table["mask_iou_matched"] == table["mask_iou_misses_as_zero"] == "1.0000"


@pytest.mark.parametrize(
    "options", [["b"], ["b", "--task", "dance"], ["b", "--task", "vqa", "--images", "0"]]
)
def test_eval_usage_errors_exit_2(eval_cli: CliRunner, options: list[str]) -> None:
    assert eval_cli.invoke(cli.eval_, options).exit_code == 2
