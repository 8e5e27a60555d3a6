"""A small random diffusion model in torch behind the stages' ports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.runtime.diffusion.toy_chain import (
    SCALING,
    TOKENS,
    WIDTH,
    FunctionStage,
    FunctionStages,
    diffusion_spec,
)
from visionllm_edge.runtime.diffusion.image_maker import ImageMaker, Prefix

LLM_WIDTH, ROWS = 12, 6


class TorchChain:
    """VAE and UNet of diffusers with random weights, as stages and as they are."""

    def __init__(self, *, edits: bool) -> None:
        import torch

        diffusers: Any = pytest.importorskip("diffusers")
        torch.manual_seed(0)
        self.edits = edits
        self.prefix: Prefix = "edit" if edits else "gen"
        self.unet = diffusers.UNet2DConditionModel(
            sample_size=8,
            in_channels=8 if edits else 4,
            out_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=2,
            cross_attention_dim=WIDTH,
            norm_num_groups=4,
        ).eval()
        self.vae = diffusers.AutoencoderKL(
            block_out_channels=(8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=4,
            norm_num_groups=4,
            scaling_factor=SCALING,
            sample_size=32,
        ).eval()
        rng = np.random.default_rng(2)
        self.empty = rng.standard_normal((TOKENS, WIDTH), dtype=np.float32)
        self._mixing = rng.standard_normal((TOKENS, ROWS), dtype=np.float32)
        self._projection = rng.standard_normal((LLM_WIDTH, WIDTH), dtype=np.float32)
        name = self.prefix
        functions: dict[str, Callable[..., dict[str, Any]]] = {
            f"{name}_adapter": lambda states: {"condition": self.condition(states)},
            f"{name}_unet": self._unet,
            f"{name}_vae_decoder": self._decode,
            f"{name}_vae_encoder": self._encode,
        }
        self.stages = FunctionStages({n: FunctionStage(n, f) for n, f in functions.items()})

    def maker(self, kind: str, *, together: bool = False) -> ImageMaker:
        spec = diffusion_spec(kind, edits=self.edits)
        return ImageMaker(self.stages, self.prefix, spec, self.empty, together=together)

    def condition(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        out: NDArray[np.float32] = np.tanh(self._mixing @ states @ self._projection)
        return out

    def _unet(self, latents: Any, timestep: Any, condition: Any) -> dict[str, Any]:
        import torch

        with torch.no_grad():
            out = self.unet(
                torch.from_numpy(latents), torch.from_numpy(timestep), torch.from_numpy(condition)
            )
        return {"noise": out.sample.numpy()}

    def _decode(self, latents: Any) -> dict[str, Any]:
        import torch

        with torch.no_grad():
            return {"pixels": self.vae.decode(torch.from_numpy(latents)).sample.numpy()}

    def _encode(self, pixels: Any) -> dict[str, Any]:
        import torch

        with torch.no_grad():
            encoded = self.vae.encode(torch.from_numpy(pixels)).latent_dist.mode()
        return {"latents": encoded.numpy()}
