"""The adapter against `nn.Transformer` itself, and its key names."""

from __future__ import annotations

import pytest
import torch

from visionllm_edge.export.components.diffusion import AdapterStage
from visionllm_edge.export.components.image_adapter import ImageAdapter
from visionllm_edge.export.diffusion_sizes import AdapterConfig


def _adapter(encoder: int = 1, decoder: int = 1, *, seed: int = 0) -> ImageAdapter:
    torch.manual_seed(seed)
    config = AdapterConfig(
        llm_hidden_size=12,
        num_states=5,
        hidden_size=16,
        num_queries=7,
        num_encoder_layers=encoder,
        num_decoder_layers=decoder,
        num_heads=4,
        feedforward_size=24,
    )
    adapter = ImageAdapter(config).eval()
    with torch.no_grad():  # biases and norms start as constants, which would hide their use
        for parameter in adapter.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return adapter


@pytest.mark.parametrize(("encoder", "decoder"), [(1, 1), (2, 3)])
def test_it_computes_what_the_transformer_of_torch_computes(encoder: int, decoder: int) -> None:
    adapter = _adapter(encoder, decoder)
    states = torch.randn(3, 5, 12)
    with torch.no_grad():
        ours, theirs = adapter.condition(states), adapter.reference(states)
    assert ours.shape == (3, 7, 16)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_stage_is_the_adapter_and_holds_its_weights_alone() -> None:
    adapter = _adapter()
    stage = AdapterStage(adapter).eval()
    states = torch.randn(1, 5, 12)
    with torch.no_grad():
        assert torch.equal(stage(states), adapter.condition(states))
    assert stage.state_dict().keys() == adapter.state_dict().keys()


def test_every_weight_takes_part_and_learns() -> None:
    adapter = _adapter()
    adapter.condition(torch.randn(2, 5, 12)).square().sum().backward()  # type: ignore[no-untyped-call]
    # Attention over all keys does not change when a constant is added to every key.
    silent = [
        name
        for name, parameter in adapter.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().max() > 0
    ]
    assert silent == []
