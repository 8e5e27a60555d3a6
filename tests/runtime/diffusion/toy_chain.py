"""Stages made of functions, and a diffusion model in numpy that keeps the stages' ports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime.decoder_specs import DiffusionSpec, SchedulerSpec
from visionllm_edge.runtime.diffusion.image_maker import ImageMaker, Prefix
from visionllm_edge.runtime.ports import StagePorts

TOKENS, WIDTH = 5, 16
SCALING = 0.3
FACTOR = 4


class FunctionStage:
    """A stage that is a function of named arrays; counts its runs and owns its outputs."""

    def __init__(self, name: str, function: Callable[..., dict[str, Any]]) -> None:
        self.name = name
        self._function = function
        self._kept: dict[str, NDArray[np.float32]] = {}
        self.shapes: list[dict[str, tuple[int, ...]]] = []

    @property
    def ports(self) -> StagePorts:
        return StagePorts(self.name, (), ())

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        self.shapes.append({name: value.shape for name, value in inputs.items()})
        for value in inputs.values():
            assert value.dtype == np.float32 and value.flags.c_contiguous
        for old in self._kept.values():  # what a runner gave out, its next run overwrites
            old.fill(np.nan)
        self._kept = {k: np.array(v) for k, v in self._function(**inputs).items()}
        return dict(self._kept)

    run_kept: Any = run
    new_cache: Any = None
    run_with_cache: Any = None


class FunctionStages:
    """Stages by name."""

    def __init__(self, stages: Mapping[str, FunctionStage]) -> None:
        self.stages = stages

    def get(self, name: str, bucket: tuple[int, int] | None = None) -> FunctionStage:
        return self.stages[name]


def diffusion_spec(kind: str, *, edits: bool, steps: int = 4) -> DiffusionSpec:
    return DiffusionSpec(
        latent_channels=4,
        vae_factor=FACTOR,
        scaling_factor=SCALING,
        multiple=FACTOR * 2,
        default_height=32,
        default_width=32,
        steps=steps,
        guidance=7.5,
        image_guidance=1.5 if edits else 0.0,
        scheduler=SchedulerSpec(kind),
        empty_prompt="tables/empty_prompt_gen.npy",
        condition_tokens=TOKENS,
        condition_width=WIDTH,
    )


def toy_maker(prefix: Prefix, llm_width: int, *, steps: int = 3) -> ImageMaker:
    """Pictures whose grey is decided by the condition, and in an edit by the source."""
    rng = np.random.default_rng(3)
    projection = rng.standard_normal((llm_width, WIDTH), dtype=np.float32)

    def adapter(states: Any) -> dict[str, Any]:
        return {"condition": np.tanh(states[:, :TOKENS] @ projection)}

    def unet(latents: Any, timestep: Any, condition: Any) -> dict[str, Any]:
        wanted = condition.reshape(len(latents), 4, -1).mean(axis=2)[:, :, None, None]
        return {"noise": latents[:, :4] - wanted - 0.5 * latents[:, 4:8].sum(axis=1, keepdims=True)}

    def decoder(latents: Any) -> dict[str, Any]:
        return {"pixels": np.tanh(latents[:, :3].repeat(FACTOR, axis=2).repeat(FACTOR, axis=3))}

    def encoder(pixels: Any) -> dict[str, Any]:
        small = pixels[:, :, ::FACTOR, ::FACTOR]
        return {"latents": np.concatenate([small, small[:, :1]], axis=1)}

    functions: dict[str, Callable[..., dict[str, Any]]] = {
        f"{prefix}_adapter": adapter,
        f"{prefix}_unet": unet,
        f"{prefix}_vae_decoder": decoder,
        f"{prefix}_vae_encoder": encoder,
    }
    stages = FunctionStages({name: FunctionStage(name, f) for name, f in functions.items()})
    edits = prefix == "edit"
    spec = diffusion_spec("euler_ancestral" if edits else "pndm", edits=edits, steps=steps)
    return ImageMaker(stages, prefix, spec, rng.standard_normal((TOKENS, WIDTH), dtype=np.float32))
