"""How good a picture branch is: captions and edits never trained on, seen by the object decoder."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.tiny.diffusion_data import Prompts, draw, encode
from visionllm_edge.export.tiny.diffusion_model import BranchTrainer
from visionllm_edge.export.tiny.picture_judge import edit_done, found_names, near_misses
from visionllm_edge.runtime.shapes_world.edits import make_edit, make_sketch

__all__ = ["as_images", "judge", "made_edits", "made_sketches"]

_SEED = 2_000_003


def as_images(pixels: Tensor) -> list[NDArray[np.uint8]]:
    """Pictures [B,3,H,W], about -1..1, as RGB arrays [H,W,3]."""
    bytes_ = ((pixels * 0.5 + 0.5).clamp(0, 1) * 255).round().byte()
    return [np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in bytes_]


def judge(
    trainer: BranchTrainer,
    model: VisionLLM,
    prompts: Prompts,
    *,
    count: int = 48,
    guidance: float = 3.0,
    image_guidance: float = 1.5,
    steps: int = 20,
    kind: str = "dpmsolver++",
    seed: int = _SEED,
) -> str:
    """A line with the shares that are right."""
    made = made_edits if trainer.edits else made_sketches
    return made(
        trainer,
        model,
        prompts,
        count=count,
        options={
            "guidance": guidance,
            "image_guidance": image_guidance,
            "steps": steps,
            "kind": kind,
        },
        seed=seed,
    )[0]


@torch.no_grad()
def made_sketches(
    trainer: BranchTrainer,
    model: VisionLLM,
    prompts: Prompts,
    *,
    count: int,
    options: dict[str, object],
    seed: int,
) -> tuple[str, list[NDArray[np.uint8]]]:
    """Half of the pictures show one figure, the others a pair that is never trained on."""
    rng = np.random.default_rng(seed)
    sketches = [make_sketch(rng, max_figures=1) for _ in range(count // 2)]
    sketches += [make_sketch(rng, min_figures=2, kept=True) for _ in range(count - count // 2)]
    past = prompts.captions([sketch.caption for sketch in sketches], [0] * count)
    condition = trainer.condition(model, past)
    images = as_images(trainer.sample(condition, seed=seed, **options))  # type: ignore[arg-type]
    asked = [near_misses(sketch.names, rng) for sketch in sketches]
    found = found_names(model, prompts.tokenizer, images, asked)
    hits = [
        [name in seen for name in sketch.names]
        for sketch, seen in zip(sketches, found, strict=True)
    ]
    one, two = hits[: count // 2], hits[count // 2 :]
    line = (
        f"one figure {np.mean([h[0] for h in one]):.2f}, of two {np.mean(np.array(two)):.2f}, "
        f"both of two {np.mean([all(h) for h in two]):.2f}"
    )
    return line, images


@torch.no_grad()
def made_edits(
    trainer: BranchTrainer,
    model: VisionLLM,
    prompts: Prompts,
    *,
    count: int,
    options: dict[str, object],
    seed: int,
) -> tuple[str, list[NDArray[np.uint8]]]:
    """Edits of pictures whose seeds are not trained on; half of them show a kept pair."""
    rng = np.random.default_rng(seed)
    edits = [make_edit(rng, kept=bool(i % 2)) for i in range(count)]
    before = [draw(edit.before) for edit in edits]
    past = prompts.edits([edit.instruction for edit in edits], [0] * count, before)
    condition = trainer.condition(model, past)
    sources = encode(trainer.vae, before)
    images = as_images(
        trainer.sample(condition, sources=sources, seed=seed, **options)  # type: ignore[arg-type]
    )
    asked = [near_misses(list({*e.before.names, *e.after.names}), rng) for e in edits]
    found = found_names(model, prompts.tokenizer, images, asked)
    shares: dict[str, list[bool]] = {}
    for edit, seen in zip(edits, found, strict=True):
        changed, kept = edit_done(edit, seen)
        shares.setdefault(edit.kind, []).append(changed)
        shares.setdefault("changed", []).append(changed)
        shares.setdefault("others kept", []).append(kept)
    line = ", ".join(f"{name} {np.mean(values):.2f}" for name, values in shares.items())
    return line, images
