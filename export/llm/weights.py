"""Where a language model's weights come from: one interface, whatever the file format.

    HF folder     config.json with model_type "llama", safetensors or .bin shards, plain or
                  quantised by AWQ, GPTQ or compressed-tensors
    VisionLLM     the ``llm.`` part of a VisionLLM v2 checkpoint
    GGUF          one file of the llama architecture, any block format

Names are always those of a Hugging Face LLaMA (``model.layers.0.self_attn.q_proj.weight``), shapes
[out, in], rotary halves split as there. Nothing is loaded before it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from visionllm_edge.export.config import LlmConfig, read_json, wrong_model_type

if TYPE_CHECKING:
    from visionllm_edge.export.quantize.matrix import BlockQuantized

__all__ = ["EMBEDDING", "HEAD", "LlmWeights", "expected_shapes", "open_llm"]

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class LlmWeights(Protocol):
    """Weights of a LLaMA decoder, one tensor at a time."""

    @property
    def config(self) -> LlmConfig:
        """Sizes and constants."""

    @property
    def name(self) -> str:
        """A name for people: the folder's, or the file's without its ending."""

    def names(self) -> tuple[str, ...]:
        """Every tensor that the config asks for; ``lm_head.weight`` also when it is tied."""

    def tensor(self, name: str) -> Tensor:
        """One tensor as stored; of a quantised matrix the float32 values that it stands for.

        Raises:
            KeyError: no such name.
        """

    def quantized(self, name: str, *, minimums: bool = False) -> BlockQuantized | None:
        """The matrix's stored blocks, or None where the source holds plain numbers.

        Args:
            name: of the matrix.
            minimums: also take blocks with a minimum beside the scale (GGUF's Q4_1), which cost an
                offset per block where they are kept.

        Raises:
            KeyError: no such name.
        """

    def fingerprint(self) -> str:
        """SHA-256 of everything that the numbers depend on."""


def open_llm(path: Path) -> LlmWeights:
    """Open a GGUF file, a LLaMA folder or a VisionLLM v2 folder; nothing is read but the names.

    Raises:
        CheckpointError: nothing there, unreadable, or missing and mis-shaped tensors by name.
        ConfigError: an architecture or a field of it that is not supported, by name.
    """
    if path.is_file():
        from visionllm_edge.export.llm.gguf_file import GgufWeights

        return GgufWeights(path)
    data = read_json(path)
    if data.get("model_type") == "visionllmv2":
        from visionllm_edge.export.llm.hf_folder import VisionLLMWeights

        return VisionLLMWeights(path)
    if data.get("model_type") == "llama":
        from visionllm_edge.export.llm.hf_folder import LlamaFolder

        return LlamaFolder(path)
    raise wrong_model_type(data)


def expected_shapes(config: LlmConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a LLaMA with its shape, in the order of the computation."""
    d, ffn = config.hidden_size, config.intermediate_size
    q, kv = (
        heads * config.head_dim
        for heads in (config.num_attention_heads, config.num_key_value_heads)
    )
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, d)}
    for i in range(config.num_hidden_layers):
        layer: Mapping[str, tuple[int, ...]] = {
            "input_layernorm": (d,),
            "self_attn.q_proj": (q, d),
            "self_attn.k_proj": (kv, d),
            "self_attn.v_proj": (kv, d),
            "self_attn.o_proj": (d, q),
            "post_attention_layernorm": (d,),
            "mlp.gate_proj": (ffn, d),
            "mlp.up_proj": (ffn, d),
            "mlp.down_proj": (d, ffn),
        }
        shapes |= {f"model.layers.{i}.{part}.weight": shape for part, shape in layer.items()}
    return shapes | {"model.norm.weight": (d,), HEAD: (config.vocab_size, d)}
