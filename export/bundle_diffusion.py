"""What a bundle says and ships for the branches that make pictures."""

from __future__ import annotations

from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.diffusion_sizes import DiffusionConfig
from visionllm_edge.export.empty_prompt import empty_prompt_table
from visionllm_edge.runtime.bundle import BundleWriter
from visionllm_edge.runtime.manifest import DiffusionSpec

__all__ = ["diffusion_spec", "write_empty_prompts"]


def diffusion_spec(config: DiffusionConfig | None, task: str) -> DiffusionSpec | None:
    """What the runtime must know about a branch, if the checkpoint has it.

    Args:
        config: of the branch.
        task: "gen" or "edit".
    """
    if config is None:
        return None
    return DiffusionSpec(
        latent_channels=config.vae.latent_channels,
        vae_factor=config.vae.factor,
        scaling_factor=config.vae.scaling_factor,
        # The UNet's graph takes latents of every size, so whole latents are all that is asked.
        multiple=config.vae.factor,
        default_height=config.image_size,
        default_width=config.image_size,
        steps=config.steps,
        guidance=config.guidance,
        image_guidance=config.image_guidance,
        scheduler=config.scheduler,
        empty_prompt=_table(task),
        condition_tokens=config.adapter.num_queries,
        condition_width=config.adapter.hidden_size,
    )


def write_empty_prompts(model: VisionLLM, writer: BundleWriter) -> None:
    """Write the embedding of the empty prompt of every branch that the model has.

    Raises:
        ExportError: numbers that are not finite.
    """
    config = model.config
    if config.generation is not None:
        writer.add_array(_table("gen"), empty_prompt_table(model.sd, config.generation, name="sd"))
    if config.editing is not None:
        writer.add_array(
            _table("edit"), empty_prompt_table(model.ip2p, config.editing, name="ip2p")
        )


def _table(task: str) -> str:
    return f"tables/empty_prompt_{task}.npy"
