"""UNet and VAE as they are called here against diffusers' own forward, and the released keys."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from tests.export.official_keys import RELEASED, official_keys
from tests.export.small_diffusion import branch_config
from visionllm_edge.export.components.diffusion import (
    DiffusionBranch,
    UNetStage,
    VaeDecoderStage,
    VaeEncoderStage,
    make_unet,
)
from visionllm_edge.export.config_diffusion import diffusion_config
from visionllm_edge.export.config_section import Section
from visionllm_edge.runtime.errors import ExportError

# Counts of the released checkpoint, both adapters alike.
RELEASED_COUNTS = {
    "sd": {"sd_unet": 859_520_964, "sd_vae": 83_653_863, "sd_text_encoder": 123_060_480},
    "ip2p": {"sd_unet": 859_532_484, "sd_vae": 83_653_863, "sd_text_encoder": 123_060_480},
}
ADAPTER = {"emb_proj": 3_737_088, "llm2sd_mapper": 16_542_720}
WHOLE = {"sd": 1_086_574_251, "ip2p": 1_086_585_771}


@pytest.fixture(scope="module", params=[False, True], ids=["gen", "edit"])
def branch(request: pytest.FixtureRequest) -> Iterator[DiffusionBranch]:
    torch.manual_seed(0)
    model = DiffusionBranch(branch_config(edits=request.param)).eval()
    _shake(model)
    with torch.no_grad():
        yield model


def _shake(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# The second and third size do not halve evenly on the way down.
@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 5), (6, 9), (1, 2)])
@pytest.mark.parametrize("timestep", [0.0, 500.375, 999.0])
def test_the_unet_is_that_of_diffusers(
    branch: DiffusionBranch, height: int, width: int, timestep: float
) -> None:
    config = branch.config
    latents = torch.randn(2, config.unet.in_channels, height, width)
    condition, time = torch.randn(2, 6, 16), torch.tensor([timestep])
    ours = UNetStage(branch.sd_unet, config.unet).eval()(latents, time, condition)
    theirs = branch.sd_unet(latents, time, condition, return_dict=False)[0]
    assert ours.shape == (2, 4, height, width)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


def test_one_time_step_serves_the_batch_and_each_row_may_have_its_own(
    branch: DiffusionBranch,
) -> None:
    unet = UNetStage(branch.sd_unet, branch.config.unet).eval()
    latents = torch.randn(2, branch.config.unet.in_channels, 4, 4)
    condition = torch.randn(2, 6, 16)
    apart = unet(latents, torch.tensor([3.0, 700.0]), condition)
    for row, step in enumerate((3.0, 700.0)):
        together = unet(latents, torch.tensor([step]), condition)
        torch.testing.assert_close(apart[row], together[row], rtol=1e-4, atol=1e-5)
    assert (apart[0] - unet(latents, torch.tensor([700.0]), condition)[0]).abs().max() > 1e-3


def test_the_order_of_the_time_embedding_follows_the_config() -> None:
    torch.manual_seed(0)
    config = branch_config(
        unet_config={
            "block_out_channels": [8, 16],
            "norm_num_groups": 4,
            "attention_head_dim": 2,
            "layers_per_block": 1,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
        }
    ).unet
    unet = make_unet(config).eval()
    given = torch.randn(1, 4, 4, 4), torch.tensor([77.0]), torch.randn(1, 6, 16)
    with torch.no_grad():
        ours = UNetStage(unet, config).eval()(*given)
        theirs = unet(*given, return_dict=False)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


def test_the_vae_is_that_of_diffusers(branch: DiffusionBranch) -> None:
    vae: nn.Module = branch.sd_vae
    pixels, latents = torch.rand(1, 3, 12, 10) * 2 - 1, torch.randn(1, 4, 5, 6)
    moments: Tensor = vae.get_submodule("quant_conv")(vae.get_submodule("encoder")(pixels))
    assert torch.equal(VaeEncoderStage(vae)(pixels), moments[:, :4])  # mean, then log-variance
    theirs = vae.decode(latents, return_dict=False)[0]  # type: ignore[operator]
    ours = VaeDecoderStage(vae)(latents)
    assert ours.shape == (1, 3, 10, 12)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_text_tower_reads_from_left_to_right(branch: DiffusionBranch) -> None:
    ids = torch.tensor([[7, 1, 2, 8, 8, 8]])
    changed = torch.tensor([[7, 1, 2, 8, 8, 3]])
    first, second = branch.sd_text_encoder(ids), branch.sd_text_encoder(changed)
    assert first.shape == (1, 6, 16)
    torch.testing.assert_close(first[:, :5], second[:, :5], rtol=1e-5, atol=1e-6)
    assert (first[:, 5] - second[:, 5]).abs().max() > 1e-3


@pytest.mark.parametrize(("part", "channels"), [("sd", 4), ("ip2p", 8)])
def test_the_released_branch_has_every_key_and_count(part: str, channels: int) -> None:
    section = Section({}, f"{part}_config", supported="", wanted="")
    with torch.device("meta"):
        model = DiffusionBranch(diffusion_config(section, 4096, 64, in_channels=channels))
    expected = {
        name.removeprefix(f"{part}."): shape
        for name, shape in official_keys(RELEASED).items()
        if name.startswith(f"{part}.")
    }
    assert len(expected) == 1169
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == expected
    counts = {name: _count(child) for name, child in model.named_children()}
    assert counts == ADAPTER | RELEASED_COUNTS[part]
    assert _count(model) == WHOLE[part]
    assert model.llm2sd_mapper_queries.numel() == 59_136


def test_without_diffusers_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("diffusers", "diffusers.models.unets.unet_2d_condition"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ExportError, match=r"pip install 'visionllm-edge\[export\]'"):
        make_unet(branch_config().unet)
