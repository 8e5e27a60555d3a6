"""Adapter of a diffusion branch: states of the language model to a condition for the UNet.

A two-layer projection, then an encoder-decoder of torch (``nn.Transformer``, norm first) whose
targets are learnt queries. The layers are called here one by one, in ordinary products: the fused
kernels of ``nn.Transformer`` have no ONNX form. :meth:`ImageAdapter.reference` calls it as it is.

Source: VisionLLM v2 (arXiv 2406.08394), section 3.3 and B.2.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from visionllm_edge.export.diffusion_sizes import AdapterConfig

__all__ = ["ImageAdapter", "condition_from_states"]


class ImageAdapter(nn.Module):
    """States [B,G,D] to a condition [B,Q,d], under the official key names."""

    def __init__(self, config: AdapterConfig) -> None:
        """Random weights; the queries start as small noise."""
        super().__init__()
        width, heads, inner = config.hidden_size, config.num_heads, config.feedforward_size
        self.emb_proj = nn.Sequential(
            nn.Linear(config.llm_hidden_size, width), nn.GELU(), nn.Linear(width, width)
        )
        # nn.Transformer's own encoder, but for a warning that norm first excludes nested tensors.
        encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(
                width, heads, inner, dropout=0.0, batch_first=True, norm_first=True
            ),
            config.num_encoder_layers,
            nn.LayerNorm(width),
            enable_nested_tensor=False,
        )
        self.llm2sd_mapper = nn.Transformer(
            d_model=width,
            nhead=heads,
            num_decoder_layers=config.num_decoder_layers,
            dim_feedforward=inner,
            dropout=0.0,
            custom_encoder=encoder,
            batch_first=True,
            norm_first=True,
        )
        self.llm2sd_mapper_queries = nn.Parameter(torch.randn(1, config.num_queries, width) * 0.02)

    def condition(self, states: Tensor) -> Tensor:
        """States [B,G,D] to the condition [B,Q,d]; differentiable."""
        return condition_from_states(
            states, self.emb_proj, self.llm2sd_mapper, self.llm2sd_mapper_queries
        )

    def reference(self, states: Tensor) -> Tensor:
        """The same by torch's own module."""
        queries = self.llm2sd_mapper_queries.expand(states.shape[0], -1, -1)
        out: Tensor = self.llm2sd_mapper(src=self.emb_proj(states), tgt=queries)
        return out


def condition_from_states(
    states: Tensor, emb_proj: nn.Module, mapper: nn.Transformer, queries: Tensor
) -> Tensor:
    """What the adapter computes, from its parts.

    Args:
        states: [B,G,D], hidden states of the super-link rows.
        emb_proj: [B,G,D] to [B,G,d].
        mapper: of width d, norm first.
        queries: [1,Q,d].

    Returns:
        [B,Q,d].
    """
    memory: Tensor = emb_proj(states)
    encoder, decoder = mapper.encoder, mapper.decoder
    for layer in cast("list[nn.TransformerEncoderLayer]", encoder.layers):
        x = layer.norm1(memory)
        memory = memory + _attend(layer.self_attn, x, x)
        memory = memory + layer.linear2(F.relu(layer.linear1(layer.norm2(memory))))
    memory = _norm(encoder, memory)
    queries = queries.expand(states.shape[0], -1, -1)
    for step in cast("list[nn.TransformerDecoderLayer]", decoder.layers):
        x = step.norm1(queries)
        queries = queries + _attend(step.self_attn, x, x)
        queries = queries + _attend(step.multihead_attn, step.norm2(queries), memory)
        queries = queries + step.linear2(F.relu(step.linear1(step.norm3(queries))))
    return _norm(decoder, queries)


def _norm(stack: nn.TransformerEncoder | nn.TransformerDecoder, x: Tensor) -> Tensor:
    assert stack.norm is not None, "nn.Transformer puts a norm behind both stacks"
    out: Tensor = stack.norm(x)
    return out


def _attend(attention: nn.MultiheadAttention, queries: Tensor, context: Tensor) -> Tensor:
    """Queries [B,Q,d] over context [B,K,d] to [B,Q,d], without masks."""
    wq, wk, wv = attention.in_proj_weight.chunk(3)
    bq, bk, bv = attention.in_proj_bias.chunk(3)
    heads = attention.num_heads

    def split(x: Tensor) -> Tensor:  # [B,T,d] -> [B,H,T,d/H]
        return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)

    q = split(F.linear(queries, wq, bq))
    k, v = split(F.linear(context, wk, bk)), split(F.linear(context, wv, bv))
    scores = torch.matmul(q, k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    mixed = torch.matmul(torch.softmax(scores, dim=-1), v)
    out: Tensor = attention.out_proj(mixed.transpose(1, 2).flatten(-2))
    return out
