"""From hidden states to a picture: adapter, UNet under a scheduler, VAE.

One class serves generation (stages ``gen_*``) and editing (``edit_*``), which differ in the source
picture only: its latents go to the UNet beside the noise, and guidance has a third part. Making a
picture is a generator, so that whoever asks sees every step and may stop after any of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime.decoder_specs import DiffusionSpec
from visionllm_edge.runtime.diffusion.guidance import (
    Condition,
    GuidedUNet,
    editing_conditions,
    generation_conditions,
)
from visionllm_edge.runtime.diffusion.noise import NoiseSource, check_seed
from visionllm_edge.runtime.diffusion.pixels import pixels_from_rgb, rgb_from_pixels, size_near
from visionllm_edge.runtime.diffusion.scheduler import Latents, Scheduler
from visionllm_edge.runtime.diffusion.schedulers import make_scheduler
from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.pipelines.stages import Stages

__all__ = ["MAX_SIDE", "ImageMaker", "ImageOptions", "ImagePlan", "Prefix", "Progress", "Size"]

Prefix = Literal["gen", "edit"]
Size = tuple[int, int]
"""(height, width) in pixels."""
Progress = tuple[int, int]
"""UNet calls done, and all of them."""

MAX_SIDE = 4096
"""Longest side of a picture in pixels: above it the UNet's attention needs terabytes."""


@dataclass(frozen=True)
class ImageOptions:
    """What may be chosen; None takes what the model comes with.

    Attributes:
        size: (height, width) in pixels. An edit takes about the shape of its source picture.
        steps: of the scheduler.
        guidance: how strictly the words are followed; 1 is without guidance.
        image_guidance: how closely an edit keeps to its source picture; 1 is without guidance.
        seed: of the noise; None draws one.
        scheduler: ``pndm``, ``euler_ancestral``, ``ddim`` or ``dpmsolver++``.
    """

    size: tuple[int, int] | None = None
    steps: int | None = None
    guidance: float | None = None
    image_guidance: float | None = None
    seed: int | None = None
    scheduler: str | None = None


@dataclass(frozen=True, eq=False)
class ImagePlan:
    """Options that were checked and filled in. The scheduler serves one picture.

    Attributes:
        size: (height, width) of the picture.
        steps: as asked for; the scheduler may call the UNet more often.
        guidance: of the words.
        image_guidance: of the source picture; 0 in generation.
        seed: of the noise.
        sampler: the scheduler's name.
        scheduler: ready to run.
    """

    size: tuple[int, int]
    steps: int
    guidance: float
    image_guidance: float
    seed: int
    sampler: str
    scheduler: Scheduler


class ImageMaker:
    """Makes pictures, or edits them.

    Args:
        stages: of the bundle.
        prefix: ``gen`` or ``edit``, of the stages' names.
        spec: constants of the manifest.
        empty_prompt: embedding of the empty prompt, float32 ``[Q, d]``.
        together: as for :class:`GuidedUNet`. Not by default: a picture of 512 x 512 must fit small
            devices, and a batch takes as many times the memory for activations.
        sizes: smallest and largest picture that the stages were built for; None where they take
            any.
        admit: called with every plan; raises where the chain does not fit into memory.
    """

    def __init__(
        self,
        stages: Stages,
        prefix: Prefix,
        spec: DiffusionSpec,
        empty_prompt: NDArray[np.float32],
        *,
        together: bool = False,
        sizes: tuple[Size, Size] | None = None,
        admit: Callable[[], None] | None = None,
    ) -> None:
        """Load nothing yet."""
        self.spec = spec
        self._stages = stages
        self._prefix = prefix
        self._empty = np.ascontiguousarray(empty_prompt, np.float32)[None]
        self._together = together
        self._sizes = _in_multiples(sizes, spec.multiple)
        self._admit = admit

    @property
    def edits(self) -> bool:
        """Whether it needs a source picture."""
        return self._prefix == "edit"

    def plan(self, options: ImageOptions, source_size: tuple[int, int] | None = None) -> ImagePlan:
        """Check options before anything is computed.

        Args:
            options: what was asked for.
            source_size: (height, width) of the picture to edit.

        Raises:
            InputError: an option that cannot be used, or no source picture where one is needed.
            MemoryLimitError: the chain does not fit into what is free.
        """
        spec = self.spec
        if self.edits and source_size is None:
            raise InputError("edit: expected a picture to edit, got none. Pass an image.")
        if not self.edits and options.image_guidance is not None:
            raise InputError(
                "image_guidance: expected none, because generation has no source picture, got "
                f"{options.image_guidance}. Leave it out, or edit a picture."
            )
        default = (spec.default_height, spec.default_width)
        if source_size is not None:
            default = size_near(
                source_size,
                shorter=min(default),
                multiple=spec.multiple,
                largest=self._sizes[1],
            )
        steps = spec.steps if options.steps is None else options.steps
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise InputError(
                f"steps: expected a whole number of at least 1, got {steps!r}. Change the option."
            )
        plan = ImagePlan(
            size=self._checked_size(default if options.size is None else options.size),
            steps=steps,
            guidance=_scale("guidance", options.guidance, spec.guidance),
            image_guidance=_scale("image_guidance", options.image_guidance, spec.image_guidance)
            if self.edits
            else 0.0,
            seed=check_seed(options.seed),
            sampler=spec.scheduler.kind if options.scheduler is None else options.scheduler,
            scheduler=make_scheduler(spec.scheduler, steps, kind=options.scheduler),
        )
        if self._admit is not None:
            self._admit()
        return plan

    def make(
        self,
        hidden_GD: NDArray[np.float32],  # noqa: N803 (axis letters)
        plan: ImagePlan,
        source: NDArray[np.uint8] | None = None,
    ) -> Generator[Progress, None, NDArray[np.uint8]]:
        """Make the picture, step by step.

        Args:
            hidden_GD: the group's super-link hidden states, float32 ``[G, D]``.
            plan: from :meth:`plan`, used once.
            source: the picture to edit, uint8 ``[H, W, 3]``.

        Yields:
            Calls of the UNet that are done, and how many there are.

        Returns:
            The picture, uint8 ``[H, W, 3]``.
        """
        spec = self.spec
        height, width = (side // spec.vae_factor for side in plan.size)
        noise = NoiseSource(plan.seed, (1, spec.latent_channels, height, width))
        unet = GuidedUNet(
            self._stages.get(f"{self._prefix}_unet"),
            self._conditions(hidden_GD, plan, source),
            together=self._together,
        )
        scheduler = plan.scheduler
        sample = noise() * np.float32(scheduler.initial_scale)
        calls = len(scheduler.timesteps)
        for call, timestep in enumerate(scheduler.timesteps):
            predicted = unet.predict(scheduler.model_input(sample, call), timestep)
            sample = scheduler.step(sample, predicted, call, noise)
            yield call + 1, calls
        return rgb_from_pixels(self.decode(sample))

    def condition(self, hidden_GD: NDArray[np.float32]) -> NDArray[np.float32]:  # noqa: N803
        """What the UNet attends to, float32 ``[1, Q, d]``, of hidden states ``[G, D]``."""
        states = np.ascontiguousarray(hidden_GD[None], np.float32)
        out = self._stages.get(f"{self._prefix}_adapter").run({"states": states})["condition"]
        return np.array(out, np.float32)

    def decode(self, sample: Latents) -> NDArray[np.float32]:
        """Pixels ``[1, 3, H, W]``, about -1..1, of finished latents."""
        latents = sample * np.float32(1.0 / self.spec.scaling_factor)
        stage = self._stages.get(f"{self._prefix}_vae_decoder")
        return np.array(stage.run({"latents": latents})["pixels"], np.float32)

    def encode(self, source: NDArray[np.uint8], size: tuple[int, int]) -> Latents:
        """Latents of a source picture, the posterior's mode and not scaled."""
        pixels = pixels_from_rgb(source, size)
        stage = self._stages.get(f"{self._prefix}_vae_encoder")
        return np.array(stage.run({"pixels": pixels})["latents"], np.float32)

    def _checked_size(self, size: Size) -> Size:
        multiple, (low, high) = self.spec.multiple, self._sizes
        good = len(size) == 2 and all(
            isinstance(side, int)
            and not isinstance(side, bool)
            and least <= side <= most
            and side % multiple == 0
            for side, least, most in zip(size, low, high, strict=True)
        )
        if not good:
            square = all(height == width for height, width in (low, high))
            allowed = f"{low[0]} to {high[0]}" if square else f"{low} to {high}"
            raise InputError(
                f"size: expected (height, width) in multiples of {multiple} pixels from {allowed}, "
                f"got {size}. Change the option."
            )
        return size

    def _conditions(
        self,
        hidden_GD: NDArray[np.float32],  # noqa: N803
        plan: ImagePlan,
        source: NDArray[np.uint8] | None,
    ) -> list[Condition]:
        asked = self.condition(hidden_GD)
        if not self.edits:
            return generation_conditions(asked, self._empty, plan.guidance)
        assert source is not None, "a plan for an edit has a source"
        return editing_conditions(
            asked,
            self._empty,
            self.encode(source, plan.size),
            guidance=plan.guidance,
            image_guidance=plan.image_guidance,
        )


def _in_multiples(sizes: tuple[Size, Size] | None, multiple: int) -> tuple[Size, Size]:
    """The smallest and the largest size whose sides are multiples, of those that are allowed."""
    low, high = sizes or ((multiple, multiple), (MAX_SIDE, MAX_SIDE))
    smallest = tuple(-(-side // multiple) * multiple for side in low)
    largest = tuple(min(side, MAX_SIDE) // multiple * multiple for side in high)
    return (smallest[0], smallest[1]), (largest[0], largest[1])


def _scale(name: str, value: float | None, default: float) -> float:
    if value is None:
        return default
    if not (math.isfinite(value) and value >= 0.0):
        raise InputError(
            f"{name}: expected a number of at least 0, got {value}. Change the option."
        )
    return float(value)
