"""What the manifest says about each decoder behind the language model, as frozen dataclasses.

Sizes are in pixels, buckets (height, width).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from visionllm_edge.runtime.typed_json import Count

__all__ = ["SCHEDULERS", "DetectorSpec", "DiffusionSpec", "Making", "PoseSpec", "SchedulerSpec"]

Making = Literal["generate", "edit"]
"""The two ways to make a picture, each with stages of its own."""

SCHEDULERS = ("pndm", "euler_ancestral", "ddim", "dpmsolver++")
"""Samplers that the runtime has."""

_BETA_SCHEDULES = ("scaled_linear", "linear")


@dataclass(frozen=True)
class DetectorSpec:
    """Sizes of the object decoder."""

    buckets: tuple[tuple[Count, Count], ...]
    shortest_edge: Count
    longest_edge: Count
    divisor: Count
    max_text_len: Count
    num_queries: Count


@dataclass(frozen=True)
class PoseSpec:
    """Sizes of the keypoint decoder.

    Attributes:
        buckets: sizes that graphs exist for.
        shortest_edge: short side of its picture.
        longest_edge: upper limit of the long side.
        divisor: of both sides.
        max_objects: object classes of one question.
        max_keypoints: keypoint names of one question.
        num_instances: instances that a picture can show.
    """

    buckets: tuple[tuple[Count, Count], ...]
    shortest_edge: Count
    longest_edge: Count
    divisor: Count
    max_objects: Count
    max_keypoints: Count
    num_instances: Count


@dataclass(frozen=True)
class SchedulerSpec:
    """Noise schedule of training, and the sampler that is taken unless another is asked for.

    Attributes:
        kind: one of :data:`SCHEDULERS`.
        train_steps: steps of the training schedule.
        beta_start: variance of the first step.
        beta_end: variance of the last step.
        beta_schedule: ``scaled_linear`` (linear in the square root) or ``linear``.
        prediction: what the network predicts; ``epsilon`` is the noise.
        steps_offset: added to every time step.
        set_alpha_to_one: whether the step before the first is free of noise.
        skip_prk_steps: PNDM without its Runge-Kutta beginning.
    """

    kind: str
    train_steps: Count = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    prediction: str = "epsilon"
    steps_offset: int = 1
    set_alpha_to_one: bool = False
    skip_prk_steps: bool = True

    def __post_init__(self) -> None:
        """Refuse what the runtime cannot sample."""
        for name, value, known in (
            ("kind", self.kind, SCHEDULERS),
            ("beta_schedule", self.beta_schedule, _BETA_SCHEDULES),
            ("prediction", self.prediction, ("epsilon",)),
        ):
            if value not in known:
                raise ValueError(f"{name} expected {' or '.join(known)}, got {value!r}")


@dataclass(frozen=True)
class DiffusionSpec:
    """One chain that makes pictures: adapter, UNet, VAE.

    Attributes:
        latent_channels: of the VAE's latents.
        vae_factor: pixels per latent, each way.
        scaling_factor: latents of the UNet are the VAE's times this.
        multiple: what both sides of a picture must be a multiple of.
        default_height: of a generated picture; of an edited one the source decides.
        default_width: as `default_height`.
        steps: denoising steps unless others are asked for.
        guidance: weight of the words.
        image_guidance: weight of the source picture; 0 where there is none.
        scheduler: noise schedule and sampler.
        empty_prompt: file of the condition without words, float32 [Q,d].
        condition_tokens: Q, rows of the condition.
        condition_width: d, width of a row.
    """

    latent_channels: Count
    vae_factor: Count
    scaling_factor: float
    multiple: Count
    default_height: Count
    default_width: Count
    steps: Count
    guidance: float
    image_guidance: float
    scheduler: SchedulerSpec
    empty_prompt: str
    condition_tokens: Count
    condition_width: Count
