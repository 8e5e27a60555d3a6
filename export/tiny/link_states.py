"""Hidden states of the 64 super-link rows behind ``[GEN]`` or ``[EDIT]``, for whole batches.

What comes before the rows does not depend on them, so it is run without gradients, and its keys and
values are kept: of prompts without a picture for good, of the others for one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from visionllm_edge.export.components.llm_decoder import Llama
from visionllm_edge.runtime import prompts
from visionllm_edge.runtime.prompts import Control, Segment, Turn
from visionllm_edge.runtime.tokenizer import Tokenizer

__all__ = ["Past", "join", "link_states", "prompt_ids", "read_prompts"]


@dataclass(frozen=True)
class Past:
    """Keys and values of what comes before the rows.

    Attributes:
        cache: [B,2*layers,KV,L,Dh], key and value of each layer in turn.
        lengths: int64 [B], how many of the L places are real; the others are padding behind them.
    """

    cache: Tensor
    lengths: Tensor


def prompt_ids(
    tokenizer: Tokenizer,
    question: Sequence[Segment],
    answer: Sequence[Segment],
    routing: str,
    *,
    image_tokens: int = 0,
    template: str = prompts.VICUNA,
) -> list[int]:
    """Ids of the conversation up to and including the routing token of its scripted answer."""
    turn = Turn(tuple(question), tuple(answer))
    parts = prompts.conversation([turn], image=image_tokens > 0, template=template)
    end = parts.index(Control(routing))
    return tokenizer.encode(parts[: end + 1], image_tokens=image_tokens)


@torch.no_grad()
def read_prompts(
    llm: Llama, rows: Sequence[Sequence[int]], *, image: Tensor | None = None, image_id: int = -1
) -> Past:
    """Run the language model over prompts.

    Args:
        llm: the language model.
        rows: ids of each prompt.
        image: image tokens [B,P,D] that take the places of ``image_id``; the places are the same
            in every prompt.
        image_id: see ``image``.
    """
    lengths = torch.tensor([len(row) for row in rows])
    longest = int(lengths.max())
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    x = llm.model.embed_tokens(ids)
    if image is not None:
        start = rows[0].index(image_id)
        x = torch.cat([x[:, :start], image, x[:, start + image.shape[1] :]], dim=1)
    places = torch.arange(longest)[None]
    mask = torch.ones(longest, longest, dtype=torch.bool).tril()[None, None]
    cache: list[Tensor] = []
    for layer in llm.model.layers:
        x, (key, value) = _layer(llm, layer, x, places, mask, None)
        cache += [key, value]
    return Past(torch.stack(cache, dim=1), lengths)


def link_states(llm: Llama, past: Past, table: Tensor) -> Tensor:
    """Final hidden states [B,G,D] of the table's rows [G,D] behind each prompt."""
    batch, count = len(past.lengths), len(table)
    x = table[None].expand(batch, -1, -1)
    places = past.lengths[:, None] + torch.arange(count)[None]
    length = past.cache.shape[3]
    real = torch.arange(length)[None] < past.lengths[:, None]
    causal = torch.ones(count, count, dtype=torch.bool).tril()
    mask = torch.cat(
        [real[:, None].expand(-1, count, -1), causal[None].expand(batch, -1, -1)], dim=2
    )[:, None]
    for i, layer in enumerate(llm.model.layers):
        before = (past.cache[:, 2 * i], past.cache[:, 2 * i + 1])
        x, _ = _layer(llm, layer, x, places, mask, before)
    out: Tensor = llm.model.norm(x)
    return out


def join(pasts: Sequence[Past]) -> Past:
    """Several as one batch."""
    longest = max(past.cache.shape[3] for past in pasts)
    caches = [F.pad(p.cache, (0, 0, 0, longest - p.cache.shape[3])) for p in pasts]
    return Past(torch.cat(caches), torch.cat([past.lengths for past in pasts]))


def _layer(
    llm: Llama,
    layer: Any,
    x: Tensor,
    places: Tensor,
    mask: Tensor,
    before: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One decoder layer over new rows; also their keys and values [B,KV,s,Dh]."""
    attn = layer.self_attn
    cos, sin = llm.cos[places][:, None], llm.sin[places][:, None]
    normed = layer.input_layernorm(x)
    batch, count, _ = x.shape
    q, k, v = (
        projected.view(batch, count, -1, attn.head_dim).transpose(1, 2)
        for projected in (attn.q_proj(normed), attn.k_proj(normed), attn.v_proj(normed))
    )
    q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    keys, values = (k, v) if before is None else _behind(before, k, v)
    out = F.scaled_dot_product_attention(
        q, keys, values, attn_mask=mask, enable_gqa=attn.heads != attn.kv_heads
    )
    x = x + attn.o_proj(out.transpose(1, 2).reshape(batch, count, -1))
    return x + layer.mlp(layer.post_attention_layernorm(x)), (k, v)


def _behind(before: tuple[Tensor, Tensor], k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([before[0], k], dim=2), torch.cat([before[1], v], dim=2)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split rotary embedding of x [B,H,s,Dh] with cos, sin [B,1,s,Dh/2]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
