"""Noise, captions, pixels and guidance, each by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from visionllm_edge.runtime.diffusion.captions import training_caption
from visionllm_edge.runtime.diffusion.guidance import (
    Condition,
    GuidedUNet,
    editing_conditions,
    generation_conditions,
)
from visionllm_edge.runtime.diffusion.noise import NoiseSource, check_seed
from visionllm_edge.runtime.diffusion.pixels import pixels_from_rgb, rgb_from_pixels, size_near
from visionllm_edge.runtime.errors import BackendError, InputError
from visionllm_edge.runtime.ports import StagePorts


def test_noise_is_the_same_everywhere() -> None:
    source = NoiseSource(7, (2, 3))
    first, second = source(), source()
    assert first.dtype == np.float32
    assert first.ravel().tolist() == pytest.approx(FIRST_OF_SEED_7, abs=0)
    assert not np.array_equal(first, second)
    assert np.array_equal(NoiseSource(7, (2, 3))(), first)
    assert not np.array_equal(NoiseSource(8, (2, 3))(), first)


# float32 numbers of Philox(7), written down so that another numpy cannot change pictures unseen.
FIRST_OF_SEED_7 = [
    -0.5023735761642456, 0.5068453550338745, 2.019348621368408,
    0.8514957427978516, 0.18355125188827515, 0.4939996898174286,
]  # fmt: skip


def test_noise_has_the_variance_of_training() -> None:
    noise = NoiseSource(0, (1, 4, 64, 64))()
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1.0) < 0.02


def test_seeds() -> None:
    assert check_seed(5) == 5
    assert check_seed(np.int64(5)) == 5  # type: ignore[arg-type]
    drawn = {check_seed(None) for _ in range(4)}
    assert len(drawn) > 1 and max(drawn) < 2**32
    for bad in (-1, 2**63, 1.5, True, "7"):
        with pytest.raises(InputError, match="seed: expected a whole number"):
            check_seed(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "trained"),
    [
        ("A red circle, a blue person.", "a red circle, a blue person"),
        ('  "Two"  cats!  (sleeping): *soft*; #1 ~ ', "two cats sleeping soft 1"),
        ("it's a half-open door?", "it's a half-open door?"),
    ],
)  # fmt: skip
def test_captions_are_prepared_as_in_training(said: str, trained: str) -> None:
    assert training_caption(said) == trained


def test_pixels_there_and_back() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    pixels = pixels_from_rgb(rgb, (8, 16))
    assert pixels.shape == (1, 3, 8, 16) and pixels.dtype == np.float32
    assert pixels.min() >= -1.0 and pixels.max() <= 1.0
    assert np.array_equal(rgb_from_pixels(pixels), rgb)
    assert pixels_from_rgb(rgb, (16, 24)).shape == (1, 3, 16, 24)
    assert rgb_from_pixels(np.full((1, 3, 2, 2), 3.0, np.float32)).max() == 255
    with pytest.raises(BackendError, match="NaN or infinity"):
        rgb_from_pixels(np.full((1, 3, 2, 2), np.nan, np.float32))


def test_an_edit_takes_about_the_shape_of_its_picture() -> None:
    large = (4096, 4096)
    assert size_near((480, 640), shorter=256, multiple=8, largest=large) == (256, 344)
    assert size_near((640, 480), shorter=256, multiple=64, largest=large) == (320, 256)
    assert size_near((10, 10), shorter=3, multiple=8, largest=large) == (8, 8)


def test_an_edit_of_a_long_picture_stays_inside_and_keeps_its_shape() -> None:
    assert size_near((1080, 1920), shorter=512, multiple=8, largest=(768, 768)) == (432, 768)
    assert size_near((1920, 1080), shorter=512, multiple=8, largest=(768, 1536)) == (768, 432)
    assert size_near((480, 640), shorter=512, multiple=8, largest=(768, 768)) == (512, 680)


class LinearUNet:
    """Its prediction is linear in everything, so that the guidance formula can be checked."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    @property
    def ports(self) -> StagePorts:
        return StagePorts("gen_unet", (), ())

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        latents, condition = inputs["latents"], inputs["condition"]
        assert inputs["timestep"].shape == (1,) and inputs["timestep"].dtype == np.float32
        assert len(latents) == len(condition)
        self.batches.append(len(latents))
        noise = latents[:, :4] + condition.mean(axis=(1, 2))[:, None, None, None]
        if latents.shape[1] == 8:
            noise = noise + 10 * latents[:, 4:]
        self.out = noise.astype(np.float32)
        return {"noise": self.out}

    run_kept: Any = None
    new_cache: Any = None
    run_with_cache: Any = None


rng = np.random.default_rng(1)
ASKED, EMPTY = rng.standard_normal((2, 1, 5, 6), dtype=np.float32)
SAMPLE, IMAGE = rng.standard_normal((2, 1, 4, 3, 2), dtype=np.float32)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(("guidance", "calls"), [(7.5, 2), (1.0, 1), (0.0, 1)])
def test_guidance_of_generation(guidance: float, calls: int, together: bool) -> None:
    unet = LinearUNet()
    conditions = generation_conditions(ASKED, EMPTY, guidance)
    found = GuidedUNet(unet, conditions, together=together).predict(SAMPLE, 3.5)
    text, none = SAMPLE + ASKED.mean(), SAMPLE + EMPTY.mean()
    assert np.allclose(found, none + guidance * (text - none), atol=1e-5)
    assert unet.batches == ([calls] if together else [1] * calls)
    assert found is not unet.out and found.dtype == np.float32


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(
    ("guidance", "image_guidance", "calls"),
    [(7.5, 1.5, 3), (7.5, 1.0, 2), (2.0, 2.0, 2), (1.0, 1.0, 1)],
)
def test_guidance_of_editing(
    guidance: float, image_guidance: float, calls: int, together: bool
) -> None:
    unet = LinearUNet()
    conditions = editing_conditions(
        ASKED, EMPTY, IMAGE, guidance=guidance, image_guidance=image_guidance
    )
    found = GuidedUNet(unet, conditions, together=together).predict(SAMPLE, 3.5)
    text = SAMPLE + ASKED.mean() + 10 * IMAGE
    image = SAMPLE + EMPTY.mean() + 10 * IMAGE
    none = SAMPLE + EMPTY.mean()
    expected = none + guidance * (text - image) + image_guidance * (image - none)
    assert np.allclose(found, expected, atol=2e-5)
    assert sum(unet.batches) == calls and len(unet.batches) == (1 if together else calls)


def test_a_part_without_weight_is_left_out() -> None:
    assert [c.weight for c in generation_conditions(ASKED, EMPTY, 1.0)] == [1.0]
    kept = editing_conditions(ASKED, EMPTY, IMAGE, guidance=7.5, image_guidance=1.0)
    assert all(isinstance(c, Condition) and c.image_1Chw is IMAGE for c in kept)
