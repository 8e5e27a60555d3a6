"""LLaMA decoder: embeddings in, key/value cache in and out, logits and hidden states where asked.

The module tree carries the official key names (prefix ``llm.``). :meth:`Llama.forward` is the twin
of the decoder graph (`visionllm_edge.export.llm.decoder_graph`): a fixed cache buffer, appended to
by steps of any length. :meth:`Llama.teacher_forced` runs whole sequences under any mask and is what
training uses; both must agree.
Source: LLaMA, arXiv 2302.13971.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from visionllm_edge.export.components.modules import module_list
from visionllm_edge.export.config import LlmConfig
from visionllm_edge.export.ops import cached_attention

__all__ = ["Layer", "Llama", "rope_tables"]


def rope_tables(config: LlmConfig) -> tuple[Tensor, Tensor]:
    """Cosine and sine [max_positions, head_dim/2], float32."""
    half = config.head_dim // 2
    frequency = config.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(config.max_position_embeddings, dtype=torch.float64)[:, None] * frequency
    return angle.cos().float(), angle.sin().float()


class _RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + self.eps) * self.weight


class _Attention(nn.Module):
    def __init__(self, config: LlmConfig) -> None:
        super().__init__()
        d, kv = config.hidden_size, config.num_key_value_heads * config.head_dim
        q = config.num_attention_heads * config.head_dim
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(d, q, bias=False)
        self.k_proj = nn.Linear(d, kv, bias=False)
        self.v_proj = nn.Linear(d, kv, bias=False)
        self.o_proj = nn.Linear(q, d, bias=False)

    def teacher_forced(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        batch, length, _ = x.shape

        def heads(t: Tensor) -> Tensor:
            return t.view(batch, length, -1, self.head_dim).transpose(1, 2)

        q, k, v = heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x))
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, enable_gqa=self.heads != self.kv_heads
        )
        result: Tensor = self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))
        return result


class _MLP(nn.Module):
    def __init__(self, config: LlmConfig) -> None:
        super().__init__()
        d, ffn = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(d, ffn, bias=False)
        self.up_proj = nn.Linear(d, ffn, bias=False)
        self.down_proj = nn.Linear(ffn, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """Attention and MLP, each behind a norm."""

    def __init__(self, config: LlmConfig) -> None:
        """Build from the config."""
        super().__init__()
        self.self_attn = _Attention(config)
        self.mlp = _MLP(config)
        self.input_layernorm = _RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = _RMSNorm(config.hidden_size, config.rms_norm_eps)


class _Model(nn.Module):
    def __init__(self, config: LlmConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = module_list(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = _RMSNorm(config.hidden_size, config.rms_norm_eps)


class Llama(nn.Module):
    """The language model."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: LlmConfig) -> None:
        """Build from the config; weights are random until a checkpoint is loaded."""
        super().__init__()
        self.config = config
        self.model = _Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        cos, sin = rope_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(
        self,
        inputs_embeds: Tensor,
        past_length: Tensor,
        hidden_rows: Tensor,
        logit_rows: Tensor,
        *past: Tensor,
    ) -> tuple[Tensor, ...]:
        """Append a step to the cache.

        Args:
            inputs_embeds: [1,s,D], any s of at least 1.
            past_length: int64 [1], rows of the cache that are valid.
            hidden_rows: int64 [r], rows of this step (from 0) whose final hidden states are wanted.
                Behind the last layer's attention the others are not computed.
            logit_rows: int64 [l], numbers into `hidden_rows` of those whose logits are wanted.
            *past: key and value of each layer in turn, [1,KV,C,Dh]; C is the cache's capacity and
                ``past_length + s <= C`` must hold.

        Returns:
            logits [l,V]; hidden [1,r,D] after the final norm; then the cache tensors with rows
            ``past_length .. past_length+s-1`` written, in the order of ``past``.
        """
        x, present = inputs_embeds, []
        for i, layer in enumerate(self.model.layers):
            attn, normed = layer.self_attn, layer.input_layernorm(x)
            out, key, value = cached_attention(
                attn.q_proj(normed),
                attn.k_proj(normed),
                attn.v_proj(normed),
                past[2 * i],
                past[2 * i + 1],
                past_length,
                self.cos,
                self.sin,
                num_heads=attn.heads,
                kv_num_heads=attn.kv_heads,
                scale=attn.head_dim**-0.5,
            )
            present += [key, value]
            if i == self.config.num_hidden_layers - 1:
                out, x = out[:, hidden_rows], x[:, hidden_rows]
            x = x + attn.o_proj(out)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        hidden = self.model.norm(x)
        return (self.lm_head(hidden[0, logit_rows]), hidden, *present)

    def layers(self) -> Iterable[Layer]:
        """The layers in the order in which they run."""
        return self.model.layers

    def teacher_forced(
        self, inputs_embeds: Tensor, *, mask: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Hidden states [B,s,D] after the final norm, for whole sequences without a cache.

        Args:
            inputs_embeds: [B,s,D].
            mask: bool, broadcastable to [B,H,s,s], true where a row may look; default causal.
            positions: int64 [B,s]; default 0..s-1.
        """
        length = inputs_embeds.shape[1]
        if mask is None:
            mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        if positions is None:
            positions = torch.arange(length)[None]
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        x = inputs_embeds
        for layer in self.layers():
            x = x + layer.self_attn.teacher_forced(layer.input_layernorm(x), cos, sin, mask)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        hidden: Tensor = self.model.norm(x)
        return hidden


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split rotary embedding of x [B,H,s,Dh] with cos, sin [B,1,s,Dh/2]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
