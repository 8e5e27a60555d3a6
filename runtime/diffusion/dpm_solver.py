"""DPM-Solver++ (2M): second order in the predicted picture, from this call and the one before.

Source: "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models" (arXiv
2211.01095), algorithm 2; timesteps, first-order ends and the noiseless last step as in diffusers'
``DPMSolverMultistepScheduler`` with its defaults.
"""

from __future__ import annotations

import math

import numpy as np

from visionllm_edge.runtime.diffusion.noise_schedule import (
    NoiseSchedule,
    check_steps,
    linspace_timesteps,
)
from visionllm_edge.runtime.diffusion.scheduler import DrawNoise, Latents

__all__ = ["DPMSolver"]


class DPMSolver:
    """Deterministic; as many calls as steps. Good pictures from 15 to 25 of them.

    Args:
        schedule: variances of training.
        steps: calls of the UNet.
    """

    initial_scale = 1.0

    def __init__(self, schedule: NoiseSchedule, steps: int) -> None:
        """Choose the timesteps.

        Raises:
            InputError: a number of steps that cannot be run.
        """
        check_steps(steps, schedule.train_steps - 1)
        # One more point than steps: timestep 0, which has hardly any noise, is not visited.
        visited = np.rint(linspace_timesteps(schedule, steps + 1))[:-1]
        self.timesteps = tuple(float(t) for t in visited)
        self._sigmas = [*schedule.sigmas(visited), 0.0]
        self._before: Latents | None = None

    def model_input(self, sample: Latents, call: int) -> Latents:
        """As it is."""
        return sample

    def step(self, sample: Latents, predicted: Latents, call: int, draw: DrawNoise) -> Latents:
        """Move along the predicted picture, corrected by how it changed since the call before."""
        picture_part, noise_part = _parts(self._sigmas[call])
        picture: Latents = sample * (1.0 / picture_part) - predicted * (noise_part / picture_part)
        before, self._before = self._before, picture
        if self._sigmas[call + 1] == 0.0:
            return picture
        picture_after, noise_after = _parts(self._sigmas[call + 1])
        # Half the log of the signal-to-noise ratio is -log(sigma).
        step = math.log(self._sigmas[call]) - math.log(self._sigmas[call + 1])
        weight = -picture_after * math.expm1(-step)
        moved: Latents = sample * (noise_after / noise_part) + picture * weight
        if before is not None:
            step_before = math.log(self._sigmas[call - 1]) - math.log(self._sigmas[call])
            moved += (picture - before) * (0.5 * weight * step / step_before)
        return moved


def _parts(sigma: float) -> tuple[float, float]:
    """How much of a sample of unit variance is picture and how much is noise."""
    picture = 1.0 / math.sqrt(sigma**2 + 1.0)
    return picture, sigma * picture
