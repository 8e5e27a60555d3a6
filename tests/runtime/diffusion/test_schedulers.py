"""Each scheduler against that of diffusers, call by call, with the same predictions and noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from visionllm_edge.runtime.diffusion.ddim import DDIM
from visionllm_edge.runtime.diffusion.dpm_solver import DPMSolver
from visionllm_edge.runtime.diffusion.euler_ancestral import EulerAncestral
from visionllm_edge.runtime.diffusion.noise_schedule import NoiseSchedule
from visionllm_edge.runtime.diffusion.pndm import PNDM
from visionllm_edge.runtime.diffusion.scheduler import Scheduler
from visionllm_edge.runtime.errors import InputError

SHAPE = (1, 4, 6, 5)
SD = NoiseSchedule()
# scheduler/scheduler_config.json of the public Stable Diffusion 1.5; InstructPix2Pix has the same.
PUBLIC = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}


def made_by_diffusers(name: str, **changed: Any) -> Any:
    diffusers = pytest.importorskip("diffusers", reason="the extra 'export' is not installed")
    kind = getattr(diffusers, name)
    # A class takes what it knows of a public config and its own default for the rest.
    known = kind.load_config.__self__._get_init_keys(kind)
    return kind(**{key: value for key, value in {**PUBLIC, **changed}.items() if key in known})


class SameNoise:
    """Stands in for diffusers' source of noise; gives the noise that ours was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from diffusers.schedulers import scheduling_euler_ancestral_discrete as module

        self.drawn: list[NDArray[np.float32]] = []
        self._rng = np.random.default_rng(11)
        monkeypatch.setattr(module, "randn_tensor", self._theirs)

    def __call__(self) -> NDArray[np.float32]:
        self.drawn.append(self._rng.standard_normal(SHAPE, dtype=np.float32))
        return self.drawn[-1]

    def _theirs(self, shape: Any, **_: object) -> Any:
        import torch

        return torch.from_numpy(self.drawn.pop(0)) if self.drawn else torch.zeros(shape)


def largest_difference(
    ours: Scheduler, theirs: Any, steps: int, draw: Callable[[], NDArray[np.float32]]
) -> float:
    """Over all calls of a run, relative to the size of the sample. Timesteps must be equal."""
    import torch

    theirs.set_timesteps(steps)
    assert np.array_equal(
        np.array(ours.timesteps, np.float32), theirs.timesteps.numpy().astype("f4")
    )
    rng = np.random.default_rng(3)
    noise = rng.standard_normal(SHAPE, dtype=np.float32)
    sample = noise * ours.initial_scale
    other = torch.from_numpy(noise) * theirs.init_noise_sigma
    worst = 0.0
    for call, timestep in enumerate(theirs.timesteps):
        seen = ours.model_input(sample, call)
        seen_there = theirs.scale_model_input(other, timestep).numpy()
        worst = max(worst, float(np.abs(seen - seen_there).max() / np.abs(seen_there).max()))
        # Any function of what the UNet sees and of the timestep will do as a UNet.
        fixed = rng.standard_normal(SHAPE, dtype=np.float32)
        predicted = np.tanh(seen) * np.float32(0.7) + fixed * np.float32(0.4)
        sample = ours.step(sample, predicted, call, draw)
        other = theirs.step(torch.from_numpy(predicted), timestep, other).prev_sample
        assert sample.dtype == np.float32
        there = other.numpy()
        worst = max(worst, float(np.abs(sample - there).max() / np.abs(there).max()))
    return worst


# Its schedulers turn a tensor into an array in a way that numpy 2 finds old.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
# diffusers computes its coefficients in float32; the product of 1000 factors is off by some 1e-5.
LIMIT = 2e-5


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 20, 50, 333, 999])
def test_pndm_as_stable_diffusion_uses_it(steps: int) -> None:
    ours = PNDM(SD, steps, steps_offset=1, set_alpha_to_one=False)
    theirs = made_by_diffusers("PNDMScheduler")
    assert len(ours.timesteps) == (steps + 1 if steps > 1 else 1)
    assert largest_difference(ours, theirs, steps, no_noise) < LIMIT


@pytest.mark.parametrize("steps", [4, 7, 50])
def test_pndm_with_runge_kutta_steps(steps: int) -> None:
    ours = PNDM(SD, steps, steps_offset=1, set_alpha_to_one=True, skip_prk_steps=False)
    theirs = made_by_diffusers("PNDMScheduler", skip_prk_steps=False, set_alpha_to_one=True)
    assert largest_difference(ours, theirs, steps, no_noise) < LIMIT


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 999])
@pytest.mark.parametrize("to_one", [False, True])
def test_ddim(steps: int, to_one: bool) -> None:
    ours = DDIM(SD, steps, steps_offset=1, set_alpha_to_one=to_one)
    theirs = made_by_diffusers("DDIMScheduler", set_alpha_to_one=to_one)
    assert largest_difference(ours, theirs, steps, no_noise) < LIMIT


@pytest.mark.parametrize("steps", [1, 2, 7, 100, 1000])
def test_euler_ancestral_as_instruct_pix2pix_uses_it(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = made_by_diffusers("EulerAncestralDiscreteScheduler")
    draw = SameNoise(monkeypatch)
    assert largest_difference(EulerAncestral(SD, steps), theirs, steps, draw) < LIMIT
    assert not draw.drawn


@pytest.mark.parametrize("steps", [1, 2, 3, 14, 15, 25, 999])
def test_dpm_solver(steps: int) -> None:
    theirs = made_by_diffusers("DPMSolverMultistepScheduler")
    assert largest_difference(DPMSolver(SD, steps), theirs, steps, no_noise) < LIMIT


def test_linear_variances() -> None:
    schedule = NoiseSchedule(train_steps=500, beta_schedule="linear")
    ours = DDIM(schedule, 10, steps_offset=0, set_alpha_to_one=False)
    theirs = made_by_diffusers(
        "DDIMScheduler", num_train_timesteps=500, beta_schedule="linear", steps_offset=0
    )
    assert largest_difference(ours, theirs, 10, no_noise) < LIMIT


@pytest.mark.parametrize(
    "fault",
    [
        lambda: DDIM(SD, 20, steps_offset=1, set_alpha_to_one=True),
        lambda: PNDM(SD, 20, steps_offset=1, set_alpha_to_one=False),
        lambda: DDIM(NoiseSchedule(beta_end=0.0121), 20, steps_offset=1, set_alpha_to_one=False),
    ],
)
def test_the_comparison_sees_another_scheduler(fault: Callable[[], Scheduler]) -> None:
    theirs = made_by_diffusers("DDIMScheduler")
    with pytest.raises((AssertionError, ValueError)):
        assert largest_difference(fault(), theirs, 20, no_noise) < LIMIT


def test_a_sampler_with_the_true_noise_finds_the_picture() -> None:
    """If the UNet knew the picture, every scheduler would end at it, whatever it started from."""
    rng = np.random.default_rng(0)
    picture = rng.standard_normal(SHAPE, dtype=np.float32)
    for scheduler in (
        DDIM(SD, 30, steps_offset=1, set_alpha_to_one=True),
        PNDM(SD, 30, steps_offset=1, set_alpha_to_one=True),
        DPMSolver(SD, 30),
        EulerAncestral(SD, 30),
    ):
        sample = rng.standard_normal(SHAPE, dtype=np.float32) * scheduler.initial_scale
        for call, timestep in enumerate(scheduler.timesteps):
            seen = scheduler.model_input(sample, call)
            kept = np.interp(timestep, np.arange(1000), SD.kept)
            predicted = ((seen - np.sqrt(kept) * picture) / np.sqrt(1 - kept)).astype(np.float32)
            sample = scheduler.step(
                sample, predicted, call, lambda: rng.standard_normal(SHAPE, dtype=np.float32)
            )
        assert np.abs(sample - picture).max() < 0.05, type(scheduler).__name__


@pytest.mark.parametrize("steps", [0, -1, 1001])
@pytest.mark.parametrize(
    "make",
    [
        lambda n: DDIM(SD, n, steps_offset=1, set_alpha_to_one=False),
        lambda n: PNDM(SD, n, steps_offset=1, set_alpha_to_one=False),
        lambda n: EulerAncestral(SD, n),
        lambda n: DPMSolver(SD, n),
    ],
)
def test_refuses_a_number_of_steps(make: Callable[[int], Scheduler], steps: int) -> None:
    with pytest.raises(InputError, match="steps: expected 1 to"):
        make(steps)


def test_refuses_steps_that_do_not_fit_behind_the_offset() -> None:
    with pytest.raises(InputError, match="expected fewer than 1000 with an offset of 1, got 1000"):
        DDIM(SD, 1000, steps_offset=1, set_alpha_to_one=False)
    with pytest.raises(InputError, match="expected more than 3 for PNDM"):
        PNDM(SD, 3, steps_offset=1, set_alpha_to_one=False, skip_prk_steps=False)


def test_refuses_a_schedule_that_is_none() -> None:
    with pytest.raises(InputError, match="scaled_linear, got 'cosine'"):
        NoiseSchedule(beta_schedule="cosine")
    with pytest.raises(InputError, match="0 < beta_start <= beta_end < 1"):
        NoiseSchedule(beta_start=0.5, beta_end=0.1)


def no_noise() -> NDArray[np.float32]:
    raise AssertionError("a deterministic scheduler draws no noise")
