"""Euler steps that go a little too far down and add fresh noise to come back up.

Source: algorithm 2 of "Elucidating the Design Space of Diffusion-Based Generative Models" (arXiv
2206.00364) in the ancestral form of k-diffusion; timesteps and scales as in diffusers'
``EulerAncestralDiscreteScheduler`` with the settings of InstructPix2Pix. Timesteps are fractions.
"""

from __future__ import annotations

import math

from visionllm_edge.runtime.diffusion.noise_schedule import (
    NoiseSchedule,
    check_steps,
    linspace_timesteps,
)
from visionllm_edge.runtime.diffusion.scheduler import DrawNoise, Latents

__all__ = ["EulerAncestral"]


class EulerAncestral:
    """Draws noise at every step but the last; as many calls as steps.

    The sample is the picture plus sigma times noise, which at the start is far larger than the
    input that the UNet knows.

    Args:
        schedule: variances of training.
        steps: calls of the UNet.
    """

    def __init__(self, schedule: NoiseSchedule, steps: int) -> None:
        """Choose the timesteps.

        Raises:
            InputError: a number of steps that cannot be run.
        """
        check_steps(steps, schedule.train_steps)
        visited = linspace_timesteps(schedule, steps)
        self.timesteps = tuple(float(t) for t in visited)
        self._sigmas = [*schedule.sigmas(visited), 0.0]
        self.initial_scale = max(self._sigmas)

    def model_input(self, sample: Latents, call: int) -> Latents:
        """Scaled to the variance of training."""
        return sample * (1.0 / math.sqrt(self._sigmas[call] ** 2 + 1.0))

    def step(self, sample: Latents, predicted: Latents, call: int, draw: DrawNoise) -> Latents:
        """Go down below the next noise level and fill up with fresh noise."""
        here, after = self._sigmas[call], self._sigmas[call + 1]
        up = math.sqrt(after**2 * (here**2 - after**2) / here**2)
        down = math.sqrt(after**2 - up**2)
        moved = sample + predicted * (down - here)
        return moved + draw() * up if up else moved
