"""Vision encoder: CLIP tower and the bridge into the LLM's space, one graph.

Input: pixels [n,3,I,I] float32, CLIP-normalised tiles. Output: image tokens [n,P,D], row-major
patches. Uses the Hugging Face CLIP layers up to the configured hidden state; the class token, later
layers and the post layer norm take no part. A model with a region encoder also needs the state one
layer earlier, and the whole state that the last layer goes on from.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from visionllm_edge.export.config import VisionConfig

__all__ = ["VisionEncoderStage", "VisionTower", "make_bridge"]


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

    @property
    def last_layer(self) -> nn.Module:
        """The layer behind ``hidden_states[-2]``."""
        return self.vision_model.encoder.layers[-1]

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [n,3,I,I] to patch features [n,P,C]."""
        patches: Tensor = self._hidden_state(pixels, self.used_layers)[:, 1:]
        return patches

    def states(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels [n,3,I,I] to ``hidden_states[-3]`` and ``[-2]``, [n,P+1,C], class token first."""
        before = self._hidden_state(pixels, len(self.vision_model.encoder.layers) - 2)
        return before, self.vision_model.encoder.layers[-2](before, attention_mask=None)

    def _hidden_state(self, pixels: Tensor, layers: int) -> Tensor:
        x: Tensor = self.vision_model.pre_layrnorm(self.vision_model.embeddings(pixels))
        for layer in self.vision_model.encoder.layers[:layers]:
            x = layer(x, attention_mask=None)
        return x


def make_bridge(vision_dim: int, llm_dim: int) -> nn.Sequential:
    """The two-layer bridge [.., C] to [.., D] (keys ``vl_bridge.0`` and ``vl_bridge.2``)."""
    return nn.Sequential(nn.Linear(vision_dim, llm_dim), nn.GELU(), nn.Linear(llm_dim, llm_dim))


class VisionEncoderStage(nn.Module):
    """Stage ``vision_encoder``: pixels [n,3,I,I] to image_tokens [n,P,D].

    For a model with a region encoder also level1 [n,P,C], ``hidden_states[-3]`` without the class
    token, and states [n,P+1,C], ``hidden_states[-2]`` with it; `vis_output_layer` is -2 then.
    """

    def __init__(self, tower: VisionTower, bridge: nn.Module, *, regions: bool) -> None:
        """Share the weights; ``regions`` asks for what the region encoder reads."""
        super().__init__()
        self.vis_encoder, self.vl_bridge, self.regions = tower, bridge, regions

    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        if not self.regions:
            tokens: Tensor = self.vl_bridge(self.vis_encoder(pixels))
            return tokens
        before, states = self.vis_encoder.states(pixels)
        return self.vl_bridge(states[:, 1:]), before[:, 1:], states
