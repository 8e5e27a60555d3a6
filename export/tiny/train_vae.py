"""Train the picture codec of the tiny diffusion branches from nothing.

Run as ``python -m visionllm_edge.export.tiny.train_vae``. Needs no text: sketches of the shapes
world are encoded and decoded. A run is measured in minutes, writes ``state.pt`` every two, and goes
on from there when it is started again.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visionllm_edge.export.components.diffusion import VaeEncoderStage, make_vae
from visionllm_edge.export.tiny.diffusion_data import pictures
from visionllm_edge.export.tiny.picture_sizes import branch_config

__all__ = ["new_vae", "vae_loss"]

_KL_WEIGHT = 1e-3
_EDGE_WEIGHT = 0.5
_FIGURE_WEIGHT = 2.0
_SAVE_S, _SHOW_S = 120, 30


def new_vae(seed: int) -> nn.Module:
    """A codec with random weights."""
    torch.manual_seed(seed)
    return make_vae(branch_config(edits=False, scaling_factor=1.0).vae)


def vae_loss(vae: nn.Module, images: Tensor, figures: Tensor) -> dict[str, Tensor]:
    """Losses of one batch.

    Args:
        vae: the codec.
        images: [B,3,H,W] in -1..1.
        figures: [B,1,H,W], 1 on figures; they count more than the background.
    """
    parts: Any = vae
    posterior = parts.encode(images).latent_dist
    again = parts.decode(posterior.sample()).sample
    weight = 1 + _FIGURE_WEIGHT * figures
    error = again - images
    pixel = (error.abs() * weight).mean()
    # Horizontal and vertical differences: edges stay sharp.
    edge = (error.diff(dim=-1).abs() * weight[..., 1:]).mean()
    edge = edge + (error.diff(dim=-2).abs() * weight[..., 1:, :]).mean()
    mean, log_variance = posterior.mean, posterior.logvar
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return {"pixel": pixel, "edge": edge, "kl": kl}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/vae"))
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    vae = new_vae(args.seed)
    mean = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4
    )
    used, step = 0.0, 0
    path = args.out / "state.pt"
    if path.is_file():
        state = torch.load(path, weights_only=True)
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        mean, used, step = state["mean"], state["minutes"], state["step"]
    rng = np.random.default_rng([args.seed, 77, step])
    began = saved = shown = time.monotonic()
    before = used
    noted: dict[str, list[float]] = {}
    while used < args.minutes:
        rate = min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * used / args.minutes))
        for group in optimizer.param_groups:
            group["lr"] = args.lr * max(rate, 0.01)
        images, figures = pictures(rng, args.batch)
        losses = vae_loss(vae, images, figures)
        total = losses["pixel"] + _EDGE_WEIGHT * losses["edge"] + _KL_WEIGHT * losses["kl"]
        optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        keep = min(0.995, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, tensor in vae.state_dict().items():
                mean[name].lerp_(tensor, 1 - keep)
        for name, loss in losses.items():
            noted.setdefault(name, []).append(float(loss.detach()))
        now = time.monotonic()
        used = before + (now - began) / 60
        if now - shown > _SHOW_S:
            line = " ".join(f"{k} {sum(v) / len(v):.4f}" for k, v in noted.items())
            print(f"{used:5.1f} min step {step} images {step * args.batch} | {line}", flush=True)
            noted, shown = {}, now
        if now - saved > _SAVE_S or used >= args.minutes:
            temporary = args.out / "state.pt.new"
            torch.save(
                {
                    "vae": vae.state_dict(),
                    "mean": mean,
                    "optimizer": optimizer.state_dict(),
                    "scaling_factor": _scaling_factor(vae, mean),
                    "minutes": used,
                    "step": step,
                },
                temporary,
            )
            temporary.replace(path)
            saved = now


@torch.no_grad()
def _scaling_factor(vae: nn.Module, mean: dict[str, Tensor]) -> float:
    """One over the latents' standard deviation, with the averaged weights."""
    averaged = new_vae(0)
    averaged.load_state_dict(mean)
    images, _ = pictures(np.random.default_rng(5), 64)
    return float(1 / VaeEncoderStage(averaged)(images).std())


if __name__ == "__main__":
    main()
