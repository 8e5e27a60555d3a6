"""A tiny picture branch in training: its super link table, adapter, UNet and helping heads."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from visionllm_edge.export.components.diffusion import DiffusionBranch, UNetStage, VaeDecoderStage
from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.empty_prompt import empty_prompt
from visionllm_edge.export.tiny.diffusion_data import NOTHING, Group
from visionllm_edge.export.tiny.link_states import Past, link_states
from visionllm_edge.export.tiny.picture_sizes import branch_config
from visionllm_edge.runtime.decoder_specs import SchedulerSpec
from visionllm_edge.runtime.diffusion.noise_schedule import NoiseSchedule
from visionllm_edge.runtime.diffusion.schedulers import make_scheduler

__all__ = ["BranchTrainer", "official_state"]

_SCHEDULE = SchedulerSpec("dpmsolver++")
_STEPS = _SCHEDULE.train_steps
# The upper limit is that of "Efficient Diffusion Training via Min-SNR Weighting Strategy" (arXiv
# 2303.09556). The lower one is ours: in what is nearly all noise a picture's plan is decided, but a
# wrong plan adds next to nothing to the error of the noise.
_SNR_LIMITS = (0.1, 5.0)
# Figures are a small part of a picture, and what it is judged by.
_FIGURE_WEIGHT = 2.0
_CLASSES = NOTHING + 1
_TEXT_SEED = 11


class BranchTrainer(nn.Module):
    """What learns: the table, the adapter, the UNet. VAE and language model are frozen.

    The helping head reads shapes and colours from the condition. With it alone the condition comes
    to mean something within minutes, and then the UNet has something to follow from its beginning.
    """

    alphas: Tensor
    empty: Tensor

    def __init__(self, model: VisionLLM, *, edits: bool, vae: dict[str, Tensor], scale: float):
        """Fresh weights but for the VAE's.

        Args:
            model: the frozen rest.
            edits: which branch.
            vae: state of the VAE.
            scale: its scaling factor.
        """
        super().__init__()
        torch.manual_seed(_TEXT_SEED)
        self.edits, self.scale = edits, scale
        config = branch_config(edits=edits, scaling_factor=scale)
        self.drop = 0.05 if edits else 0.1
        self.branch = DiffusionBranch(config)
        self.branch.sd_vae.load_state_dict(vae)
        nn.init.normal_(self.branch.llm2sd_mapper_queries)
        for part in (self.branch.sd_vae, self.branch.sd_text_encoder):
            part.requires_grad_(False)
        for weight in self.branch.sd_unet.parameters():
            if weight.ndim == 4:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        # In a list, so that its weights are not counted twice.
        self.unet = [UNetStage(self.branch.sd_unet, config.unet)]
        self.register_buffer("empty", empty_prompt(self.branch, config).detach())
        # The detector's rows already find the words that name an object.
        rows = model.emb_embeddings_det.weight.detach()
        start = rows.repeat(config.adapter.num_states // len(rows), 1)
        self.table = nn.Parameter(start + 0.5 * rows.std() * torch.randn_like(start))
        size = config.adapter.num_queries * config.adapter.hidden_size
        self.head = nn.Linear(size, 4 * _CLASSES)
        schedule = NoiseSchedule(
            _STEPS, _SCHEDULE.beta_start, _SCHEDULE.beta_end, _SCHEDULE.beta_schedule
        )
        sigmas = torch.tensor(schedule.sigmas(np.arange(_STEPS, dtype=np.float64)))
        self.register_buffer("alphas", 1 / (1 + sigmas.square()))

    @property
    def vae(self) -> nn.Module:
        """The frozen VAE."""
        return self.branch.sd_vae

    def condition(self, model: VisionLLM, past: Past) -> Tensor:
        """Conditions [B,Q,d] of prompts."""
        return self.branch.condition(link_states(model.llm, past, self.table))

    def head_loss(self, condition: Tensor, meanings: Tensor) -> tuple[Tensor, float]:
        """Cross entropy of the helping head, and how many prompts it reads entirely right."""
        logits = self.head(condition.flatten(1)).unflatten(1, (4, _CLASSES))
        right = (logits.argmax(dim=-1) == meanings).all(dim=1).float().mean()
        loss = F.cross_entropy(logits.flatten(0, 1), meanings.flatten())
        return loss, float(right)

    def noise_loss(self, condition: Tensor, group: Group) -> tuple[Tensor, float]:
        """Squared error of the predicted noise, weighted by the signal-to-noise ratio.

        Figures count more than the background; the number beside is without that.
        """
        each = group.latents.shape[1]
        latents = group.latents.flatten(0, 1) * self.scale
        count = len(latents)
        tokens = condition[:, None].expand(-1, each, -1, -1).flatten(0, 1)
        dropped = torch.rand(count) < self.drop
        # Every level of noise equally often within a batch.
        steps = ((torch.rand(1) + torch.randperm(count) / count) % 1 * _STEPS).long()
        alpha = self.alphas[steps][:, None, None, None]
        noise = torch.randn_like(latents)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        if group.sources is not None:
            sources = group.sources.flatten(0, 1)
            # Words and picture are each left out alone, and together.
            nothing = torch.rand(count) < self.drop
            dropped = dropped | (torch.rand(count) < self.drop)
            no_picture = nothing | (torch.rand(count) < self.drop)
            dropped = dropped | nothing
            sources = sources * (~no_picture)[:, None, None, None]
            noisy = torch.cat([noisy, sources], dim=1)
        # With the channels last, convolutions take a tenth less time.
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        tokens = torch.where(dropped[:, None, None], self.empty, tokens)
        error = (self.unet[0](noisy, steps.float(), tokens) - noise).square()
        ratio = self.alphas[steps] / (1 - self.alphas[steps])
        error = error * (ratio.clamp(*_SNR_LIMITS) / ratio)[:, None, None, None]
        weight = 1 + _FIGURE_WEIGHT * group.figures.flatten(0, 1)
        return (error * weight / weight.mean()).mean(), float(error.detach().mean())

    @torch.no_grad()
    def sample(
        self,
        condition: Tensor,
        *,
        sources: Tensor | None = None,
        steps: int = 20,
        guidance: float = 3.0,
        image_guidance: float = 1.5,
        kind: str = "dpmsolver++",
        seed: int = 0,
    ) -> Tensor:
        """Pictures [B,3,64,64], about -1..1, of conditions [B,Q,d].

        Args:
            condition: of each picture.
            sources: latents of the pictures to edit, not scaled, [B,4,16,16].
            steps: of the scheduler.
            guidance: weight of the words.
            image_guidance: weight of the source picture.
            kind: the scheduler.
            seed: of the noise.
        """
        count = len(condition)
        rng = np.random.default_rng(seed)
        shape = (count, 4, 16, 16)
        scheduler = make_scheduler(_SCHEDULE, steps, kind=kind)

        def draw() -> np.ndarray:
            return rng.standard_normal(shape, dtype=np.float32)

        empty = self.empty.expand(count, -1, -1)
        predict = self._guided(condition, empty, sources, guidance, image_guidance)
        sample = draw() * np.float32(scheduler.initial_scale)
        for call, step in enumerate(scheduler.timesteps):
            latents = torch.from_numpy(np.asarray(scheduler.model_input(sample, call)))
            noise = predict(latents.float(), torch.tensor([float(step)]))
            sample = scheduler.step(sample, noise.numpy(), call, draw)
        latents = torch.from_numpy(np.asarray(sample)).float() / self.scale
        out: Tensor = VaeDecoderStage(self.vae)(latents)
        return out

    def _guided(
        self,
        condition: Tensor,
        empty: Tensor,
        sources: Tensor | None,
        guidance: float,
        image_guidance: float,
    ) -> Callable[[Tensor, Tensor], Tensor]:
        unet = self.unet[0]

        def generate(latents: Tensor, step: Tensor) -> Tensor:
            both = unet(torch.cat([latents] * 2), step, torch.cat([condition, empty]))
            asked, none = both.chunk(2)
            out: Tensor = none + guidance * (asked - none)
            return out

        def edit(latents: Tensor, step: Tensor) -> Tensor:
            assert sources is not None
            pictures = torch.cat([sources, sources, torch.zeros_like(sources)])
            inputs = torch.cat([torch.cat([latents] * 3), pictures], dim=1)
            asked, image, none = unet(inputs, step, torch.cat([condition, empty, empty])).chunk(3)
            out: Tensor = none + guidance * (asked - image) + image_guidance * (image - none)
            return out

        return generate if sources is None else edit

    @torch.no_grad()
    def start_from(self, other: dict[str, Tensor]) -> None:
        """Take what fits from a branch.

        Of the generation branch, an editing branch cannot use the helping head, and the UNet's new
        input channels start at 0.
        """
        own = self.state_dict()
        first = "branch.sd_unet.conv_in.weight"
        alike = first not in other or other[first].shape == own[first].shape
        for name, tensor in other.items():
            if name not in own or (name.startswith("head.") and not alike):
                continue
            if own[name].shape == tensor.shape:
                own[name].copy_(tensor)
            else:
                own[name].zero_()
                own[name][:, : tensor.shape[1]].copy_(tensor)


def official_state(trainer_state: dict[str, Tensor], *, edits: bool) -> dict[str, Tensor]:
    """Weights by their key in a checkpoint: the table and everything under ``sd.`` or ``ip2p.``."""
    prefix, table = ("ip2p.", "edit") if edits else ("sd.", "gen")
    out = {f"emb_embeddings_{table}.weight": trainer_state["table"]}
    for name, tensor in trainer_state.items():
        if name.startswith("branch."):
            out[prefix + name.removeprefix("branch.")] = tensor
    return out


def load_state(path: Path) -> dict[str, dict[str, Tensor]]:
    """What a training run saved."""
    state: dict[str, dict[str, Tensor]] = torch.load(path, weights_only=True)
    return state


def cosine(done: float) -> float:
    """Learning rate at this part of the run, 1 to 0.01."""
    return max(0.01, 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
