"""Guidance: the noise that the UNet predicts under several conditions, put together by weights.

Generation has two conditions. With scale g and predictions e:

    e = e_none + g (e_text - e_none) = g e_text + (1 - g) e_none

Editing has three, with scale w for the source picture. Without it its latents are zeros:

    e = e_none + g (e_text - e_image) + w (e_image - e_none)
      = g e_text + (w - g) e_image + (1 - w) e_none

A condition whose weight is zero is never computed: with g = 1 a generation takes half the time.

Source: "Classifier-Free Diffusion Guidance" (arXiv 2207.12598); "InstructPix2Pix" (arXiv
2211.09800), equation 3; VisionLLM v2 (arXiv 2406.08394), which uses both with the embedding of the
empty prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime.backends.base import StageRunner
from visionllm_edge.runtime.diffusion.scheduler import Latents

__all__ = ["Condition", "GuidedUNet", "editing_conditions", "generation_conditions"]


@dataclass(frozen=True, eq=False)
class Condition:
    """One way to ask the UNet.

    Attributes:
        weight: of its prediction in the sum.
        tokens_1QC: what is asked for, float32 ``[1, Q, d]``.
        image_1Chw: latents of the source picture, float32 ``[1, C, h, w]``; None in generation.
    """

    weight: float
    tokens_1QC: NDArray[np.float32]  # noqa: N815 (axis letters)
    image_1Chw: Latents | None = None  # noqa: N815


def generation_conditions(
    asked: NDArray[np.float32], empty: NDArray[np.float32], guidance: float
) -> list[Condition]:
    """The conditions of generation that have a weight.

    Args:
        asked: the adapter's output, ``[1, Q, d]``.
        empty: the embedding of the empty prompt, ``[1, Q, d]``.
        guidance: g.
    """
    return _with_weight([Condition(guidance, asked), Condition(1.0 - guidance, empty)])


def editing_conditions(
    asked: NDArray[np.float32],
    empty: NDArray[np.float32],
    image: Latents,
    *,
    guidance: float,
    image_guidance: float,
) -> list[Condition]:
    """The conditions of editing that have a weight.

    Args:
        asked: the adapter's output, ``[1, Q, d]``.
        empty: the embedding of the empty prompt, ``[1, Q, d]``.
        image: latents of the source picture, not scaled, ``[1, C, h, w]``.
        guidance: g.
        image_guidance: w.
    """
    return _with_weight(
        [
            Condition(guidance, asked, image),
            Condition(image_guidance - guidance, empty, image),
            Condition(1.0 - image_guidance, empty, np.zeros_like(image)),
        ]
    )


def _with_weight(conditions: Sequence[Condition]) -> list[Condition]:
    # The weights add up to 1, so one of them is left at least.
    return [condition for condition in conditions if condition.weight != 0.0]


class GuidedUNet:
    """Predicts noise under all conditions.

    Args:
        stage: the UNet stage: ``latents``, ``timestep``, ``condition`` to ``noise``.
        conditions: at least one.
        together: ask for all conditions in one batch. It reads the weights once and holds the
            activations of all; one after the other holds those of one.
    """

    def __init__(
        self, stage: StageRunner, conditions: Sequence[Condition], *, together: bool
    ) -> None:
        """Put the constant inputs together."""
        self._stage = stage
        parts = [tuple(conditions)] if together else [(one,) for one in conditions]
        self._parts = [
            (
                [one.weight for one in part],
                np.concatenate([one.tokens_1QC for one in part]),
                _images(part),
            )
            for part in parts
        ]

    def predict(self, sample: Latents, timestep: float) -> Latents:
        """The guided noise of a sample ``[1,C,h,w]``, float32 and the caller's own."""
        total = np.zeros_like(sample)
        for weights, tokens, image in self._parts:
            latents = np.repeat(sample, len(weights), axis=0)
            if image is not None:
                latents = np.concatenate([latents, image], axis=1)
            noise = self._stage.run(
                {
                    "latents": latents,
                    "timestep": np.array([timestep], np.float32),
                    "condition": tokens,
                }
            )["noise"]
            for weight, predicted in zip(weights, noise, strict=True):
                total += predicted.astype(np.float32, copy=False) * np.float32(weight)
        return total


def _images(conditions: Sequence[Condition]) -> Latents | None:
    images = [one.image_1Chw for one in conditions if one.image_1Chw is not None]
    return np.concatenate(images) if images else None
