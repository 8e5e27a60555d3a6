"""Realistic inputs of the diffusion stages: scenes, noise, and conditions from the adapter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from visionllm_edge.export.components.diffusion import (
    AdapterStage,
    DiffusionBranch,
    VaeEncoderStage,
)
from visionllm_edge.export.diffusion_sizes import DiffusionConfig
from visionllm_edge.export.stages.examples import Case, Examples
from visionllm_edge.runtime.shapes_world import make_scene

__all__ = [
    "DiffusionCase",
    "branch_conditions",
    "branch_states",
    "clean_latents",
    "noisy_latents",
    "scene_pixels",
]

_SEED = 20_240_609
# The language model's states differ per row of a batch, and from those of other stages.
_STATES_SEED = 40
_SMALLEST_SCENE_PX, _LARGEST_SCENE_PX = 64, 192


@dataclass(frozen=True)
class DiffusionCase(Case):
    """Sizes of one run of a diffusion stage.

    Attributes:
        batch: pictures in the UNet's batch: 2 with guidance, 3 when editing.
        height: of the latents.
        width: of the latents.
        timestep: of the training schedule; fractional for some samplers.
    """

    batch: int = 2
    height: int = 16
    width: int = 24
    timestep: float = 500.5


def branch_states(examples: Examples, config: DiffusionConfig, index: int = 0) -> Tensor:
    """Hidden states [1,G,D] behind a routing token."""
    rows = config.adapter.num_states
    groups = -(-rows // examples.config.num_embs)
    states = examples.text_states(groups, seed=_STATES_SEED + index)
    return states.flatten(1, 2)[:, :rows].contiguous()


def branch_conditions(
    examples: Examples, branch: DiffusionBranch, config: DiffusionConfig, count: int
) -> Tensor:
    """Conditions [b,Q,d], all different."""
    adapter = AdapterStage(branch)
    with torch.no_grad():
        rows = [adapter(branch_states(examples, config, index)) for index in range(count)]
    return torch.cat(rows)


def scene_pixels(height: int, width: int) -> Tensor:
    """A scene of the shapes world [1,3,H,W], -1 to 1."""
    share = min(1.0, _LARGEST_SCENE_PX / max(height, width))
    scene = make_scene(
        np.random.default_rng(_SEED),
        width=max(_SMALLEST_SCENE_PX, round(width * share)),
        height=max(_SMALLEST_SCENE_PX, round(height * share)),
        min_items=1,
        max_items=3,
    )
    pixels = torch.from_numpy(scene.image).permute(2, 0, 1)[None].float() / 127.5 - 1
    return torch.nn.functional.interpolate(pixels, (height, width), mode="bilinear")


def clean_latents(branch: DiffusionBranch, config: DiffusionConfig, case: DiffusionCase) -> Tensor:
    """What the VAE makes of a scene, [1,4,h,w], unscaled."""
    factor = config.vae.factor
    with torch.no_grad():
        latents: Tensor = VaeEncoderStage(branch.sd_vae)(
            scene_pixels(case.height * factor, case.width * factor)
        )
    return latents


def noisy_latents(branch: DiffusionBranch, config: DiffusionConfig, case: DiffusionCase) -> Tensor:
    """Unit noise [b,4,h,w], for editing with the latents of a scene behind it [b,8,h,w]."""
    shape = (case.batch, config.vae.latent_channels, case.height, case.width)
    noise = torch.from_numpy(
        np.random.default_rng((_SEED, 1)).standard_normal(shape).astype(np.float32)
    )
    if not config.edits:
        return noise
    picture = clean_latents(branch, config, case).expand(case.batch, -1, -1, -1)
    return torch.cat([noise, picture], dim=1)
