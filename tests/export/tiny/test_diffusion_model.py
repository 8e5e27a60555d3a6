from pathlib import Path

import numpy as np
import pytest
import torch

from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.tiny.diffusion_data import Group, as_pixels, edit_meaning, meaning
from visionllm_edge.export.tiny.diffusion_judgement import as_images
from visionllm_edge.export.tiny.diffusion_model import BranchTrainer, official_state
from visionllm_edge.export.tiny.frozen_model import frozen_model
from visionllm_edge.export.tiny.link_states import Past
from visionllm_edge.export.tiny.picture_sizes import TIED_PREFIXES, branch_config
from visionllm_edge.export.tiny.train_vae import new_vae, vae_loss
from visionllm_edge.runtime.shapes_world.edits import EDIT_KINDS, make_edit

CHECKPOINT = Path(__file__).parents[3] / "export" / "tiny" / "checkpoint"
MOST_PARAMETERS = 1_550_000


@pytest.fixture(scope="module")
def model() -> VisionLLM:
    return frozen_model(CHECKPOINT)


def _trainer(model: VisionLLM, *, edits: bool) -> BranchTrainer:
    return BranchTrainer(model, edits=edits, vae=new_vae(1).state_dict(), scale=0.8)


def _group(*, edits: bool) -> Group:
    torch.manual_seed(2)
    latents = torch.randn(3, 2, 4, 16, 16)
    past = Past(torch.randn(3, 8, 3, 5, 32), torch.tensor([5, 3, 4]))
    meanings = torch.tensor([meaning(["red star"]), meaning(["blue circle"]), meaning([])])
    figures = torch.rand(3, 2, 1, 16, 16)
    return Group(past, None, meanings, latents, figures, latents.flip(0) if edits else None)


@pytest.mark.parametrize("edits", [False, True])
def test_a_step_moves_table_adapter_and_unet_and_nothing_else(
    model: VisionLLM, edits: bool
) -> None:
    trainer, group = _trainer(model, edits=edits), _group(edits=edits)
    condition = trainer.condition(model, group.past)
    assert condition.shape == (3, 16, 64)
    loss, right = trainer.head_loss(condition, group.meanings)
    assert 0.0 <= right <= 1.0
    (trainer.noise_loss(condition, group)[0] + loss).backward()  # type: ignore[no-untyped-call]
    moved = {n for n, p in trainer.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert {"table", "branch.emb_proj.0.weight", "branch.sd_unet.conv_in.weight"} <= moved
    assert not any(".sd_vae." in name or ".sd_text_encoder." in name for name in moved)


def test_noise_that_is_known_costs_nothing(
    model: VisionLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, group = _trainer(model, edits=False), _group(edits=False)
    made = torch.randn(6, 4, 16, 16)
    monkeypatch.setattr(torch, "randn_like", lambda _: made)
    seen: list[torch.Tensor] = []

    def perfect(noisy: torch.Tensor, steps: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        # Undo the forward process by its closed form.
        alpha = trainer.alphas[steps.long()][:, None, None, None]
        clean = group.latents.flatten(0, 1) * 0.8
        seen.append(steps)
        return (noisy - alpha.sqrt() * clean) / (1 - alpha).sqrt()

    monkeypatch.setattr(trainer, "unet", [perfect])
    condition = torch.zeros(3, 16, 64)
    weighted, plain = trainer.noise_loss(condition, group)
    assert float(weighted) < 1e-8
    assert plain < 1e-8
    assert len(set(seen[0].tolist())) == 6


def test_the_schedule_is_that_of_stable_diffusion(model: VisionLLM) -> None:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = _trainer(model, edits=False).alphas
    torch.testing.assert_close(alphas.double(), torch.cumprod(1 - betas, 0), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("edits", [False, True])
def test_samples_depend_on_the_condition_and_the_seed(model: VisionLLM, edits: bool) -> None:
    trainer = _trainer(model, edits=edits).eval()
    condition = torch.randn(2, 16, 64)
    sources = torch.randn(2, 4, 16, 16) if edits else None

    def sample(condition: torch.Tensor, seed: int) -> torch.Tensor:
        return trainer.sample(condition, sources=sources, steps=3, seed=seed)

    first = sample(condition, 0)
    assert first.shape == (2, 3, 64, 64)
    torch.testing.assert_close(sample(condition, 0), first)
    assert not torch.allclose(sample(condition, 1), first)
    assert not torch.allclose(sample(condition.flip(0), 0), first)


def test_the_editing_branch_starts_as_the_generation_branch(model: VisionLLM) -> None:
    generation, editing = _trainer(model, edits=False), _trainer(model, edits=True)
    torch.nn.init.normal_(generation.table)
    editing.start_from(generation.state_dict())
    torch.testing.assert_close(editing.table, generation.table)
    latents, condition, step = (
        torch.randn(2, 8, 16, 16),
        torch.randn(2, 16, 64),
        torch.tensor([9.0]),
    )
    torch.testing.assert_close(
        editing.unet[0](latents, step, condition),
        generation.unet[0](latents[:, :4], step, condition),
        atol=1e-5,
        rtol=1e-4,
    )


def test_both_branches_together_keep_to_the_limit(model: VisionLLM) -> None:
    sizes: dict[str, int] = {}
    vae = new_vae(1).state_dict()
    for edits in (False, True):
        trainer = BranchTrainer(model, edits=edits, vae=vae, scale=0.8)
        for name, tensor in official_state(trainer.state_dict(), edits=edits).items():
            copy = next((tied for tied in TIED_PREFIXES if name.startswith(tied)), None)
            stored = name if copy is None else TIED_PREFIXES[copy] + name.removeprefix(copy)
            assert sizes.setdefault(stored, tensor.numel()) == tensor.numel()
    tables = {name for name in sizes if name.startswith("emb_embeddings_")}
    assert tables == {"emb_embeddings_gen.weight", "emb_embeddings_edit.weight"}
    assert sum(size for name, size in sizes.items() if name not in tables) <= MOST_PARAMETERS


def test_sizes_of_the_two_branches() -> None:
    config = branch_config(edits=True, scaling_factor=0.8)
    assert (config.unet.in_channels, config.vae.factor, config.image_size) == (8, 4, 64)


def test_pictures_survive_their_way_through_tensors() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(as_images(as_pixels(image)[None])[0], image)


def test_the_vae_loss_is_smallest_for_what_it_saw() -> None:
    vae = new_vae(0)
    images, figures = torch.zeros(2, 3, 64, 64), torch.ones(2, 1, 64, 64)
    losses = vae_loss(vae, images, figures)
    assert set(losses) == {"pixel", "edge", "kl"}
    assert all(float(loss.detach()) > 0 for loss in losses.values())


def test_meanings_of_captions_and_edits() -> None:
    assert meaning(["red circle", "orange person"]) == [0, 0, 5, 5]
    assert meaning(["blue star"]) == [3, 2, 6, 6]
    rng = np.random.default_rng(0)
    for kind in EDIT_KINDS:
        edit = make_edit(rng, kind=kind)
        named, wanted = edit_meaning(edit)[:2], edit_meaning(edit)[2:]
        assert named == meaning([edit.before.names[edit.index]])[:2]
        assert (wanted[0] == 6) == (kind != "replace")
        assert (wanted[1] == 6) == (kind != "recolor")
