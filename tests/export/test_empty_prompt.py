"""The constant that guidance moves away from, and what a bundle says about the branches."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from tests.export.small_checkpoint import small_config
from tests.export.small_diffusion import branch_config, with_diffusion
from visionllm_edge.export.bundle_diffusion import diffusion_spec, write_empty_prompts
from visionllm_edge.export.components import diffusion
from visionllm_edge.export.components.diffusion import DiffusionBranch
from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.config import config_from_dict
from visionllm_edge.export.diffusion_sizes import TextEncoderConfig
from visionllm_edge.export.empty_prompt import (
    empty_prompt,
    empty_prompt_ids,
    empty_prompt_table,
)
from visionllm_edge.runtime.bundle import BundleWriter
from visionllm_edge.runtime.errors import ExportError
from visionllm_edge.runtime.manifest import DiffusionSpec, SchedulerSpec


@pytest.fixture(scope="module")
def branch() -> DiffusionBranch:
    torch.manual_seed(0)
    return DiffusionBranch(branch_config()).eval().requires_grad_(False)


def test_the_ids_are_those_of_clips_tokenizer() -> None:
    # Its vocabulary ends with <|startoftext|> 49406 and <|endoftext|> 49407, which also pads.
    assert TextEncoderConfig().vocab_size == 49408
    assert empty_prompt_ids(branch_config()).tolist() == [[7, 8, 8, 8, 8, 8]]


def test_it_is_what_the_text_tower_makes_of_them(branch: DiffusionBranch) -> None:
    config = branch.config.text_encoder
    theirs = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            max_position_embeddings=config.max_position_embeddings,
            hidden_act="quick_gelu",
            bos_token_id=7,
            eos_token_id=8,
            pad_token_id=8,
            attn_implementation="eager",  # type: ignore[call-arg]  # not declared
        )
    )
    theirs.train(False)
    theirs.load_state_dict(branch.sd_text_encoder.text_model.state_dict())
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor([[7] + [8] * 5])).last_hidden_state
    torch.testing.assert_close(empty_prompt(branch, branch.config), expected, rtol=1e-5, atol=1e-5)


def test_the_table_is_float32_without_the_batch(branch: DiffusionBranch) -> None:
    table = empty_prompt_table(branch, branch.config, name="sd")
    assert table.dtype == np.float32 and table.shape == (6, 16)
    assert np.abs(table[1] - table[2]).max() > 1e-3  # positions count


def test_damaged_weights_are_refused() -> None:
    torch.manual_seed(0)
    broken = DiffusionBranch(branch_config()).eval().requires_grad_(False)
    broken.sd_text_encoder.text_model.final_layer_norm.weight[0] = float("nan")
    with pytest.raises(ExportError, match=r"ip2p\.sd_text_encoder: .* expected finite numbers"):
        empty_prompt_table(broken, broken.config, name="ip2p")


def test_a_bundle_gets_a_table_for_every_branch() -> None:
    torch.manual_seed(0)
    data = with_diffusion(small_config(80))
    for flags, expected in (({}, ["gen", "edit"]), ({"use_sd": False}, ["edit"])):
        model = VisionLLM(config_from_dict(data | flags, name="x")).eval().requires_grad_(False)
        tables: dict[str, Any] = {}
        writer = SimpleNamespace(add_array=tables.__setitem__)
        write_empty_prompts(model, cast("BundleWriter", writer))
        assert list(tables) == [f"tables/empty_prompt_{task}.npy" for task in expected]
        for task in expected:
            config = model.config.generation if task == "gen" else model.config.editing
            spec = diffusion_spec(config, task)
            assert spec is not None
            table = tables[spec.empty_prompt]
            assert table.shape == (spec.condition_tokens, spec.condition_width)
        if len(expected) == 2:  # each from its own text tower
            first, second = tables.values()
            assert np.abs(first - second).max() > 1e-3


def test_what_the_manifest_says() -> None:
    spec = diffusion_spec(branch_config(edits=True), "edit")
    assert spec == DiffusionSpec(
        latent_channels=4,
        vae_factor=2,
        scaling_factor=0.5,
        multiple=2,
        default_height=16,
        default_width=16,
        steps=100,
        guidance=7.5,
        image_guidance=1.5,
        scheduler=SchedulerSpec(kind="euler_ancestral"),
        empty_prompt="tables/empty_prompt_edit.npy",
        condition_tokens=6,
        condition_width=16,
    )
    assert diffusion_spec(None, "gen") is None


def test_diffusers_is_imported_only_where_a_branch_is_made() -> None:
    tree = ast.parse(Path(diffusion.__file__).read_text(encoding="utf-8"))
    names = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert "torch" in names
    assert not [name for name in names if name and name.startswith("diffusers")]
