"""End-to-end check: the compiled chain and the torch model answer the same questions alike.

Both run through the runtime's own pipeline on fresh scenes, so pre- and post-processing are part of
the check. A two-stage detector ranks its proposals, and where two differ by a rounding error two
right implementations may answer differently: most of the scenes must agree, not every one. Limits
live in `visionllm_edge.export.parity`.

A bundle whose language model is quantised is compared with torch that has the same, dequantised
weights. It rounds activations where torch does not, and so does a control; ours may be off by twice
as much as that. A cache of int8 is rounded in that control too, whatever the weights are, and other
stages in int8 have the control of their own gate in the place of torch there. How far the bundle is
from the unquantised model is reported beside it.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from visionllm_edge.export.build_stage import ModelPair
from visionllm_edge.export.components.llm_decoder import Llama
from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.llm.bundle_weights import BundleWeights
from visionllm_edge.export.llm.torch_twin import torch_twin
from visionllm_edge.export.parity import CONTROL_FACTOR, END_TO_END_BOX_PX, END_TO_END_SCORE
from visionllm_edge.export.rounded_stages import RoundedStages, rounded_stages
from visionllm_edge.export.torch_stages import TorchStages
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.errors import ParityError
from visionllm_edge.runtime.llm.sampling import GenerationConfig
from visionllm_edge.runtime.manifest import FP32, StageSpec
from visionllm_edge.runtime.model import VisionLLM as RuntimeModel
from visionllm_edge.runtime.pipelines.loading import LoadOptions, load_pipeline
from visionllm_edge.runtime.results import Detection
from visionllm_edge.runtime.shapes_world import make_scene

__all__ = ["check_end_to_end", "compare_end_to_end", "with_extent"]

Rgb = npt.NDArray[np.uint8]

NOT_COMPARED = "not run: the model is larger than the memory; every stage was compared by itself"

_SEED = 20_240_609
_SIZES_PX = ((160, 128), (128, 160), (128, 128))  # width and height of each scene
_CLASSES = ("circle", "person", "red square")
# The compiled chain may rank equally good boxes in another order: ours has this many more.
_TORCH_BOXES, _OUR_BOXES = 8, 16
# Stands for a box without a counterpart; finite, because the report is JSON.
_NOT_FOUND_PX = 1e6


def compare_end_to_end(bundle: Bundle, pair: ModelPair) -> Any:
    """The end-to-end check where the model is in memory; else a report that says it was not made.

    Returns:
        A report of plain JSON types with a `summary` in words.

    Raises:
        ParityError: see `check_end_to_end`.
    """
    if not pair.whole:
        return {"summary": NOT_COMPARED}
    report = check_end_to_end(bundle, pair.model)
    return {"summary": f"boxes within {report['largest_box_difference_px']:.2g} px", **report}


def with_extent(stage: StageSpec, pair: ModelPair) -> StageSpec:
    """A stage whose manifest entry says if it was compared with torch only by itself."""
    if pair.whole:
        return stage
    return dataclasses.replace(stage, parity={**stage.parity, "end_to_end": NOT_COMPARED})


def check_end_to_end(bundle: Bundle, model: VisionLLM, *, threads: int | None = None) -> Any:
    """Detect with masks and caption on a few scenes, by the bundle and by torch.

    Args:
        bundle: readable, not necessarily published yet.
        model: the torch model in float32.
        threads: of the bundle's backend.

    Returns:
        A report of plain JSON types; its head is the median scene by box difference.

    Raises:
        ParityError: a box or score differs by more than the limits on most scenes.
    """
    ours = RuntimeModel(load_pipeline(bundle, LoadOptions(threads=threads)))
    llm = bundle.manifest.model.llm
    exact_words, byte_cache = llm.precision == FP32, llm.cache == "int8"
    if exact_words and not byte_cache and not rounded_stages(bundle):
        report = _report(ours, _torch(bundle, model))
        _require(report, END_TO_END_BOX_PX, END_TO_END_SCORE)
        return report
    with_weights = with_rounding = model
    if not exact_words or byte_cache:
        weights, config = BundleWeights(bundle), model.config.llm
        if not exact_words:
            with_weights = _with_decoder(model, torch_twin(weights, config))
        rounding = torch_twin(
            weights, config, rounded_activations=True, cache_scales=weights.cache_scales()
        )
        with_rounding = _with_decoder(model, rounding)
    truth = _torch(bundle, with_weights)
    with RoundedStages(bundle, TorchStages(with_rounding)) as stages:
        control = _report(RuntimeModel(load_pipeline(bundle, stages=stages)), truth)
    report = _report(ours, truth)
    _require(
        report,
        CONTROL_FACTOR * control["largest_box_difference_px"] + END_TO_END_BOX_PX,
        CONTROL_FACTOR * control["largest_score_difference"] + END_TO_END_SCORE,
    )
    unquantized = _report(ours, _torch(bundle, model))
    return {
        "against": "torch" if exact_words else "torch with the dequantised weights",
        **report,
        "control": _head(control),
        "against_unquantized": _head(unquantized),
    }


def _torch(bundle: Bundle, model: VisionLLM) -> RuntimeModel:
    """The torch model behind the bundle's own pre- and post-processing."""
    return RuntimeModel(load_pipeline(bundle, stages=TorchStages(model)))


def _with_decoder(model: VisionLLM, llm: Llama) -> VisionLLM:
    """The same model with another language decoder; every other weight is shared."""
    twin = copy.copy(model)
    # A copy of a module shares the table of its parts.
    twin._modules = {**model._modules, "llm": llm}
    return twin


def _report(ours: RuntimeModel, torchs: RuntimeModel) -> dict[str, Any]:
    """Every scene; its head is the median one."""
    scenes = []
    for index, (width, height) in enumerate(_SIZES_PX):
        scene = make_scene(np.random.default_rng((_SEED, index)), width=width, height=height)
        scenes.append(_compare(ours, torchs, scene.image))
    typical = sorted(scenes, key=lambda scene: scene["largest_box_difference_px"])[len(scenes) // 2]
    return {"classes": list(_CLASSES), **typical, "scenes": scenes}


def _head(report: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in report.items() if name not in ("classes", "scenes")}


def _require(report: dict[str, Any], most_px: float, most_score: float) -> None:
    box, score = report["largest_box_difference_px"], report["largest_score_difference"]
    if box > most_px or score > most_score:
        raise ParityError(
            f"end to end: boxes differ from torch by up to {box:.3g} px (allowed "
            f"{most_px:.3g}), scores by {score:.3g} (allowed {most_score:.3g}), "
            "although every stage is right. Nothing was published."
        )


def _compare(ours: RuntimeModel, torchs: RuntimeModel, image: Rgb) -> dict[str, Any]:
    """Detections with masks, and the first words of a caption."""
    expected = torchs.segment(image, _CLASSES, threshold=0.0, top_k=_TORCH_BOXES)
    got = ours.segment(image, _CLASSES, threshold=0.0, top_k=_OUR_BOXES)
    worst_box, worst_score, worst_iou = 0.0, 0.0, 1.0
    for wanted in expected.detections:
        box, score, iou = _nearest(wanted, list(got.detections))
        worst_box, worst_score = max(worst_box, box), max(worst_score, score)
        worst_iou = min(worst_iou, iou)
    config = GenerationConfig(max_new_tokens=12)
    captions = [model.caption(image, config=config).text for model in (ours, torchs)]
    return {
        "detections": len(expected.detections),
        "largest_box_difference_px": worst_box,
        "largest_score_difference": worst_score,
        "smallest_mask_iou": worst_iou,
        "caption": captions[0],
        "caption_equals_torch": captions[0] == captions[1],
    }


def _nearest(wanted: Detection, candidates: list[Detection]) -> tuple[float, float, float]:
    """Box difference in px, score difference and mask IoU of the best match of the same label.

    Several queries can share a box, so box and score together say which one is meant.
    """
    best, least = (_NOT_FOUND_PX, 1.0, 0.0), float("inf")
    for candidate in candidates:
        if candidate.label != wanted.label:
            continue
        box = max(abs(a - b) for a, b in zip(candidate.box_xyxy, wanted.box_xyxy, strict=True))
        score = abs(candidate.score - wanted.score)
        distance = max(box / END_TO_END_BOX_PX, score / END_TO_END_SCORE)
        if distance < least:
            iou = 1.0
            if wanted.mask is not None and candidate.mask is not None:
                union = int((wanted.mask | candidate.mask).sum())
                iou = int((wanted.mask & candidate.mask).sum()) / union if union else 1.0
            best, least = (box, score, iou), distance
    return best
