"""Semantic operators as torch functions: plain maths in eager mode, one ONNX node while exporting.

A component calls the function; it never needs to know which of the two happens. In eager mode the
maths is ordinary differentiable torch, so the same component trains and serves as the oracle. While
`torch.onnx.export` traces, the call becomes one node of domain `visionllm`; its ONNX function body
is appended by a pass afterwards (the exporter would inline it), and a lowering pass picks the form
a target runs.

This module does not know about targets or backends.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812  (the name every torch reader expects)
from torch import Tensor

from visionllm_edge.plugins.semantic_op import DOMAIN, PLUGIN_NAMESPACE, PLUGIN_VERSION

__all__ = ["cached_attention", "grid_sample_prompt_pool", "ms_deform_attn"]

_PLUGIN_ATTRS = {"plugin_version": PLUGIN_VERSION, "plugin_namespace": PLUGIN_NAMESPACE}


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    locations: Tensor,
    weights: Tensor,
) -> Tensor:
    """Multi-scale deformable attention: a weighted sum of bilinear samples from every level.

    Args:
        value: [N, S, M, D] projected values, the levels' pixels one after the other.
        spatial_shapes: int32 [L, 2], (height, width) of every level; sum(h * w) is S.
        level_start_index: int32 [L], first row of every level in `value`.
        locations: [N, Lq, M, L, P, 2], (x, y) in 0..1 of the level; outside samples are zero.
        weights: [N, Lq, M, L, P], already normalised.

    Returns:
        [N, Lq, M, D] in the dtype of `value`.
    """
    if torch.onnx.is_in_onnx_export():
        batch, _, heads, depth = value.shape
        result: Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::MultiScaleDeformableAttention",
            (value, spatial_shapes, level_start_index, locations, weights),
            dict(_PLUGIN_ATTRS),
            dtype=value.dtype,
            shape=(batch, locations.shape[1], heads, depth),
            version=1,
        )
        return result
    return _ms_deform_attn_eager(value, spatial_shapes, level_start_index, locations, weights)


def _ms_deform_attn_eager(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    locations: Tensor,
    weights: Tensor,
) -> Tensor:
    """The grid_sample form: one call per level on [N*M, D, h, w], differentiable in every input.

    Half-precision values are sampled and summed in fp32: coordinates in fp16 lose sub-pixels.
    """
    batch, _, heads, depth = value.shape
    dtype = torch.promote_types(value.dtype, torch.promote_types(locations.dtype, torch.float32))
    queries, points = locations.shape[1], locations.shape[4]
    sizes: list[list[int]] = spatial_shapes.tolist()
    starts: list[int] = level_start_index.tolist()
    # Heads join the batch so that one grid_sample serves all of them: [N*M, D, S].
    flat = value.to(dtype).permute(0, 2, 3, 1).reshape(batch * heads, depth, -1)
    # 0..1 -> -1..1, as grid_sample counts: [L, N*M, Lq, P, 2].
    grids = (2 * locations - 1).permute(3, 0, 2, 1, 4, 5)
    grids = grids.reshape(len(sizes), batch * heads, queries, points, 2).to(dtype)
    mix = weights.to(dtype).permute(3, 0, 2, 1, 4)
    mix = mix.reshape(len(sizes), batch * heads, 1, queries, points)
    total: Tensor | None = None
    for level, ((height, width), start) in enumerate(zip(sizes, starts, strict=True)):
        plane = flat[:, :, start : start + height * width].reshape(-1, depth, height, width)
        sampled = F.grid_sample(
            plane, grids[level], mode="bilinear", padding_mode="zeros", align_corners=False
        )
        part = (sampled * mix[level]).sum(-1)
        total = part if total is None else total + part
    assert total is not None, "at least one level"
    return total.reshape(batch, heads, depth, queries).permute(0, 3, 1, 2).to(value.dtype)


def grid_sample_prompt_pool(features: Tensor, masks: Tensor, region_image: Tensor) -> Tensor:
    """The mean of a feature map, sampled bilinearly at every foreground pixel of a mask.

    A foreground pixel (y, x) is the point (x / W, y / H), without a half-pixel offset; outside the
    map is zero. Differentiable in the features. In eager mode this is the exact fold: tent matrices
    turn the mask into one weight per cell.

    Args:
        features: [N, Gh, Gw, C], finite.
        masks: float32 [R, H, W]; not zero is foreground.
        region_image: int32 [R], the image of every region; outside 0 .. N-1 gives zeros.

    Returns:
        [R, C] in the dtype of `features`; zeros where a mask is empty.
    """
    if torch.onnx.is_in_onnx_export():
        result: Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::GridSamplePromptPool",
            (features, masks, region_image),
            dict(_PLUGIN_ATTRS),
            dtype=features.dtype,
            shape=(masks.shape[0], features.shape[3]),
            version=1,
        )
        return result
    images, grid_height, grid_width, _ = features.shape
    dtype = torch.promote_types(features.dtype, torch.float32)

    def tent(pixels: int, cells: int) -> Tensor:
        points = torch.arange(pixels, device=features.device) * cells
        centres = torch.arange(cells, device=features.device, dtype=dtype)
        distance = (points.to(dtype) / pixels - 0.5)[:, None] - centres[None, :]
        return (1 - distance.abs()).clamp(min=0)

    foreground = (masks != 0).to(dtype)
    count = foreground.sum(dim=(1, 2)).clamp(min=1)
    height, width = masks.shape[1:]
    rows = foreground @ tent(width, grid_width)
    weights = tent(height, grid_height).T @ rows / count[:, None, None]
    numbers = torch.arange(images, device=features.device)
    chosen = (region_image[:, None] == numbers[None, :]).to(dtype)
    # [R, N, Gh, Gw]: the weights of a region at its own image, zeros at all others.
    placed = chosen[:, :, None, None] * weights[:, None]
    pooled = placed.flatten(1) @ features.to(dtype).flatten(0, 2)
    return pooled.to(features.dtype)


def cached_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    past_length: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    num_heads: int,
    kv_num_heads: int,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Causal attention over a fixed cache buffer, with rotary embedding of query and key inside.

    The S new rows stand at positions past_length .. past_length + S - 1, both for the rotation
    (LLaMA's half-split form) and in the cache. Row i sees cache rows 0 .. past_length + i.

    Args:
        query: [B, S, H*Dh], not rotated.
        key: [B, S, KV*Dh], not rotated.
        value: [B, S, KV*Dh].
        past_key: [B, KV, C, Dh], rotated keys of earlier calls in rows < past_length.
        past_value: [B, KV, C, Dh].
        past_length: int64 [1]; past_length + S must not exceed C.
        cos: [max_pos, Dh/2], cosine of position * frequency; max_pos >= past_length + S.
        sin: [max_pos, Dh/2].
        num_heads: H.
        kv_num_heads: KV, a divisor of H.
        scale: factor on the scores, 1/sqrt(Dh) by default.

    Returns:
        attention [B, S, H*Dh]; present_key and present_value [B, KV, C, Dh], new tensors in eager
        mode (a backend may alias them with past_key and past_value).
    """
    batch, length, width = query.shape
    depth = width // num_heads
    factor = 1.0 / math.sqrt(depth) if scale is None else float(scale)
    if torch.onnx.is_in_onnx_export():
        outputs = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::CachedAttention",
            (query, key, value, past_key, past_value, past_length, cos, sin),
            {
                "num_heads": num_heads,
                "kv_num_heads": kv_num_heads,
                "scale": factor,
                **_PLUGIN_ATTRS,
            },
            dtypes=(query.dtype, past_key.dtype, past_value.dtype),
            shapes=(tuple(query.shape), tuple(past_key.shape), tuple(past_value.shape)),
            version=1,
        )
        return outputs[0], outputs[1], outputs[2]
    start = int(past_length.item())
    end = start + length
    if end > past_key.shape[2]:
        raise ValueError(
            f"cached_attention: {start} cached + {length} new rows exceed the cache's "
            f"{past_key.shape[2]} rows"
        )
    if end > cos.shape[0]:
        raise ValueError(
            f"cached_attention: position {end - 1} is beyond the rotary tables' "
            f"{cos.shape[0]} positions"
        )
    cos_rows, sin_rows = cos[start:end].to(query.dtype), sin[start:end].to(query.dtype)

    def split(rows: Tensor, heads: int) -> Tensor:
        return rows.reshape(batch, length, heads, depth).transpose(1, 2)

    def rotate(rows: Tensor) -> Tensor:
        first, second = rows.chunk(2, dim=-1)
        return torch.cat(
            (first * cos_rows - second * sin_rows, second * cos_rows + first * sin_rows), dim=-1
        )

    queries = rotate(split(query, num_heads))
    positions = torch.arange(start, end, device=query.device)
    present_key = past_key.index_copy(2, positions, rotate(split(key, kv_num_heads)))
    present_value = past_value.index_copy(2, positions, split(value, kv_num_heads))
    group = num_heads // kv_num_heads
    keys = present_key[:, :, :end].repeat_interleave(group, dim=1)
    values = present_value[:, :, :end].repeat_interleave(group, dim=1)
    scores = queries @ keys.transpose(-1, -2) * factor
    hidden = torch.arange(end, device=query.device)[None, :] > positions[:, None]
    probabilities = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    attention = (probabilities @ values).transpose(1, 2).reshape(batch, length, width)
    return attention, present_key, present_value
