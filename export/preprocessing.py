"""Preprocessing constants of the model family, as they go into a bundle's manifest."""

from __future__ import annotations

from dataclasses import replace

from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.runtime.manifest import Normalization, PreprocessSpec

__all__ = ["PREPROCESS", "preprocessing"]

_IMAGENET = Normalization(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))

PREPROCESS = PreprocessSpec(
    clip=Normalization(
        mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)
    ),
    detector=_IMAGENET,
    pose=_IMAGENET,
)
"""CLIP's statistics for values 0..1, ImageNet's for values 0..255; RGB."""


def preprocessing(config: VisionLLMConfig) -> PreprocessSpec:
    """The constants of the image inputs that a checkpoint has."""
    return replace(PREPROCESS, pose=PREPROCESS.pose if config.pose else None)
