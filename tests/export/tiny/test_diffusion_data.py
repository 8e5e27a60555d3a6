from pathlib import Path

import numpy as np
import pytest
import torch

from visionllm_edge.export.components.diffusion import VaeEncoderStage
from visionllm_edge.export.tiny.diffusion_data import (
    EditBank,
    Prompts,
    SketchBank,
    as_pixels,
    cover,
    draw,
    encode,
    pictures,
)
from visionllm_edge.export.tiny.frozen_model import frozen_model, frozen_tokenizer
from visionllm_edge.export.tiny.link_states import link_states
from visionllm_edge.export.tiny.train_vae import new_vae
from visionllm_edge.runtime.shapes_world.edits import make_sketch

CHECKPOINT = Path(__file__).parents[3] / "export" / "tiny" / "checkpoint"


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    model, tokenizer = frozen_model(CHECKPOINT), frozen_tokenizer(CHECKPOINT)
    return Prompts(model, tokenizer, former=Prompts(model, tokenizer))


def test_pictures_come_with_their_figures() -> None:
    images, figures = pictures(np.random.default_rng(0), 3)
    assert images.shape == (3, 3, 64, 64)
    assert set(np.unique(figures.numpy())) == {0.0, 1.0}
    # Figures are colourful, backgrounds are not.
    spread = images.amax(dim=1, keepdim=True) - images.amin(dim=1, keepdim=True)
    assert float(spread[figures > 0].mean()) > 2 * float(spread[figures == 0].mean())


def test_cover_is_the_figures_part_of_each_place() -> None:
    sketch = make_sketch(np.random.default_rng(1), min_figures=2)
    both = cover(sketch)
    assert both.shape == (1, 16, 16)
    torch.testing.assert_close(both, cover(sketch, 0) + cover(sketch, 1))
    assert 0.05 < float(both.mean()) < 0.4


def test_encoding_is_what_the_compiled_encoder_gives() -> None:
    vae = new_vae(3)
    images = [draw(make_sketch(np.random.default_rng(seed))) for seed in range(2)]
    wanted = VaeEncoderStage(vae)(torch.stack([as_pixels(image) for image in images]))
    torch.testing.assert_close(encode(vae, images), wanted.detach())


def test_a_group_of_captions(prompts: Prompts) -> None:
    bank = SketchBank(new_vae(1), prompts, np.random.default_rng(2), pictures=12)
    group = bank.group(5, 3, fresh=2)
    assert group.latents.shape == (5, 3, 4, 16, 16)
    assert group.figures.shape == (5, 3, 1, 16, 16)
    assert group.sources is None
    # Class 6 stands for a figure that is not there.
    assert 0 < int((group.meanings[:, 2] < 6).sum()) < 5
    assert bool((group.figures.amax(dim=(1, 2, 3, 4)) == 1).all())


def test_what_the_former_model_says_is_about_the_same_prompts(prompts: Prompts) -> None:
    bank = SketchBank(new_vae(1), prompts, np.random.default_rng(2), pictures=12)
    group = bank.group(4, 1)
    table = torch.randn(3, prompts.model.config.llm.hidden_size)
    assert group.former is not None
    llm = prompts.model.llm
    torch.testing.assert_close(
        link_states(llm, group.past, table), link_states(llm, group.former, table)
    )


def test_a_group_of_edits(prompts: Prompts) -> None:
    bank = EditBank(new_vae(1), prompts, np.random.default_rng(4), edits=8)
    assert bank.group(3, 1, fresh=0).latents.shape == (3, 1, 4, 16, 16)
    group = bank.group(4, 2, fresh=1)
    assert group.sources is not None
    assert group.latents.shape == group.sources.shape == (4, 2, 4, 16, 16)
    assert group.former is not None
    table = torch.randn(3, prompts.model.config.llm.hidden_size)
    llm = prompts.model.llm
    torch.testing.assert_close(
        link_states(llm, group.past, table), link_states(llm, group.former, table)
    )
    # The pictures differ where the edit is, and only there but for what a latent sees around it.
    changed = (group.latents - group.sources).abs().amax(dim=2)[:, 0]
    inside = group.figures[:, 0, 0] > 0
    for difference, mask in zip(changed, inside, strict=True):
        assert float(difference[mask].mean()) > 2 * float(difference[~mask].mean())
