"""The toy model with every decoder: keypoints, generation and editing beside the detector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime.decoder_specs import DiffusionSpec, SchedulerSpec
from visionllm_edge.runtime.diffusion.image_maker import ImageMaker
from visionllm_edge.runtime.llm import SuperLink
from visionllm_edge.runtime.manifest import Normalization, PoseSpec
from visionllm_edge.runtime.pipelines.pose import PoseDecoder
from visionllm_edge.runtime.pipelines.visionllm_v2 import VisionLLMv2, VisionSettings

Float = NDArray[np.float32]
INSTANCES = 4


def pose_backbone(pixels: Float) -> dict[str, Float]:
    _, c, h, w = pixels.shape
    return {
        f"map{level}": pixels.reshape(1, c, h // s, s, w // s, s).mean(axis=(3, 5))
        for level, s in ((2, 8), (3, 16), (4, 32))
    }


def pose_encoder(
    map2: Float, map3: Float, map4: Float, valid_size: Any, object_states: Float
) -> dict[str, Float]:
    assert valid_size.dtype == np.int64
    memory = np.concatenate([m.reshape(1, 3, -1) for m in (map2, map3, map4)], axis=2)
    return {"memory": memory.swapaxes(1, 2).copy(), "text": object_states.mean(axis=2)}


def pose_boxes(memory: Float, text: Float, valid_size: Any) -> dict[str, Float]:
    rng = np.random.default_rng(3)
    instances = rng.normal(0, 1, (1, INSTANCES, text.shape[2])) + memory.mean()
    boxes = rng.uniform(0.3, 0.6, (1, INSTANCES, 4))
    return {"instances": instances.astype(np.float32), "boxes": boxes.astype(np.float32)}


def pose_keypoints(
    memory: Float,
    text: Float,
    instances: Float,
    boxes: Float,
    keypoint_states: Float,
    valid_size: Any,
) -> dict[str, Float]:
    words = keypoint_states.mean(axis=2)
    offsets = np.tanh(words[0, :, :2])[None, None] * boxes[:, :, None, 2:] / 2
    return {
        "logits": (instances @ text.swapaxes(1, 2) * 0.3).astype(np.float32),
        "out_boxes": boxes + np.float32(0.01),
        "keypoints": (boxes[:, :, None, :2] + offsets).astype(np.float32),
    }


def adapter(states: Float) -> dict[str, Float]:
    return {"condition": states[:, :2].copy()}


def unet(latents: Float, timestep: Float, condition: Float) -> dict[str, Float]:
    assert timestep.dtype == np.float32 and timestep.shape == (1,)
    words = condition.sum(axis=1)[:, :4, None, None]
    return {"noise": latents[:, :4] * np.float32(0.5) + words}


def vae_decoder(latents: Float) -> dict[str, Float]:
    return {"pixels": np.tanh(latents[:, :3] * 0.2).repeat(8, axis=2).repeat(8, axis=3)}


def vae_encoder(pixels: Float) -> dict[str, Float]:
    _, _, h, w = pixels.shape
    small = pixels.reshape(1, 3, h // 8, 8, w // 8, 8).mean(axis=(3, 5))
    return {"latents": np.concatenate([small, small[:, :1]], axis=1).astype(np.float32)}


FUNCTIONS: dict[str, Callable[..., dict[str, Float]]] = {
    "pose_backbone": pose_backbone,
    "pose_encoder": pose_encoder,
    "pose_boxes": pose_boxes,
    "pose_keypoints": pose_keypoints,
    "gen_adapter": adapter,
    "gen_unet": unet,
    "gen_vae_decoder": vae_decoder,
    "edit_adapter": adapter,
    "edit_unet": unet,
    "edit_vae_decoder": vae_decoder,
    "edit_vae_encoder": vae_encoder,
}


def pose_spec(max_keypoints: int = 68) -> PoseSpec:
    return PoseSpec(
        buckets=((64, 64), (64, 96)),
        shortest_edge=64,
        longest_edge=96,
        divisor=32,
        max_objects=100,
        max_keypoints=max_keypoints,
        num_instances=INSTANCES,
    )


def diffusion_spec(image_guidance: float) -> DiffusionSpec:
    return DiffusionSpec(
        latent_channels=4,
        vae_factor=8,
        scaling_factor=0.5,
        multiple=8,
        default_height=16,
        default_width=24,
        steps=3,
        guidance=2.0,
        image_guidance=image_guidance,
        scheduler=SchedulerSpec("ddim"),
        empty_prompt="tables/empty.npy",
        condition_tokens=2,
        condition_width=16,
    )


def add_decoders(toy: Any, *, without: str = "", max_keypoints: int = 68) -> Any:
    """Give a toy a pipeline with every decoder but the one that ``without`` names."""
    stage_type = type(next(iter(toy.stages.stages.values())))
    toy.stages.stages |= {name: stage_type(name, f) for name, f in FUNCTIONS.items()}
    det, pose, _ = toy.links
    rng = np.random.default_rng(8)

    def link(name: str, token: str, decoder: str) -> SuperLink:
        return SuperLink(name, (token,), rng.normal(0, 1, (7, 16)).astype(np.float32), decoder)

    empty = np.zeros((2, 16), np.float32)
    toy.links = (det, pose, link("gen", "[GEN]", "generate"), link("edit", "[EDIT]", "edit"))
    pipeline = toy.pipeline
    pose_decoder = PoseDecoder(
        toy.stages,
        pose_spec(max_keypoints),
        Normalization((120.0, 120.0, 120.0), (60.0, 60.0, 60.0)),
    )
    generator = ImageMaker(toy.stages, "gen", diffusion_spec(0.0), empty)
    editor = ImageMaker(toy.stages, "edit", diffusion_spec(1.5), empty)
    toy.pipeline = VisionLLMv2(
        stages=toy.stages,
        tokenizer=toy.tokenizer,
        session=toy.session,
        links=toy.links,
        vision=VisionSettings(8, 4, 4, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        detector=None if without == "detector" else pipeline.detector,
        template="vicuna_v1",
        pose=None if without == "pose" else pose_decoder,
        generator=None if without == "generate" else generator,
        editor=None if without == "edit" else editor,
    )
    return toy
