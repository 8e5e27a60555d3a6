"""Swin: against transformers where maps are larger than a window, by hand where they are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import SwinBackbone as TheirBackbone
from transformers import SwinConfig as TheirConfig

from tests.export.components.weights import randomise
from visionllm_edge.export.components import swin
from visionllm_edge.export.components.swin import SwinBackbone
from visionllm_edge.export.config import SwinConfig

CONFIG = SwinConfig(embed_dim=8, depths=(2, 2, 3, 2), num_heads=(1, 2, 2, 4), window_size=7)


def make(config: SwinConfig = CONFIG) -> SwinBackbone:
    backbone = SwinBackbone(config).eval()
    randomise(backbone)
    return backbone


def pixels(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def theirs(ours: SwinBackbone, config: SwinConfig = CONFIG) -> Any:
    """transformers' backbone with our weights, read under the official names."""
    options: dict[str, Any] = {
        "embed_dim": config.embed_dim,
        "depths": list(config.depths),
        "num_heads": list(config.num_heads),
        "window_size": config.window_size,
        "mlp_ratio": config.mlp_ratio,
        "layer_norm_eps": config.layer_norm_eps,
        "drop_path_rate": 0.0,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }
    loaded: Any = TheirBackbone.from_pretrained(
        None,
        config=TheirConfig(**options),
        state_dict={name: tensor.clone() for name, tensor in ours.state_dict().items()},
        attn_implementation="eager",
        output_loading_info=True,
    )
    model, info = loaded
    # Its last layer norm takes no part in a backbone.
    assert {name for name in info["missing_keys"] if "swin.layernorm" not in name} == set()
    assert not info["unexpected_keys"]
    return model.eval()


@torch.no_grad()
def worst(ours: SwinBackbone, model: Any, image: Tensor) -> float:
    """Largest difference of the four maps."""
    expected = model(image).feature_maps
    found = ours(image)
    assert [m.shape for m in found] == [m.shape for m in expected]
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))


# Maps of 60x64, 30x32, 15x16 and 8x8: not one is a multiple of 7 but 7x8, and merging meets odd
# sizes. The smallest is larger than a window, where all releases of transformers agree.
SIZE = (240, 256)


def test_equals_transformers() -> None:
    ours = make()
    assert worst(ours, theirs(ours), pixels(*SIZE)) < 1e-4


def test_epsilon_of_the_blocks_only() -> None:
    config = SwinConfig(
        embed_dim=8, depths=(1, 1, 1, 2), num_heads=(1, 2, 2, 4), window_size=7, layer_norm_eps=0.5
    )
    ours = make(config)
    assert worst(ours, theirs(ours, config), pixels(*SIZE)) < 1e-4


def _row_major_merging(module: swin.PatchMerging, x: Tensor) -> Tensor:
    x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
    quarters = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    out: Tensor = module.reduction(module.norm(torch.cat(quarters, dim=-1)))
    return out


def _no_shift_mask(height: int, width: int, window: int, shift: int) -> np.ndarray:
    count = height * width // window**2
    return np.zeros((count, window**2, window**2), np.float32)


def _turned_index(module: nn.Module) -> None:
    for block in module.modules():
        if isinstance(block, swin._WindowAttention):
            block.index = block.index.T


def _no_shift(module: nn.Module) -> None:
    for block in module.modules():
        if isinstance(block, swin._Block):
            block.shift = 0


def _no_last_norms(module: nn.Module) -> None:
    assert isinstance(module, SwinBackbone)
    for name in module.hidden_states_norms:
        module.hidden_states_norms[name] = nn.Identity()


@pytest.mark.parametrize("fault", [_turned_index, _no_shift, _no_last_norms])
def test_a_planted_fault_shows(fault: Callable[[nn.Module], None]) -> None:
    ours = make()
    model = theirs(ours)
    fault(ours)
    assert worst(ours, model, pixels(*SIZE)) > 1e-2


@pytest.mark.parametrize("fault", ["merging", "mask"])
def test_a_planted_fault_in_the_maths_shows(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = make()
    model = theirs(ours)
    if fault == "merging":
        monkeypatch.setattr(swin.PatchMerging, "forward", _row_major_merging)
    else:
        monkeypatch.setattr(swin, "_shift_mask", _no_shift_mask)
    assert worst(ours, model, pixels(*SIZE)) > 1e-2


def slow_block(block: swin._Block, x: Tensor) -> Tensor:
    """One block on a map [H,W,C], pixel by pixel: window and shift keep their size."""
    height, width, dim = x.shape
    w, shift, heads = block.window, block.shift, block.heads
    rows, cols = -(-height // w) * w, -(-width // w) * w
    padded = torch.zeros(rows, cols, dim)
    padded[:height, :width] = block.layernorm_before(x)
    attention = block.attention.self
    q, k, v = attention.query(padded), attention.key(padded), attention.value(padded)
    depth = dim // heads

    def region(i: int, size: int) -> int:
        return 0 if not shift or i < size - w else 1 if i < size - shift else 2

    mixed = torch.zeros(height, width, dim)
    for y in range(height):
        for x_ in range(width):
            # Where the pixel stands after the roll, and who shares its window there.
            r, c = (y - shift) % rows, (x_ - shift) % cols
            scores, values = [], []
            for r2 in range(r // w * w, r // w * w + w):
                for c2 in range(c // w * w, c // w * w + w):
                    other = ((r2 + shift) % rows, (c2 + shift) % cols)
                    entry = (r % w - r2 % w + w - 1) * (2 * w - 1) + c % w - c2 % w + w - 1
                    apart = (region(r, rows), region(c, cols)) != (
                        region(r2, rows),
                        region(c2, cols),
                    )
                    product = (q[y, x_] * k[other]).view(heads, depth).sum(-1) / depth**0.5
                    bias = attention.relative_position_bias_table[entry]
                    scores.append(product + bias - 100.0 * apart)
                    values.append(v[other].view(heads, depth))
            share = torch.stack(scores).softmax(0)
            mixed[y, x_] = (share[..., None] * torch.stack(values)).sum(0).flatten()
    x = x + block.attention.output.dense(mixed)
    hidden = block.intermediate.dense(block.layernorm_after(x))
    gelu = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
    out: Tensor = x + block.output.dense(gelu)
    return out


def slow_backbone(backbone: SwinBackbone, image: Tensor) -> list[Tensor]:
    """The four maps [C,H,W] of one picture [3,H,W]."""
    patches = backbone.embeddings.patch_embeddings.projection(image[None])[0]
    x = backbone.embeddings.norm(patches.permute(1, 2, 0))
    maps = []
    for i, stage in enumerate(backbone.encoder.layers):
        for block in stage.blocks:
            x = slow_block(block, x)
        maps.append(backbone.hidden_states_norms[f"stage{i + 1}"](x).permute(2, 0, 1))
        if stage.downsample is not None:
            height, width, dim = x.shape
            even = torch.zeros(height + height % 2, width + width % 2, dim)
            even[:height, :width] = x
            merged = [
                torch.cat([even[y, x_], even[y + 1, x_], even[y, x_ + 1], even[y + 1, x_ + 1]])
                for y in range(0, height, 2)
                for x_ in range(0, width, 2)
            ]
            grid = torch.stack(merged).view(even.shape[0] // 2, even.shape[1] // 2, 4 * dim)
            x = stage.downsample.reduction(stage.downsample.norm(grid))
    return maps


@pytest.mark.parametrize("size", [(32, 64), (32, 32)])
@torch.no_grad()
def test_small_maps_still_have_whole_windows(size: tuple[int, int]) -> None:
    # Maps of 8x16 down to 1x2: from the second stage on, smaller than the window.
    config = SwinConfig(embed_dim=8, depths=(1, 2, 2, 2), num_heads=(1, 2, 2, 4), window_size=7)
    backbone = make(config)
    image = pixels(*size)[:1]
    expected = slow_backbone(backbone, image[0])
    found = backbone(image)
    differences = [float((a[0] - b).abs().max()) for a, b in zip(found, expected, strict=True)]
    assert max(differences) < 1e-4, differences
    for block in backbone.modules():
        if isinstance(block, swin._Block):
            block.shift = 0
    assert float((backbone(image)[3][0] - expected[3]).abs().max()) > 1e-2


@torch.no_grad()
def test_pictures_of_a_batch_do_not_meet() -> None:
    backbone = make()
    image = pixels(64, 96)
    whole, single = backbone(image), backbone(image[1:])
    for a, b in zip(whole, single, strict=True):
        torch.testing.assert_close(a[1:], b, atol=1e-5, rtol=1e-5)
