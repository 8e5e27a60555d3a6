"""The chain as a whole, on the compiled tiny checkpoint: what a user relies on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from visionllm_edge.benchmarks.accuracy import evaluate
from visionllm_edge.runtime import VisionLLM
from visionllm_edge.runtime import shapes_world as world
from visionllm_edge.runtime.backends.base import StageRunner
from visionllm_edge.runtime.errors import ContextError, InputError
from visionllm_edge.runtime.ports import Tensor
from visionllm_edge.runtime.results import DetectionResult

pytestmark = pytest.mark.slow

SEED = 20_261_122  # not a training seed


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> VisionLLM:
    return VisionLLM.load(tiny_bundle)


@pytest.fixture(scope="module")
def reference(tiny_bundle: Path, tiny_checkpoint: Path) -> VisionLLM:
    from visionllm_edge.export.reference import reference_model

    return reference_model(tiny_bundle, tiny_checkpoint)


@pytest.fixture(scope="module")
def scenes() -> list[world.Scene]:
    rng = np.random.default_rng(SEED)
    sizes = [(128, 128), (192, 128), (128, 192), (300, 260), (97, 141)]
    return [world.make_scene(rng, width=w, height=h) for w, h in sizes]


def _boxes(result: DetectionResult) -> np.ndarray:
    return np.array([d.box_xyxy for d in result.detections], np.float64).reshape(-1, 4)


def test_it_detects_segments_captions_and_answers(model: VisionLLM) -> None:
    """Floors below the recorded metrics (checkpoint/metrics.json); a broken chain is far below."""
    shape = evaluate(model, "segment", images=24, seed=SEED).metrics
    assert shape["box_ap"] > 0.78
    assert shape["mask_iou_matched"] > 0.85
    vqa = evaluate(model, "vqa", images=24, seed=SEED).metrics
    assert vqa["accuracy_yesno"] > 0.9
    assert vqa["accuracy_color"] > 0.85
    assert evaluate(model, "caption", images=24, seed=SEED).metrics["object_jaccard"] > 0.8


def test_the_bundle_is_as_good_as_torch(model: VisionLLM, reference: VisionLLM) -> None:
    ours = evaluate(model, "detect", images=24, seed=SEED + 1).metrics
    theirs = evaluate(reference, "detect", images=24, seed=SEED + 1).metrics
    assert abs(ours["box_ap"] - theirs["box_ap"]) <= 0.005


def test_stages_that_overlap_change_no_bit(
    tiny_bundle: Path, model: VisionLLM, scenes: list[world.Scene]
) -> None:
    overlapping = VisionLLM.load(tiny_bundle, overlap=True)
    assert overlapping._pipeline.overlap and not model._pipeline.overlap
    for scene in scenes:
        # New models see the same caches, so that even the last bits must agree.
        for vlm in (model, overlapping):
            vlm._pipeline.session.clear()
        classes, wanted = ["circle", "square", "person", "star"], 0.05
        for mode in ("scripted", "free"):
            serial, beside = (
                vlm.segment(scene.image, classes, threshold=wanted, mode=mode)
                for vlm in (model, overlapping)
            )
            assert serial.text == beside.text and serial.classes == beside.classes
            for ours, theirs in zip(serial.detections, beside.detections, strict=True):
                assert (ours.label, ours.score, ours.box_xyxy) == (
                    theirs.label,
                    theirs.score,
                    theirs.box_xyxy,
                )
                np.testing.assert_array_equal(ours.mask, theirs.mask)
            poses = [vlm.pose(scene.image, ["person"]).poses for vlm in (model, overlapping)]
            assert poses[0] == poses[1]


def test_scripted_and_free_agree(model: VisionLLM, scenes: list[world.Scene]) -> None:
    """Same text, same boxes: once in one prefill, once token by token."""
    compared = 0
    for scene in scenes:
        classes = ["circle", "square", "person", "star"]
        scripted = model.detect(scene.image, classes, threshold=0.05)
        free = model.detect(scene.image, classes, threshold=0.05, mode="free")
        if free.text != scripted.text:
            continue
        compared += 1
        assert free.classes == scripted.classes
        assert [d.label for d in free.detections] == [d.label for d in scripted.detections]
        height, width = scripted.image_size
        scale = np.array([width, height, width, height])
        np.testing.assert_allclose(
            _boxes(free) / scale, _boxes(scripted) / scale, rtol=0, atol=1e-3
        )
    assert compared >= 3, "the model did not write the class list it was asked for"


class _Recorder:
    """Passes calls through and keeps what the detector's encoder was given."""

    def __init__(self, inner: StageRunner, seen: list[np.ndarray]) -> None:
        self._inner, self._seen = inner, seen

    def run_kept(self, inputs: dict[str, np.ndarray]) -> Mapping[str, Tensor]:
        self._seen.append(inputs["text_states"].copy())
        return self._inner.run_kept(inputs)


@pytest.fixture
def super_link_states(
    model: VisionLLM, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[np.ndarray]]:
    seen: list[np.ndarray] = []
    stages = model._pipeline.detector._stages
    get = stages.get

    def recorded(name: str, bucket: tuple[int, int] | None = None) -> StageRunner:
        runner = get(name, bucket)
        return _Recorder(runner, seen) if name == "det_encoder" else runner  # type: ignore[return-value]

    monkeypatch.setattr(stages, "get", recorded)
    yield seen


def test_states_collected_step_by_step_equal_those_of_one_prefill(
    model: VisionLLM, scenes: list[world.Scene], super_link_states: list[np.ndarray]
) -> None:
    classes = ["circle", "red square"]
    scripted = model.detect(scenes[0].image, classes)
    free = model.detect(scenes[0].image, classes, mode="free")
    assert free.text == scripted.text
    prefill, steps = super_link_states
    assert prefill.shape == steps.shape
    # Post-norm states are of order 1: fp32 sums in another order.
    np.testing.assert_allclose(steps, prefill, rtol=0, atol=1e-4 * np.abs(prefill).max())


def test_wrong_states_would_be_noticed(
    model: VisionLLM, scenes: list[world.Scene], super_link_states: list[np.ndarray]
) -> None:
    """The twin of the test above: another class order is another state."""
    model.detect(scenes[0].image, ["circle", "red square"])
    model.detect(scenes[0].image, ["red square", "circle"])
    first, second = super_link_states
    assert np.abs(first - second).max() > 1e-2 * np.abs(first).max()


def test_an_expression_finds_its_object(model: VisionLLM) -> None:
    rng = np.random.default_rng(SEED + 2)
    right = asked = 0
    while asked < 20:
        scene = world.make_scene(rng, min_items=2)
        for text, index in world.expressions(scene)[:1]:
            box = model.ground(scene.image, text).detections[0].box_xyxy
            truth = scene.items[index].box_xyxy
            asked += 1
            right += _iou(box, truth) > 0.5
    assert right >= 15


def _iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    inter = float(np.prod(np.clip(high - low, 0, None)))
    area = [float((x[2] - x[0]) * (x[3] - x[1])) for x in (a, b)]
    return inter / (sum(area) - inter)


def test_reuse_changes_nothing(tiny_bundle: Path, scenes: list[world.Scene]) -> None:
    """Prefix cache and picture features: the second answer equals a fresh model's first."""
    warm, fresh = VisionLLM.load(tiny_bundle), VisionLLM.load(tiny_bundle)
    image = scenes[1].image
    warm.detect(image, ["circle"])
    warm.caption(scenes[0].image)
    again = warm.detect(image, ["star", "person"], threshold=0.05)
    first = fresh.detect(image, ["star", "person"], threshold=0.05)
    np.testing.assert_allclose(_boxes(again), _boxes(first), rtol=0, atol=1e-2)
    assert warm.caption(image).text == fresh.caption(image).text


def test_control_words_in_user_text_stay_text(model: VisionLLM, scenes: list[world.Scene]) -> None:
    image = scenes[0].image
    result = model.detect(image, ["circle", "<image>", "[DET]", "</s>"])
    assert result.classes == ("circle", "<image>", "[DET]", "</s>")
    assert model.vqa(image, "Is there a [DET] circle?</s>").finish_reason in ("stop", "length")


def test_too_many_or_no_classes(model: VisionLLM, scenes: list[world.Scene]) -> None:
    image = scenes[0].image
    with pytest.raises(InputError, match="256"):
        model.detect(image, [f"thing {i}" for i in range(257)])
    with pytest.raises(InputError, match="class"):
        model.detect(image, [])


def test_a_prompt_longer_than_the_context(model: VisionLLM, scenes: list[world.Scene]) -> None:
    with pytest.raises(ContextError, match="1024"):
        model.vqa(scenes[0].image, "what is this? " * 600)


def test_chat_keeps_the_picture(
    model: VisionLLM, reference: VisionLLM, scenes: list[world.Scene]
) -> None:
    scene = scenes[0]
    chat = model.chat(scene.image)
    first = chat.send("Can you describe the image in one sentence?")
    assert any(item.shape in first.text for item in scene.items)
    second = chat.send("Can you analyze the image and identify the circle, person present?")
    # The tiny model may add a colour to a name it repeats; the groups are those that were asked.
    assert [span.label.split()[-1] for span in second.spans] == ["circle", "person"]
    assert {span.routing for span in second.spans} == {"[DET]"}
    assert second.detections
    assert {found.label for found in second.detections} <= {span.label for span in second.spans}
    # Whatever the words are, torch says the same in the same conversation.
    twin = reference.chat(scene.image)
    assert twin.send("Can you describe the image in one sentence?").text == first.text
    again = twin.send("Can you analyze the image and identify the circle, person present?")
    assert (again.text, again.spans) == (second.text, second.spans)
