"""Vision encoder: CLIP tower and the bridge into the LLM's space, one graph.

Input: pixels [n,3,I,I] float32, CLIP-normalised tiles. Output: image tokens [n,P,D], row-major
patches. Uses the Hugging Face CLIP layers up to the configured hidden state; the class token, later
layers and the post layer norm take no part.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from visionllm_edge.export.config import VisionConfig

__all__ = ["VisionTower", "make_bridge"]


class VisionTower(nn.Module):
    """CLIP vision tower under its official key prefix (``vis_encoder.``)."""

    def __init__(self, config: VisionConfig, output_layer: int) -> None:
        """``output_layer`` counts hidden states from the end: -2 is the last layer but one."""
        super().__init__()
        self.used_layers = config.num_hidden_layers + 1 + output_layer
        self.vision_model = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.num_attention_heads,
                image_size=config.image_size,
                patch_size=config.patch_size,
                layer_norm_eps=config.layer_norm_eps,
                hidden_act=config.hidden_act,
                attn_implementation="sdpa",  # type: ignore[call-arg]  # not declared
            )
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [n,3,I,I] to patch features [n,P,C]."""
        x = self.vision_model.pre_layrnorm(self.vision_model.embeddings(pixels))
        for layer in self.vision_model.encoder.layers[: self.used_layers]:
            x = layer(x, attention_mask=None)
        patches: Tensor = x[:, 1:]
        return patches


def make_bridge(vision_dim: int, llm_dim: int) -> nn.Sequential:
    """The two-layer bridge [.., C] to [.., D] (keys ``vl_bridge.0`` and ``vl_bridge.2``)."""
    return nn.Sequential(nn.Linear(vision_dim, llm_dim), nn.GELU(), nn.Linear(llm_dim, llm_dim))
