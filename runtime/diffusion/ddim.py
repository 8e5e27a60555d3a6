"""DDIM without added noise: the picture that the prediction implies, with less of the noise.

Source: "Denoising Diffusion Implicit Models" (arXiv 2010.02502), equation 12 with sigma 0;
timesteps and last step as in diffusers' ``DDIMScheduler`` with the settings of Stable Diffusion
1.5.
"""

from __future__ import annotations

import math

from visionllm_edge.runtime.diffusion.noise_schedule import NoiseSchedule, leading_timesteps
from visionllm_edge.runtime.diffusion.scheduler import DrawNoise, Latents

__all__ = ["DDIM"]


class DDIM:
    """Deterministic; as many calls as steps.

    Args:
        schedule: variances of training.
        steps: calls of the UNet.
        steps_offset: added to every timestep.
        set_alpha_to_one: whether the last step ends without noise; otherwise it ends with the noise
            of timestep 0.
    """

    initial_scale = 1.0

    def __init__(
        self, schedule: NoiseSchedule, steps: int, *, steps_offset: int, set_alpha_to_one: bool
    ) -> None:
        """Choose the timesteps.

        Raises:
            InputError: a number of steps that cannot be run.
        """
        visited = leading_timesteps(schedule, steps, steps_offset)
        distance = schedule.train_steps // steps
        end = 1.0 if set_alpha_to_one else float(schedule.kept[0])
        self.timesteps = tuple(float(t) for t in visited)
        self._kept = [
            (float(schedule.kept[t]), float(schedule.kept[t - distance]) if t >= distance else end)
            for t in visited
        ]

    def model_input(self, sample: Latents, call: int) -> Latents:
        """As it is."""
        return sample

    def step(self, sample: Latents, predicted: Latents, call: int, draw: DrawNoise) -> Latents:
        """Take the predicted noise out, and put the next timestep's share of it back."""
        kept, kept_after = self._kept[call]
        # The predicted picture is (sample - sqrt(1 - kept) * predicted) / sqrt(kept).
        ratio = math.sqrt(kept_after / kept)
        return sample * ratio + predicted * (
            math.sqrt(1.0 - kept_after) - ratio * math.sqrt(1.0 - kept)
        )
