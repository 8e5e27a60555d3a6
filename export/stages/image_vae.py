"""Stages `gen_vae_decoder`, `edit_vae_decoder` and `edit_vae_encoder`: latents from and to pixels.

Pixels are -1 to 1 (a decoder may go a little beyond). The scaling factor, by which the UNet's
latents differ from the VAE's, is applied by the runtime.
"""

from __future__ import annotations

from torch import Tensor, nn

from visionllm_edge.export.components.diffusion import VaeDecoderStage, VaeEncoderStage
from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.export.stages.diffusion import DiffusionStage
from visionllm_edge.export.stages.examples import Case, Examples
from visionllm_edge.export.stages.examples_diffusion import (
    DiffusionCase,
    clean_latents,
    scene_pixels,
)
from visionllm_edge.export.stages.stage import Bucket, PortTable
from visionllm_edge.runtime.ports import StagePorts

__all__ = ["EditVaeDecoder", "EditVaeEncoder", "GenVaeDecoder"]


class _Vae(DiffusionStage):
    trace_case = DiffusionCase(batch=1)
    check_cases = (
        DiffusionCase(batch=1, height=8, width=8),
        DiffusionCase(batch=1, height=9, width=5),
    )


class _VaeDecoder(_Vae):
    def ports(self, config: VisionLLMConfig) -> StagePorts:
        """See `Stage`."""
        return PortTable(
            inputs={"latents": ("float32", 1, self.sizes(config).vae.latent_channels, "h", "w")},
            outputs={"pixels": ("float32", 1, 3, "H", "W")},
        ).ports(self.name)

    def module(self, model: VisionLLM, bucket: Bucket | None) -> nn.Module:
        """See `Stage`."""
        return VaeDecoderStage(self.branch(model).sd_vae)

    def inputs(self, examples: Examples, bucket: Bucket | None, case: Case) -> dict[str, Tensor]:
        """See `Stage`."""
        assert isinstance(case, DiffusionCase), "the cases of this stage"
        branch, sizes = self.branch(examples.model), self.sizes(examples.config)
        return {"latents": clean_latents(branch, sizes, case)}


class GenVaeDecoder(_VaeDecoder):
    """Decoder of the generation branch."""

    name = "gen_vae_decoder"
    edits = False
    weight_prefixes = ("sd.sd_vae.decoder.", "sd.sd_vae.post_quant_conv.")


class EditVaeDecoder(_VaeDecoder):
    """Decoder of the editing branch."""

    name = "edit_vae_decoder"
    edits = True
    weight_prefixes = ("ip2p.sd_vae.decoder.", "ip2p.sd_vae.post_quant_conv.")


class EditVaeEncoder(_Vae):
    """Encoder of the editing branch: the mode of the posterior."""

    name = "edit_vae_encoder"
    edits = True
    weight_prefixes = ("ip2p.sd_vae.encoder.", "ip2p.sd_vae.quant_conv.")

    def ports(self, config: VisionLLMConfig) -> StagePorts:
        """See `Stage`."""
        return PortTable(
            inputs={"pixels": ("float32", 1, 3, "H", "W")},
            outputs={"latents": ("float32", 1, self.sizes(config).vae.latent_channels, "h", "w")},
        ).ports(self.name)

    def module(self, model: VisionLLM, bucket: Bucket | None) -> nn.Module:
        """See `Stage`."""
        return VaeEncoderStage(self.branch(model).sd_vae)

    def inputs(self, examples: Examples, bucket: Bucket | None, case: Case) -> dict[str, Tensor]:
        """See `Stage`."""
        assert isinstance(case, DiffusionCase), "the cases of this stage"
        factor = self.sizes(examples.config).vae.factor
        return {"pixels": scene_pixels(case.height * factor, case.width * factor)}
