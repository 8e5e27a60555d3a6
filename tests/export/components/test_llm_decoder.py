"""LLaMA: whole sequences and cached steps against transformers, and against each other."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tests.export.components.weights import randomise
from visionllm_edge.export.components import llm_decoder
from visionllm_edge.export.components.llm_decoder import Llama
from visionllm_edge.export.config import LlmConfig

GROUPED = LlmConfig(
    vocab_size=50,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    rms_norm_eps=1e-3,
    rope_theta=500.0,
    max_position_embeddings=128,
)
PLAIN = dataclasses.replace(GROUPED, num_key_value_heads=6, rope_theta=10000.0)
WIDE = dataclasses.replace(GROUPED, head_dim=16)  # the heads are wider than the hidden width
CONFIGS = pytest.mark.parametrize(
    "config", [GROUPED, PLAIN, WIDE], ids=["grouped", "plain", "wide"]
)


def make(config: LlmConfig) -> Llama:
    llama = Llama(config).eval()
    randomise(llama)
    return llama


def theirs(llama: Llama) -> Any:
    """transformers' model with our weights; the key names are the same."""
    config = llama.config
    model: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            max_position_embeddings=config.max_position_embeddings,
            tie_word_embeddings=False,
            attn_implementation="eager",  # type: ignore[call-arg]  # not declared
        )
    )
    model.load_state_dict(llama.state_dict())
    return model.eval()


LAST = torch.tensor([-1]), torch.tensor([0])


def rows(count: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, count, 48, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def expected(llama: Llama, embeds: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B,s,V] and hidden states [B,s,D] of transformers."""
    model = theirs(llama)
    hidden = model.model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    return model.lm_head(hidden), hidden


@CONFIGS
@torch.no_grad()
def test_whole_sequences_equal_transformers(config: LlmConfig) -> None:
    llama, embeds = make(config), rows(40, batch=2)
    _, hidden = expected(llama, embeds)
    torch.testing.assert_close(llama.teacher_forced(embeds), hidden, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_own_mask_and_positions_equal_transformers() -> None:
    # Two turns that both follow the first four rows and do not see each other.
    llama, embeds = make(GROUPED), rows(12)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7]])
    mask = torch.ones(12, 12, dtype=torch.bool).tril()
    mask[8:, 4:8] = False
    additive = torch.zeros(1, 1, 12, 12).masked_fill(~mask, torch.finfo(torch.float32).min)
    model = theirs(llama)
    hidden = model.model(
        inputs_embeds=embeds, attention_mask=additive, position_ids=positions, use_cache=False
    ).last_hidden_state
    found = llama.teacher_forced(embeds, mask=mask[None, None], positions=positions)
    torch.testing.assert_close(found, hidden, atol=2e-5, rtol=1e-4)
    # The second turn is as if the first had not been there.
    alone = llama.teacher_forced(torch.cat([embeds[:, :4], embeds[:, 8:]], dim=1))
    torch.testing.assert_close(found[:, 8:], alone[:, 4:], atol=2e-5, rtol=1e-4)
    assert float((llama.teacher_forced(embeds)[:, 8:] - alone[:, 4:]).abs().max()) > 1e-2


def cache(config: LlmConfig, capacity: int, fill: float) -> list[Tensor]:
    shape = (1, config.num_key_value_heads, capacity, config.head_dim)
    return [torch.full(shape, fill) for _ in range(2 * config.num_hidden_layers)]


@CONFIGS
@pytest.mark.parametrize(
    "steps",
    [(1,), (5,), (65,), (96,), (12, 1, 5, 65, 1, 1), (1, 5, 1, 65, 24), (95, 1), (91, 5), (31, 65)],
    ids=str,
)
@torch.no_grad()
def test_cached_steps_equal_transformers(config: LlmConfig, steps: tuple[int, ...]) -> None:
    """From an empty cache up to one that is exactly full; what a free row holds must not matter."""
    capacity = 96
    llama, embeds = make(config), rows(sum(steps))
    logits, hidden = expected(llama, embeds)
    past: list[Tensor] = cache(config, capacity, fill=float("nan"))
    start = 0
    for length in steps:
        end = start + length
        before = [t.clone() for t in past]
        # Some rows, the last one first; the logits of some of these.
        rows_ = torch.arange(length - 1, -1, -2)
        scored = torch.tensor([0, len(rows_) - 1])
        out = llama(embeds[:, start:end], torch.tensor([start]), rows_, scored, *past)
        assert out[0].shape == (2, config.vocab_size)
        torch.testing.assert_close(out[0], logits[0, start + rows_[scored]], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(out[1], hidden[:, start + rows_], atol=1e-4, rtol=1e-4)
        past = list(out[2:])
        for new, old in zip(past, before, strict=True):
            assert torch.equal(new[:, :, :start], old[:, :, :start])
            assert new[:, :, end:].isnan().all()
            assert not new[:, :, :end].isnan().any()
        start = end
    whole = llama.teacher_forced(embeds)[:, start - steps[-1] :]
    torch.testing.assert_close(out[1], whole[:, rows_], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_cache_holds_keys_before_values_layer_by_layer() -> None:
    llama, embeds = make(GROUPED), rows(3)
    out = llama(embeds, torch.tensor([0]), *LAST, *cache(GROUPED, 8, 0.0))
    layer = llama.model.layers[0]
    values = layer.self_attn.v_proj(layer.input_layernorm(embeds))
    split = values.view(1, 3, 2, 8).transpose(1, 2)
    torch.testing.assert_close(out[3][:, :, :3], split, atol=1e-5, rtol=1e-5)
    # The first key stands at position 0 and is not turned.
    keys = layer.self_attn.k_proj(layer.input_layernorm(embeds)).view(1, 3, 2, 8).transpose(1, 2)
    torch.testing.assert_close(out[2][:, :, 0], keys[:, :, 0], atol=1e-5, rtol=1e-5)
    assert float((out[2][:, :, 1] - keys[:, :, 1]).abs().max()) > 1e-2


def test_a_full_cache_is_refused() -> None:
    llama = make(GROUPED)
    with pytest.raises(ValueError, match=r"30 cached \+ 3 new rows exceed the cache's 32 rows"):
        llama(rows(3), torch.tensor([30]), *LAST, *cache(GROUPED, 32, 0.0))


def test_positions_without_a_rotation_are_refused() -> None:
    # One row of the table is left: it must not be broadcast over five rows.
    llama = make(GROUPED)
    with pytest.raises(ValueError, match=r"position 131 .* 128 positions"):
        llama(rows(5), torch.tensor([127]), *LAST, *cache(GROUPED, 200, 0.0))


def _interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)


@pytest.mark.parametrize("fault", ["interleaved rotation", "final norm", "mask", "kv order", "eps"])
@torch.no_grad()
def test_a_planted_fault_shows(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    llama, embeds = make(GROUPED), rows(20)
    _, hidden = expected(llama, embeds)
    mask = None
    if fault == "interleaved rotation":
        monkeypatch.setattr(llm_decoder, "_rotate", _interleaved)
    elif fault == "final norm":
        monkeypatch.setattr(llama.model, "norm", torch.nn.Identity())
    elif fault == "mask":
        mask = torch.ones(1, 1, 20, 20, dtype=torch.bool)
    elif fault == "kv order":
        for layer in llama.model.layers:
            for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj):
                weight = projection.weight.view(2, 8, 48)
                projection.weight.copy_(weight.flip(0).reshape(16, 48))
    else:
        llama.model.norm.eps = 0.0
    found = llama.teacher_forced(embeds, mask=mask)
    assert float((found - hidden).abs().max()) > 1e-4
