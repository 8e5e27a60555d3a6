"""The chain against the pipelines of diffusers, and everything that it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.runtime.diffusion.torch_chain import LLM_WIDTH, ROWS, TorchChain
from tests.runtime.diffusion.toy_chain import SCALING
from visionllm_edge.runtime.diffusion.image_maker import ImageMaker, ImageOptions, ImagePlan
from visionllm_edge.runtime.diffusion.noise import NoiseSource
from visionllm_edge.runtime.errors import BackendError, InputError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

rng = np.random.default_rng(4)
HIDDEN = rng.standard_normal((ROWS, LLM_WIDTH), dtype=np.float32)
SOURCE = rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)
SCHEDULER_CLASSES = {
    "pndm": "PNDMScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
}


def made(
    maker: ImageMaker, plan: ImagePlan, source: NDArray[np.uint8] | None = None
) -> tuple[NDArray[np.uint8], list[tuple[int, int]]]:
    steps, seen = maker.make(HIDDEN, plan, source), []
    while True:
        try:
            seen.append(next(steps))
        except StopIteration as end:
            return end.value, seen


def scheduler_of_diffusers(kind: str) -> Any:
    import diffusers

    public = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
    }
    own = {
        "pndm": {"set_alpha_to_one": False, "skip_prk_steps": True},
        "ddim": {"set_alpha_to_one": False, "clip_sample": False},
    }.get(kind, {})
    return getattr(diffusers, SCHEDULER_CLASSES[kind])(**public, **own)


def by_diffusers(
    chain: TorchChain, kind: str, noise: NoiseSource, monkeypatch: pytest.MonkeyPatch, **call: Any
) -> NDArray[np.float32]:
    """The picture of diffusers' own pipeline, 0..1 ``[H, W, 3]``, from the same noise."""
    import torch
    from diffusers import StableDiffusionInstructPix2PixPipeline, StableDiffusionPipeline
    from diffusers.schedulers import scheduling_euler_ancestral_discrete as module

    kind_of_pipeline: Any = (
        StableDiffusionInstructPix2PixPipeline if chain.edits else StableDiffusionPipeline
    )
    pipeline = kind_of_pipeline(
        vae=chain.vae,
        text_encoder=None,
        tokenizer=None,
        unet=chain.unet,
        scheduler=scheduler_of_diffusers(kind),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.from_numpy(noise())
    # The first noise is given; from here on the sampler draws what ours drew.
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: torch.from_numpy(noise()))
    picture: NDArray[np.float32] = pipeline(
        prompt_embeds=torch.from_numpy(chain.condition(HIDDEN[None])),
        negative_prompt_embeds=torch.from_numpy(chain.empty[None]),
        latents=latents,
        output_type="np",
        **call,
    ).images[0]
    return picture


def compare(picture: NDArray[np.uint8], other: NDArray[np.float32]) -> None:
    """Equal up to the rounding to whole grey levels; and not a plain picture."""
    assert picture.shape == other.shape
    assert np.abs(picture / 255.0 - other).max() < 0.51 / 255
    assert len(np.unique(picture)) > 30


@pytest.fixture(scope="module")
def generator() -> TorchChain:
    return TorchChain(edits=False)


@pytest.fixture(scope="module")
def editor() -> TorchChain:
    return TorchChain(edits=True)


@pytest.mark.parametrize("kind", list(SCHEDULER_CLASSES))
def test_generation_is_that_of_stable_diffusion(
    kind: str, generator: TorchChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = generator.maker(kind)
    options = ImageOptions(size=(32, 48), steps=6, guidance=5.0, seed=9)
    picture, seen = made(maker, maker.plan(options))
    calls = 7 if kind == "pndm" else 6
    assert seen == [(i + 1, calls) for i in range(calls)]
    noise = NoiseSource(9, (1, 4, 8, 12))
    other = by_diffusers(
        generator, kind, noise, monkeypatch, num_inference_steps=6, guidance_scale=5.0,
        height=32, width=48,
    )  # fmt: skip
    compare(picture, other)


@pytest.mark.parametrize("kind", list(SCHEDULER_CLASSES))
def test_editing_is_that_of_instruct_pix2pix(
    kind: str, editor: TorchChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    maker = editor.maker(kind)
    plan = maker.plan(ImageOptions(size=(40, 56), seed=3), SOURCE.shape[:2])
    picture, _ = made(maker, plan, SOURCE)
    other = by_diffusers(
        editor, kind, NoiseSource(3, (1, 4, 10, 14)), monkeypatch,
        image=Image.fromarray(SOURCE), num_inference_steps=4, guidance_scale=7.5,
        image_guidance_scale=1.5,
    )  # fmt: skip
    compare(picture, other)


def test_the_comparison_sees_a_fault(editor: TorchChain, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scaled image latents, the slip that is easily made, must not pass."""
    from PIL import Image

    maker = editor.maker("ddim")
    encode = maker.encode
    monkeypatch.setattr(maker, "encode", lambda *given: encode(*given) * np.float32(SCALING))
    picture, _ = made(maker, maker.plan(ImageOptions(size=(40, 56), seed=3), (40, 56)), SOURCE)
    other = by_diffusers(
        editor, "ddim", NoiseSource(3, (1, 4, 10, 14)), monkeypatch,
        image=Image.fromarray(SOURCE), num_inference_steps=4, guidance_scale=7.5,
        image_guidance_scale=1.5,
    )  # fmt: skip
    with pytest.raises(AssertionError):
        compare(picture, other)


@pytest.mark.parametrize("edits", [False, True])
def test_one_batch_gives_the_same_picture(
    edits: bool, generator: TorchChain, editor: TorchChain
) -> None:
    chain, source = (editor, SOURCE) if edits else (generator, None)
    unet = chain.stages.stages[f"{chain.prefix}_unet"]
    pictures = []
    for together in (False, True):
        maker = chain.maker("ddim", together=together)
        unet.shapes.clear()
        size = None if source is None else (40, 56)
        picture, _ = made(maker, maker.plan(ImageOptions(seed=1), size), source)
        pictures.append(picture.astype(int))
        batches = {shapes["latents"][0] for shapes in unet.shapes}
        assert batches == ({3 if edits else 2} if together else {1})
    assert np.abs(pictures[0] - pictures[1]).max() <= 1


def test_a_seed_gives_the_same_picture_again(generator: TorchChain) -> None:
    maker = generator.maker("euler_ancestral")
    first, again, other = (made(maker, maker.plan(ImageOptions(seed=s)))[0] for s in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.shape == (32, 32, 3)


def test_an_edit_takes_the_shape_of_its_picture(editor: TorchChain) -> None:
    maker = editor.maker("euler_ancestral")
    plan = maker.plan(ImageOptions(seed=0, steps=1), (300, 500))
    assert plan.size == (32, 56)  # shorter side as in training, both multiples of 8
    assert (plan.guidance, plan.image_guidance, plan.sampler) == (7.5, 1.5, "euler_ancestral")
    picture, _ = made(maker, plan, np.zeros((300, 500, 3), np.uint8))
    assert picture.shape == (32, 56, 3)


def test_a_run_can_be_given_up(generator: TorchChain) -> None:
    maker = generator.maker("ddim")
    unet = generator.stages.stages["gen_unet"]
    unet.shapes.clear()
    run = maker.make(HIDDEN, maker.plan(ImageOptions(steps=9, guidance=1.0)))
    next(run), next(run)
    run.close()
    assert len(unet.shapes) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ImageOptions(size=(32, 36)), r"multiples of 8 pixels from 8 to 4096, got \(32, 36\)"),
        (ImageOptions(size=(0, 32)), "multiples of 8"),
        (ImageOptions(size=(8000, 32)), "multiples of 8"),
        (ImageOptions(steps=0), "steps: expected a whole number of at least 1, got 0"),
        (ImageOptions(steps=1001), "steps: expected 1 to 1000"),
        (ImageOptions(guidance=-1.0), "guidance: expected a number of at least 0, got -1.0"),
        (ImageOptions(guidance=float("nan")), "guidance: expected a number"),
        (ImageOptions(image_guidance=1.5), "image_guidance: expected none"),
        (ImageOptions(seed=-4), "seed: expected a whole number"),
        (ImageOptions(scheduler="heun"), "scheduler: expected one of pndm, euler_ancestral"),
    ],
)
def test_refuses_options(options: ImageOptions, message: str, generator: TorchChain) -> None:
    with pytest.raises(InputError, match=message):
        generator.maker("pndm").plan(options)


def test_refuses_an_edit_without_a_picture(editor: TorchChain) -> None:
    with pytest.raises(InputError, match="edit: expected a picture to edit, got none"):
        editor.maker("pndm").plan(ImageOptions())


def test_refuses_numbers_that_are_none(generator: TorchChain) -> None:
    maker = generator.maker("ddim")
    maker.spec = replace(maker.spec, scaling_factor=1e-40)
    with (
        pytest.raises(BackendError, match="expected finite numbers from the VAE"),
        np.errstate(over="ignore", invalid="ignore"),
    ):
        made(maker, maker.plan(ImageOptions(steps=1)))
